"""What one batch, or one run of `map`, knows of refused keys, so that it stops sending with them.

A 401 concerns the key. A 403 may concern the key or only the prompt: moderation and firewalls
answer one text with it. So a 403 counts against the key only after several different prompts, sent
one after the other, were rejected and none was answered.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

__all__ = ["Refusals"]

REJECTIONS_IN_ROW = 8
"""How many different prompts a server has to reject in a row to show that it rejects the key."""


class Refusals:
    """The refused keys of one batch or run. Only for the loop's thread."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}

    def error_of(self, line: Hashable) -> Exception | None:
        """Return the error by which a key was refused, if it was.

        Args:
            line: The base URL and key, and the model.
        """
        known = self._lines.get(line)
        return None if known is None else known.error

    def sent(self, line: Hashable) -> int:
        """Note that an attempt is sent, and return its number."""
        known = self._lines.setdefault(line, _Line())
        known.count += 1
        known.in_flight.add(known.count)
        return known.count

    def ended(self, line: Hashable, number: int, *, answered: bool) -> None:
        """Note that an attempt has its answer, or has failed in a way that tells nothing here."""
        known = self._lines[line]
        known.in_flight.discard(number)
        if answered:
            known.rejected.clear()

    def refused(self, line: Hashable, number: int, error: Exception) -> bool:
        """Note that the key was refused, and return whether that is new."""
        known = self._lines[line]
        known.in_flight.discard(number)
        is_new = known.error is None
        known.error = known.error or error
        return is_new

    def rejected(self, line: Hashable, number: int, prompt: Hashable, error: Exception) -> bool:
        """Note that a prompt was rejected, and return whether that shows that the key is refused.

        Attempts count in the order in which they were sent: rejections come faster than answers.
        """
        known = self._lines[line]
        known.in_flight.discard(number)
        known.rejected[number] = prompt
        oldest_in_flight = min(known.in_flight, default=math.inf)
        row = {each for sent, each in known.rejected.items() if sent < oldest_in_flight}
        return len(row) >= REJECTIONS_IN_ROW and self.refused(line, number, error)


class _Line:
    """What is known of one base URL, key and model."""

    __slots__ = ("count", "error", "in_flight", "rejected")

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.count = 0
        self.in_flight: set[int] = set()
        self.rejected: dict[int, Hashable] = {}  # the prompts since the last answer, by number
