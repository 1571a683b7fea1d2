"""Values of many kinds, and a look at what a checkpoint stores."""

from __future__ import annotations

import enum
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any


def stored_in(path: Path) -> dict[int, tuple[str, Any]]:
    """Return the format and the stored form of each value in a checkpoint, by item."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT item, format, value FROM results").fetchall()
    finally:
        connection.close()
    assert len({item for item, _, _ in rows}) == len(rows)
    return {item: (form, value) for item, form, value in rows}


class Colour(enum.Enum):
    RED = 1


class Text(str):
    __slots__ = ()


@dataclass
class Point:
    x: int


VALUES = [
    "text",
    "half of a pair: \ud800, and \x00",
    "",
    None,
    True,
    -1,
    2**63,
    10**5000,
    0.1,
    float("inf"),
    {"b": 1, "a": {"nested": [1, [2]]}},
    {1: "a number's key"},
    (1, "a tuple"),
    {"a", "set"},
    b"bytes",
    Text("of a subclass"),
    Colour.RED,
    Point(1),
    Decimal("0.1"),
    datetime(2026, 1, 1),
    [Point(2), {"in": Colour.RED}],
]
