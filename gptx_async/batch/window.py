"""How far a batch's window is open: a little at first, and all of it where answers take their time.

Where answers come at once, a few items are enough to keep the background loop busy. With more, each
call's objects live for longer, and Python's garbage collector looks through them, and through all
that symbolicai has imported, again and again: at 512 items in flight a call took a sixth more of
the processor than at 32, and after `gc.freeze()` the same. So a batch begins with few items, and
goes on to twice as many whenever the loop had nothing to do while the batch waited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .. import clock

__all__ = ["FIRST", "LOOK_SECONDS", "Opening"]

FIRST = 32
"""How many items are begun before anything is known of the answers. The collector's second
generation takes in what is still alive after some 50 calls."""

FACTOR = 2
"""By how much the window opens: from 32 to the default 512 in four steps."""

LOOK_SECONDS = 0.005
"""How long a batch waits, in all, before it looks whether the loop was busy meanwhile: so it takes
some 20 ms, in which the first items are sent, until 512 are begun whose answers are slow. It is
Python's switch interval, too: in less, a loop that has work may not have come to run."""

BUSY = 0.5
"""Of the time that the batch has waited: from this share on the loop is busy."""


class Opening:
    """How many items may be begun and not yet ended; for the thread that drives the batch.

    Attributes:
        limit: As many, now.

    Args:
        window: As many at most.
        loop_seconds: Tells how much of a processor the loop's thread has used; None if it can't.
    """

    def __init__(self, window: int, loop_seconds: Callable[[], float | None]) -> None:
        self.limit = min(FIRST, window)
        self._window = window
        self._loop_seconds = loop_seconds
        self._waited = 0.0
        self._busy = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is held back."""
        return self.limit == self._window

    def open_whole(self) -> None:
        """Hold nothing back, where waits are not in slices."""
        self.limit = self._window

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure a wait for answers, and open the window if the loop was idle meanwhile."""
        if self.is_whole:
            yield
            return
        busy_before, since = self._loop_seconds(), clock.seconds()
        yield
        busy_after = self._loop_seconds()
        if busy_before is None or busy_after is None:
            self.open_whole()
            return
        self._waited += clock.seconds() - since
        self._busy += busy_after - busy_before
        if self._waited < LOOK_SECONDS:
            return
        if self._busy < BUSY * self._waited:
            self.limit = min(FACTOR * self.limit, self._window)
        self._waited = self._busy = 0.0
