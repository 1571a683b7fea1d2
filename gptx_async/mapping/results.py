"""What `map` returns: the values of a run, and what stands for an item that failed."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import MissingPackageError

__all__ = ["Failed", "Results"]


@dataclass(frozen=True, eq=False)
class Failed:
    """Replaces the value of an item that failed.

    Attributes:
        index: The item's index in the dataset.
        item: The item.
        error: The exception that the expression raised.
    """

    index: int
    item: Any
    error: BaseException


class Results(list[Any]):
    """The values of a run, in the order of the items.

    Attributes:
        failed: The items that failed, in order, including those for which `on_error` returned a
            value.
        indices: The index in the dataset of each value: all indices, unless the run was stopped.

    Args:
        values: The values, by the index of the item.
        failed: The items that failed, in any order.
        labels: The pandas index of the dataset, if it has one.
    """

    def __init__(
        self,
        values: dict[int, Any] | None = None,
        failed: Iterable[Failed] = (),
        labels: Any = None,
    ) -> None:
        values = values or {}
        self.indices = sorted(values)
        super().__init__(values[index] for index in self.indices)
        self.failed = sorted(failed, key=operator.attrgetter("index"))
        self._labels = labels

    def to_pandas(self) -> Any:
        """Return the values as a pandas Series, with the index of the dataset if it has one.

        Each `Failed` is an element of the series. To find them:
        `series.map(lambda value: isinstance(value, Failed))`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise MissingPackageError(
                "to_pandas() needs pandas, which is not installed. Install it: pip install pandas."
            ) from error
        index = self.indices if self._labels is None else self._labels[self.indices]
        series = pandas.Series(index=index, dtype=object)
        for position, value in enumerate(self):  # one by one: a value may be a list
            series.iat[position] = value
        return series.infer_objects()
