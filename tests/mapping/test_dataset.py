"""Datasets of all kinds, and datasets that raise errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pandas
import pytest
from symai import Symbol

import gptx_async
from gptx_async import AsyncGPTXBatchEngine
from gptx_async.errors import (
    ConfigurationError,
    DatasetError,
)
from gptx_async.testing import FakeOpenAI
from support.engines import KEY, MODEL, echo_unless_bad
from support.items import ask, threads_of_runs


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    fake_openai.reply = echo_unless_bad
    engine = gptx_async.install(KEY, MODEL)
    yield engine
    gptx_async.uninstall()


InThread = Callable[..., Future[Any]]


def double(number: int) -> int:
    return 2 * number


def answers(texts: list[str]) -> list[str]:
    return [f"answer to {text}" for text in texts]


TEXTS = [f"text {i}" for i in range(30)]


class Sequence:
    """Like a dataset of torch: `len` and indices, but no IndexError that would end an iterator."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        return index % 3


class Split(Sequence):
    """Like a split of a Hugging Face dataset: a mapping of splits is not a mapping of columns."""

    column_names = ("a",)


ROWS = [{"text": "a", "number": 1}, {"text": "b", "number": 2}]


@pytest.mark.parametrize(
    ("dataset", "items"),
    [
        (["a", "b"], ["a", "b"]),
        ({"a": 1}.items(), [("a", 1)]),
        (Sequence(), [0, 1, 2]),
        (ROWS, ROWS),
        ({"text": ["a", "b"], "number": (1, 2)}, ROWS),
        ({}, []),
        (pandas.DataFrame(ROWS, index=["x", "y"]), ROWS),
        (pandas.DataFrame(ROWS)["text"], ["a", "b"]),
        (Symbol(["a", "b"]), ["a", "b"]),
        (Symbol({"text": ["a", "b"], "number": [1, 2]}), ROWS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_datasets_of_many_kinds_are_read_as_items(dataset: Any, items: list[Any]) -> None:
    assert gptx_async.map(lambda item: item, dataset) == items


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("text", r"Give \[text\]"),
        (b"bytes", r"Give \[text\]"),
        (Symbol("text"), r"Give \[text\]"),
        (7, "not int"),
        ({"a": [1], "b": [1, 2]}, "differ in length"),
        ({"a": "text"}, "'a' is a str"),
        ({"train": {"a": [1]}}, "one split"),
        ({"train": Split()}, "one split"),
    ],
)
@pytest.mark.parametrize("function", [gptx_async.map, gptx_async.amap])
def test_other_values_are_rejected_before_the_run(
    function: Any, dataset: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        function(double, dataset)
    assert threads_of_runs() == []


def test_an_async_iterable_is_rejected() -> None:
    async def numbers() -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="Read it in your own loop"):
        gptx_async.map(double, numbers())


def test_a_dataset_that_raises_lets_what_is_in_flight_end(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, in_thread: InThread
) -> None:
    fake_openai.hold()
    raises = threading.Event()

    def texts() -> Iterator[str]:
        yield from TEXTS[:4]
        fake_openai.wait_for(lambda server: server.in_flight == 4)
        raises.set()
        raise KeyError("secret")

    running = in_thread(gptx_async.map, ask, texts())
    assert raises.wait(30)
    fake_openai.release()
    with pytest.raises(DatasetError, match="raised KeyError in place of item 4") as raised:
        running.result(30)
    assert isinstance(raised.value.__cause__, KeyError)
    assert "secret" not in str(raised.value)
    assert raised.value.results == answers(TEXTS[:4])  # type: ignore[attr-defined]
    assert fake_openai.disconnected == 0, "no call is cancelled"


def test_a_dataset_that_raises_ends_a_stream_after_what_was_read() -> None:
    seen: dict[int, int] = {}
    with pytest.raises(DatasetError, match="raised OSError in place of item 1"):
        seen.update(gptx_async.map(double, broken(), as_completed=True))
    with pytest.raises(DatasetError, match="item 0"):
        gptx_async.map(double, NotIterable())


def broken() -> Iterator[int]:
    yield 1
    raise OSError("unplugged")


class NotIterable:
    def __iter__(self) -> Iterator[int]:
        raise OSError("unplugged")
