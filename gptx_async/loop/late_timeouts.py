"""Defer timeouts that a loop finds late, so that data received in the meantime counts first.

When a process resumes after a pause (a suspended laptop, a stopped virtual machine, an overloaded
machine), its loop finds data and expired timeouts in the same iteration. The timeout then cancels
the task that waits for the data, although the answer has been in the socket for seconds, and the
request is sent and paid twice. Blocking sockets read the data before they give up.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from contextvars import Context
from typing import Any

__all__ = ["LATE_SECONDS", "defer_late_timeouts"]

LATE_SECONDS = 0.1
"""A timeout that the loop finds later than this, in seconds, is deferred."""

TURNS = 8
"""How many loop iterations a late timeout is deferred. A new connection needs five to be usable."""

_OWN_PACKAGE = __name__.partition(".")[0]


def defer_late_timeouts(loop: asyncio.AbstractEventLoop) -> None:
    """Make a new loop process its sockets before timeouts that it finds late.

    A timer counts as a timeout if it calls a method of another package, such as `asyncio.Timeout`,
    aiohttp's protocol or a cancel scope of anyio. Sleeps and the timers of the pacing are not
    deferred.

    Args:
        loop: The loop, before it runs.
    """
    # One of the two methods calls the other; which one differs between asyncio and uvloop. The
    # inner method then receives the outer one's callback, which does not count as a timeout.
    schedule_at, schedule_later = loop.call_at, loop.call_later

    def call_at(
        when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if not _is_timeout(callback):
            return schedule_at(when, callback, *args, context=context)
        timeout = _Timeout(loop, when, callback, args)
        timeout.handle = schedule_at(when, timeout.expire, context=context)
        return timeout.handle

    def call_later(
        delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if not _is_timeout(callback):
            return schedule_later(delay, callback, *args, context=context)
        timeout = _Timeout(loop, loop.time() + delay, callback, args)
        timeout.handle = schedule_later(delay, timeout.expire, context=context)
        return timeout.handle

    loop.call_at = call_at  # type: ignore[assignment, method-assign]
    loop.call_later = call_later  # type: ignore[assignment, method-assign]


def _is_timeout(callback: Callable[..., Any]) -> bool:
    if type(callback) is not types.MethodType:
        return False
    # The module of the function, not of the object's class: our classes may inherit aiohttp's.
    module = getattr(callback.__func__, "__module__", None) or ""
    return module.partition(".")[0] != _OWN_PACKAGE


class _Timeout:
    """One timeout, whose callback is called after the sockets are processed."""

    __slots__ = ("_args", "_callback", "_loop", "_turns", "_when", "handle")

    handle: asyncio.TimerHandle

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._loop = loop
        self._when = when
        self._callback = callback
        self._args = args
        self._turns = 0

    def expire(self) -> None:
        """Call the callback unless it was cancelled, or defer it by one iteration."""
        if self.handle.cancelled():
            return
        is_late = self._turns or self._loop.time() - self._when > LATE_SECONDS
        if is_late and self._turns < TURNS:
            self._turns += 1
            self._loop.call_soon(self.expire)
        else:
            self._callback(*self._args)
