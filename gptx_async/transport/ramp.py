"""How many connections may be opened to one server at once: more as they succeed, else fewer.

A server's queue of connections that it has not accepted yet is short (5 by default for Python's
`socketserver`). The kernel drops what does not fit, and TCP tries again after 1, 3 and 7 s, so that
256 connections opened at once take longer than a few at a time. This is TCP's slow start (RFC
5681), with connections in the place of packets.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

__all__ = ["Ramp"]

START = 16
"""How many connections may be opened at once before anything is known of the server."""

LEAST = 4

DROPPED_SECONDS = 0.9
"""A connection that took this long was dropped and tried again, after TCP's 1 s (RFC 6298)."""

SLOWER = 3
"""A connection to a distant server counts as dropped if it took so many times the quickest."""


class Ramp:
    """Says when the next connection to one server may be opened. Of one loop."""

    def __init__(self) -> None:
        self.limit = float(START)
        """How many may be opened at once now."""
        self._threshold = math.inf  # above it the limit grows slowly
        self._opening = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._quickest = math.inf
        self._cut_at = -math.inf
        self._opened_at = -math.inf

    @property
    def is_unused(self) -> bool:
        """Whether nobody opens a connection or waits to."""
        return not self._opening and not self._waiting

    async def turn(self, patience: float | None, *, first: bool = False) -> bool:
        """Wait for the turn to open a connection, or until a pooled one was given back.

        Args:
            patience: Seconds without any connection opened after which it gives up; None for no
                limit.
            first: Whether to wait before all others, after a pooled connection was missed.

        Returns:
            Whether a connection may be opened, which ends by `opened` or `failed`. Else the pool is
            worth a look.

        Raises:
            TimeoutError: No connection was opened, by anyone, for as long as `patience`.
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
            if came and turn.result():  # in the moment before the cancellation
                self._leave()
            raise
        finally:
            if timer:
                timer.cancel()

    def opened(self, began: float) -> None:
        """End a turn: the connection that was begun at a time of the loop's clock is open."""
        self._opened_at = now = asyncio.get_running_loop().time()
        took = now - began
        self._quickest = min(self._quickest, took)
        if took < max(DROPPED_SECONDS, SLOWER * self._quickest):
            self.limit += 1 if self.limit < self._threshold else 1 / self.limit
        else:
            self._cut(began, now)
        self._leave()

    def failed(self, began: float) -> None:
        """End a turn: there is no connection."""
        self._cut(began, asyncio.get_running_loop().time())
        self._leave()

    def unused(self) -> None:
        """End a turn in which no connection was begun."""
        self._leave()

    def given_back(self) -> None:
        """Let the first who waits look into the pool; called when a connection is given back."""
        if self._waiting:
            # The connection is in the pool only after this call.
            asyncio.get_running_loop().call_soon(self._wake)

    def _look_at(self, turn: asyncio.Future[bool], patience: float, since: float) -> None:
        """End a wait if no connection was opened since a time."""
        if turn.done():
            return
        if self._opened_at <= since:
            turn.set_exception(TimeoutError())
            return
        # The wait goes on from the last success. A timer that is left over does nothing.
        loop = asyncio.get_running_loop()
        at = self._opened_at + patience
        loop.call_at(at, self._look_at, turn, patience, self._opened_at)

    def _cut(self, began: float, now: float) -> None:
        """Halve the limit, once for all that were begun before the last time."""
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
