"""What a consumer asks of a back end, and what it gets: outcomes of items."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["BackendRun", "ItemOutcome"]


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """How an item ended, or the error that ended the run.

    Attributes:
        index: The item's index in the dataset; None for the error that ended the run.
        value: What the expression returned.
        item: The item, if it failed.
        error: The exception that the item or the run ended with.
    """

    index: int | None
    value: Any = None
    item: Any = None
    error: BaseException | None = None


class BackendRun(Protocol):
    """One run of a job by a back end, from `start` to `join`; used once.

    The consumer passes a function `wake`, which the back end calls, in any thread, whenever it has
    added an outcome and when the run is over.

    Attributes:
        outcomes: Outcomes in the order in which the items ended. One consumer removes them from
            the left, and calls `free_window` for each value that its caller has taken.
        is_over: Whether the run has ended: no more outcomes are added.
        unstored: The indices of values that the checkpoint could not store.
    """

    outcomes: deque[ItemOutcome]
    is_over: bool
    unstored: list[int]

    def start(self) -> None:
        """Start to read and to run items.

        Raises:
            ConfigurationError: The system cannot start another thread.
        """

    def free_window(self) -> None:
        """Let the back end read one more item, because a value was taken. Allowed in any thread."""

    def cancel(self) -> None:
        """Cancel the calls in flight and start no more items.

        Does not wait. Allowed in any thread.
        """

    def join(self, seconds: float = ...) -> None:
        """Wait up to so many seconds for the end of a run that is over or cancelled."""

    def close(self) -> None:
        """Close the checkpoint; items that are still running store nothing more."""
