"""The checkpoint of a run: its results in an SQLite file, as they come.

A value is there once `keep` has returned, also if the process is killed in the next moment: it is
committed, and the system has it. `synchronous=NORMAL` leaves to the system when it goes to the
disk, so that a power cut may lose the values of the last moments, which are then asked for again;
the file stays whole (https://www.sqlite.org/pragma.html#pragma_synchronous).

One connection has the file for itself while it is open: two runs would ask for the same items.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .identity import declared, differences, digest_of

__all__ = ["Checkpoint", "CheckpointValueError", "Kept", "is_checkpoint", "remove_checkpoint"]

APPLICATION_ID = 0x67707478
"""What SQLite's `application_id` says of our files: 'gptx' in ASCII."""

FORMAT_VERSION = 1

LOCK_SECONDS = 2.0
"""How long to wait for a run that has the file, and may be ending."""

_SCHEMA = """
CREATE TABLE job (part TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE results (
    item INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    format TEXT NOT NULL CHECK (format IN ('json', 'pickle')),
    value NOT NULL
);
"""

_LARGEST_INTEGER = 2**63
"""Up to which integers stay readable: Python limits the digits of those that it reads."""


class CheckpointValueError(CheckpointError):
    """What an expression returned can't be kept in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A value that was kept."""

    value: Any


