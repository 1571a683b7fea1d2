"""What a second run compares: its code, its items, their columns and keys."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import pandas
import pytest

import gptx_async
from gptx_async import Failed
from gptx_async.errors import CheckpointError, ConfigurationError
from gptx_async.mapping.checkpoint import Checkpoint
from support.planted import change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def table(count: int = 3) -> pandas.DataFrame:
    return pandas.DataFrame({"id": range(count), "text": [f"text {n}" for n in range(count)]})


class Counting:
    """Records the ids of its rows."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, row: Any) -> Any:
        self.asked.append(row["id"])
        if self.asked == [1]:
            raise ValueError("once")
        return row["text"].upper()


def test_a_cell_that_puts_its_results_into_the_table_runs_twice(path: Path) -> None:
    df = table()
    for asked in ([0, 1, 2], [], []):
        work = Counting()
        df["summary"] = gptx_async.map(work, df, workers=1, checkpoint=path).to_pandas()
        assert work.asked == asked
        assert [*df["summary"]] == ["TEXT 0", "TEXT 1", "TEXT 2"]


def test_a_cell_with_a_failed_item_runs_twice(path: Path) -> None:
    """The table then contains a `Failed`, which has no digest."""
    df, is_well = table(), threading.Event()

    class Fails(Counting):
        def __call__(self, row: Any) -> Any:
            if row["id"] == 1 and not is_well.is_set():
                raise ValueError(lambda: None)
            return super().__call__(row)

    df["summary"] = gptx_async.map(Fails(), df, checkpoint=path, on_error="return").to_pandas()
    assert isinstance(df["summary"][1], Failed)
    is_well.set()
    work = Fails()
    work.asked.append(None)
    df["summary"] = gptx_async.map(work, df, checkpoint=path, on_error="return").to_pandas()
    assert work.asked == [None, 1]
    assert [*df["summary"]] == ["TEXT 0", "TEXT 1", "TEXT 2"]


@pytest.mark.parametrize(
    "make_rows",
    [
        lambda df: df.to_dict("records"),
        lambda df: df.to_dict("list"),
        lambda df: (row for row in df.to_dict("records")),
    ],
)
def test_other_rows_may_have_more_columns_as_well(path: Path, make_rows: Any) -> None:
    df = table()
    gptx_async.map(Counting(), make_rows(df), workers=1, checkpoint=path)
    df["more"] = [4, 5, 6]
    work = Counting()
    assert len(gptx_async.map(work, make_rows(df), checkpoint=path)) == 3
    assert work.asked == []


def test_the_columns_of_the_first_run_are_compared(path: Path) -> None:
    gptx_async.map(Counting(), table(), workers=1, checkpoint=path)
    changed = table()
    changed["summary"] = 0
    changed.loc[2, "text"] = "changed"
    with pytest.raises(CheckpointError, match="Item 2 is not the item whose result is in"):
        gptx_async.map(Counting(), changed, checkpoint=path)
    with pytest.raises(CheckpointError, match="The items have no column 'id', which they had"):
        gptx_async.map(Counting(), table().drop(columns="id"), checkpoint=path)


def test_columns_with_numbers_as_names_are_columns(path: Path) -> None:
    df = pandas.DataFrame([[1, 2]])
    for _ in range(2):
        df["sum"] = gptx_async.map(lambda row: row[0] + row[1], df, checkpoint=path)
    assert [*df["sum"]] == [3]


@pytest.mark.parametrize("key", ["id", lambda row: row["id"] % 10])
def test_a_key_defines_what_an_item_is(path: Path, key: Any) -> None:
    gptx_async.map(Counting(), table(), workers=1, checkpoint=path, key=key)
    changed = table()
    changed["text"] = "changed"
    work = Counting()
    results = gptx_async.map(work, changed, checkpoint=path, key=key)
    assert (results, work.asked) == (["TEXT 0", "TEXT 1", "TEXT 2"], [])
    changed["id"] = [0, 3, 2]
    with pytest.raises(CheckpointError, match="Item 1 is not the item"):
        gptx_async.map(work, changed, checkpoint=path, key=key)
    with pytest.raises(CheckpointError, match="key of the items differs"):
        gptx_async.map(work, table(), checkpoint=path)


