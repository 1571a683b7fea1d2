"""How long tickets wait while a server fails: what failed last, since when, and whose wait is over.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments.
"""

from __future__ import annotations

import math

from .queue import Ticket

__all__ = ["MEMORY_OF_FAILURES", "OUTAGE_PATIENCE", "UNSENT_PATIENCE", "Failures"]

OUTAGE_PATIENCE = 60.0
"""Seconds for which a ticket waits for a server that does not answer at all, at most.

Retries were not meant to bridge an outage, so this is shorter than the patience with refusals.
"""

UNSENT_PATIENCE = 2.0
"""Least seconds for which a ticket that was never sent waits, whatever its patience.

The refusals of other tickets end it only if they go on.
"""

MEMORY_OF_FAILURES = 600.0
"""Seconds for which a governor that nobody uses is kept because of a failure."""


class Failures:
    """The failures since the last success.

    Attributes:
        last_error: The last failure, or None.
        is_refusing: Whether the last failure was a refusal, and not an outage.
        since: The time of the first failure since the last success, or None.
        failed_at: The time of the last failure.
        blocked_since: The time since which refusals alone have admitted no ticket, or None.
        in_row: The number of failures without a success between them.
        has_succeeded: Whether any request was answered.
    """

    def __init__(self) -> None:
        self.last_error: Exception | None = None
        self.is_refusing = False
        self.since: float | None = None
        self.failed_at = -math.inf
        self.blocked_since: float | None = None
        self.in_row = 0
        self.has_succeeded = False

    def note(self, error: Exception, now: float, *, is_refusal: bool = False) -> None:
        """Note a failure."""
        if self.since is None:
            self.since = now
        self.is_refusing = is_refusal
        self.failed_at = now
        self.last_error = error

    def note_success(self) -> None:
        """Note that a request was answered."""
        self.has_succeeded = True
        self.in_row = 0
        self.since = self.blocked_since = None

    def note_blocked(self, now: float, *, is_blocked: bool) -> None:
        """Note whether refusals alone keep all tickets waiting."""
        if not is_blocked:
            self.blocked_since = None
        elif self.blocked_since is None:
            self.blocked_since = now

    def have_starved(self, ticket: Ticket, now: float, in_flight: int) -> bool:
        """Tell whether failures have held up a ticket for as long as its patience.

        That is so when the last failure came that long after the ticket; or, while refusals block
        the queue, when all attempts were refused for as long, or none was admitted.
        """
        if self.since is None:
            return False
        patience = ticket.patience if self.is_refusing else OUTAGE_PATIENCE
        if not ticket.attempts:
            patience = max(patience, UNSENT_PATIENCE)
        since = max(ticket.arrived_at, self.since)
        if self.failed_at - since >= patience:
            return True
        if self.blocked_since is None:
            return False
        return now - (max(since, self.blocked_since) if in_flight else since) >= patience
