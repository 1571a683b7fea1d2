"""OpenAI's rate limits as token buckets: one for requests and one for tokens per key and model.

Everything is arithmetic on a time that the caller passes, so that tests can simulate it. There are
no locks: use a `Limiters` in one thread.

Sources: https://platform.openai.com/docs/guides/rate-limits for the headers and for rejected
requests, and for the message texts the 429s that users of the API report
(https://github.com/Aider-AI/aider/issues/1880, https://github.com/BuilderIO/micro-agent/issues/86).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..checks import numbers, whole_numbers
from .faults import HTTPFault

__all__ = [
    "ADMITTED",
    "Decision",
    "FakeRateLimits",
    "Limiter",
    "Limiters",
    "TokenBucket",
    "charged_tokens",
    "go_duration",
]

CHARACTERS_PER_TOKEN = 4
"""OpenAI's limiter estimates the tokens of a prompt by this, before it is tokenised."""

LEARN_MORE = "Visit https://platform.openai.com/account/rate-limits to learn more."


@dataclass(frozen=True)
class FakeRateLimits:
    """The rate limits that a `FakeOpenAI` applies to each key and model.

    Attributes:
        requests_per_minute: Requests per minute; None for no limit.
        tokens_per_minute: Tokens per minute, of prompts and of the limits of answers; None for no
            limit.
        burst_seconds: How many seconds of the rate a full bucket holds: a burst may have that much,
            and at least one request. OpenAI publishes a minute and enforces a shorter time. A
            request with more tokens is always rejected.
        send_headers: Whether answers report the limits, in `x-ratelimit-*` headers.
        send_retry_after: Whether a 429 reports how long to wait, in `retry-after` (whole seconds)
            and `retry-after-ms`.
        count_refused: Whether rejected requests are charged as well, until the bucket is empty.
            OpenAI documents that it does this: a client that keeps sending is never admitted.

    Raises:
        ConfigurationError: A value is not a number above 0; it is a ValueError, too.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    _: KW_ONLY
    burst_seconds: float = 60.0
    send_headers: bool = True
    send_retry_after: bool = True
    count_refused: bool = False

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "burst_seconds"):
            check = numbers().check if name == "burst_seconds" else numbers().check_or_none
            check(name, getattr(self, name))


class TokenBucket:
    """A bucket that fills at a constant rate, up to its capacity.

    Attributes:
        per_minute: The rate per minute.
        rate: The rate per second.
        capacity: The level of the full bucket.
        level: The level at the last `fill`, less what was taken since.

    Args:
        per_minute: See above.
        burst_seconds: How many seconds of the rate the bucket holds.
        now: The time, in seconds. The bucket starts full.
    """

    def __init__(self, per_minute: float, burst_seconds: float, now: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate * burst_seconds)
        self.level = self.capacity
        self._at = now

    def fill(self, now: float) -> None:
        """Add what the rate gives for the time since the last call."""
        self.level = min(self.capacity, self.level + (now - self._at) * self.rate)
        self._at = now

    def wait(self, amount: float) -> float:
        """Return the seconds until the level is at least an amount; inf if it never is."""
        # The sum of many rounded numbers may be slightly below the amount.
        missing = amount - self.level - 1e-9
        if amount > self.capacity:
            return math.inf
        return max(0.0, missing / self.rate)

    def take(self, amount: float) -> None:
        """Take an amount, or everything if the level is lower."""
        self.level = max(0.0, self.level - amount)

    @property
    def until_full(self) -> float:
        """The seconds until the bucket is full."""
        return (self.capacity - self.level) / self.rate


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request is admitted.

    Attributes:
        fault: The answer to a rejected request; None if the request is admitted.
        headers: The headers of the answer in both cases.
    """

    fault: HTTPFault | None
    headers: Mapping[str, str]


