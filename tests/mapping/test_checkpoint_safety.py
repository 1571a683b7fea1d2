"""Checkpoints that somebody else could read or change: nothing leaks, and nothing is executed."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from symai import Expression, Symbol

import gptx_async
from gptx_async.errors import CheckpointError, ConfigurationError
from gptx_async.mapping.checkpoint import Checkpoint, StoredValue
from support.planted import change, plant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def same(item: Any) -> Any:
    return item


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("check", ["all", "code", "items", "none"])
@pytest.mark.parametrize("as_completed", [False, True])
def test_a_pickle_in_the_file_does_not_run(path: Path, check: Any, as_completed: bool) -> None:
    proof = path.with_name("proof")
    gptx_async.map(same, ["a"], checkpoint=path)
    plant(path, proof)
    with pytest.raises(CheckpointError, match="checkpoint_pickle=True"):
        [
            *gptx_async.map(  # type: ignore[call-overload]
                same, ["a"], checkpoint=path, checkpoint_check=check, as_completed=as_completed
            )
        ]
    assert not proof.exists()
    gptx_async.map(same, ["a"], checkpoint=path, checkpoint_pickle=True)
    assert proof.exists(), "the attack works where pickle was asked for"


@pytest.mark.parametrize("check", ["all", "code", "items", "none"])
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM job",
        "DELETE FROM job WHERE part = 'source'",
        "DELETE FROM job WHERE part = 'expression'",
        "DELETE FROM job WHERE part = 'parts'",
        "DELETE FROM job WHERE part = 'key of the items'",
        "DELETE FROM job WHERE part LIKE 'defaults of %'",
        "UPDATE job SET value = '[]' WHERE part = 'parts'; DELETE FROM job WHERE part = 'source'",
        "UPDATE job SET value = '1' WHERE part = 'parts'",
    ],
)
def test_a_job_with_missing_parts_is_rejected(path: Path, check: Any, statement: str) -> None:
    def with_default(item: Any, extra: int = 1) -> Any:
        return item

    gptx_async.map(with_default, ["a"], checkpoint=path)
    for each in statement.split(";"):
        change(path, (each, ()))
    with pytest.raises(CheckpointError, match="no longer describes its job completely"):
        gptx_async.map(with_default, ["a"], checkpoint=path, checkpoint_check=check)


def test_the_file_is_readable_by_its_owner_only_from_the_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what SQLite keeps beside it; nothing is opened with a wider mode and changed later."""
    modes: dict[str, set[str]] = {}

    def look(item: Any) -> Any:
        for each in path.parent.iterdir():
            modes.setdefault(each.name, set()).add(stat.filemode(each.stat().st_mode))
        return item

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "chmod", None)
        gptx_async.map(look, range(20), workers=1, checkpoint=path)
    finally:
        os.umask(before)
    assert modes == {"run.sqlite": {"-rw-------"}, "run.sqlite-wal": {"-rw-------"}}


def test_an_empty_file_is_made_private_before_it_has_values(path: Path) -> None:
    path.touch(mode=0o644)
    gptx_async.map(same, ["a"], checkpoint=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_that_leads_nowhere_makes_a_private_file(path: Path) -> None:
    target = path.with_name("target.sqlite")
    path.symlink_to(target)
    gptx_async.map(same, ["a"], checkpoint=path)
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert gptx_async.map(same, ["a"], checkpoint=path) == ["a"]


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: "a"}, {"a": {1}}, b"bytes", float("nan"), [float("inf")], 10**640, Symbol((1,))],
)
def test_a_value_that_is_not_json_ends_the_run_and_is_in_its_results(
    path: Path, value: Any
) -> None:
    """Also with `on_error`: each further call would be paid for, and its value lost."""
    begun: list[int] = []

    def value_of(item: int) -> Any:
        begun.append(item)
        return value if item == 1 else item

    for on_error in ("raise", "return"):
        begun.clear()
        with pytest.raises(CheckpointError, match="checkpoint_pickle=True") as raised:
            gptx_async.map(
                value_of,
                range(1000),
                workers=1,
                checkpoint=path,
                on_error=on_error,
            )
        assert f"value of item 1, a {type(value).__qualname__}," in str(raised.value)
        assert begun[-1] <= 2, "nothing is begun after it"
        results = raised.value.results  # type: ignore[attr-defined]
        assert dict(zip(results.indices, results, strict=True))[1] is value
        assert "all but 1 of them in the checkpoint" in raised.value.__notes__[-1]


class Own(Symbol):  # type: ignore[misc] # symbolicai ships no types
    """A Symbol of somebody else's class."""


