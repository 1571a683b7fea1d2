"""How runs end: no outcome is lost, and each thread does its own part."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import gptx_async
from gptx_async.mapping.backends import threads as workers_module
from gptx_async.mapping.checkpoint import Checkpoint

InThread = Callable[..., Future[Any]]


def join_threads_of_runs() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("gptx_async-map"):
            thread.join(20)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    join_threads_of_runs()


def twice(item: int) -> int:
    return 2 * item


def test_stored_values_need_no_worker(tmp_path: Path, in_thread: InThread) -> None:
    """There are more stored values than workers: each must release the permit of its item."""
    path = tmp_path / "run.sqlite"
    expected = [twice(item) for item in range(9)]
    assert gptx_async.map(twice, range(9), workers=1, checkpoint=path) == expected
    again = in_thread(gptx_async.map, twice, range(9), workers=1, checkpoint=path)
    assert again.result(20) == expected


def test_a_waiting_item_of_a_cancelled_run_is_not_started() -> None:
    building, go_on = threading.Event(), threading.Event()
    begun: list[int] = []

    class Slow:
        def __init__(self) -> None:
            building.set()
            assert go_on.wait(20)

        def __call__(self, item: int) -> int:
            begun.append(item)
            return item

    async def give_up() -> None:
        asking = asyncio.ensure_future(asyncio.to_thread(building.wait, 20))
        running = asyncio.ensure_future(collect())
        await asking
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def collect() -> Any:
        return await gptx_async.amap(Slow, [0], workers=1)

    asyncio.run(give_up())
    go_on.set()
    join_threads_of_runs()
    assert begun == []


class SlowSemaphore(threading.Semaphore):
    """Lets the threads that it wakes run before the thread that called `release`."""

    def release(self, n: int = 1) -> None:
        super().release(n)
        time.sleep(0.02)


def test_no_more_threads_than_workers_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[threading.Thread] = set()

    def note(item: int) -> int:
        threads.add(threading.current_thread())
        return item

    monkeypatch.setattr(threading, "Semaphore", SlowSemaphore)
    gptx_async.map(note, range(20), workers=1)
    assert len(threads) == 1


def test_the_checkpoint_is_closed_by_the_thread_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing blocks, so it must not happen on the loop."""
    closed: list[str] = []
    close = Checkpoint.close

    def note(self: Checkpoint) -> None:
        closed.append(threading.current_thread().name)
        close(self)

    async def main() -> Any:
        return await gptx_async.amap(twice, range(3), checkpoint=tmp_path / "run.sqlite")

    monkeypatch.setattr(Checkpoint, "close", note)
    assert asyncio.run(main()) == [0, 2, 4]
    assert closed[0].startswith("gptx_async-map-")


class EndsWhenLookedAt(deque[Any]):
    """A queue of outcomes: the run ends just after the consumer first sees the queue empty."""

    look = staticmethod(lambda: None)

    def __bool__(self) -> bool:
        if len(self):
            return True
        self.look()
        return False


def test_an_outcome_that_arrives_while_the_consumer_looks_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = threading.Event()

    def wait(item: int) -> int:
        assert looked.wait(20)
        return item

    def look() -> None:
        looked.set()
        join_threads_of_runs()

    monkeypatch.setattr(EndsWhenLookedAt, "look", staticmethod(look))
    monkeypatch.setattr(workers_module, "deque", EndsWhenLookedAt)
    assert [*gptx_async.map(wait, [7], as_completed=True)] == [(0, 7)]


def test_the_loop_goes_on_between_the_values_of_amap() -> None:
    """This also holds when all outcomes are already available."""
    items, done = 400, threading.Semaphore(0)
    turn, turns = 0, set[int]()

    def work(_item: int) -> int:
        done.release()
        raise ValueError("makes the loop call on_error")

    async def collect() -> Any:
        return await gptx_async.amap(work, range(items), on_error=lambda _failed: turns.add(turn))

    async def main() -> None:
        nonlocal turn
        running = asyncio.ensure_future(collect())
        await asyncio.sleep(0)  # start the task
        for _ in range(items):  # this blocks the loop
            assert done.acquire(timeout=20)
        while not running.done():
            turn += 1
            await asyncio.sleep(0)
        await running

    asyncio.run(main())
    assert len(turns) >= items // 2


def test_an_error_of_on_error_has_outcomes_that_were_not_taken() -> None:
    """The second item ends while the consumer handles the failure of the first."""
    both_begun, failed = threading.Barrier(2), threading.Event()
    arrived = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        yield 1
        yield 2  # read when a worker is free again, so one item has ended
        arrived.set()
        yield 3

    def work(item: int) -> int:
        if item < 2:
            both_begun.wait(20)
        if item == 0:
            raise ValueError("the first")
        assert failed.wait(20)
        return item

    def stop(_failed: Any) -> Any:
        failed.set()
        assert arrived.wait(20)
        raise LookupError("of on_error")

    with pytest.raises(LookupError, match="of on_error") as raised:
        gptx_async.map(work, items(), workers=2, on_error=stop)
    results = raised.value.results  # type: ignore[attr-defined]
    assert 1 in results.indices or 2 in results.indices


def test_an_item_that_ends_while_the_run_stops_is_in_the_results() -> None:
    """A stopped run waits for its items in progress before it collects the results."""
    both_begun, stopping = threading.Barrier(2), threading.Event()

    def work(item: int) -> int:
        both_begun.wait(20)
        if item == 0:
            raise ValueError("the first")
        assert stopping.wait(20)
        time.sleep(0.2)
        return item

    def stop(_failed: Any) -> Any:
        stopping.set()
        raise LookupError("of on_error")

    with pytest.raises(LookupError) as raised:
        gptx_async.map(work, [0, 1], workers=2, on_error=stop)
    assert raised.value.results == [1]  # type: ignore[attr-defined]
