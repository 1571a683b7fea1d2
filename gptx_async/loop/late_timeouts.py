"""Timeouts of a loop that was late: what came meanwhile counts first.

After the process stood still (a suspended laptop, a stopped virtual machine, a full machine) a loop
finds data and expired timeouts in the same turn. The timeout cancels the task that the data is for,
although the answer has been in the socket for seconds; the request is then sent, and paid, twice.
Blocking sockets do better: they look for data before they give up.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from contextvars import Context
from typing import Any

__all__ = ["LATE_SECONDS", "defer_late_timeouts"]

LATE_SECONDS = 0.1
"""How late a timeout may be found before it is deferred."""

TURNS = 8
"""For how many turns of the loop it is deferred: a new connection takes five to become usable."""

_OWN_PACKAGE = __name__.partition(".")[0]


def defer_late_timeouts(loop: asyncio.AbstractEventLoop) -> None:
    """Let the sockets of a new loop come before the timeouts that it finds late.

    Timeouts are the timers that call a method of another package: of `asyncio.Timeout`, of
    aiohttp's protocol, of a cancel scope of anyio. Sleeps, and the timers of the pacing, are on
    time.

    Args:
        loop: The loop, before it runs.
    """
    # One of the two calls the other, in asyncio and in uvloop each its own way. It then passes on
    # what the outer one has made, which is no timeout.
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
    # The function's module, not that of the object's class: ours may inherit from aiohttp's.
    module = getattr(callback.__func__, "__module__", None) or ""
    return module.partition(".")[0] != _OWN_PACKAGE


class _Timeout:
    """One timeout, whose callback is called when the sockets had their turn."""

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
        """Call the callback, or wait for another turn; nothing if it was cancelled meanwhile."""
        if self.handle.cancelled():
            return
        is_late = self._turns or self._loop.time() - self._when > LATE_SECONDS
        if is_late and self._turns < TURNS:
            self._turns += 1
            self._loop.call_soon(self.expire)
        else:
            self._callback(*self._args)
