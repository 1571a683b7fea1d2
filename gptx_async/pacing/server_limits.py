"""The server's own limits, as the headers of its answers describe them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .buckets import WAY_JITTER, ServerBucket, read_told
from .queue import Crowd, Permit

__all__ = ["ServerLimits"]


class ServerLimits:
    """The buckets that a server's headers describe, and what was sent to it. On the loop's thread.

    Attributes:
        buckets: A bucket for 'requests', for 'tokens', or for both.
        sent: The number of requests sent.
        tokens_sent: The tokens reserved for them.
        known_from: The number of the first request sent after the server had described its limits.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, ServerBucket] = {}
        self.sent = 0
        self.tokens_sent = 0.0
        self.known_from = 0
        self._crowd = Crowd(-math.inf, 0, 0.0)

    def crowd(self, now: float) -> Crowd:
        """Return what had been sent before the current moment, of `WAY_JITTER` seconds, began."""
        if now - self._crowd.at >= WAY_JITTER:
            self._crowd = Crowd(now, self.sent, self.tokens_sent)
        return self._crowd

    def send(self, tokens: float) -> None:
        """Note that a request is sent, with the tokens that are reserved for it."""
        self.sent += 1
        self.tokens_sent += tokens

    def hear(self, permit: Permit, headers: Mapping[str, str], now: float, *, took: int) -> bool:
        """Follow what the headers say about the server's buckets.

        Args:
            permit: The request's.
            headers: The answer's headers.
            now: The time.
            took: 1 if the request took from the buckets, 0 if it was refused.

        Returns:
            Whether the headers say anything.
        """
        heard = False
        for kind in ("requests", "tokens"):
            told = read_told(headers, kind)
            if told is None:
                continue
            heard = True
            if kind not in self.buckets:
                self.known_from = self.known_from if self.buckets else self.sent
                self.buckets[kind] = ServerBucket(told.rate, now)
            if kind == "requests":
                cost, before, until_now = 1.0, float(permit.number), float(self.sent)
                crowd = float(permit.crowd.sent)
            else:
                cost, before, until_now = permit.tokens, permit.tokens_before, self.tokens_sent
                crowd = permit.crowd.tokens
            later, beside = until_now - before - cost, took * (before - crowd)
            age = now - permit.sent_at
            self.buckets[kind].hear(told, permit.number, age, later, beside, took * cost, now)
        return heard

    def forget_unless_repeated(self, headers: Mapping[str, str]) -> None:
        """Forget the limits that an answer contradicts, unless its headers repeat them."""
        for kind in [*self.buckets]:
            if read_told(headers, kind) is None:
                del self.buckets[kind]