def test_a_key_is_enough_for_items_without_content(path: Path) -> None:
    items = [(number, lambda: None) for number in range(3)]
    for _ in range(2):
        results = gptx_async.map(lambda item: item[0], items, checkpoint=path, key=0)
        assert results == [0, 1, 2]


@pytest.mark.parametrize(("key", "cause"), [("no", KeyError), (lambda row: row.no, AttributeError)])
def test_a_key_that_identifies_nothing_is_an_error(path: Path, key: Any, cause: type) -> None:
    with pytest.raises(CheckpointError, match="does not identify item 0") as raised:
        gptx_async.map(Counting(), table(), checkpoint=path, key=key)
    assert isinstance(raised.value.__cause__, cause)


def add(item: int, extra: int = 1) -> int:
    return item + extra


OTHER_CODE, OTHER_ITEMS = functools.partial(add, extra=2), [5, 6]


@pytest.mark.parametrize("key", [None, lambda item: item])
@pytest.mark.parametrize(
    ("check", "code_may_differ", "items_may_differ"),
    [
        ("all", False, False),
        ("code", False, True),
        ("items", True, False),
        ("none", True, True),
    ],
)
def test_what_must_match_is_chosen(
    path: Path, check: Any, code_may_differ: bool, items_may_differ: bool, key: Any
) -> None:
    gptx_async.map(add, [1, 2], checkpoint=path, key=key)

    def run(expression: Any, items: list[int]) -> Any:
        try:
            return gptx_async.map(
                expression, items, checkpoint=path, checkpoint_check=check, key=key
            )
        except CheckpointError:
            return None

    assert run(add, [1, 2]) == [2, 3]
    assert run(OTHER_CODE, [1, 2]) == ([2, 3] if code_may_differ else None)
    assert run(add, OTHER_ITEMS) == ([2, 3] if items_may_differ else None)
    assert gptx_async.map(add, [1, 2], checkpoint=path, key=key) == [2, 3], (
        "the stored job is unchanged"
    )


def test_items_without_content_are_no_error_where_they_are_not_compared(path: Path) -> None:
    def is_locked(item: Any) -> bool:
        return bool(item.locked())

    items = [threading.Lock(), threading.Lock()]
    for _ in range(2):
        results = gptx_async.map(is_locked, items, checkpoint=path, checkpoint_check="code")
        assert results == [False, False]
    with pytest.raises(CheckpointError, match="Item 0, a lock, has no content"):
        gptx_async.map(is_locked, items, checkpoint=path, checkpoint_check="items")


def test_the_same_for_amap(path: Path) -> None:
    async def run(work: Any) -> Any:
        return await gptx_async.amap(work, df, workers=1, checkpoint=path, key="id")

    df = table()
    for asked in ([0, 1, 2], []):
        work = Counting()
        df["summary"] = asyncio.run(run(work)).to_pandas()
        assert work.asked == asked


JOB = {"expression": "a function", "source": "a digest"}


def test_a_model_that_becomes_known_later_is_compared_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    Checkpoint(path, JOB).close()
    Checkpoint(path, JOB | {"model": "one"}).close()
    Checkpoint(path, JOB).close()
    with pytest.raises(CheckpointError, match="model"):
        Checkpoint(path, JOB | {"model": "another"})


def same(item: Any) -> Any:
    return item


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


def test_what_must_match_is_one_of_four(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is 'both'\. Give one of all, code"):
        gptx_async.map(same, ["a"], checkpoint=path, checkpoint_check="both")  # type: ignore[call-overload]
