"""Outages, held answers and single faults that a test orders from a `FakeOpenAI`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from .. import clock
from .faults import Fault, HTTPFault

__all__ = ["OVERLOADED", "Disruptions"]

OVERLOADED = HTTPFault(503, "The server is overloaded or not ready yet.", "server_error")
"""As reported in https://github.com/openai/web-crawl-q-and-a-example/issues/6 and elsewhere."""


class _Outage(NamedTuple):
    """How every request fails, and until when, in seconds of `gptx_async.clock`."""

    fault: Fault
    until: float


class Disruptions:
    """Holds answers back and makes requests fail. Its methods are allowed in any thread."""

    def __init__(self) -> None:
        self._disruptions = threading.Lock()  # guards the attributes below
        self._outage: _Outage | None = None
        self._next_faults: deque[Fault] = deque()
        self._held = False
        self._waiters: list[asyncio.Future[None]] = []

    def hold(self) -> None:
        """Answer nothing from now on. Requests are still received and recorded, and wait."""
        with self._disruptions:
            self._held = True

    def release(self) -> None:
        """Answer again, starting with the requests that waited, in their order of arrival."""
        with self._disruptions:
            self._held = False
            waiters, self._waiters = self._waiters, []
        if waiters:
            with contextlib.suppress(RuntimeError):  # the server is closed, and its loop as well
                waiters[0].get_loop().call_soon_threadsafe(_wake, waiters)

    def begin_outage(self, fault: Fault = OVERLOADED) -> None:
        """Make every request fail that arrives from now on, whatever its key, until `end_outage`.

        Args:
            fault: How requests fail; `Reset()` for a server that drops its connections.
        """
        self._set_outage(fault, math.inf)

    def end_outage(self) -> None:
        """End an outage. Does nothing if there is none."""
        with self._disruptions:
            self._outage = None

    def outage_for(self, seconds: float, fault: Fault = OVERLOADED) -> None:
        """Make every request fail that arrives within some time, and return at once.

        Args:
            seconds: How long the outage lasts from now on. It replaces an earlier outage.
            fault: How requests fail, as for `begin_outage`.
        """
        self._set_outage(fault, clock.seconds() + seconds)

    @contextlib.contextmanager
    def outage(self, fault: Fault = OVERLOADED) -> Iterator[None]:
        """Make every request fail that arrives while the block runs.

        Args:
            fault: How requests fail, as for `begin_outage`.
        """
        self.begin_outage(fault)
        try:
            yield
        finally:
            self.end_outage()

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Make the next requests fail, regardless of `faults` and `reply`. Calls add up.

        Args:
            fault: How they fail.
            times: How many requests fail.
        """
        with self._disruptions:
            self._next_faults.extend([fault] * times)

    def _set_outage(self, fault: Fault, until: float) -> None:
        with self._disruptions:
            self._outage = _Outage(fault, until)

    def _outage_at(self, arrived: float) -> Fault | None:
        """Return the fault of a request that arrived during an outage."""
        with self._disruptions:
            if self._outage is not None and arrived < self._outage.until:
                return self._outage.fault
        return None

    def _take_next_fault(self) -> Fault | None:
        with self._disruptions:
            return self._next_faults.popleft() if self._next_faults else None

    async def _wait_for_release(self) -> None:
        """Wait while answers are held back."""
        with self._disruptions:
            if not self._held:
                return
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
        await waiter


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():  # the client may have disconnected
            waiter.set_result(None)
