"""Limit how many connections are opened to one server at once; the limit grows with success.

A server queues only a few connections that it has not accepted yet (5 by default in Python's
`socketserver`). The kernel drops the rest, and TCP retries after 1, 3 and 7 s, so opening 256
connections at once takes longer than opening a few at a time. The limit follows TCP's slow start
(RFC 5681), applied to connections in place of packets.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

__all__ = ["Ramp"]

START = 16
"""The first limit, before anything is known about the server."""

LEAST = 4
"""The lowest limit."""

DROPPED_SECONDS = 0.9
"""A connection that takes this long was dropped once: TCP retries after 1 s (RFC 6298)."""

SLOWER = 3
"""To a distant server, a connection counts as dropped if it takes this many times the quickest."""


class Ramp:
    """Decides when the next connection to one server may be opened. Of one loop."""

    def __init__(self) -> None:
        self.limit = float(START)
        """How many connections may be opened at once now."""
        self._threshold = math.inf  # above it the limit grows slowly
        self._opening = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._quickest = math.inf
        self._cut_at = -math.inf
        self._opened_at = -math.inf

    @property
    def is_unused(self) -> bool:
        """Whether no connection is being opened or waited for."""
        return not self._opening and not self._waiting

    async def turn(self, patience: float | None, *, first: bool = False) -> bool:
        """Wait for a turn to open a connection, or until a connection returns to the pool.

        Args:
            patience: Seconds to wait while no caller opens a connection; None for no limit.
            first: Whether to wait ahead of all others, because another request took the pooled
                connection.

        Returns:
            True if a connection may be opened; end the turn with `opened`, `failed` or `unused`.
            False if the pool may have a connection.

        Raises:
            TimeoutError: No connection to this server was opened for `patience` seconds.
        """
        if self._opening < self.limit and not self._waiting:
            self._opening += 1
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._waiting.appendleft(turn) if first else self._waiting.append(turn)
        timer = patience and loop.call_later(patience, self._look_at, turn, patience, loop.time())
        try:
            return await turn
        except asyncio.CancelledError:
            came = turn.done() and not turn.cancelled() and turn.exception() is None
            if came and turn.result():  # just before the cancellation
                self._leave()
            raise
        finally:
            if timer:
                timer.cancel()

    def opened(self, began: float) -> None:
        """End a turn in which a connection was opened.

        Args:
            began: When its opening began, by the loop's clock.
        """
        self._opened_at = now = asyncio.get_running_loop().time()
        took = now - began
        self._quickest = min(self._quickest, took)
        if took < max(DROPPED_SECONDS, SLOWER * self._quickest):
            self.limit += 1 if self.limit < self._threshold else 1 / self.limit
        else:
            self._cut(began, now)
        self._leave()

    def failed(self, began: float) -> None:
        """End a turn in which no connection could be opened.

        Args:
            began: When its opening began, by the loop's clock.
        """
        self._cut(began, asyncio.get_running_loop().time())
        self._leave()

    def unused(self) -> None:
        """End a turn in which no new connection was needed, or its opening was cancelled."""
        self._leave()

    def given_back(self) -> None:
        """Let the first waiter look into the pool; called when a connection is released."""
        if self._waiting:
            # The connection is in the pool only after this call returns.
            asyncio.get_running_loop().call_soon(self._wake)

    def _look_at(self, turn: asyncio.Future[bool], patience: float, since: float) -> None:
        """End a wait with a TimeoutError if no connection was opened since a time."""
        if turn.done():
            return
        if self._opened_at <= since:
            turn.set_exception(TimeoutError())
            return
        # Wait on from the last success. A timer of a wait that is over does nothing.
        loop = asyncio.get_running_loop()
        at = self._opened_at + patience
        loop.call_at(at, self._look_at, turn, patience, self._opened_at)

    def _cut(self, began: float, now: float) -> None:
        """Halve the limit, once for all connections that began before the last cut."""
        if began > self._cut_at:
            self.limit = self._threshold = max(float(LEAST), self.limit // 2)
            self._cut_at = now

    def _leave(self) -> None:
        self._opening -= 1
        while self._waiting and self._opening < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._opening += 1
                turn.set_result(True)

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)
                return
