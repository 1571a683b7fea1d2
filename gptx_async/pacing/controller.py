"""What the governor learns from answers: a rate from 429s, and a concurrency from overload.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments. A
request is known by its number, which is the number of requests sent before it.
"""

from __future__ import annotations

import math

from .buckets import Bucket

__all__ = ["LearnedRate", "Slots"]

FINE_CUT = 0.95
FINE_GROWTH = 0.0005
"""How a rate moves once it is about right: down per burst of 429s, up per success.

They balance where about 1 % of the requests (growth / (1 - cut)) are answered 429. The server's
bucket is then always empty, so that all of its rate is used.
"""

COARSE_CUT = 0.7
"""How far a limit falls while what the server takes is unknown: CUBIC's beta (RFC 9438, 4.6)."""

FAST_GROWTH = math.log(2)
"""How much a rate below its ceiling grows by a success, in requests a second: it doubles in one."""

FORGET_CEILING = 1.25
"""How far above the remembered ceiling a limit has to come by successes to grow fast again."""

CONVEX_GROWTH = 0.02
"""How much faster a limit grows above its ceiling with each round: by one after ten rounds.

A 503 costs its call one of two retries, so it is tried seldom, and then ever more (as CUBIC does).
"""

LEAST_OF_PROVEN = 1 / 8
"""How far a rate may fall without a success: refusals alone are no measure of it."""

MEASURE_SECONDS = 0.3
"""How far apart two 429s have to be for what was accepted in between to tell the server's rate."""


class LearnedRate(Bucket):
    """Requests a second as 429s and successes teach them, where nobody tells.

    Of the family of the AWS SDKs' adaptive mode
    (https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html): a bucket whose
    rate falls by 429s and grows by successes, fast up to the remembered ceiling, and slowly above.
    What differs is that between two 429s the server's bucket went from empty to empty, so what was
    accepted in between is its rate.

    Attributes:
        ceiling: What the server was seen not to exceed; inf while unknown.
        short: Whether a request has had to wait for this bucket since the last success.
    """

    def __init__(self, rate: float, now: float, ceiling: float = math.inf) -> None:
        super().__init__(rate, 1.0, now)
        self.ceiling = ceiling
        self.short = False
        self._proven = (rate, ceiling)  # as they were at the last success
        self._cut_number = 0
        self._empty: tuple[float, int] | None = None  # when the server's bucket was, next number
        self._refused = 0  # of those sent since

    def delay(self, cost: float, now: float) -> float:
        """Return the seconds until a request may be sent; remember that one had to wait."""
        delay = super().delay(cost, now)
        self.short = self.short or delay > 0
        return delay

    def refuse(self, number: int, sent_at: float, next_number: int, now: float) -> bool:
        """Learn from a 429; tell whether the rate was cut, by more than a trimming.

        It is cut once per burst: not by requests that were sent before the last cut.

        Args:
            number: The refused request's number.
            sent_at: When it was sent.
            next_number: The number that the next request will have.
            now: The time.
        """
        if self._empty is not None and number >= self._empty[1]:
            self._refused += 1
        if number < self._cut_number:
            return False
        self._cut_number = next_number
        before = self.rate
        low, high = self._measure(number, sent_at)
        if high < before * (1 - 2 * (1 - FINE_CUT)):
            rate, self.ceiling = low, high
        elif self.ceiling < math.inf:
            rate = self.ceiling = before * FINE_CUT
        else:
            rate, self.ceiling = before * COARSE_CUT, before * FINE_CUT
        self.set_rate(max(rate, self._proven[0] * LEAST_OF_PROVEN), now)
        self.level = min(self.level, 0.0)
        return self.rate < before * FINE_CUT

    def _measure(self, number: int, sent_at: float) -> tuple[float, float]:
        """Return between which rates the server's is, by what it accepted since an earlier 429.

        Both times its bucket had less than one request in it.
        """
        seconds, accepted = 0.0, 0
        if self._empty is not None:
            seconds = sent_at - self._empty[0]
            accepted = number + 1 - self._empty[1] - self._refused
        if self._empty is None or seconds >= MEASURE_SECONDS:
            self._empty, self._refused = (sent_at, number + 1), 0
        if seconds < MEASURE_SECONDS or accepted < 1:
            return math.inf, math.inf
        return accepted / seconds, (accepted + 1) / seconds

    def grow(self, number: int, now: float) -> bool:
        """Learn from a success; tell whether the bucket is of no more use.

        Args:
            number: The request's number: one sent before the cut says nothing of the time after.
            now: The time.
        """
        if number < self._cut_number:
            return False
        self._proven = (self.rate, self.ceiling)
        if not self.short:
            self._empty = None  # less is sent than the server takes
            return self.ceiling == math.inf
        self.short = False
        if self.rate < self.ceiling:
            step = FAST_GROWTH * min(1.0, self.rate)
            rate = min(self.rate + step, self.ceiling)
        else:
            rate = self.rate * (1 + FINE_GROWTH)
        self.set_rate(rate, now)
        if self.rate > self.ceiling * FORGET_CEILING:
            self.ceiling = math.inf
            self._empty = None  # the server's rate is another than it was
        return False

    def resume(self, rate: float, now: float) -> None:
        """Go on, at this rate at most, after all was held, with the ceiling from before."""
        rate = max(min(rate, self.rate), self._proven[0] * LEAST_OF_PROVEN)
        self.ceiling = max(self.ceiling, self._proven[1])
        self.set_rate(rate, now)
        self.level = 0.0
        self._empty = None  # the server's bucket may be full

    def set_rate(self, rate: float, now: float) -> None:
        """Change the rate; the capacity, a tenth of a second, is for timers that fire late."""
        self.change(rate, 1.0 + rate / 10, now)


