"""What `map` takes as a dataset, as items that are read one by one.

pandas and symbolicai are not imported here: who gives a Series or a Symbol has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError

__all__ = ["Rows", "is_symbol", "rows_of"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The items of a dataset.

    Attributes:
        items: The items, to be read once.
        count: How many there are; None if that is not known before they are read.
        labels: The index that pandas has for them, if it has one.
    """

    items: Iterable[Any]
    count: int | None
    labels: Any = None


def rows_of(dataset: Any) -> Rows:
    """Return the items of a dataset; nothing of it is read yet.

    Args:
        dataset: An iterable; a sequence; a pandas Series, or a DataFrame, whose items are its rows
            as dictionaries; a mapping of columns, likewise; or a Symbol whose value is one of
            these.

    Raises:
        ConfigurationError: It is none of these, a text, or its columns are not of one length.
    """
    if is_symbol(dataset):
        dataset = dataset.value  # to iterate over a Symbol may ask the model for a list
    if isinstance(dataset, (str, bytes, bytearray)):
        raise ConfigurationError(
            f"The dataset is one text ({type(dataset).__name__}), whose items would be its "
            "characters. Give [text] for one item, or text.splitlines() for its lines."
        )
    if _is_a(dataset, "pandas", "DataFrame"):
        return Rows(_rows_of_frame(dataset), len(dataset), dataset.index)
    if _is_a(dataset, "pandas", "Series"):
        return Rows(dataset, len(dataset), dataset.index)
    if isinstance(dataset, Mapping):
        count = _length_of_columns(dataset)
        return Rows(_rows_of_columns(dataset, count), count)
    if not hasattr(dataset, "__iter__") and hasattr(dataset, "__getitem__"):
        # By its length: one that never raises an IndexError would have no end.
        return Rows(_items_of_sequence(dataset), len(dataset))
    if not hasattr(dataset, "__iter__"):
        hint = " Read it in your own loop first." if isinstance(dataset, AsyncIterable) else ""
        raise ConfigurationError(
            f"A dataset is an iterable, a mapping of columns or a pandas object, not "
            f"{type(dataset).__name__}.{hint}"
        )
    return Rows(dataset, len(dataset) if isinstance(dataset, Sized) else None)


def is_symbol(value: object) -> bool:
    """Tell whether a value is symbolicai's Symbol, of which an Expression is a case."""
    return _is_a(value, "symai.symbol", "Symbol")


def _is_a(value: object, module: str, name: str) -> bool:
    """Tell whether it is of a class of a module; it is not if nobody has imported that."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _length_of_columns(columns: Mapping[Any, Any]) -> int:
    for name, column in columns.items():
        is_table = isinstance(column, Mapping) or hasattr(column, "column_names")
        if is_table or isinstance(column, (str, bytes)) or not isinstance(column, Sized):
            raise ConfigurationError(
                f"A mapping is taken as columns, each a sequence of values; {name!r} is a "
                f"{type(column).__name__}. Give a list of rows, [row], or one split of a dataset."
            )
    lengths = {str(name): len(column) for name, column in columns.items()}
    if len({*lengths.values()}) > 1:
        raise ConfigurationError(
            f"The columns of the dataset are not of one length: {lengths}. Give each row a value "
            "in each column."
        )
    return next(iter(lengths.values()), 0)


def _rows_of_columns(columns: Mapping[Any, Any], count: int) -> Iterator[dict[Any, Any]]:
    iterators = {name: iter(column) for name, column in columns.items()}
    for _ in range(count):
        yield {name: next(iterator) for name, iterator in iterators.items()}


def _rows_of_frame(frame: Any) -> Iterator[dict[Any, Any]]:
    names = [*frame.columns]
    for values in frame.itertuples(index=False, name=None):
        yield dict(zip(names, values, strict=True))


def _items_of_sequence(sequence: Any) -> Iterator[Any]:
    for index in range(len(sequence)):
        yield sequence[index]
