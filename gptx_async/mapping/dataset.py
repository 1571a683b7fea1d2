"""Datasets of all kinds that `map` accepts, as items that are read one by one.

This module does not import pandas or symbolicai: if they are not imported yet, the dataset cannot
be one of their objects.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from ..batch.driver import ENDS_RUN
from ..errors import ConfigurationError, DatasetError

__all__ = ["DatasetItems", "dataset_errors", "dataset_items", "is_symbol"]


@dataclass(frozen=True, slots=True)
class DatasetItems:
    """The items of a dataset.

    Attributes:
        items: The items; they can be read once.
        count: The number of items; None if it is unknown until they are read.
        labels: The pandas index of the dataset, if it has one.
    """

    items: Iterable[Any]
    count: int | None
    labels: Any = None


def dataset_items(dataset: Any) -> DatasetItems:
    """Return the items of a dataset, without reading any.

    Args:
        dataset: An iterable; a sequence; a pandas Series; a DataFrame or a mapping of columns,
            whose items are rows as dictionaries; or a Symbol whose value is one of these.

    Raises:
        ConfigurationError: It is none of these, or text, or its columns differ in length.
    """
    if is_symbol(dataset):
        dataset = dataset.value  # iterating over a Symbol may query the model for a list
    if isinstance(dataset, (str, bytes, bytearray)):
        raise ConfigurationError(
            f"The dataset is a {type(dataset).__name__}, so its items would be characters. Give "
            "[text] for one item, or text.splitlines() for its lines."
        )
    if _is_a(dataset, "pandas", "DataFrame"):
        return DatasetItems(_frame_rows(dataset), len(dataset), dataset.index)
    if _is_a(dataset, "pandas", "Series"):
        return DatasetItems(dataset, len(dataset), dataset.index)
    if isinstance(dataset, Mapping):
        count = _column_length(dataset)
        return DatasetItems(_column_rows(dataset, count), count)
    if not hasattr(dataset, "__iter__") and hasattr(dataset, "__getitem__"):
        # Iterate by length: a sequence that never raises IndexError would not end.
        return DatasetItems(_sequence_items(dataset), len(dataset))
    if not hasattr(dataset, "__iter__"):
        hint = " Read it in your own loop first." if isinstance(dataset, AsyncIterable) else ""
        raise ConfigurationError(
            f"A dataset is an iterable, a mapping of columns or a pandas object, not "
            f"{type(dataset).__name__}.{hint}"
        )
    return DatasetItems(dataset, len(dataset) if isinstance(dataset, Sized) else None)


@contextlib.contextmanager
def dataset_errors(index: int) -> Iterator[None]:
    """Raise a `DatasetError` for an error of the block, which reads the item with this index.

    Raises:
        DatasetError: The dataset raised an error.
        BaseException: An error that ends the run, by `ENDS_RUN`; it is not replaced.
    """
    try:
        yield
    except ENDS_RUN:
        raise
    except BaseException as error:
        raise DatasetError(
            f"The dataset raised {type(error).__name__} in place of item {index}. Fix the dataset, "
            "or make it skip that item."
        ) from error


def is_symbol(value: object) -> bool:
    """Return whether a value is a Symbol of symbolicai, which includes Expressions."""
    return _is_a(value, "symai.symbol", "Symbol")


def _is_a(value: object, module: str, name: str) -> bool:
    """Return whether a value is an instance of a class whose module may not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _column_length(columns: Mapping[Any, Any]) -> int:
    for name, column in columns.items():
        is_table = isinstance(column, Mapping) or hasattr(column, "column_names")
        if is_table or isinstance(column, (str, bytes)) or not isinstance(column, Sized):
            raise ConfigurationError(
                f"A mapping must have columns, each a sequence of values, but {name!r} is a "
                f"{type(column).__name__}. Give a list of rows, [row], or one split of a dataset."
            )
    lengths = {str(name): len(column) for name, column in columns.items()}
    if len({*lengths.values()}) > 1:
        raise ConfigurationError(
            f"The columns of the dataset differ in length: {lengths}. Give each row a value in "
            "each column."
        )
    return next(iter(lengths.values()), 0)


def _column_rows(columns: Mapping[Any, Any], count: int) -> Iterator[dict[Any, Any]]:
    iterators = {name: iter(column) for name, column in columns.items()}
    for _ in range(count):
        yield {name: next(iterator) for name, iterator in iterators.items()}


def _frame_rows(frame: Any) -> Iterator[dict[Any, Any]]:
    names = [*frame.columns]
    for values in frame.itertuples(index=False, name=None):
        yield dict(zip(names, values, strict=True))


def _sequence_items(sequence: Any) -> Iterator[Any]:
    for index in range(len(sequence)):
        yield sequence[index]
