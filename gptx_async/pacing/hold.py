"""A hold: all tickets wait, and single probes test whether the server answers again.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from .queue import Permit

__all__ = ["FIRST_GAP", "LONGEST_PAUSE", "REFUSAL_SECONDS", "Hold", "SentAndRefused"]

FIRST_GAP, LAST_GAP = 0.5, 8.0
"""Seconds before the first probe of a hold, and the most between two; doubled each time.

The SDK's own backoff (INITIAL_RETRY_DELAY and MAX_RETRY_DELAY of openai._constants).
"""

LONGEST_PAUSE = 10.0
"""Seconds that a Retry-After may hold all: the ticket that got it waits the rest for itself.

An hour of one ticket would stop everyone (UKGovernmentBEIS/inspect_ai#5137).
"""

REFUSAL_SECONDS = 1.0
"""Seconds after which a probe that was not refused counts as accepted.

An answer may take minutes.
"""


class Mark(NamedTuple):
    """The number of requests sent, and of those refused, at a time."""

    at: float
    sent: int
    refused: int


class SentAndRefused:
    """The requests sent and refused, as they were one to two seconds ago.

    Attributes:
        refused: The number of refused requests that were sent outside a hold.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._older = self._newer = Mark(-math.inf, 0, 0)

    @property
    def mark(self) -> Mark:
        """The numbers of one to two seconds ago."""
        return self._older

    def send(self, sent: int, now: float) -> None:
        """Note that a request is sent.

        Args:
            sent: The number of requests sent before it.
            now: The time.
        """
        if now - self._newer.at >= 1:
            mark = Mark(now, sent, self.refused)
            self._older, self._newer = (self._newer if sent else mark), mark


@dataclass
class Hold:
    """All tickets wait, except for probes.

    Attributes:
        began_at: The time when it began.
        number: The number of the first request sent after it began.
        by_refusals: Whether refusals are the reason, and not an outage.
        until: The time of the next probe.
        mark: The requests sent and refused one to two seconds before it began.
        gap: The seconds between the next two probes.
        probe: The permit of the last probe, until it is given back.
    """

    began_at: float
    number: int
    by_refusals: bool
    until: float
    mark: Mark
    gap: float = FIRST_GAP
    probe: Permit | None = None

    @classmethod
    def begin(
        cls,
        retry_after: float,
        number: int,
        mark: Mark,
        rng: random.Random,
        now: float,
        *,
        by_refusals: bool,
    ) -> Hold:
        """Return a hold that begins now.

        Args:
            retry_after: The seconds that the server asks for; at most `LONGEST_PAUSE` count.
            number: The number of requests sent so far.
            mark: The requests sent and refused one to two seconds ago.
            rng: For the jitter.
            now: The time.
            by_refusals: Whether refusals are the reason, and not an outage.
        """
        pause = min(retry_after, LONGEST_PAUSE)
        until = now + jittered(max(pause, FIRST_GAP), rng)
        return cls(now, number, by_refusals, until, mark)

    def send_probe(self, permit: Permit, wait: float, now: float) -> None:
        """Note that a probe is sent.

        Args:
            permit: The probe's.
            wait: The least seconds until the next one, if refusals are the reason.
            now: The time.
        """
        self.probe = permit
        self.gap = min(2 * self.gap, LAST_GAP)
        self.until = now + max(wait if self.by_refusals else self.gap, REFUSAL_SECONDS)

    def put_off(self, permit: Permit, retry_after: float, rng: random.Random, now: float) -> None:
        """Put off the next probe, after a failure during the hold."""
        pause = min(retry_after, LONGEST_PAUSE)
        if permit.number < self.number:
            self.until = max(self.until, now + pause)
        else:
            self.until = max(self.until, now + jittered(max(pause, self.gap), rng))
            self.probe = None

    def drop_probe(self, now: float) -> None:
        """Let another probe go in place of the last one, which was cancelled."""
        self.probe = None
        self.until = now

    def accepted_rate(self, refused: int) -> float:
        """Return the requests a second that the server accepted before; inf if it took none.

        Args:
            refused: The number of requests refused so far.
        """
        sent = self.number - self.mark.sent
        accepted = sent - (refused - self.mark.refused)
        if not self.by_refusals or accepted <= 0:
            return math.inf
        return accepted / max(1.0, self.began_at - self.mark.at)


def jittered(pause: float, rng: random.Random) -> float:
    """Lengthen a pause by up to a tenth: other processes got the same one."""
    return pause * (1 + rng.random() / 10)
