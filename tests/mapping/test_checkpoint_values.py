"""How values are stored: as JSON, as tagged Symbols, or with pickle only when allowed."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from symai import Expression, Symbol

import gptx_async
from gptx_async.errors import CheckpointError
from support.planted import plant
from support.stored_values import VALUES, Point, stored_in


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def test_text_and_json_stay_readable(path: Path) -> None:
    values = ["größer", {"a": [1, 2.5, None, True]}]
    gptx_async.map(lambda item: values[item], [0, 1], checkpoint=path)
    assert stored_in(path) == {
        0: ("json", '"größer"'),
        1: ("json", '{"a": [1, 2.5, null, true]}'),
    }


def test_values_come_back_as_they_were(path: Path) -> None:
    def value_of(index: int) -> Any:
        return VALUES[index]

    for _ in range(2):
        results = gptx_async.map(
            value_of, range(len(VALUES)), checkpoint=path, checkpoint_pickle=True
        )
    assert results == VALUES
    assert [*map(type, results)] == [*map(type, VALUES)]
    assert [*results[10]] == ["b", "a"]


def test_symbols_and_numpy_come_back_as_they_were(path: Path) -> None:
    values = [Symbol("text"), Symbol({"a": [1]}), numpy.arange(3), float("nan")]

    def value_of(index: int) -> Any:
        return values[index]

    for _ in range(2):
        text, mapping, array, nan = gptx_async.map(
            value_of, range(4), checkpoint=path, checkpoint_pickle=True
        )
    assert isinstance(text, Symbol)
    assert (text.value, mapping.value, array.tolist()) == ("text", {"a": [1]}, [0, 1, 2])
    assert nan != nan


class OnlyWritten:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.parametrize("value", [threading.Lock(), lambda: None, OnlyWritten()])
def test_a_value_that_cannot_be_stored_fails_its_item(path: Path, value: Any) -> None:
    def value_of(item: int) -> Any:
        return value if item == 1 else item

    results = gptx_async.map(
        value_of, range(3), checkpoint=path, on_error="return", checkpoint_pickle=True
    )
    assert (results[0], results[2]) == (0, 2)
    [failed] = results.failed
    assert isinstance(failed.error, CheckpointError)
    assert f"value of item 1, a {type(value).__name__}, can't be stored" in str(failed.error)
    with pytest.raises(CheckpointError, match="Let the expression return text"):
        gptx_async.map(value_of, range(3), checkpoint=path, checkpoint_pickle=True)
    assert {*stored_in(path)} == {0, 2}


def test_a_value_that_cannot_be_read_is_an_error_with_its_index(path: Path) -> None:
    gptx_async.map(same, [Point(1)], checkpoint=path, checkpoint_pickle=True)
    for form, value in (("pickle", b"cgone\nGone\n."), ("json", "{"), ("symbols", "[")):
        connection = sqlite3.connect(path)
        connection.execute("UPDATE results SET format = ?, value = ?", (form, value))
        connection.commit()
        connection.close()
        with pytest.raises(CheckpointError, match=r"value of item 0 .* can't be read"):
            gptx_async.map(same, [Point(1)], checkpoint=path, checkpoint_pickle=True)


def same(item: Any) -> Any:
    return item


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
    assert proof.exists(), "the attack works when pickle is allowed"


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: "a"}, {"a": {1}}, b"bytes", float("nan"), [float("inf")], 10**640, Symbol((1,))],
)
def test_a_value_that_is_not_json_ends_the_run_and_is_in_its_results(
    path: Path, value: Any
) -> None:
    """Also with `on_error`: further calls would cost money, and their values would be lost."""
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
        assert begun[-1] <= 2, "no item starts after it"
        results = raised.value.results  # type: ignore[attr-defined]
        assert dict(zip(results.indices, results, strict=True))[1] is value
        assert "all but 1 of them in the checkpoint" in raised.value.__notes__[-1]


class Own(Symbol):  # type: ignore[misc] # symbolicai ships no types
    """A subclass of Symbol that is not part of symbolicai."""


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
    """Replace Symbols with their class and state."""
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