TAGGED: list[Any] = [
    Symbol("text"),
    Symbol({"a": [1, None]}),
    Symbol({"$symbol": 1}),
    Symbol("a", static_context="of a context"),
    Symbol("a", semantic=True),
    Expression("a"),
    [Symbol("a"), {"$object": 1, "x": Symbol("q")}, {"$symbol": 2}, {"$object": {"$symbol": 3}}],
    {"$expression": Symbol("\ud800")},
]


def plain(value: Any) -> Any:
    """Return the classes and states of Symbols in their places."""
    if isinstance(value, Symbol):
        state = {**value.__getstate__(), "_dynamic_context": None}
        return [type(value).__qualname__, plain(state)]
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value


def test_symbols_of_json_values_are_stored_as_json(path: Path) -> None:
    def value_of(index: int) -> Any:
        return TAGGED[index]

    gptx_async.map(value_of, range(len(TAGGED)), checkpoint=path)
    results = gptx_async.map(value_of, range(len(TAGGED)), checkpoint=path)
    assert all(result is not value for result, value in zip(results, TAGGED, strict=True))
    assert plain([*results]) == plain(TAGGED)
    connection = sqlite3.connect(path)
    stored = connection.execute("SELECT format, value FROM results ORDER BY item").fetchall()
    connection.close()
    assert {form for form, _ in stored} == {"symbols"}
    assert stored[0] == ("symbols", '{"$symbol": "text"}')


def with_attribute() -> Symbol:
    symbol = Symbol("a")
    symbol.more = 1
    return symbol


@pytest.mark.parametrize("make", [lambda: Own("a"), with_attribute, lambda: [Own("a")]])
def test_a_symbol_that_is_more_than_its_value_is_not_json(path: Path, make: Any) -> None:
    value = make()
    with pytest.raises(CheckpointError, match="checkpoint_pickle=True"):
        gptx_async.map(lambda _: value, [0], checkpoint=path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":memory:", "is not a file, so a second run would find nothing"),
        (Path(":memory:"), "is not a file"),
        ("file:x.sqlite", r"looks like a URI.*Give 'x.sqlite', or './file:x.sqlite'"),
    ],
)
def test_a_name_that_sqlite_takes_for_something_else_is_rejected(
    name: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (gptx_async.map, gptx_async.amap):
        with pytest.raises(ConfigurationError, match=message):
            call(same, ["a"], checkpoint=name)
    assert not [*tmp_path.iterdir()]
    assert gptx_async.map(same, ["a"], checkpoint=f"./{name}") == ["a"]
    assert [each.name for each in tmp_path.iterdir()] == [str(name)]


def test_what_must_match_is_one_of_four(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is 'both'\. Give one of all, code"):
        gptx_async.map(same, ["a"], checkpoint=path, checkpoint_check="both")  # type: ignore[call-overload]


class FailsOnce:
    """In place of a connection: has no memory for the first group of rows."""

    def __init__(self, connection: sqlite3.Connection, error: type[BaseException]) -> None:
        self._connection = connection
        self._error: type[BaseException] | None = error

    def executemany(self, *arguments: Any) -> Any:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._connection.executemany(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, SystemExit])
def test_each_row_of_a_commit_that_fails_is_reported(
    path: Path, in_thread: Callable[..., Future[None]], error: type[BaseException]
) -> None:
    checkpoint = Checkpoint(path, {})
    checkpoint.store(0, "digest", 0)
    connection: Any = FailsOnce(checkpoint._file.connection, error)
    checkpoint._file.connection = connection
    with checkpoint._lock:  # so that both wait, and one of them commits for both
        keeping = [in_thread(checkpoint.store, index, "digest", index) for index in (1, 2)]
        wait_for(lambda: len(checkpoint._pending) == 2)
    for each in keeping:
        with pytest.raises(CheckpointError, match="could not be written to the checkpoint"):
            each.result(60)
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoint.store(3, "digest", 3)
    checkpoint.close()
    again = Checkpoint(path, {})
    assert [again.find(index, "digest") for index in range(4)] == [StoredValue(0), None, None, None]
    again.close()


def test_values_that_could_not_be_written_are_in_the_results(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)

    def work(item: int) -> int:
        if item:
            together.wait(60)
        return item

    def fail(self: Checkpoint) -> None:
        connection: Any = FailsOnce(self._file.connection, MemoryError)
        self._file.connection = connection
        write(self)

    write = Checkpoint._write
    assert gptx_async.map(work, [0], checkpoint=path) == [0]
    monkeypatch.setattr(Checkpoint, "_write", fail)
    with pytest.raises(CheckpointError, match="could not be written to the checkpoint") as raised:
        gptx_async.map(work, range(3), workers=2, checkpoint=path)
    assert sorted(raised.value.results) == [0, 1, 2]  # type: ignore[attr-defined]
    assert "all but 2 of them in the checkpoint" in raised.value.__notes__[-1]
