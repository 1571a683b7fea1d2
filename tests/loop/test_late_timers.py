"""Which timers a late loop defers, and for how long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from gptx_async.loop.late_timeouts import TURNS, defer_late_timeouts


class Timer:
    """A timer's target from another package."""

    def __init__(self) -> None:
        self.fired = 0

    def fire(self) -> None:
        self.fired += 1


class OwnTimer(Timer):
    """A timer's target from this package: the module of the function decides."""

    def fire(self) -> None:
        super().fire()

    fire.__module__ = "gptx_async.pacing.governor"


def new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    defer_late_timeouts(loop)
    return loop


async def take_turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(timer: Timer, then: Callable[[asyncio.TimerHandle], None]) -> int:
    """Make a timer late, act two iterations later, and return how often the timer fired."""

    async def main() -> int:
        handle = asyncio.get_running_loop().call_later(0.01, timer.fire)
        threading.Event().wait(0.5)  # the process stands still
        await take_turns(2)
        then(handle)
        await take_turns(TURNS + 2)
        return timer.fired

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


def test_a_late_timeout_waits_for_some_turns_and_fires_once() -> None:
    timer, seen = Timer(), list[int]()
    assert run(timer, lambda _handle: seen.append(timer.fired)) == 1
    assert seen == [0]


def test_a_timeout_that_is_cancelled_while_it_is_deferred_does_not_fire() -> None:
    assert run(Timer(), lambda handle: handle.cancel()) == 0


def test_the_packages_own_timers_are_not_deferred() -> None:
    timer, seen = OwnTimer(), list[int]()
    assert run(timer, lambda _handle: seen.append(timer.fired)) == 1
    assert seen == [1]
