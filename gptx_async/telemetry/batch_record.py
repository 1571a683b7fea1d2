"""The events of one batch."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from .events import emit
from .stats import Counts

__all__ = ["BatchRecord"]


class BatchRecord:
    """Reports the start and the end of one batch. Allowed in any thread.

    Attributes:
        id: The batch's unique id in its events and those of its calls.

    Args:
        counts: The counts of the engine.
        clock: Returns monotonic seconds.
        items: The number of items.
        window: The largest number of items in progress.
        model: The engine's model.
    """

    __slots__ = ("_clock", "_counts", "_is_open", "_items", "_model", "_since", "id")

    def __init__(
        self,
        counts: Counts,
        clock: Callable[[], float],
        items: int,
        window: int | None,
        model: str | None,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self._counts = counts
        self._clock = clock
        self._is_open = True
        self._items = items
        self._model = model
        self._since = clock()
        emit("batch.started", {"batch": self.id, "items": items, "window": window, "model": model})

    def ended(self, answered: int, failed: int, cancelled: int = 0) -> None:
        """Report the end of the batch, once, and the end of bursts of failures that are over.

        Args:
            answered: The number of items with a value.
            failed: The number of items that ended with an error.
            cancelled: The number of items that were interrupted or never begun.
        """
        if not self._is_open:
            return
        self._is_open = False
        now = self._clock()
        with self._counts.lock:
            bursts = [self._counts.retried_burst.end(now), self._counts.failed_burst.end(now)]
        for burst in bursts:
            if burst is not None:
                emit("burst.ended", burst)
        emit(
            "batch.ended",
            {
                "batch": self.id,
                "items": self._items,
                "answered": answered,
                "failed": failed,
                "cancelled": cancelled,
                "took": now - self._since,
                "model": self._model,
            },
        )
