"""The package's clock: monotonic seconds that a test's frozen time cannot stop.

freezegun and time-machine replace `time.monotonic`. A retry, a pause or a timeout that is measured
by it then never ends, and times taken from it spoil what is measured after the thaw.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

__all__ = ["let_run", "seconds"]


def _find_clock() -> Callable[[], float]:
    """Return the system's monotonic clock.

    A partial object, because freezegun looks for `time.monotonic` in the attributes of every
    module; and of `clock_gettime`, because some releases of time-machine change `time.monotonic`
    itself, so that a reference to it is no protection.
    """
    if hasattr(time, "clock_gettime"):
        return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return functools.partial(time.monotonic)


seconds = _find_clock()
"""Return the present in seconds, from an arbitrary start. Allowed in any thread."""


def let_run(loop: asyncio.AbstractEventLoop) -> None:
    """Let a new loop measure time by this clock, so that its timers fire within a frozen time.

    A loop of another library, such as uvloop's, has a clock of its own that nobody freezes.

    Args:
        loop: The loop, before it runs.
    """
    if isinstance(loop, asyncio.BaseEventLoop):
        loop.time = seconds  # type: ignore[method-assign]
