"""The checkpoint of a run: its results in an SQLite file, stored as items end.

It compares the job and the items with those of the run that created the file. The file itself,
its lock and its transactions are in `checkpoint_file.py`. Reading it runs no code: values are JSON
(`checkpoint_values.py`), and pickled values are rejected unless the caller allows them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CheckpointError
from .checkpoint_file import CheckpointFile
from .checkpoint_values import CheckpointValueError, NotJSONError, PickledValueError, decode, encode
from .identity import differences, digest_of, name_of

__all__ = ["Checkpoint", "CheckpointCheck", "StoredValue"]

CheckpointCheck = Literal["all", "code", "items", "none"]
"""What must match the run that created the file: the items and the code, one of them, or nothing.
"""

_KEY, _COLUMNS, _PARTS = "key of the items", "columns of the items", "parts"
"""Rows of the job table besides the parts of `identity_of`: what identifies an item, the columns
that the first run's items had, and the names of all parts that the first run stored."""

_UNKNOWN = ""
"""Stands for the digest of an item that has none, when items are not compared."""


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value from a checkpoint. It may be None, so it is wrapped."""

    value: Any


class Checkpoint:
    """The results of one job, in a file.

    All methods may be called in any thread.

    Args:
        path: The file. It is created if it does not exist.
        job: What distinguishes this job from others, from `identity.identity_of`.
        with_pickle: Whether to pickle values that are not JSON, and to read pickled values, which
            runs the code in them.
        check: What must match the run that created the file: the `job` ("code"), the items
            ("items"), both ("all") or nothing ("none").
        key: What identifies an item: the name of a column, or a function of the item; None for the
            whole item.

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
        self._unwritten = CheckpointError(  # created now, because memory may be short later
            f"Values could not be written to the checkpoint {self._path!r}. Run again with "
            "it: the values that it has are not computed again."
        )
        self._file = CheckpointFile(path)
        try:
            self._open({**job, _KEY: _shown(key)})
        except BaseException:
            self._file.close()
            raise
        self._is_open = True

    def digest(self, index: int, item: object) -> str:
        """Return a digest of what identifies an item.

        Call it for the first item first: later runs compare the columns that this item has.

        Raises:
            CheckpointError: The content of the item differs between processes, the item lacks a
                column, or the `key` function raised an error.
        """
        if index == 0 and self._key is None and isinstance(item, dict):
            self._learn_columns(item)
        compared = self._compared_part(index, item)
        try:
            return digest_of(compared)
        except Exception as error:
            if not self._checks_items:
                return _UNKNOWN
            raise CheckpointError(
                f"Item {index}, a {type(item).__name__}, has no content by which a second run "
                f"could recognise it ({type(error).__name__}). Give items that can be pickled, for "
                "example the path of a file instead of the open file; identify items with key=; "
                "or run without checkpoint=."
            ) from error

    def find(self, index: int, digest: str) -> StoredValue | None:
        """Return the stored value of an item, or None.

        Raises:
            CheckpointError: Another item was at this index before, or the value cannot be read.
        """
        with self._lock, self._file.explained():
            self._check()
            row = self._file.connection.execute(
                "SELECT digest, format, value FROM results WHERE item = ?", (index,)
            ).fetchone()
        if row is None:
            return None
        if self._checks_items and row[0] != digest:
            raise CheckpointError(
                f"Item {index} is not the item whose result is in {self._path!r}. Give the same "
                "items in the same order (more may follow them), or another checkpoint. With key=, "
                "gptx_async.map compares only what identifies an item."
            )
        try:
            return StoredValue(decode(row[1], row[2], with_pickle=self._with_pickle))
        except PickledValueError:
            raise PickledValueError(
                f"The value of item {index} in {self._path!r} is pickled, and reading it would run "
                "the code in it. Use another checkpoint; or, if you trust everybody who could "
                "write to this file, pass checkpoint_pickle=True to gptx_async.map."
            ) from None
        except Exception as error:
            raise CheckpointError(
                f"The value of item {index} in {self._path!r} can't be read "
                f"({type(error).__name__}). Restore the classes that it needs, or use another "
                "checkpoint."
            ) from error

    def store(self, index: int, digest: str, value: object) -> None:
        """Store the value of an item. It is committed when this returns.

        Values that several threads store at the same time are committed together, by one of them.

        Raises:
            NotJSONError: The value is not JSON, and the checkpoint was opened without pickle.
            CheckpointValueError: The value cannot be stored, even with pickle.
            CheckpointError: The file cannot be written. After that nothing more is stored.
        """
        try:
            row = (index, digest, *encode(value, with_pickle=self._with_pickle))
        except NotJSONError:
            raise NotJSONError(
                f"The value of item {index}, a {type(value).__name__}, can't be stored in the "
                "checkpoint. Let the expression return JSON values (text, finite numbers, "
                "booleans, None, lists, and dictionaries with text as keys) or Symbols of them; or "
                "pass checkpoint_pickle=True to gptx_async.map, if you trust everybody who can "
                "write to the file: reading pickled values runs the code in them."
            ) from None
        except Exception as error:
            raise CheckpointValueError(
                f"The value of item {index}, a {type(value).__name__}, can't be stored in the "
                f"checkpoint ({type(error).__name__}). Let the expression return text, JSON values "
                "or something that can be pickled and unpickled; or run without checkpoint=."
            ) from error
        self._pending.append(row)
        with self._lock:
            self._check()
            if self._pending:  # otherwise another thread has written it
                self._write()

    def close(self) -> None:
        """Close the file. A second call does nothing.

        Raises:
            CheckpointError: SQLite could not close it. All stored values are kept.
        """
        with self._lock, self._file.explained():
            self._is_open = False
            self._file.close()

    def _write(self) -> None:
        """Commit all pending rows.

        An error here, for example a MemoryError, may have lost rows of other threads. Each of those
        threads then raises as well, so that no row is lost without an error.
        """
        try:
            rows = [self._pending.popleft() for _ in range(len(self._pending))]
            with self._file.explained(), self._file.transaction():
                self._file.connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        except CheckpointError as error:
            self._failure = error
            raise
        except BaseException as error:
            self._failure = self._unwritten
            raise self._unwritten from error

    def _check(self) -> None:
        if self._failure is not None:
            raise CheckpointError(*self._failure.args)  # each thread raises its own object
        if not self._is_open:
            raise CheckpointError(f"The checkpoint {self._path!r} is closed: its run has ended.")

    def _compared_part(self, index: int, item: Any) -> Any:
        """Return the part of an item that identifies it."""
        if self._key is None:
            if not self._added_columns or not isinstance(item, dict):
                return item
            return {name: item[name] for name in item if name not in self._added_columns}
        try:
            return self._key(item) if callable(self._key) else item[self._key]
        except Exception as error:
            raise CheckpointError(
                f"key={_shown(self._key)} does not identify item {index} "
                f"({type(error).__name__}). Give the name of a column that each item has, or a "
                "function of an item."
            ) from error

    def _learn_columns(self, item: dict[Any, Any]) -> None:
        """Record the columns of the items, or find those that were added since the first run.

        A later run compares only the columns that the first run had, so that a notebook cell that
        adds its results as a new column can run again.
        """
        with self._lock, self._file.explained():
            self._check()
            row = self._file.connection.execute(
                "SELECT value FROM job WHERE part = ?", (_COLUMNS,)
            ).fetchone()
            if row is None:
                columns = json.dumps([name for name in item if type(name) in (str, int)])
                self._file.connection.execute("INSERT INTO job VALUES (?, ?)", (_COLUMNS, columns))
                return
        first_columns = json.loads(row[0])
        lost = [name for name in first_columns if name not in item]
        if lost and self._checks_items:
            raise CheckpointError(
                f"The items have no column {lost[0]!r}, which they had when the checkpoint "
                f"{self._path!r} was created. Give the same items, or another checkpoint."
            )
        self._added_columns = frozenset(item.keys() - {*first_columns})

    def _open(self, job: Mapping[str, str]) -> None:
        """Lock the file, and record the job in it or compare it with the job there."""
        is_new = self._file.lock()
        with self._file.explained(), self._file.transaction():
            if is_new:
                self._record(job)
            else:
                self._compare(job)

    def _record(self, job: Mapping[str, str]) -> None:
        self._file.create_tables()
        parts = {**job, _PARTS: json.dumps([*job])}
        self._file.connection.executemany("INSERT INTO job VALUES (?, ?)", parts.items())

    def _compare(self, job: Mapping[str, str]) -> None:
        stored = dict(self._file.connection.execute("SELECT part, value FROM job"))
        self._check_parts(stored, {"expression", "source"} & job.keys())
        not_compared = {_PARTS, _COLUMNS}
        if not self._checks_items:
            not_compared.add(_KEY)
        if not self._checks_code:
            not_compared |= {*stored, *job} - {_KEY}
        found = differences(_without(stored, not_compared), _without(job, not_compared))
        if found:
            raise CheckpointError(
                f"The checkpoint {self._path!r} is of another job: {'; '.join(found)}. Run the job "
                "that created it, or give the name of a new file; checkpoint_check= of "
                "gptx_async.map chooses what must match."
            )
        if self._checks_code:  # record what the first run did not know, for example the model
            self._file.connection.executemany(
                "INSERT OR IGNORE INTO job VALUES (?, ?)", job.items()
            )

    def _check_parts(self, stored: Mapping[str, str], needed: set[str]) -> None:
        """Reject a job table with missing rows, which would match any job."""
        with contextlib.suppress(KeyError, ValueError, TypeError):
            if {*json.loads(stored[_PARTS]), *needed, _KEY} <= stored.keys():
                return
        raise CheckpointError(
            f"The checkpoint {self._path!r} no longer describes its job completely: another "
            "program has changed it. Give the name of a new file."
        )


def _without(parts: Mapping[str, str], names: set[str]) -> dict[str, str]:
    return {part: value for part, value in parts.items() if part not in names}


def _shown(key: Any) -> str:
    """Return the text for a key in the job table and in messages, the same in every process."""
    if callable(key):
        return f"the function {name_of(key)}"
    return "the whole item" if key is None else repr(key)
