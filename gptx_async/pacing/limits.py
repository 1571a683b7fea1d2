"""All rate limits of one governor: the configured ones, and the server's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ..errors import RequestTooLargeError
from .buckets import LONGEST_DEBT, Bucket
from .queue import Permit, Ticket
from .server_limits import ServerLimits
from .settings import Pacing
from .token_reservation import TokenReservation

__all__ = ["Limits"]


class Limits:
    """The buckets that a request takes from. On the loop's thread, unless stated otherwise.

    Attributes:
        server: The server's own limits, and what was sent to it.
    """

    def __init__(self) -> None:
        self.server = ServerLimits()
        self._configured: dict[str, Bucket] = {}
        self._reservation = TokenReservation()
        self._by_requests: list[Bucket] = []  # all buckets, by what a request costs in them
        self._by_tokens: list[Bucket] = []

    @property
    def request_rate(self) -> float:
        """The lowest rate of requests a second; inf without a limit. Allowed in any thread."""
        return min((bucket.rate for bucket in self._by_requests), default=math.inf)

    def lowest(self, kind: str, learned: float = math.inf) -> tuple[float | None, str | None]:
        """Return the lowest rate of a kind and its source, or None for both without a limit.

        Allowed in any thread.

        Args:
            kind: 'requests' or 'tokens'.
            learned: The learned rate, a second.
        """
        rates = {"learned": learned}
        for source, buckets in (("told", self.server.buckets), ("configured", self._configured)):
            if (bucket := buckets.get(kind)) is not None:
                rates[source] = bucket.rate
        source = min(rates, key=lambda each: (rates[each], each != "configured"))
        return (rates[source], source) if rates[source] < math.inf else (None, None)

    def are_unused(self, now: float) -> bool:
        """Return whether no limit is used up, even in part."""
        return all(
            bucket.is_full(now)
            for known in (self._configured, self.server.buckets)
            for bucket in known.values()
        )

    def configure(self, pacings: Iterable[Pacing], now: float) -> None:
        """Apply the lowest limits of these settings."""
        limits = [pacing.rate_limit for pacing in pacings if pacing.rate_limit]
        self._set("requests", [limit.requests_per_minute for limit in limits], now)
        self._set("tokens", [limit.tokens_per_minute for limit in limits], now)
        self._list_buckets()

    def _set(self, kind: str, limits: list[float | None], now: float) -> None:
        rate = min((limit / 60 for limit in limits if limit is not None), default=None)
        if rate is None:
            self._configured.pop(kind, None)
        elif kind in self._configured:
            self._configured[kind].change(rate, max(1.0, rate), now)
        else:
            self._configured[kind] = Bucket(rate, max(1.0, rate), now)

    def _list_buckets(self) -> None:
        known = (self._configured, self.server.buckets)
        self._by_tokens = [buckets["tokens"] for buckets in known if "tokens" in buckets]
        self._by_requests = [buckets["requests"] for buckets in known if "requests" in buckets]

    def check_size(self, ticket: Ticket) -> None:
        """Check that a request could ever be sent.

        Raises:
            RequestTooLargeError: The request alone has more than the minute's tokens.
        """
        bucket = self._configured.get("tokens")
        tokens = ticket.prompt_tokens + (ticket.answer_tokens or 0)
        if bucket is not None and tokens > bucket.rate * 60 + 1e-6:
            raise RequestTooLargeError(
                f"One request has {tokens} tokens (prompt {ticket.prompt_tokens}, answer up to "
                f"{ticket.answer_tokens or 0}), more than the tokens_per_minute of "
                f"{bucket.rate * 60:.0f}. Shorten it, limit its answer, or raise the RateLimit."
            )

    def reserve(self, ticket: Ticket) -> float:
        """Return the tokens to reserve for a request: at most a minute's."""
        tokens = self._reservation.of(ticket)
        configured = self._configured.get("tokens")
        return tokens if configured is None else min(tokens, configured.rate * LONGEST_DEBT)

    def delay(self, ticket: Ticket, now: float) -> float:
        """Return the seconds until all buckets admit a request."""
        delay = 0.0
        for bucket in self._by_requests:
            delay = max(delay, bucket.delay(1, now))
        for bucket in self._by_tokens:
            delay = max(delay, bucket.delay(self.reserve(ticket), now))
        return delay

    def configured_delay(self, ticket: Ticket, now: float) -> float:
        """Return the seconds until the configured buckets admit a request."""
        costs = {"requests": 1.0, "tokens": self.reserve(ticket)}
        delays = (bucket.delay(costs[kind], now) for kind, bucket in self._configured.items())
        return max(delays, default=0.0)

    def take(self, tokens: float) -> None:
        """Take a request, with its tokens, from all buckets."""
        for bucket in self._by_requests:
            bucket.take(1)
        for bucket in self._by_tokens:
            bucket.take(tokens)

    def settle(self, permit: Permit, tokens: float) -> None:
        """Book the tokens used in place of those reserved, and learn how long answers are.

        The server's own bucket follows what the server says alone: OpenAI's does not give back what
        an answer left of its limit (https://platform.openai.com/docs/guides/rate-limits).
        """
        if "tokens" in self._configured:
            self._configured["tokens"].take(tokens - permit.tokens)
        self._reservation.learn(permit, tokens)

    def give_back(self, permit: Permit) -> None:
        """Give back the tokens reserved for a request that used none."""
        if "tokens" in self._configured:
            self._configured["tokens"].take(-permit.tokens)

    def hear(self, permit: Permit, headers: Mapping[str, str], now: float, *, took: int) -> bool:
        """Follow what the headers say about the server's limits; see `ServerLimits.hear`."""
        known = len(self.server.buckets)
        heard = self.server.hear(permit, headers, now, took=took)
        if len(self.server.buckets) > known:
            self._list_buckets()
        return heard

    def forget_unless_repeated(self, headers: Mapping[str, str]) -> None:
        """Forget the server's limits that an answer contradicts."""
        self.server.forget_unless_repeated(headers)
        self._list_buckets()
