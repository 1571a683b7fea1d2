"""The package's clock: monotonic seconds, even in tests that freeze time.

freezegun and time-machine replace `time.monotonic`. Retries, pauses and timeouts that use it would
never end, and times taken while it is frozen would falsify later measurements.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

__all__ = ["let_run", "seconds"]


def _find_clock() -> Callable[[], float]:
    """Return a function that reads the system's monotonic clock.

    A `partial`, because freezegun replaces `time.monotonic` in the attributes of every module. It
    wraps `clock_gettime`, because some releases of time-machine patch the function
    `time.monotonic` itself, so that keeping a reference to it does not help.
    """
    if hasattr(time, "clock_gettime"):
        return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return functools.partial(time.monotonic)


seconds = _find_clock()
"""Return the current time in seconds from an arbitrary start. Allowed in any thread."""


def let_run(loop: asyncio.AbstractEventLoop) -> None:
    """Make a new loop use this clock, so that its timers fire while time is frozen.

    Loops of other libraries, such as uvloop's, have their own clock, which cannot be frozen.

    Args:
        loop: The loop, before it runs.
    """
    if isinstance(loop, asyncio.BaseEventLoop):
        loop.time = seconds  # type: ignore[method-assign]
