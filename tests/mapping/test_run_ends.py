"""Runs over datasets: what is missed at no end, and which thread does what."""

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


def test_stored_values_are_handed_on_without_a_worker(tmp_path: Path, in_thread: InThread) -> None:
    """More of them than workers: each must give back the place that its item had."""
    path = tmp_path / "run.sqlite"
    expected = [twice(item) for item in range(9)]
    assert gptx_async.map(twice, range(9), workers=1, checkpoint=path) == expected
    again = in_thread(gptx_async.map, twice, range(9), workers=1, checkpoint=path)
    assert again.result(20) == expected


def test_an_item_that_waits_when_its_run_is_cancelled_is_not_begun() -> None:
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
    """Lets the threads that it has woken go on before the one that wakes them."""

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
    """Not on the loop, which that would block."""
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
    """What has arrived: the run ends just after it was seen to be empty for the first time."""

    look = staticmethod(lambda: None)

    def __bool__(self) -> bool:
        if len(self):
            return True
        self.look()
        return False


def test_what_arrives_while_the_consumer_looks_is_not_missed(
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
    """Also when all of them are there already."""
    items, done = 400, threading.Semaphore(0)
    turn, turns = 0, set[int]()

    def work(_item: int) -> int:
        done.release()
        raise ValueError("so that on_error is called on the loop")

    async def collect() -> Any:
        return await gptx_async.amap(work, range(items), on_error=lambda _failed: turns.add(turn))

    async def main() -> None:
        nonlocal turn
        running = asyncio.ensure_future(collect())
        await asyncio.sleep(0)  # it begins
        for _ in range(items):  # this blocks the loop
            assert done.acquire(timeout=20)
        while not running.done():
            turn += 1
            await asyncio.sleep(0)
        await running

    asyncio.run(main())
    assert len(turns) >= items // 2


def test_an_error_of_on_error_has_what_arrived_but_was_not_looked_at() -> None:
    """The second item arrives while the consumer is busy with the failure of the first."""
    both_begun, failed = threading.Barrier(2), threading.Event()
    arrived = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        yield 1
        yield 2  # the reader asks for it when a worker is free again: one item has arrived
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


def test_what_ends_while_the_run_is_stopped_is_in_the_results() -> None:
    """The run waits a moment for the items in flight, and only then says what is done."""
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
