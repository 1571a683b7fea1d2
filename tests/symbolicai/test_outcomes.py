"""An item's failure is its own, whatever it raises; what ends a run has the results so far."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import greenlet
import pytest

import gptx_async
from gptx_async import Failed
from gptx_async.batch.driver import Batch
from gptx_async.errors import DatasetError, ItemStoppedError, RunCancelledError
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.engines import argument, user_text


class PanicException(BaseException):
    """As libraries written in Rust raise it."""


OWN = [
    ValueError,
    PanicException,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    MemoryError,
]
"""What fails the item that raises it."""

ENDING = [KeyboardInterrupt, SystemExit, GeneratorExit, greenlet.GreenletExit, RunCancelledError]
"""What ends the run."""

COUNT, FAILING = 20, 7


class Work:
    """Raises an error for one item, after all items before it are done."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._done = 0
        self._changed = threading.Condition()

    def __call__(self, item: int) -> int:
        if item == FAILING:
            with self._changed:
                assert self._changed.wait_for(lambda: self._done == FAILING, 60)
            raise self.error
        with self._changed:
            self._done += 1
            self._changed.notify_all()
        return item


def as_map(work: Any, **options: Any) -> Any:
    return gptx_async.map(work, range(COUNT), workers=4, **options)


def as_stream(work: Any, **options: Any) -> Any:
    return [value for _, value in sorted(as_map(work, as_completed=True, **options), key=first)]


def first(pair: tuple[int, Any]) -> int:
    return pair[0]


def as_amap(work: Any, **options: Any) -> Any:
    async def run() -> Any:
        return await gptx_async.amap(work, range(COUNT), workers=4, **options)

    return asyncio.run(run())


def as_async_stream(work: Any, **options: Any) -> Any:
    async def run() -> Any:
        values = gptx_async.amap(work, range(COUNT), workers=4, **options)
        return [value async for value in values]

    return asyncio.run(run())


def as_async_stream_as_completed(work: Any, **options: Any) -> Any:
    async def run() -> Any:
        pairs = gptx_async.amap(work, range(COUNT), workers=4, as_completed=True, **options)
        return [value for _, value in sorted([pair async for pair in pairs], key=first)]

    return asyncio.run(run())


RUNS = [as_map, as_stream, as_amap, as_async_stream, as_async_stream_as_completed]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("error", OWN)
def test_what_an_item_raises_is_its_own_failure(
    run: Callable[..., Any], error: type[BaseException]
) -> None:
    raised = error()
    results = run(Work(raised), on_error="return")
    assert len(results) == COUNT
    failed = results[FAILING]
    assert isinstance(failed, Failed)
    assert failed.error is raised
    assert [*results[:FAILING], *results[FAILING + 1 :]] == [
        item for item in range(COUNT) if item != FAILING
    ]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("error", [*OWN, *ENDING])
