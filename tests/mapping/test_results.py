"""The values of a run as a list and as a pandas Series."""

from __future__ import annotations

import sys

import pandas
import pytest

import gptx_async
from gptx_async import Failed
from gptx_async.errors import (
    MissingPackageError,
)


def double(number: int) -> int:
    return 2 * number


def test_results_become_a_series_with_the_index_of_the_dataset() -> None:
    series = pandas.Series([1, 0, 4], index=["x", "y", "z"])
    results = gptx_async.map(lambda item: 8 // int(item), series, on_error="return")
    doubled = results.to_pandas()
    assert [*doubled.index] == ["x", "y", "z"]
    assert (doubled["x"], doubled["z"]) == (8, 2)
    assert isinstance(doubled["y"], Failed)
    lists = gptx_async.map(lambda item: [item], range(3)).to_pandas()
    assert (lists.tolist(), [*lists.index]) == ([[0], [1], [2]], [0, 1, 2])
    assert gptx_async.map(double, range(3)).to_pandas().dtype == int
    with pytest.raises(ZeroDivisionError) as raised:
        gptx_async.map(lambda item: 8 // int(item), series, workers=1)
    done = raised.value.results.to_pandas()  # type: ignore[attr-defined]
    assert done["x"] == 8  # and "z", if it was done before the run was stopped
    assert {"x"} <= {*done.index} <= {"x", "z"}


def test_to_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        gptx_async.map(double, [1]).to_pandas()
