"""Reserve the expected cost of calls in flight, so that concurrent calls keep to `max_cost`."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable

__all__ = ["Reservations"]


class Reservations:
    """The expected costs of one engine's calls in flight, in US$. Only on the loop's thread.

    Calls that do not fit wait for the calls in flight, first come first served. They are rejected
    only when nothing is in flight that may cost less than expected.
    """

    def __init__(self) -> None:
        self._amounts: dict[object, float] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def hold(
        self,
        estimate: Callable[[], float | None],
        left: Callable[[], float],
        reject: Callable[[float], Exception],
    ) -> AsyncIterator[None]:
        """Reserve the expected cost of a call while the block runs.

        Args:
            estimate: Returns the expected cost in US$. None while nothing is known: the call is
                then sent alone.
            left: Returns the US$ that are not spent yet, including reserved amounts.
            reject: Builds the error for a call of this cost in US$, or for 0 if nothing is left.

        Raises:
            Exception: The error from `reject`, if the call does not fit.
        """
        call = object()
        self._amounts[call] = await self._wait_for_room(estimate, left, reject)
        self._wake_next()
        try:
            yield
        finally:
            del self._amounts[call]
            self._wake_next()

    async def _wait_for_room(
        self,
        estimate: Callable[[], float | None],
        left: Callable[[], float],
        reject: Callable[[float], Exception],
    ) -> float:
        is_first = not self._waiting  # otherwise the call would overtake waiting calls
        while True:
            amount, rest = estimate(), left()
            if is_first and not self._amounts:
                if rest > 0 and (amount is None or amount <= rest):
                    return math.inf if amount is None else amount
                self._wake_next()
                raise reject(0.0 if rest <= 0 or amount is None else amount)
            if is_first and amount is not None and sum(self._amounts.values()) + amount <= rest:
                return amount
            await self._turn(is_first=is_first)
            is_first = True

    async def _turn(self, *, is_first: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        if is_first:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # its turn had come already
                self._waiting.remove(turn)
            self._wake_next()
            raise

    def _wake_next(self) -> None:
        """Let the first waiting call check whether it fits."""
        if self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