ADMITTED = Decision(None, {})
"""The decision if there are no limits."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """The names of requests or tokens in headers and messages."""

    name: str
    unit: str
    advice: str


_REQUESTS = _Kind("requests", "requests per min (RPM)", "")
_TOKENS = _Kind(
    "tokens",
    "tokens per min (TPM)",
    "The input or output tokens must be reduced in order to run successfully.",
)


class Limiter:
    """The buckets of one key and model.

    Args:
        limits: The rate limits.
        now: The time, in seconds.
    """

    def __init__(self, limits: FakeRateLimits, now: float) -> None:
        self._limits = limits
        self._buckets: list[tuple[_Kind, TokenBucket]] = []
        for kind, per_minute in (
            (_REQUESTS, limits.requests_per_minute),
            (_TOKENS, limits.tokens_per_minute),
        ):
            if per_minute is not None:
                self._buckets.append((kind, TokenBucket(per_minute, limits.burst_seconds, now)))

    def admit(self, model: str, tokens: int, now: float) -> Decision:
        """Admit or refuse a request, and charge it.

        Args:
            model: The model, for the message of a 429.
            tokens: How many tokens the request is charged.
            now: The time, in seconds.
        """
        amounts = {_REQUESTS: 1, _TOKENS: tokens}
        fault: HTTPFault | None = None
        longest = 0.0  # of two waits the longer counts: after the shorter one a retry would fail
        for kind, bucket in self._buckets:
            bucket.fill(now)
            wait = bucket.wait(amounts[kind])
            if wait > longest:
                longest = wait
                fault = self._refuse(kind, bucket, model, amounts[kind], wait)
        if fault is None or self._limits.count_refused:
            for kind, bucket in self._buckets:
                bucket.take(amounts[kind])
        return Decision(fault, self._headers() if self._limits.send_headers else {})

    def _refuse(
        self, kind: _Kind, bucket: TokenBucket, model: str, amount: int, wait: float
    ) -> HTTPFault:
        on = f"{model} in organization org-fake on {kind.unit}: Limit {bucket.per_minute:.0f}"
        headers: dict[str, str] = {}
        if wait == math.inf:
            message = f"Request too large for {on}, Requested {amount}. {kind.advice} {LEARN_MORE}"
        else:
            used = bucket.capacity - bucket.level
            message = (
                f"Rate limit reached for {on}, Used {used:.0f}, Requested {amount}. "
                f"Please try again in {go_duration(wait)}. {LEARN_MORE}"
            )
            if self._limits.send_retry_after:
                headers["retry-after"] = f"{math.ceil(wait)}"
                headers["retry-after-ms"] = f"{math.ceil(wait * 1000)}"
        return HTTPFault(429, message, kind.name, "rate_limit_exceeded", headers=headers)

    def _headers(self) -> dict[str, str]:
        headers = {}
        for kind, bucket in self._buckets:
            headers[f"x-ratelimit-limit-{kind.name}"] = f"{bucket.per_minute:.0f}"
            headers[f"x-ratelimit-remaining-{kind.name}"] = f"{math.floor(bucket.level + 1e-9)}"
            headers[f"x-ratelimit-reset-{kind.name}"] = go_duration(bucket.until_full)
        return headers


class Limiters:
    """The buckets of all keys and models. They are full when the first request arrives.

    Attributes:
        limits: The rate limits of each key and model, or a mapping from models to limits; None for
            no limits.

    Args:
        limits: See above.

    Raises:
        TypeError: The limits are neither `FakeRateLimits` nor a mapping to such limits.
    """

    def __init__(self, limits: FakeRateLimits | Mapping[str, FakeRateLimits] | None) -> None:
        each = limits.values() if isinstance(limits, Mapping) else [limits]
        if not all(isinstance(one, FakeRateLimits) for one in each) and limits is not None:
            raise TypeError(
                f"rate_limits is {limits!r}. Give FakeRateLimits(...), or a mapping from models to "
                "such limits."
            )
        self.limits = limits
        self._limiters: dict[tuple[str, str], Limiter] = {}

    def admit(self, key: str, model: str, tokens: int, now: float) -> Decision:
        """Admit or refuse a request, and charge it.

        Args:
            key: The API key.
            model: The model.
            tokens: How many tokens the request is charged.
            now: The time, in seconds, not earlier than in previous calls.
        """
        limits = self.limits.get(model) if isinstance(self.limits, Mapping) else self.limits
        if limits is None:
            return ADMITTED
        if (key, model) not in self._limiters:
            self._limiters[key, model] = Limiter(limits, now)
        return self._limiters[key, model].admit(model, tokens, now)


def charged_tokens(body: Mapping[str, Any]) -> int:
    """Return how many tokens a request is charged before it is answered: prompt + n * max_tokens.

    OpenAI's own client for many requests counts like this
    (https://github.com/openai/openai-cookbook, `api_request_parallel_processor.py`). The prompt is
    estimated from its characters, as the guide to rate limits says. The guide charges the larger of
    the two numbers, not their sum. Only the text of messages counts: no images, no tools.
    """
    parts = (body.get(name) for name in ("messages", "instructions", "input"))
    prompt = math.ceil(sum(map(_characters, parts)) / CHARACTERS_PER_TOKEN)
    limits = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    most = next(filter(None, (_count(body.get(name)) for name in limits)), 0)
    return prompt + most * max(1, _count(body.get("n")), _count(body.get("best_of")))


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(value.get(name)) for name in ("content", "text"))
    if isinstance(value, list):
        return sum(map(_characters, value))
    is_token = numbers(allows_zero=True).read(value) is not None
    return CHARACTERS_PER_TOKEN if is_token else 0  # embeddings accept token numbers


def _count(value: Any) -> int:
    """Return a parameter that is a whole number above 0; 0 for any other value."""
    return whole_numbers().read(value) or 0


def go_duration(seconds: float) -> str:
    """Format a duration like Go, as in OpenAI's headers: '1h2m0s', '1m2.5s', '120ms', '0s'."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{text}{rest / 1000:g}s"
