"""What makes a job another job: its code and values, and what identifies an item."""

from __future__ import annotations

import asyncio
import functools
import linecache
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest

import gptx_async
from gptx_async import Failed
from gptx_async.errors import CheckpointError
from gptx_async.mapping.identity import digest_of, identity_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture(params=["with source", "without source"])
def define(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Define a function or class as a notebook cell does, or as `exec` does."""
    files: list[str] = []

    def define(source: str, **variables: Any) -> Any:
        source = textwrap.dedent(source)
        name = f"<cell {len(files)} of {request.node.name}>"
        if request.param == "with source":
            files.append(name)
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        namespace: dict[str, Any] = {"__name__": "cell", **variables}
        exec(compile(source, name, "exec"), namespace)
        return namespace["work"]

    yield define
    for name in files:
        del linecache.cache[name]


WORK = '''
def work(item):
    """The first line."""
    def inner():
        """Of the inner function."""
        return [f"{item} {each}" for each in ("a", "b")]
    return inner()
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The first line", "Another line"),
        ("Of the inner function", "Of the inner function, that is"),
        ("    return inner()", "    # A comment.\n\n    return inner()  # and one more"),
        ("item} {each", "item} {each"),
    ],
)
def test_a_comment_or_docstring_does_not_change_the_job(
    define: Callable[..., Any], before: str, after: str
) -> None:
    assert before in WORK
    assert identity_of(define(WORK)) == identity_of(define(WORK.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"a", "b"', '"a", "c"'),
        ("{item} {each}", "{each} {item}"),
        ("{item} {each}", "{item}, {each}"),
        ("return inner()", "return inner"),
    ],
)
def test_a_change_of_the_code_changes_the_job(
    define: Callable[..., Any], before: str, after: str
) -> None:
    there, here = identity_of(define(WORK)), identity_of(define(WORK.replace(before, after)))
    assert {part for part in there if there[part] != here[part]} == {"source"}


CLASS = '''
class work:
    """A docstring."""
    def __call__(self, item):
        """Another one."""
        return item + 1
'''


def test_a_docstring_of_a_class_does_not_change_the_job(define: Callable[..., Any]) -> None:
    before = identity_of(define(CLASS))
    edited = CLASS.replace("A docstring.", "Edited.").replace("Another one.", "As well.")
    assert identity_of(define(edited)) == before
    assert identity_of(define(CLASS.replace("item + 1", "item + 2"))) != before


def test_what_stands_beside_a_lambda_does_not_change_the_job(define: Callable[..., Any]) -> None:
    before = identity_of(define("work, other = lambda item: item + 1, 2"))
    assert identity_of(define("work, other = lambda item: item + 1, 3  # more")) == before
    assert identity_of(define("work, other = lambda item: item + 2, 2")) != before
    two = "work, other = {}, lambda item: 0"
    assert identity_of(define(two.format("lambda item: item + 1"))) != identity_of(
        define(two.format("lambda item: item + 2"))
    )


def test_the_bare_constants_of_a_comprehension_count(define: Callable[..., Any]) -> None:
    source = "def work(item):\n    return [{} for _ in item]\n"
    assert identity_of(define(source.format("'a'"))) != identity_of(define(source.format("'b'")))


def test_a_keyword_only_default_counts(define: Callable[..., Any]) -> None:
    there = define("def work(item, *, extra=BASE): return item, extra", BASE="a")
    here = define("def work(item, *, extra=BASE): return item, extra", BASE="b")
    parts = identity_of(there)
    assert {part for part, value in identity_of(here).items() if parts[part] != value} == {
        "defaults of work"
    }


@pytest.mark.parametrize(
    "source",
    [
        "def work(item): return (lambda: PROMPT)()",
        "def work(item):\n    def inner(): return [PROMPT for _ in item]\n    return inner()",
        "class work:\n    def __call__(self, item): return (lambda: PROMPT)()",
    ],
)
def test_a_constant_of_a_nested_function_counts(define: Callable[..., Any], source: str) -> None:
    there = identity_of(define(source, PROMPT="a"))
    here = identity_of(define(source, PROMPT="b"))
    assert {part for part in there if there[part] != here[part]} == {"constant PROMPT"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], (1,)),
        ([], ()),
        ([[1], 2], [[1, 2]]),
        ([(1, 2), 3], [(1,), 2, 3]),
        (["ab", "c"], ["a", "bc"]),
        (["a", "b"], ["astr:1:b"]),
        (["a", "b"], ["a1:b"]),
        ([b"a", b"b"], [b"abytes:b"]),
        (["a", "b"], ["astr:b"]),
        ({1}, frozenset({1})),
        ([1, [2]], [1, 2]),
        (1, True),
        ("1", 1),
        (0.0, -0.0),
    ],
)
def test_values_of_another_type_or_length_have_another_digest(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


def table(count: int = 3) -> pandas.DataFrame:
    return pandas.DataFrame({"id": range(count), "text": [f"text {n}" for n in range(count)]})


class Counting:
    """Counts the items that it is called for."""

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
    """The table then holds a `Failed`, of which no digest can be made."""
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
    "rows_of",
    [
        lambda df: df.to_dict("records"),
        lambda df: df.to_dict("list"),
        lambda df: (row for row in df.to_dict("records")),
    ],
)
def test_other_rows_may_have_more_columns_as_well(path: Path, rows_of: Any) -> None:
    df = table()
    gptx_async.map(Counting(), rows_of(df), workers=1, checkpoint=path)
    df["more"] = [4, 5, 6]
    work = Counting()
    assert len(gptx_async.map(work, rows_of(df), checkpoint=path)) == 3
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
    assert gptx_async.map(add, [1, 2], checkpoint=path, key=key) == [2, 3], "the job stays"


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
