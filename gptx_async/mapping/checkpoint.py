"""The checkpoint of a run: its results in an SQLite file, as they come.

A value is stored once `keep` has returned, even if the process is killed in the next moment: it is
committed, and the system has it. With `synchronous=NORMAL` the system decides when it writes to the
disk, so a power cut may lose the values of the last moments, which are then computed again; the
file stays whole (https://www.sqlite.org/pragma.html#pragma_synchronous).

One connection has the file for itself while it is open: two runs would compute the same items.

Nothing that is read from the file is executed: values are JSON (`kept_values.py`), and pickled ones
are rejected unless the caller asks for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, ConfigurationError
from .identity import differences, digest_of, name_of
from .kept_values import CheckpointValueError, NotJSONError, PickledValueError, decode, encode

__all__ = [
    "Checkpoint",
    "CheckpointCheck",
    "Kept",
    "check_name",
    "is_checkpoint",
    "remove_checkpoint",
]

CheckpointCheck = Literal["all", "code", "items", "none"]
"""What has to match the first run: the items and the code, one of them, or nothing."""

APPLICATION_ID = 0x67707478
"""The `application_id` of the SQLite files: 'gptx' in ASCII."""

FORMAT_VERSION = 2

LOCK_SECONDS = 2.0
"""How long to wait for a run that has the file, and may be ending."""

_SCHEMA = """
CREATE TABLE job (part TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE results (
    item INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    format TEXT NOT NULL CHECK (format IN ('json', 'symbols', 'pickle')),
    value NOT NULL
);
"""

_KEY, _COLUMNS, _PARTS = "key of the items", "columns of the items", "parts"
"""Parts of a job besides those of `identity_of`: what identifies an item, which columns the items
had first, and the names of the parts that the job was created with."""

_UNKNOWN = ""
"""In place of the digest of an item that has none, where items are not compared."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored value."""

    value: Any


class Checkpoint:
    """The results of one job, stored in an SQLite file that only its owner can read.

    All methods may be called in any thread.

    Args:
        path: The file; it is created if it does not exist.
        job: What distinguishes this job from others, by `identity.identity_of`.
        with_pickle: Whether values that are not JSON are pickled, and pickled values are read,
            which runs whatever code the file contains.
        check: What has to match the run that created the file: the `job` ("code"), the items, both
            ("all") or nothing ("none").
        key: What identifies an item: the name of a column, or a function of the item; the whole
            item when None.

    Raises:
        CheckpointError: The file cannot be opened, is not a checkpoint, is in use, is damaged, or
            belongs to another job.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        job: Mapping[str, str],
        *,
        with_pickle: bool = False,
        check: CheckpointCheck = "all",
        key: Any = None,
    ) -> None:
        self._path = os.fspath(path)
        self._with_pickle = with_pickle
        self._checks_code = check in ("all", "code")
        self._checks_items = check in ("all", "items")
        self._key = key
        self._added_columns: frozenset[Any] = frozenset()
        self._lock = threading.Lock()
        self._pending: deque[tuple[int, str, str, str | bytes]] = deque()
        self._failure: CheckpointError | None = None
        self._unwritten = CheckpointError(  # made now: memory may be lacking when it is needed
            f"Values could not be written to the checkpoint {self._path!r}. Run again with it: "
            "what it has is not computed again."
        )
        is_created = self._create_file()
        with self._explained():
            self._connection = sqlite3.connect(
                os.path.realpath(self._path),
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._explained():
                self._open(job, is_created=is_created)
        except BaseException:
            self._connection.close()
            raise
        self._is_open = True

    def digest(self, index: int, item: object) -> str:
        """Return a digest of what identifies an item.

        To be called for the first item first: its columns are those that later runs compare.

        Raises:
            CheckpointError: The item has no content that is the same in every process, or lacks a
                column, or the `key` function failed.
        """
        if index == 0 and self._key is None and isinstance(item, dict):
            self._learn_columns(item)
        identified = self._identified(index, item)
        try:
            return digest_of(identified)
        except Exception as error:
            if not self._checks_items:
                return _UNKNOWN
            raise CheckpointError(
                f"Item {index}, a {type(item).__name__}, has no content by which a second run "
                f"could recognise it ({type(error).__name__}). Give items that can be pickled, for "
                "example the path of a file in place of the open file; identify them with key=; or "
                "run without checkpoint=."
            ) from error

    def find(self, index: int, digest: str) -> Kept | None:
        """Return the stored value of an item, or None.

        Raises:
            CheckpointError: The item differs from the one that was at this index, or the value
                cannot be read.
        """
        with self._lock, self._explained():
            self._check()
            row = self._connection.execute(
                "SELECT digest, format, value FROM results WHERE item = ?", (index,)
            ).fetchone()
        if row is None:
            return None
        if self._checks_items and row[0] != digest:
            raise CheckpointError(
                f"Item {index} is not the one whose result is kept in {self._path!r}. Give the "
                "same items in the same order (more may follow them), or another checkpoint; with "
                "key=, gptx_async.map compares only what identifies an item."
            )
        try:
            return Kept(decode(row[1], row[2], with_pickle=self._with_pickle))
        except PickledValueError:
            raise PickledValueError(
                f"The value of item {index} in {self._path!r} is pickled, and reading it would run "
                "whatever code the file contains. Use another checkpoint; or, if you trust "
                "everybody who could write to this file, pass checkpoint_pickle=True to "
                "gptx_async.map."
            ) from None
        except Exception as error:
            raise CheckpointError(
                f"The value of item {index} in {self._path!r} can't be read "
                f"({type(error).__name__}). Restore the classes that it needs, or use another "
                "checkpoint."
            ) from error

    def keep(self, index: int, digest: str, value: object) -> None:
        """Store the value of an item; it is committed when this returns.

        Values that arrive at the same time are committed together, by the first of their threads.

        Raises:
            NotJSONError: The value is not JSON, and the checkpoint was opened without pickle.
            CheckpointValueError: The value cannot be stored, even with pickle.
            CheckpointError: The file cannot be written; nothing more is stored then.
        """
        try:
            row = (index, digest, *encode(value, with_pickle=self._with_pickle))
        except NotJSONError:
            raise NotJSONError(
                f"The value of item {index}, a {type(value).__name__}, can't be kept in the "
                "checkpoint as JSON, which has text, finite numbers, booleans, None, lists, "
                "dictionaries with text as keys, and here Symbols of these. Let the expression "
                "return one of them; or pass checkpoint_pickle=True to gptx_async.map, if you "
                "trust everybody who can write to the file: reading pickled values runs the code "
                "that they contain."
            ) from None
        except Exception as error:
            raise CheckpointValueError(
                f"The value of item {index}, a {type(value).__name__}, can't be kept in the "
                f"checkpoint ({type(error).__name__}). Let the expression return text, JSON values "
                "or something that can be pickled and unpickled; or run without checkpoint=."
            ) from error
        self._pending.append(row)
        with self._lock:
            self._check()
            if self._pending:  # else another thread has written it
                self._write()

    def close(self) -> None:
        """Close the file; a second call does nothing.

        Raises:
            CheckpointError: SQLite could not; what was stored stays.
        """
        with self._lock, self._explained():
            self._is_open = False
            self._connection.close()

    def _write(self) -> None:
        """Commit all pending rows.

        Whatever fails here, a MemoryError for example, may have failed other threads' rows: each of
        those threads then raises as well, so that no row is lost without an error.
        """
        try:
            rows = [self._pending.popleft() for _ in range(len(self._pending))]
            with self._explained(), self._transaction():
                self._connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        except CheckpointError as error:
            self._failure = error
            raise
        except BaseException as error:
            self._failure = self._unwritten
            raise self._unwritten from error

    def _check(self) -> None:
        if self._failure is not None:
            raise CheckpointError(*self._failure.args)  # one object for each thread that raises it
        if not self._is_open:
            raise CheckpointError(f"The checkpoint {self._path!r} is closed: its run has ended.")

    def _identified(self, index: int, item: Any) -> Any:
        """Return what of an item is compared."""
        if self._key is None:
            if not self._added_columns or not isinstance(item, dict):
                return item
            return {name: item[name] for name in item if name not in self._added_columns}
        try:
            return self._key(item) if callable(self._key) else item[self._key]
        except Exception as error:
            raise CheckpointError(
                f"key={_shown(self._key)} does not identify item {index} "
                f"({type(error).__name__}). Name a column that each item has, or give a function "
                "of an item."
            ) from error

    def _learn_columns(self, item: dict[Any, Any]) -> None:
        """Record the columns of the items, or find out which were added since the first run.

        A later run compares only the columns of the first: a notebook cell that puts its results
        into a new column can be run again.
        """
        with self._lock, self._explained():
            self._check()
            row = self._connection.execute(
                "SELECT value FROM job WHERE part = ?", (_COLUMNS,)
            ).fetchone()
            if row is None:
                columns = json.dumps([name for name in item if type(name) in (str, int)])
                self._connection.execute("INSERT INTO job VALUES (?, ?)", (_COLUMNS, columns))
                return
        before = json.loads(row[0])
        lost = [name for name in before if name not in item]
        if lost and self._checks_items:
            raise CheckpointError(
                f"The items have no column {lost[0]!r}, which they had when the checkpoint "
                f"{self._path!r} was created. Give the same items, or another checkpoint."
            )
        self._added_columns = frozenset(item.keys() - {*before})

    def _create_file(self) -> bool:
        """Create the file if there is none, readable by its owner only; return whether it was."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.close(os.open(os.path.realpath(self._path), flags, 0o600))
        except FileExistsError:
            return False
        except OSError as error:
            raise CheckpointError(self._unusable(error.strerror)) from error
        return True

    def _open(self, job: Mapping[str, str], *, is_created: bool) -> None:
        """Look at the file before anything is written to it: it may belong to another program."""
        is_new = self._is_new()
        if is_new and not is_created:
            try:
                os.chmod(os.path.realpath(self._path), 0o600)  # an empty file, with any mode
            except OSError as error:
                raise CheckpointError(self._unusable(error.strerror)) from error
        # In this order the file has no companion for shared memory, and is locked by reading it.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        job = {**job, _KEY: _shown(self._key)}
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
                f"{self._path!r} is an SQLite file, but not a checkpoint of gptx_async. Give the "
                "name of a new file; this one was not touched."
            )
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"The checkpoint {self._path!r} has format {version}; this version of gptx_async "
                f"reads format {FORMAT_VERSION}. Use the version that wrote it, or a new file."
            )
        return False

    def _create(self, job: Mapping[str, str]) -> None:
        for statement in _SCHEMA.split(";"):
            self._connection.execute(statement)
        parts = {**job, _PARTS: json.dumps([*job])}
        self._connection.executemany("INSERT INTO job VALUES (?, ?)", parts.items())
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    def _compare(self, job: Mapping[str, str]) -> None:
        kept = dict(self._connection.execute("SELECT part, value FROM job"))
        self._check_parts(kept, {"expression", "source"} & job.keys())
        not_compared = {_PARTS, _COLUMNS}
        if not self._checks_items:
            not_compared.add(_KEY)
        if not self._checks_code:
            not_compared |= {*kept, *job} - {_KEY}
        found = differences(_without(kept, not_compared), _without(job, not_compared))
        if found:
            raise CheckpointError(
                f"The checkpoint {self._path!r} is of another job: {'; '.join(found)}. Run what it "
                "was created by, or give the name of a new file; checkpoint_check= of "
                "gptx_async.map chooses what has to match."
            )
        if self._checks_code:  # what was not known at first, the model for example, is from now on
            self._connection.executemany("INSERT OR IGNORE INTO job VALUES (?, ?)", job.items())

    def _check_parts(self, kept: Mapping[str, str], needed: set[str]) -> None:
        """Reject a job table from which something was removed: it would differ in nothing."""
        with contextlib.suppress(KeyError, ValueError, TypeError):
            if {*json.loads(kept[_PARTS]), *needed, _KEY} <= kept.keys():
                return
        raise CheckpointError(
            f"The checkpoint {self._path!r} no longer says completely which job it is of: another "
            "program has changed it. Give the name of a new file."
        )

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
                f"{self._path!r} is not an SQLite file, or is damaged ({error}). Give the name of "
                "a new file; this one was not touched."
            )
        return self._unusable(str(error))

    def _unusable(self, reason: str | None) -> str:
        return (
            f"The checkpoint {self._path!r} can't be used ({reason}). See that its folder exists, "
            "can be written to and has room; what was kept stays."
        )


def check_name(path: str | os.PathLike[str]) -> None:
    """Check that a name is that of a file, also to SQLite.

    Raises:
        ConfigurationError: It is not.
    """
    name = os.fspath(path)
    if name == ":memory:":
        raise ConfigurationError(
            "checkpoint=':memory:' names no file, so nothing would be there for a second run. Give "
            "the name of a file."
        )
    if name.startswith("file:"):
        raise ConfigurationError(
            f"checkpoint={name!r} looks like a URI, and a checkpoint is named by its path. Give "
            f"{name.removeprefix('file:')!r}, or './{name}' for a file of that very name."
        )


def _without(parts: Mapping[str, str], names: set[str]) -> dict[str, str]:
    return {part: value for part, value in parts.items() if part not in names}


def _shown(key: Any) -> str:
    """Return a key as the job table and messages show it; it is the same in every process."""
    if callable(key):
        return f"the function {name_of(key)}"
    return "the whole item" if key is None else repr(key)


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
