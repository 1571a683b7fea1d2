"""A batch's window: how many items may be in progress, starting small and growing while idle.

When answers arrive at once, a few items keep the background loop busy. With more items in progress
the objects of each call live longer, and Python's garbage collector repeatedly scans them together
with everything that symbolicai has imported: a call used a sixth more CPU time with 512 items in
flight than with 32, and `gc.freeze()` did not change that. So a batch starts with few items, and
doubles the limit whenever the loop was idle while the batch waited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .. import clock

__all__ = ["INITIAL_LIMIT", "SAMPLE_SECONDS", "WINDOW", "Window"]

WINDOW = 512
"""The default number of items in progress: twice the number of requests sent at once."""

INITIAL_LIMIT = 32
"""The limit at the start of a batch. The collector's second generation receives what is still alive
after about 50 calls."""

GROWTH = 2
"""The factor by which the limit grows: from 32 to the default 512 in four steps."""

SAMPLE_SECONDS = 0.005
"""The waiting time after which a batch checks whether the loop was busy. With slow answers the
window is fully open after about 20 ms, while the first items are being sent. This is also Python's
switch interval: in less time a loop that has work may not have run at all."""

BUSY_SHARE = 0.5
"""The loop counts as busy if it used the CPU for at least this share of the waiting time."""


class Window:
    """The number of items of a batch that may be in progress. Only for the batch's thread.

    Attributes:
        limit: The present number.

    Args:
        size: The largest number.
        loop_seconds: Returns the CPU time of the loop's thread in seconds, or None if unknown.
    """

    def __init__(self, size: int, loop_seconds: Callable[[], float | None]) -> None:
        self.limit = min(INITIAL_LIMIT, size)
        self._size = size
        self._loop_seconds = loop_seconds
        self._waited = 0.0
        self._busy = 0.0

    @property
    def is_fully_open(self) -> bool:
        """Whether the limit has reached the window's size."""
        return self.limit == self._size

    def open_fully(self) -> None:
        """Raise the limit to the window's size at once, where waits cannot be measured."""
        self.limit = self._size

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure a wait for answers, and raise the limit if the loop was idle meanwhile."""
        if self.is_fully_open:
            yield
            return
        busy_before, since = self._loop_seconds(), clock.seconds()
        yield
        busy_after = self._loop_seconds()
        if busy_before is None or busy_after is None:
            self.open_fully()
            return
        self._waited += clock.seconds() - since
        self._busy += busy_after - busy_before
        if self._waited < SAMPLE_SECONDS:
            return
        if self._busy < BUSY_SHARE * self._waited:
            self.limit = min(GROWTH * self.limit, self._size)
        self._waited = self._busy = 0.0