def test_what_ends_a_run_has_the_results(
    run: Callable[..., Any], error: type[BaseException]
) -> None:
    """With "raise" every failure ends it; what was handed out before is not among them."""
    raised = error()

    def run_and_raise() -> Any:
        on_error = "raise" if error in OWN else "return"
        return run(Work(raised), on_error=on_error)

    ended_with: Any
    try:
        run_and_raise()
    except BaseException as caught:
        ended_with = caught
    if error in (StopIteration, StopAsyncIteration) and run is not as_map:
        assert isinstance(ended_with, ItemStoppedError)
        assert f"Item {FAILING} raised {error.__name__}" in str(ended_with)
        assert ended_with.__cause__ is raised
    else:
        assert ended_with is raised
    results = ended_with.results
    assert {*results} <= {*range(COUNT)} - {FAILING}
    assert results.indices == [*results]
    assert "in this error's attribute `results`" in ended_with.__notes__[-1]
    if run in (as_map, as_amap):
        assert {*results} >= {*range(FAILING)}


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class StubbornError(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize("make", [lambda: FrozenError(1), lambda: StubbornError("no")])
@pytest.mark.parametrize("run", [as_map, as_stream, as_amap])
def test_an_error_that_takes_no_attributes_has_the_results(
    run: Callable[..., Any], make: Callable[[], Exception]
) -> None:
    """Nor a traceback, which `contextlib` sets, and pytest.raises with it."""
    error, ended_with = make(), None
    try:
        run(Work(error))
    except BaseException as caught:
        ended_with = caught
    assert ended_with is error
    assert isinstance(vars(error)["results"], gptx_async.Results)


def test_what_arrived_and_was_not_looked_at_is_in_the_results() -> None:
    """The consumer is busy with the first item, which failed, while the others are done."""
    done = threading.Barrier(5)

    def work(item: int) -> int:
        if item == 0:
            raise ValueError
        done.wait(60)
        return item

    def raise_when_done(_: Failed) -> Any:
        done.wait(60)
        raise KeyError

    with pytest.raises(KeyError) as raised:
        gptx_async.map(work, range(5), workers=5, on_error=raise_when_done)
    assert raised.value.results == [1, 2, 3, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("run", RUNS)
def test_what_an_on_error_function_raises_has_the_results(run: Callable[..., Any]) -> None:
    def stop(_: Failed) -> Any:
        raise StopIteration

    expected = StopIteration if run is as_map else ItemStoppedError
    with pytest.raises(expected) as raised:
        run(Work(ValueError()), on_error=stop)
    assert isinstance(raised.value.results, gptx_async.Results)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [asyncio.CancelledError, PanicException])
def test_what_a_dataset_raises_is_an_error_of_the_dataset(error: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    async def run() -> Any:
        return await gptx_async.amap(str, items())

    for call in (lambda: gptx_async.map(str, items()), lambda: asyncio.run(run())):
        with pytest.raises(DatasetError, match="in place of item 1") as raised:
            call()
        assert raised.value.results == ["1"]  # type: ignore[attr-defined]


def test_the_cancellation_of_the_caller_ends_a_run() -> None:
    begun, over = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 1:
            begun.set()
            over.wait(60)
        return item

    async def run() -> Any:
        task = asyncio.ensure_future(begin())
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        over.set()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        return raised.value.results  # type: ignore[attr-defined]

    async def begin() -> Any:
        return await gptx_async.amap(work, range(100), workers=1, on_error="return")

    assert asyncio.run(run())[0] == 0


def in_batch(function: Callable[[int], Any]) -> Any:
    return Batch(function, range(COUNT)).run()


def in_batch_of_a_coroutine(function: Callable[[int], Any]) -> Any:
    return asyncio.run(Batch(function, range(COUNT)).run_async())


def in_batch_within_a_batch(function: Callable[[int], Any]) -> Any:
    [outcome] = Batch(lambda _: Batch(function, range(COUNT)).run(), [0]).run()
    return outcome.result()


BATCHES = [in_batch, in_batch_of_a_coroutine, in_batch_within_a_batch]


@pytest.mark.parametrize("run", BATCHES)
@pytest.mark.parametrize("error", OWN)
def test_what_an_item_of_a_batch_raises_is_its_own_failure(
    run: Callable[..., Any], error: type[BaseException]
) -> None:
    def ask(index: int) -> int:
        if index == FAILING:
            raise error
        return index

    outcomes = run(ask)
    assert isinstance(outcomes[FAILING].error, error)
    assert [outcome.value for outcome in outcomes] == [
        None if index == FAILING else index for index in range(COUNT)
    ]


@pytest.mark.parametrize("run", BATCHES)
@pytest.mark.parametrize("error", ENDING)
def test_what_ends_a_batch_is_raised(run: Callable[..., Any], error: type[BaseException]) -> None:
    asked: list[int] = []

    def ask(index: int) -> int:
        asked.append(index)
        if index == FAILING:
            raise error
        return index

    with pytest.raises(error):
        run(ask)
    assert asked == [*range(FAILING + 1)], "nothing is begun after it"


@pytest.mark.parametrize("error", [PanicException, StopIteration, asyncio.CancelledError])
def test_what_a_remedy_raises_fails_its_item_only(
    fake_openai: FakeOpenAI, error: type[BaseException]
) -> None:
    def remedy(*_: Any) -> Any:
        raise error("of the remedy")

    def arguments() -> list[Any]:
        return [
            argument(f"text {index}", except_remedy=remedy if index == 2 else None)
            for index in range(5)
        ]

    def fault(request: Any) -> Any:
        return HTTPFault(400) if user_text(request.body) == "text 2" else None

    fake_openai.faults = fault
    engine = gptx_async.AsyncGPTXBatchEngine("sk-key", "gpt-4o-mini")
    for outputs, metadatas in (
        engine.forward(arguments()),
        asyncio.run(engine.aforward(arguments())),
    ):
        assert [bool(metadata.get("error")) for metadata in metadatas] == [
            index == 2 for index in range(5)
        ]
        assert outputs[2] == ["of the remedy"]
        assert isinstance(metadatas[2]["exception"], error)


def test_an_exit_in_the_second_interrupt_has_the_results_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the threads of a run end, Ctrl-C comes again."""
    from gptx_async.mapping.backends.threads import ThreadRun

    join = ThreadRun.join
    interrupts = [KeyboardInterrupt("again")]

    def join_interrupted(self: ThreadRun) -> None:
        join(self)
        if interrupts:
            raise interrupts.pop()

    monkeypatch.setattr(ThreadRun, "join", join_interrupted)
    with pytest.raises(KeyboardInterrupt, match="again") as raised:
        gptx_async.map(Work(ValueError()), range(COUNT), workers=4)
    assert {*raised.value.results} >= {*range(FAILING)}  # type: ignore[attr-defined]
    interrupts.append(KeyboardInterrupt("at the end"))
    with pytest.raises(KeyboardInterrupt, match="at the end") as raised:
        gptx_async.map(str, [1, 2])
    assert raised.value.results == ["1", "2"]  # type: ignore[attr-defined]
    assert sys.exc_info()[0] is None