class Checkpoint:
    """The results of one job, kept in an SQLite file.

    Text and JSON values are kept as JSON, which other programs can read, and anything else by
    pickle: open only checkpoints that you trust. All methods may be called in any thread.

    Args:
        path: The file; it is made if there is none.
        job: What tells this job from others, by `identity.identity_of`.

    Raises:
        CheckpointError: The file can't be opened, is no checkpoint, is in use, or is another job's.
    """

    def __init__(self, path: str | os.PathLike[str], job: Mapping[str, str]) -> None:
        self._path = os.fspath(path)
        self._lock = threading.Lock()
        self._pending: deque[tuple[int, str, str, str | bytes]] = deque()
        self._failure: CheckpointError | None = None
        with self._explained():
            self._connection = sqlite3.connect(
                self._path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._open(job)
        except BaseException:
            self._connection.close()
            raise
        self._is_open = True

    def digest(self, index: int, item: object) -> str:
        """Return what tells the content of an item from others.

        Raises:
            CheckpointError: It has none that is the same in every process.
        """
        try:
            return digest_of(item)
        except Exception as error:
            raise CheckpointError(
                f"Item {index}, a {type(item).__name__}, has no content by which a second run "
                f"could know it again ({type(error).__name__}). Give items that can be pickled, "
                "the path of a file instead of the open file say; or run without checkpoint=."
            ) from error

    def find(self, index: int, digest: str) -> Kept | None:
        """Return what was kept for an item, or None.

        Raises:
            CheckpointError: The item differs from the one that was at this index; or the value
                can't be read.
        """
        with self._lock, self._explained():
            self._check()
            row = self._connection.execute(
                "SELECT digest, format, value FROM results WHERE item = ?", (index,)
            ).fetchone()
        if row is None:
            return None
        if row[0] != digest:
            raise CheckpointError(
                f"Item {index} is not the one whose result is kept in {self._path!r}. Give the "
                "same items in the same order (more may follow them), or another checkpoint."
            )
        try:
            return Kept(_decode(row[1], row[2]))
        except Exception as error:
            raise CheckpointError(
                f"The value of item {index} in {self._path!r} can't be read "
                f"({type(error).__name__}). Bring back the classes that it needs, or use another "
                "checkpoint."
            ) from error

    def keep(self, index: int, digest: str, value: object) -> None:
        """Keep the value of an item; it is committed when this returns.

        Those that come at the same time are committed together, by the first of them.

        Raises:
            CheckpointValueError: The value can't be kept.
            CheckpointError: The file can't be written; nothing more is kept then.
        """
        try:
            row = (index, digest, *_encode(value))
        except Exception as error:
            raise CheckpointValueError(
                f"The value of item {index}, a {type(value).__name__}, can't be kept in the "
                f"checkpoint ({type(error).__name__}). Let the expression return text, JSON values "
                "or something that can be pickled and unpickled; or run without checkpoint=."
            ) from error
        self._pending.append(row)
        with self._lock:
            self._check()
            if self._pending:  # else another has written it
                self._write()

    def close(self) -> None:
        """Close the file; a second call does nothing.

        Raises:
            CheckpointError: SQLite could not; what was kept is.
        """
        with self._lock, self._explained():
            self._is_open = False
            self._connection.close()

    def _write(self) -> None:
        rows = [self._pending.popleft() for _ in range(len(self._pending))]
        try:
            with self._explained(), self._transaction():
                self._connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        except CheckpointError as error:
            self._failure = error  # of the others, too, whose rows were among these
            raise

    def _check(self) -> None:
        if self._failure is not None:
            raise CheckpointError(*self._failure.args)  # one object for each thread that raises it
        if not self._is_open:
            raise CheckpointError(f"The checkpoint {self._path!r} is closed: its run has ended.")

    def _open(self, job: Mapping[str, str]) -> None:
        """Look at the file before anything is written to it: it may be somebody else's."""
        is_new = self._is_new()
        # In this order the file has no companion for shared memory, and is locked by reading it.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            if is_new:
                self._create(job)
            else:
                self._compare(job)

    def _is_new(self) -> bool:
        [application] = self._connection.execute("PRAGMA application_id").fetchone()
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        [tables] = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            return True
        if application != APPLICATION_ID:
            raise CheckpointError(
                f"{self._path!r} is an SQLite file, but no checkpoint of gptx_async. Give the name "
                "of a new file; this one was not touched."
            )
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"The checkpoint {self._path!r} is of format {version}; this version of gptx_async "
                f"reads format {FORMAT_VERSION}. Use the version that wrote it, or a new file."
            )
        return False

    def _create(self, job: Mapping[str, str]) -> None:
        for statement in _SCHEMA.split(";"):
            self._connection.execute(statement)
        self._connection.executemany("INSERT INTO job VALUES (?, ?)", job.items())
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def _compare(self, job: Mapping[str, str]) -> None:
        kept = dict(self._connection.execute("SELECT part, value FROM job"))
        found = differences(kept, job)
        if found:
            raise CheckpointError(
                f"The checkpoint {self._path!r} is of another job: {'; '.join(found)}. Run what it "
                "was made by, or give the name of a new file."
            )
        # What was not known when it was made, the model say, is from now on.
        self._connection.executemany("INSERT OR IGNORE INTO job VALUES (?, ?)", job.items())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it by itself at a full disk
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what an error of SQLite means."""
        try:
            yield
        except sqlite3.Error as error:
            raise CheckpointError(self._explain(error)) from error

    def _explain(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without SQLite's details
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"The checkpoint {self._path!r} is in use, by another run or a program that reads "
                "it. Wait for its end, or give each run a file of its own."
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return (
                f"{self._path!r} is no SQLite file, or a damaged one ({error}). Give the name of a "
                "new file; this one was not touched."
            )
        return (
            f"The checkpoint {self._path!r} can't be used ({error}). See that its folder exists, "
            "can be written to and has room; what was kept stays."
        )


def _encode(value: object) -> tuple[str, str | bytes]:
    """Return the format and the form in which a value is kept, and comes back as it was."""
    with contextlib.suppress(RecursionError):  # it holds itself; pickle knows about that
        if _is_json(value):
            return "json", _to_json(value)
    file = io.BytesIO()
    _Pickler(file).dump(value)
    pickle.loads(file.getvalue())  # some can be written only: better to know now
    return "pickle", file.getvalue()


class _Pickler(pickle.Pickler):
    """Pickles Symbols, whose own way fails for what a query returns.

    That is of a class made below a class that was made, too, and neither has a name to be found by.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and (kind := declared(value)) is not value:
            return _itself, (kind,)
        return NotImplemented


def _itself(kind: type) -> type:
    return kind


def _to_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no UTF-8 has
        return json.dumps(value)
    return text


def _decode(form: str, kept: str | bytes) -> Any:
    decoders: dict[str, Callable[[Any], Any]] = {"json": json.loads, "pickle": pickle.loads}
    return decoders[form](kept)


def _is_json(value: object) -> bool:
    """Tell whether JSON gives back the very same."""
    kind = type(value)
    if kind is int:
        return -_LARGEST_INTEGER <= value < _LARGEST_INTEGER  # type: ignore[operator]
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    if kind is dict:
        return all(type(name) is str and _is_json(each) for name, each in value.items())  # type: ignore[attr-defined]
    if kind is list:
        return all(map(_is_json, value))  # type: ignore[call-overload]
    return kind in (str, bool, type(None))


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file that is there is a checkpoint, or is to become one."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
            [application] = connection.execute("PRAGMA application_id").fetchone()
            [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        return False
    return bool(application == APPLICATION_ID or not tables)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint that nobody has open, with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
