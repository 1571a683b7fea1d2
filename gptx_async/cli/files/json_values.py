"""Convert between values and JSON without losing or changing a value unnoticed."""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import date, time
from typing import Any

__all__ = ["LostValueError", "from_json", "text_for", "to_json"]


class LostValueError(ValueError):
    """The JSON text contains a value that Python's types can't hold."""


def from_json(line: str) -> Any:
    """Read one JSON value.

    Raises:
        LostValueError: A key occurs twice in an object, or no float can hold a number.
        ValueError: The text is not JSON.
    """
    return json.loads(
        line,
        parse_constant=_refuse_constant,
        parse_float=_parse_float,
        object_pairs_hook=_object_of,
    )


def to_json(value: Any) -> str:
    """Write a value as JSON.

    Types that Parquet has and JSON does not (dates, bytes) become text. JSON has no NaN and no
    infinity: they become null.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=text_for)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=text_for)


def text_for(value: Any) -> str:
    """Return the text for a value of a type that JSON does not have; bytes become base64."""
    if isinstance(value, (date, time)):  # datetime is a subclass of date
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    digits = re.split("[eE]", text)[0]
    if math.isinf(number) or (number == 0 and digits.strip("-0.")):
        raise LostValueError(f"has the number {text}, which no float holds")
    return number


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LostValueError(f"has the key {twice!r} twice")
    return fields
