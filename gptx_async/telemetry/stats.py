"""The counts of an engine's calls, and the statistics that `stats()` returns."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, log

from .events import Burst
from .usage import Usage

__all__ = ["Counts", "Histogram", "Percentiles", "Stats"]

RELATIVE_ERROR = 0.01
"""The largest relative error of the percentiles in `Stats`."""

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / log(_GAMMA)
_SHORTEST, _LONGEST = 1e-6, 1e7


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles in seconds, with an error of at most 1 %. None before the first call."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of the calls since the engine was created, or since `reset_stats()`.

    `calls == answered + failed + cancelled + in_flight + waiting` always holds.

    Attributes:
        calls: Calls made, including those in progress at the reset.
        answered: Calls that ended with an answer.
        failed: Calls that ended with an error.
        cancelled: Calls that their caller gave up.
        attempts: Requests sent.
        retries: Requests that were not the first of their call.
        failures: The number of failed attempts, and of calls that failed before an attempt, by
            kind: 'rate_limit', 'timeout', 'connection', 'status_500' and so on.
        rate_limited: Attempts answered with a 429, including 'insufficient_quota'.
        tokens_in: Tokens of the prompts as reported by servers, including failed attempts.
        tokens_out: Tokens of the answers as reported by servers, including failed attempts.
        failed_tokens_in: The part of `tokens_in` that belongs to failed attempts.
        failed_tokens_out: The part of `tokens_out` that belongs to failed attempts.
        in_flight: Requests in flight now.
        waiting: Calls that now wait for their turn or for their next attempt.
        limit: The largest number of requests in flight now; None before the first call.
        waited: How long ended calls waited in total, for their turns and between attempts.
        took: How long answered and failed calls took, including their waits.
        cost: The known cost in US$; None without prices.
        unpriced_calls: Answers that `cost` does not include, because their model has no price or
            the server reported no tokens.
        limit_source: The source of `limit`: 'configured', or 'learned' from overload.
        rate: The largest number of requests per second now; None if nothing limits it.
        rate_source: The source of `rate`: 'configured', 'told' by the server's headers, or
            'learned' from its refusals.
        last_cut: The cause of the last cut of the limit or the rate, or of the last pause, as a
            kind in `failures`; None if there was none.
        next_call_in: Seconds until the next request may be sent, if calls wait for a limit, or if
            all calls wait as a 429 asks them to.
        token_rate: The largest number of tokens per second now; None if nothing limits it.
        token_rate_source: The source of `token_rate`: 'configured', or 'told' by the server's
            headers.
    """

    calls: int
    answered: int
    failed: int
    cancelled: int
    attempts: int
    retries: int
    failures: Mapping[str, int]
    rate_limited: int
    tokens_in: int
    tokens_out: int
    failed_tokens_in: int
    failed_tokens_out: int
    in_flight: int
    waiting: int
    limit: int | None
    waited: Percentiles
    took: Percentiles
    cost: float | None
    unpriced_calls: int
    limit_source: str | None = None
    rate: float | None = None
    rate_source: str | None = None
    last_cut: str | None = None
    next_call_in: float | None = None
    token_rate: float | None = None
    token_rate_source: str | None = None

    def table(self) -> str:
        """Return the statistics as a text table for people."""
        kinds = sorted(self.failures.items(), key=lambda pair: (-pair[1], pair[0]))
        rows = [
            (
                "calls",
                f"{self.calls:,}: {self.answered:,} answered, {self.failed:,} failed, "
                f"{self.cancelled:,} cancelled",
            ),
            (
                "now",
                f"{self.in_flight:,} in flight, {self.waiting:,} waiting"
                + ("" if self.limit is None else f", at most {self.limit:,} at once"),
            ),
            (
                "attempts",
                f"{self.attempts:,}: {self.retries:,} retries, {self.rate_limited:,} times 429",
            ),
            ("pace", self._pace()),
            ("failures", ", ".join(f"{kind} {count:,}" for kind, count in kinds) or "none"),
            ("tokens in", _tokens(self.tokens_in, self.failed_tokens_in)),
            ("tokens out", _tokens(self.tokens_out, self.failed_tokens_out)),
            ("waited", _percentiles(self.waited)),
            ("took", _percentiles(self.took)),
        ]
        if self.cost is not None:
            unpriced = f", without {self.unpriced_calls:,} unpriced calls"
            rows.append(("cost", f"US$ {self.cost:,.4f}{unpriced if self.unpriced_calls else ''}"))
        return "\n".join(f"{name:<11} {text}" for name, text in rows)

    def _pace(self) -> str:
        parts = []
        if self.rate is not None:
            parts.append(f"{self.rate:,.2f} requests a second ({self.rate_source})")
        if self.token_rate is not None:
            parts.append(f"{self.token_rate:,.0f} tokens a second ({self.token_rate_source})")
        if self.limit is not None:
            parts.append(f"{self.limit:,} at once ({self.limit_source})")
        if self.last_cut is not None:
            parts.append(f"last cut by {self.last_cut}")
        if self.next_call_in is not None:
            parts.append(f"next call in {self.next_call_in:,.0f} s")
        return ", ".join(parts) or "nothing yet"


