"""How a batch's window grows, with a loop that the test declares idle or busy."""

from __future__ import annotations

import asyncio
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from gptx_async.batch import driver as batch_module
from gptx_async.batch.driver import Batch, wait_for
from gptx_async.batch.window import INITIAL_LIMIT, SAMPLE_SECONDS, Window
from gptx_async.errors import LoopThreadDiedError
from gptx_async.loop.call import Call
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service, loop_seconds


class Clock:
    """The time, and the part of it in which the loop was busy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy = 0.0
        clock = types.SimpleNamespace(seconds=lambda: self.now)
        monkeypatch.setattr("gptx_async.batch.window.clock", clock)

    def wait(self, window: Window, seconds: float, busy: float) -> int:
        with window.waiting():
            self.now += seconds
            self.busy += busy
        return window.limit


class Together:
    """Calls that are answered once a given number has begun; counts concurrent items."""

    def __init__(self, count: int) -> None:
        self.most = 0
        self._count = count
        self._begun = 0
        self._there = 0
        self._all: asyncio.Event | None = None

    def ask(self, index: int) -> int:
        self._begun += 1
        self.most = max(self.most, self._begun)
        wait_for(Call(self._answer))
        self._begun -= 1
        return index

    async def _answer(self, _scope: LoopScope) -> None:
        self._all = self._all or asyncio.Event()
        self._there += 1
        if self._there >= self._count:
            self._all.set()
        await self._all.wait()


def run_in_thread(batch: Batch[int, int]) -> list[Any]:
    return batch.run()


def run_on_loop(batch: Batch[int, int]) -> list[Any]:
    return asyncio.run(batch.run_async())


def run_within_an_item(batch: Batch[int, int]) -> list[Any]:
    [outcome] = Batch(lambda inner: inner.run(), [batch]).run()
    return outcome.result()


in_each_way = pytest.mark.parametrize("run", [run_in_thread, run_on_loop])


def test_it_opens_step_by_step_while_the_loop_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    window = Window(512, lambda: clock.busy)
    assert window.limit == INITIAL_LIMIT
    limits = [clock.wait(window, 1.001 * SAMPLE_SECONDS, SAMPLE_SECONDS / 4) for _ in range(5)]
    assert limits == [64, 128, 256, 512, 512]
    assert window.is_fully_open


def test_it_does_not_grow_while_the_loop_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    window = Window(512, lambda: clock.busy)
    waited, busy = 1.001 * SAMPLE_SECONDS, 0.9 * SAMPLE_SECONDS
    assert {clock.wait(window, waited, busy) for _ in range(20)} == {INITIAL_LIMIT}


def test_short_waits_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    window = Window(512, lambda: clock.busy)
    part = SAMPLE_SECONDS / 4
    busy = [part, 0.0, 0.0, 0.0, part, part, part, 0.0, 0.0, 0.0, 0.0, 0.0]
    limits = [clock.wait(window, 1.001 * part, each) for each in busy]
    assert limits == [32, 32, 32, 64, 64, 64, 64, 64, 64, 64, 64, 128]


def test_a_small_window_is_fully_open_from_the_beginning() -> None:
    for size in (1, INITIAL_LIMIT):
        window = Window(size, lambda: None)
        assert (window.limit, window.is_fully_open) == (size, True)


def test_without_a_cpu_clock_it_is_fully_open() -> None:
    window = Window(512, lambda: None)
    with window.waiting():
        pass
    assert window.limit == 512


@in_each_way
def test_a_batch_with_slow_answers_begins_its_whole_window(
    run: Callable[[Batch[int, int]], list[Any]],
) -> None:
    """Uses the real clock. No call is answered before 512 have begun."""
    together = Together(512)
    outcomes = run(Batch(together.ask, range(600)))
    assert [outcome.value for outcome in outcomes] == [*range(600)]
    assert together.most == 512


@in_each_way
def test_a_batch_with_a_busy_loop_begins_few(
    run: Callable[[Batch[int, int]], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "loop_seconds", time.monotonic)
    together = Together(1)
    outcomes = run(Batch(together.ask, range(600)))
    assert [outcome.value for outcome in outcomes] == [*range(600)]
    assert together.most <= INITIAL_LIMIT


def test_a_batch_within_an_item_begins_its_whole_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its waits cannot be measured, because its item waits."""
    monkeypatch.setattr(batch_module, "loop_seconds", time.monotonic)
    together = Together(100)
    outcomes = run_within_an_item(Batch(together.ask, range(150), window=100))
    assert [outcome.value for outcome in outcomes] == [*range(150)]
    assert together.most == 100


def test_the_time_of_the_loop_is_that_of_its_own_thread() -> None:
    def spin() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    async def spin_on_loop(_scope: LoopScope) -> None:
        spin()

    async def nothing(_scope: LoopScope) -> None:
        pass

    default_service().run(nothing)
    before = loop_seconds()
    assert before is not None
    other = threading.Thread(target=spin)
    other.start()
    other.join()
    between = loop_seconds()
    assert between is not None
    assert between - before < 0.02
    default_service().run(spin_on_loop)
    after = loop_seconds()
    assert after is not None
    assert after - between >= 0.02
    default_service().close()
    assert loop_seconds() is None


@in_each_way
def test_a_loop_that_dies_is_seen_while_the_window_is_not_open(
    run: Callable[[Batch[int, int]], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "loop_seconds", time.monotonic)  # always busy

    def ask(index: int) -> int:
        if index < INITIAL_LIMIT:
            wait_for(Call(never if index < INITIAL_LIMIT - 1 else stop))
        return index

    async def never(_scope: LoopScope) -> None:
        await asyncio.Event().wait()

    async def stop(_scope: LoopScope) -> None:
        asyncio.get_running_loop().stop()

    outcomes = run(Batch(ask, range(2 * INITIAL_LIMIT)))
    lost, rest = outcomes[: INITIAL_LIMIT - 1], outcomes[INITIAL_LIMIT:]
    assert all(isinstance(each.error, LoopThreadDiedError) for each in lost)
    assert [each.value for each in rest] == [*range(INITIAL_LIMIT, 2 * INITIAL_LIMIT)]


def test_a_window_opens_quickly_while_no_answer_arrives(
    monkeypatch: pytest.MonkeyPatch, in_thread: Callable[..., Future[Any]]
) -> None:
    """It must not take `SLICE_SECONDS`, after which the driver checks the loop's thread."""
    monkeypatch.setattr(batch_module, "SLICE_SECONDS", 600.0)
    calls = Together(200)
    batch: Batch[int, int] = Batch(calls.ask, range(200))
    assert [outcome.result() for outcome in in_thread(batch.run).result(20)] == [*range(200)]
    assert calls.most == 200
