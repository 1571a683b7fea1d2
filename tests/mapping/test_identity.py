"""The identity of jobs and items: which changes result in a different job or digest."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy
import pytest
from symai import Expression, Symbol

from gptx_async.mapping.identity import differences, digest_of, identity_of
from support.child import run_child
from support.stored_values import VALUES, Point


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


def test_code_next_to_a_lambda_does_not_change_the_job(define: Callable[..., Any]) -> None:
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


LIMIT = 3


def limited(value: int) -> Callable[[int], int]:
    def work(item: int, *, limit: int = value) -> int:
        return min(item, limit)

    return work


def test_the_default_of_a_keyword_only_parameter_is_part_of_the_job() -> None:
    assert identity_of(limited(1)) == identity_of(limited(1))
    assert identity_of(limited(1)) != identity_of(limited(2))


def in_a_lambda(items: list[int]) -> list[int]:
    return sorted(items, key=lambda item: item % LIMIT)


def in_a_function(item: int) -> int:
    def inner() -> int:
        return item % LIMIT

    return inner()


@pytest.mark.parametrize("work", [in_a_lambda, in_a_function])
def test_a_constant_that_an_inner_function_uses_is_part_of_the_job(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity_of(work)
    assert identity_of(work) == before
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert identity_of(work) != before


def test_an_attribute_that_an_instance_gets_while_it_works_is_not_a_difference() -> None:
    before, after = {"source": "s"}, {"source": "s", "attribute 'n'": "1"}
    assert differences(before, after) == differences(after, before) == []
    assert differences(after, after | {"attribute 'n'": "2"}) == ["attribute 'n' differs"]
    assert differences(before, before | {"constant N": "1"}) == ["constant N differs"]


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], (1,)),
        ([], ()),
        ({1}, frozenset({1})),
        (1, True),
        (1, 1.0),
        ("1", b"1"),
        (["a", "bstr:c"], ["astr:b", "c"]),
        (["a", "bstr:1:c"], ["astr:1:b", "c"]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    ],
    ids=repr,
)
def test_values_of_similar_form_have_different_digests(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


PROMPT = "Double it."


class Summarise(Expression):  # type: ignore[misc]
    def __init__(self, words: int, secret: object = None) -> None:
        super().__init__()
        self.words = words
        self.secret = secret

    def forward(self, item: Any) -> Any:
        return f"{item} in {self.words}, {PROMPT}"


DIGESTS = """
import sys
from decimal import Decimal
from gptx_async.mapping.identity import digest_of
shared = "".join(["sha", "red"])
print(digest_of([{"a", "set", "of", "texts"}, {"b": 1, "a": Decimal("0.1")}, (shared, shared)]))
"""


def test_digests_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes differ in the order of sets, and in which equal strings are the same object."""
    value = [{"a", "set", "of", "texts"}, {"a": Decimal("0.1"), "b": 1}, ("shared", "sha" + "red")]
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert run_child(DIGESTS).stdout.strip() == digest_of(value)


def test_different_contents_have_different_digests() -> None:
    values: list[Any] = [
        *VALUES,
        *(1.0, "1", b"1", [1], ["1"], [[1], []], [[], [1]], {"1"}, {1: 2}, {"a": 1, "b": 2}),
        *(Point(2), "ab", ["a", "b"], ["ab"], [], {}, set(), len, Point, numpy.arange(3)),
        *(numpy.arange(4), Symbol("a"), Symbol("b"), Symbol(["a"]), Summarise(1), Summarise(2)),
    ]
    digests = [digest_of(value) for value in values]
    assert len({*digests}) == len(values)
    assert digest_of(Symbol("a")) == digest_of(Symbol("a"))
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