class Slots:
    """How many requests may be out at once, as overload and successes teach it.

    Additive growth and multiplicative cut (Chiu and Jain 1989), but for two things: the ceiling is
    remembered, and a burst of refusals tells how many the server took: those out but not refused.

    Attributes:
        most: What is configured.
        limit: What is learned; inf when nothing was, or all was grown back.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = math.inf
        self._ceiling = math.inf
        self._cut_number = 0
        self._burst = 0.0  # how many were out when the last burst began
        self._taken = 0.0  # and how many of those were not refused
        self._rounds = 0.0  # since then, each as many successes as the limit

    @property
    def allowed(self) -> int:
        """How many may be out now, at least one."""
        return int(min(self.most, self.limit))

    def overload(self, number: int, next_number: int, in_flight: int) -> bool:
        """Learn from a 503 or 529; tell whether a new burst began, which cuts once.

        Args:
            number: The refused request's number.
            next_number: The number that the next request will have.
            in_flight: How many are out, this one not counted.
        """
        begins = number >= self._cut_number
        if begins:
            self._cut_number = next_number
            self._burst = min(self.allowed, in_flight + 1)
            self._taken = in_flight + 1
            self._rounds = 0.0
        self._taken -= 1
        cut = max(1.0, self._burst * COARSE_CUT)
        # Nothing taken at all is an outage, of which a concurrency cannot be learned.
        self._ceiling = self._taken if self._taken >= 1 else cut
        self.limit = min(cut, self._ceiling)
        return begins

    def grow(self, number: int, in_flight: int) -> bool:
        """Learn from a success; tell whether the last cut is undone by it.

        Args:
            number: The request's number: one sent before the cut says nothing of the time after.
            in_flight: How many were out, this one counted: fewer than allowed say nothing of more.
        """
        if self.limit == math.inf or number < self._cut_number or in_flight < self.allowed:
            return False
        self._rounds += 1 / self.limit
        fast = self.limit < self._ceiling
        self.limit += 1.0 if fast else CONVEX_GROWTH * self._rounds / self.limit
        if self.limit > max(self._ceiling + 1, self._ceiling * FORGET_CEILING):
            self._ceiling = math.inf
        if self.limit < self.most:
            return False
        self.limit = self._ceiling = math.inf
        return True
