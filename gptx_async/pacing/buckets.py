"""Token buckets: the configured one, and the server's own as its headers describe it.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments. A
request is identified by its number: the number of requests sent before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..checks import LONGEST_SECONDS, limit_of, number_of, seconds_of

__all__ = ["Bucket", "ServerBucket", "Told", "parse_duration", "read_told"]

WAY_JITTER = 0.05
"""Seconds by which requests may come closer together than they were sent, or overtake each other.

The server's bucket is kept that many seconds from empty. It costs nothing in the long run: the
reserve is left in the bucket only once.
"""

DAY = 86_400

LOWEST_RATE = 1 / LONGEST_SECONDS
"""The lowest rate, in requests or tokens a second: one in a month, so that waits are finite."""

LONGEST_DEBT = 60.0
"""The most seconds that a bucket needs to pay off its debt.

A limit applies to a minute: after a minute without requests, none counts any longer.
"""


class Bucket:
    """A token bucket whose level may go below zero.

    The level rises by `rate` a second up to `capacity`. A request that is larger than the bucket is
    admitted when the bucket is full, and leaves a debt: a bucket that waits for the whole cost of
    such a request never admits it (shobrook/openlimit). A new bucket holds `capacity`, not a
    minute's worth, which would allow twice the rate in the first minute
    (mjpieters/aiolimiter#298).
    """

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = max(rate, LOWEST_RATE)
        self.capacity = capacity
        self.level = capacity
        self._at = now

    def change(self, rate: float, capacity: float, now: float) -> None:
        """Change the rate and the capacity."""
        self._refill(now)
        self.rate = max(rate, LOWEST_RATE)
        self.capacity = capacity
        self.level = min(self.level, capacity)

    def delay(self, cost: float, now: float) -> float:
        """Return the seconds until a request of this cost may be sent."""
        self._refill(now)
        missing = min(cost, self.capacity) - self.level
        return missing / self.rate if missing > 1e-6 else 0.0

    def take(self, cost: float) -> None:
        """Take the cost of a request that is sent now; a negative cost gives back."""
        deepest = min(self.level, -LONGEST_DEBT * self.rate)
        self.level = max(self.level - cost, deepest)

    def is_full(self, now: float) -> bool:
        """Return whether the bucket is full."""
        self._refill(now)
        return self.level >= self.capacity

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + self.rate * (now - self._at))
        self._at = now


class Told(NamedTuple):
    """What the headers of an answer say about one of the server's limits."""

    rate: float
    """Requests or tokens that become available per second."""

    remaining: float | None
    """What was left after the request; None if the headers do not say."""


def read_told(headers: Mapping[str, str], kind: str) -> Told | None:
    """Read `x-ratelimit-limit-*`, `-remaining-*` and `-reset-*`; None for nothing or nonsense.

    A limit applies to a minute (https://platform.openai.com/docs/guides/rate-limits). If its bucket
    takes longer than a minute to fill, the window is longer, and the rate follows from that time:
    the request limits of OpenAI and Groq are often those of a day
    (https://console.groq.com/docs/rate-limits).

    Args:
        headers: The headers of an answer, by names in lower case.
        kind: `requests` or `tokens`.
    """
    limit = limit_of(headers.get(f"x-ratelimit-limit-{kind}"))
    if limit is None:
        return None
    remaining = number_of(headers.get(f"x-ratelimit-remaining-{kind}"), 0.0, limit)
    if remaining is None:
        return Told(limit / 60, None)
    reset = parse_duration(headers.get(f"x-ratelimit-reset-{kind}", "")) or 0.0
    if reset > 63 and remaining < limit:  # 63: a minute and the rounding
        return Told(max((limit - remaining) / reset, limit / LONGEST_SECONDS), remaining)
    return Told(limit / 60, remaining)


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


def parse_duration(text: str) -> float | None:
    """Read '1s', '6m0s', '120ms', '1h2m3s' or '59.5', in seconds; None for anything else.

    Also None for a duration that makes no sense, such as an epoch time.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return seconds_of(text)
    units = (DAY, 3600, 60, 1, 0.001)
    try:
        parts = [float(part or 0) * unit for part, unit in zip(match.groups(), units, strict=True)]
    except ValueError:  # '1.2.3s'
        return None
    seconds = sum(parts)
    return seconds if seconds <= LONGEST_SECONDS else None


class ServerBucket(Bucket):
    """The server's own bucket, as its answers describe it.

    Headers do not include the capacity (a limit of 1,200 a minute may allow only 20 at once), so it
    is the most that was ever seen in the bucket.
    """

    def __init__(self, rate: float, now: float) -> None:
        super().__init__(rate, max(1.0, rate), now)
        self._told_by = -1
        self._most_seen = 0.0

    def hear(
        self,
        told: Told,
        number: int,
        age: float,
        later: float,
        beside: float,
        cost: float,
        now: float,
    ) -> None:
        """Follow an answer's headers, unless a later request has been answered already.

        Args:
            told: What the headers say.
            number: The request's number.
            age: The seconds since the request was sent.
            later: The cost of the requests sent after it, which the figure does not include.
            beside: The cost of the requests sent just before it, which may arrive after it.
            cost: The cost of the request itself.
            now: The time.
        """
        if number <= self._told_by:
            return
        self._told_by = number
        if told.remaining is None:
            self.change(told.rate, self.capacity, now)
            return
        self._most_seen = max(self._most_seen, told.remaining + cost)
        # The remaining number is rounded down: on average there is half of one more.
        reserve = min(told.rate * WAY_JITTER + 0.5, self._most_seen / 4) - 0.5
        self.change(told.rate, max(1.0, self._most_seen - reserve), now)
        level = max(0.0, told.remaining - beside) + told.rate * age - later - reserve
        self.level = min(self.capacity, level)