class Counts:
    """The counts of a recorder, and their lock.

    The lock is re-entrant, because a signal handler or a finalizer may run while its thread holds
    the lock.
    """

    __slots__ = (
        "answered",
        "attempts",
        "calls",
        "cancelled",
        "cost",
        "failed",
        "failed_burst",
        "failed_tokens_in",
        "failed_tokens_out",
        "failures",
        "in_flight",
        "lock",
        "rate_limited",
        "retried_burst",
        "retries",
        "spent",
        "tokens_in",
        "tokens_out",
        "took",
        "unpriced",
        "waited",
        "waiting",
    )

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.in_flight = self.waiting = 0
        self.spent = 0.0
        self.retried_burst = Burst("attempt.retried")
        self.failed_burst = Burst("attempt.failed")
        self.reset()

    def reset(self) -> None:
        """Count from zero. Calls in progress count as new."""
        with self.lock:
            self.calls = self.in_flight + self.waiting
            self.attempts = self.in_flight
            self.answered = self.failed = self.cancelled = self.retries = 0
            self.rate_limited = self.unpriced = 0
            self.tokens_in = self.tokens_out = 0
            self.failed_tokens_in = self.failed_tokens_out = 0
            self.cost = 0.0
            self.failures: dict[str, int] = {}
            self.waited, self.took = Histogram(), Histogram()

    def add_failure(self, kind: str, usage: Usage | None, *, is_429: bool) -> None:
        """Count a failed attempt and its tokens. Needs the lock."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
        self.rate_limited += is_429
        if usage is not None:
            self.tokens_in += usage[0]
            self.tokens_out += usage[2]
            self.failed_tokens_in += usage[0]
            self.failed_tokens_out += usage[2]

    def add_cost(self, cost: float | None, charged: float | None, *, has_model: bool) -> None:
        """Count the cost of a response. Needs the lock.

        Args:
            cost: US$, or None if it is unknown.
            charged: US$ that count against `max_cost`.
            has_model: Whether the request names a model, so that it could have a price.
        """
        if cost is None:
            self.unpriced += has_model
        else:
            self.cost += cost
        self.spent += charged or 0.0

    def snapshot(self, limit: int | None, *, has_prices: bool) -> Stats:
        """Return the statistics at one moment, so that they add up."""
        with self.lock:
            waited, took = self.waited.copy(), self.took.copy()
            stats = Stats(
                calls=self.calls,
                answered=self.answered,
                failed=self.failed,
                cancelled=self.cancelled,
                attempts=self.attempts,
                retries=self.retries,
                failures=dict(self.failures),
                rate_limited=self.rate_limited,
                tokens_in=self.tokens_in,
                tokens_out=self.tokens_out,
                failed_tokens_in=self.failed_tokens_in,
                failed_tokens_out=self.failed_tokens_out,
                in_flight=self.in_flight,
                waiting=self.waiting,
                limit=limit,
                waited=_NOTHING_YET,
                took=_NOTHING_YET,
                cost=self.cost if has_prices else None,
                unpriced_calls=self.unpriced if has_prices else 0,
            )
        # Outside the lock, so that the loop's thread does not wait for it.
        return replace(stats, waited=waited.percentiles(), took=took.percentiles())


class Histogram:
    """A histogram of durations whose buckets grow by a constant factor. It uses constant memory.

    The formula is from C. Masson, J. E. Rim, H. K. Lee, "DDSketch", VLDB 2019, arXiv:1908.10693.
    With the factor (1 + a) / (1 - a) the relative error of a bucket's middle is at most a. There
    are 1497 buckets from a microsecond to four months.
    """

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        if not _SHORTEST < seconds < _LONGEST:
            seconds = min(max(seconds, _SHORTEST), _LONGEST)
        bucket = ceil(log(seconds) * _PER_LOG)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._count += 1

    def copy(self) -> Histogram:
        """Return a copy."""
        other = Histogram()
        other._buckets = dict(self._buckets)
        other._count = self._count
        return other

    def percentiles(self) -> Percentiles:
        """Return the percentiles of all durations so far."""
        return Percentiles(*(self._quantile(part) for part in (0.5, 0.95, 0.99)))

    def _quantile(self, part: float) -> float | None:
        """Return the value at the zero-based rank `part * (count - 1)`, rounded down."""
        rank = int(part * (self._count - 1))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank < 0:
                return float(2 * _GAMMA**bucket / (_GAMMA + 1))
        return None


def _tokens(count: int, failed: int) -> str:
    return f"{count:,}" + (f", {failed:,} of failed attempts" if failed else "")


def _percentiles(values: Percentiles) -> str:
    if values.p50 is None:
        return "nothing yet"
    named = (("50 %", values.p50), ("95 %", values.p95), ("99 %", values.p99))
    return ", ".join(f"{name} {value:.3f} s" for name, value in named)


_NOTHING_YET = Percentiles(None, None, None)
