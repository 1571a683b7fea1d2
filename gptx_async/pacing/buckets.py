"""Token buckets: the configured one, and the server's own as its headers describe it.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments. A
request is known by its number, which is the number of requests sent before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..checks import LONGEST_SECONDS, limit_of, number_of, seconds_of

__all__ = ["Bucket", "ServerBucket", "Told", "parse_duration", "read_told"]

WAY_JITTER = 0.05
"""Seconds by which requests may come closer together than they were sent, or overtake each other.

The server's bucket is kept that much from empty. It costs nothing: what is left in there once is
not missed again.
"""

DAY = 86_400

LOWEST_RATE = 1 / LONGEST_SECONDS
"""Requests or tokens a second at least, so that a wait is finite: one in a month."""

LONGEST_DEBT = 60.0
"""Seconds that a bucket needs at most to get out of its debt.

A limit is a minute's: after a minute in which nothing was sent, nothing counts any more.
"""


class Bucket:
    """A token bucket whose level may go below zero.

    The level rises by `rate` a second up to `capacity`. A request larger than the bucket goes
    through when it is full and leaves a debt: a bucket that waits for all of a large request never
    admits it (shobrook/openlimit). It starts with `capacity`, not with a minute's worth, which
    would give twice the rate in the first minute (mjpieters/aiolimiter#298).
    """

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = max(rate, LOWEST_RATE)
        self.capacity = capacity
        self.level = capacity
        self._at = now

    def change(self, rate: float, capacity: float, now: float) -> None:
        """Go on with another rate and capacity."""
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
        """Book a request that is sent now; negative to give back."""
        deepest = min(self.level, -LONGEST_DEBT * self.rate)
        self.level = max(self.level - cost, deepest)

    def is_full(self, now: float) -> bool:
        """Tell whether nothing is missing in it."""
        self._refill(now)
        return self.level >= self.capacity

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + self.rate * (now - self._at))
        self._at = now


class Told(NamedTuple):
    """What a server said of one of its limits, with an answer."""

    rate: float
    """How much comes in per second."""

    remaining: float | None
    """What was left when the request had come; None when it did not say."""


def read_told(headers: Mapping[str, str], kind: str) -> Told | None:
    """Read `x-ratelimit-limit-*`, `-remaining-*` and `-reset-*`; None for nothing or nonsense.

    A limit is a minute's (https://platform.openai.com/docs/guides/rate-limits). One whose bucket
    takes longer than a minute to be full is of a longer window, and what comes in per second
    follows from the time: OpenAI's and Groq's request headers are often those of the day
    (https://console.groq.com/docs/rate-limits).

    Args:
        headers: An answer's, that know a name in lower case.
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
    """The server's own bucket, followed by what its answers say.

    Its capacity is not told (a limit of 1,200 a minute may allow no more than 20 at once), so it is
    the most that was seen in it.
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
        """Take over what an answer said, unless a later request has been answered already.

        Args:
            told: What it said.
            number: The request's number.
            age: The seconds since it was sent.
            later: What the requests that were sent after it cost: they are not in the figure.
            beside: What those cost that were sent with it, before: it may have come before them.
            cost: What it cost itself.
            now: The time.
        """
        if number <= self._told_by:
            return
        self._told_by = number
        if told.remaining is None:
            self.change(told.rate, self.capacity, now)
            return
        self._most_seen = max(self._most_seen, told.remaining + cost)
        # What is left is told in whole numbers: half of one more, on average.
        reserve = min(told.rate * WAY_JITTER + 0.5, self._most_seen / 4) - 0.5
        self.change(told.rate, max(1.0, self._most_seen - reserve), now)
        level = max(0.0, told.remaining - beside) + told.rate * age - later - reserve
        self.level = min(self.capacity, level)
