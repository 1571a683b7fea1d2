"""Whether a value is plain JSON: built-in types only, so that reading it runs no code of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["SCALARS", "is_plain_json"]

SCALARS = frozenset({str, int, float, bool, type(None)})
"""The types of the scalars of JSON."""


def is_plain_json(value: Any, is_scalar: Callable[[Any], bool] | None = None) -> bool:
    """Return whether a value consists of dictionaries with text keys, lists and scalars.

    A subclass of `dict`, `list` or `str` is not plain: reading it may run any code. Allowed in any
    thread.

    Args:
        value: The value.
        is_scalar: Decides about each value that is neither a `dict` nor a `list`; the default
            accepts `SCALARS`.

    Raises:
        RecursionError: The value contains itself.
    """
    kind = type(value)
    if kind is dict:
        if not all(type(name) is str for name in value):
            return False
        contents: Iterable[Any] = value.values()
    elif kind is list:
        contents = value
    else:
        return kind in SCALARS if is_scalar is None else is_scalar(value)
    for each in contents:
        kind = type(each)
        if kind is dict or kind is list:
            if not is_plain_json(each, is_scalar):
                return False
        elif not (kind in SCALARS if is_scalar is None else is_scalar(each)):
            return False
    return True
