"""Detect refused keys, so that a batch or a run of `map` stops sending requests with them.

A 401 concerns the key. A 403 may concern the key or only the prompt, because moderation and
firewalls answer single prompts with it. So a 403 counts against the key only after several
different prompts in a row were rejected and none was answered.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

__all__ = ["Refusals"]

REJECTIONS_IN_ROW = 8
"""After this many different prompts rejected in a row the key counts as refused."""


class Refusals:
    """The refused keys of one batch or run. Only for the loop's thread.

    A destination is a base URL, a key and a model, in any hashable form.
    """

    def __init__(self) -> None:
        self._histories: dict[Hashable, _AttemptHistory] = {}

    def error_of(self, destination: Hashable) -> Exception | None:
        """Return the error that refused the key, or None."""
        history = self._histories.get(destination)
        return None if history is None else history.error

    def sent(self, destination: Hashable) -> int:
        """Record that an attempt is sent, and return its number."""
        history = self._histories.setdefault(destination, _AttemptHistory())
        history.count += 1
        history.in_flight.add(history.count)
        return history.count

    def ended(self, destination: Hashable, number: int, *, answered: bool) -> None:
        """Record that an attempt was answered, or failed for a reason unrelated to the key."""
        history = self._histories[destination]
        history.in_flight.discard(number)
        if answered:
            history.rejected.clear()

    def refused(self, destination: Hashable, number: int, error: Exception) -> bool:
        """Record that the key was refused, and return whether that is new."""
        history = self._histories[destination]
        history.in_flight.discard(number)
        is_new = history.error is None
        history.error = history.error or error
        return is_new

    def rejected(
        self, destination: Hashable, number: int, prompt: Hashable, error: Exception
    ) -> bool:
        """Record that a prompt was rejected, and return whether that shows that the key is refused.

        Attempts count in the order in which they were sent, because rejections come faster than
        answers.
        """
        history = self._histories[destination]
        history.in_flight.discard(number)
        history.rejected[number] = prompt
        oldest_in_flight = min(history.in_flight, default=math.inf)
        row = {each for sent, each in history.rejected.items() if sent < oldest_in_flight}
        return len(row) >= REJECTIONS_IN_ROW and self.refused(destination, number, error)


class _AttemptHistory:
    """The attempts to send to one base URL with one key for one model."""

    __slots__ = ("count", "error", "in_flight", "rejected")

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.count = 0
        self.in_flight: set[int] = set()
        # The prompts rejected since the last answer, by the number of the attempt.
        self.rejected: dict[int, Hashable] = {}
