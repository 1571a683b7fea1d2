"""What counts as plain JSON."""

from __future__ import annotations

from collections import OrderedDict, UserList
from typing import Any

import pytest

from gptx_async.plain_json import is_plain_json


class _Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1, 1.5, "a", [], {}, [[1], {"a": [None, {"b": False}]}],
        {"messages": [{"role": "user", "content": "a"}], "temperature": 0.5},
    ],
)  # fmt: skip
def test_built_in_values_are_plain(value: Any) -> None:
    assert is_plain_json(value)


@pytest.mark.parametrize(
    "value",
    [
        b"a", 1j, (1,), {1}, object(), _Text("a"), OrderedDict(a=1), UserList([1]),
        {1: "a"}, {_Text("a"): 1}, {"a": (1,)}, [1, _Text("a")], [[OrderedDict()]],
        {"a": {"b": [b"c"]}},
    ],
)  # fmt: skip
def test_other_types_are_not_plain_at_any_depth(value: Any) -> None:
    assert not is_plain_json(value)


def test_the_caller_can_decide_about_scalars() -> None:
    def is_text_or_tuple(value: object) -> bool:
        return type(value) in (str, tuple)

    assert is_plain_json({"a": [(1,), "b"]}, is_text_or_tuple)
    assert is_plain_json((1,), is_text_or_tuple)
    assert not is_plain_json({"a": [1]}, is_text_or_tuple)
    assert not is_plain_json({1: "b"}, is_text_or_tuple)


def test_a_value_that_contains_itself_raises_a_recursion_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(RecursionError):
        is_plain_json(loop)
