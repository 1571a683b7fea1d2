"""The file of a checkpoint: an SQLite database that only its owner can read.

One connection locks the file while it is open, because two runs would compute the same items twice.

A transaction is safe once it is committed, even if the process is killed in the next moment. With
`synchronous=NORMAL` the system decides when it writes to the disk: a power cut may lose the values
of the last moments, which are then computed again, but the file stays intact
(https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, ConfigurationError

__all__ = ["CheckpointFile", "check_name", "is_checkpoint", "remove_checkpoint"]

APPLICATION_ID = 0x67707478
"""The `application_id` of the SQLite files: 'gptx' in ASCII."""

FORMAT_VERSION = 2

LOCK_SECONDS = 2.0
"""How long to wait for another run that has locked the file and may be ending."""

_SCHEMA = """
CREATE TABLE job (part TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE results (
    item INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    format TEXT NOT NULL CHECK (format IN ('json', 'symbols', 'pickle')),
    value NOT NULL
);
"""


class CheckpointFile:
    """Creates, locks and opens the file of a checkpoint, and explains SQLite's errors.

    May be used in any thread, by one at a time.

    Attributes:
        path: The path of the file, for messages.
        connection: The connection, in autocommit mode.

    Args:
        path: The file. It is created if it does not exist.

    Raises:
        CheckpointError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._is_created = self._create_file()
        with self.explained():
            self.connection = sqlite3.connect(
                os.path.realpath(self.path),
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )

    def lock(self) -> bool:
        """Lock the file, and return whether it is new and has no tables yet.

        It may be another program's file, so nothing is written to it before that is known.

        Raises:
            CheckpointError: The file is in use, or is not a checkpoint of this format.
        """
        with self.explained():
            is_new = self._is_new()
            if is_new and not self._is_created:
                self._make_private()
            # In this order SQLite needs no shared-memory file, and the first read locks the file.
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
        return is_new

    def create_tables(self) -> None:
        """Create the tables of a new file, and mark it as a checkpoint."""
        for statement in _SCHEMA.split(";"):
            self.connection.execute(statement)
        self.connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def close(self) -> None:
        """Close the connection, which unlocks the file. A second call does nothing."""
        self.connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction, which is rolled back if the block raises."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:  # SQLite rolls back by itself when the disk is full
                self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise a `CheckpointError` that explains an SQLite error of the block."""
        try:
            yield
        except sqlite3.Error as error:
            raise CheckpointError(self._explain(error)) from error

    def _create_file(self) -> bool:
        """Create the file with access for its owner only; return False if it exists."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.close(os.open(os.path.realpath(self.path), flags, 0o600))
        except FileExistsError:
            return False
        except OSError as error:
            raise CheckpointError(self._unusable(error.strerror)) from error
        return True

    def _make_private(self) -> None:
        """Restrict an empty file that existed before, with any mode, to its owner."""
        try:
            os.chmod(os.path.realpath(self.path), 0o600)
        except OSError as error:
            raise CheckpointError(self._unusable(error.strerror)) from error

    def _is_new(self) -> bool:
        [application] = self.connection.execute("PRAGMA application_id").fetchone()
        [version] = self.connection.execute("PRAGMA user_version").fetchone()
        [tables] = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            return True
        if application != APPLICATION_ID:
            raise CheckpointError(
                f"{self.path!r} is an SQLite file, but not a checkpoint of gptx_async. Give the "
                "name of a new file; this one was not changed."
            )
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"The checkpoint {self.path!r} has format {version}; this version of gptx_async "
                f"reads format {FORMAT_VERSION}. Use the version that wrote it, or a new file."
            )
        return False

    def _explain(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, without details
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"The checkpoint {self.path!r} is in use, by another run or by a program that "
                "reads it. Wait until that ends, or give each run its own file."
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return (
                f"{self.path!r} is not an SQLite file, or is damaged ({error}). Give the name of "
                "a new file; this one was not changed."
            )
        return self._unusable(str(error))

    def _unusable(self, reason: str | None) -> str:
        return (
            f"The checkpoint {self.path!r} can't be used ({reason}). Check that its folder exists, "
            "is writable and has free space. Values that were stored are kept."
        )


def check_name(path: str | os.PathLike[str]) -> None:
    """Check that SQLite would take a name as the name of a file.

    Raises:
        ConfigurationError: It would not.
    """
    name = os.fspath(path)
    if name == ":memory:":
        raise ConfigurationError(
            "checkpoint=':memory:' is not a file, so a second run would find nothing. Give the "
            "name of a file."
        )
    if name.startswith("file:"):
        raise ConfigurationError(
            f"checkpoint={name!r} looks like a URI, but a checkpoint is given by its path. Give "
            f"{name.removeprefix('file:')!r}, or './{name}' for a file with that name."
        )


def is_checkpoint(path: Path) -> bool:
    """Return whether an existing file is a checkpoint, or is empty and may become one."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
            [application] = connection.execute("PRAGMA application_id").fetchone()
            [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        return False
    return bool(application == APPLICATION_ID or not tables)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint that nobody has open, with SQLite's files next to it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
