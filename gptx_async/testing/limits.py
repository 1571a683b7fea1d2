"""OpenAI's rate limits, as token buckets: one of requests and one of tokens per key and model.

All of it is plain arithmetic on a time that is given, so that it can be simulated, too.

Sources: https://platform.openai.com/docs/guides/rate-limits for the headers, for what a request is
charged, and for refused requests; its 429s for the texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .faults import HTTPFault
from .replies import RecordedRequest

__all__ = ["ADMITTED", "Decision", "Limiter", "RateLimits", "TokenBucket", "charged_tokens"]

CHARACTERS_PER_TOKEN = 4
"""By which OpenAI's limiter estimates a prompt, before it is tokenised."""

LEARN_MORE = "Visit https://platform.openai.com/account/rate-limits to learn more."


@dataclass(frozen=True)
class RateLimits:
    """What a server admits of one model with one key.

    Attributes:
        requests_per_minute: Requests; None for no limit.
        tokens_per_minute: Tokens, of prompts and of the answers' limits; None for no limit.
        burst_seconds: How many seconds of its rate a full bucket holds: what may come at once.
            OpenAI publishes a minute and enforces a shorter time.
        send_headers: Whether answers tell of the limits, in `x-ratelimit-*` headers.
        send_retry_after: Whether a 429 says how long to wait, in `retry-after` (whole seconds) and
            `retry-after-ms`.
        charge_refused: Whether a refused request is charged as well, as OpenAI says it does.

    Raises:
        ValueError: A figure is not above 0.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_seconds: float = 60.0
    send_headers: bool = True
    send_retry_after: bool = True
    charge_refused: bool = False

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "burst_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}. Give a number above 0.")


class TokenBucket:
    """A bucket that fills at a rate, up to its capacity, and is taken from.

    Args:
        per_minute: At what rate it fills.
        burst_seconds: How many seconds of the rate it holds.
        now: The time, in seconds; it is full then.
    """

    def __init__(self, per_minute: float, burst_seconds: float, now: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate * burst_seconds)
        self.level = self.capacity
        self._at = now

    def fill(self, now: float) -> None:
        """Let what has come since the last time flow in."""
        self.level = min(self.capacity, self.level + (now - self._at) * self.rate)
        self._at = now

    def wait(self, amount: float) -> float:
        """Return in how many seconds so much is there; inf if it never is."""
        # What is summed up of many roundings may be short of the amount by one.
        missing = amount - self.level - 1e-9
        if amount > self.capacity:
            return math.inf
        return max(0.0, missing / self.rate)

    def take(self, amount: float) -> None:
        """Take so much; at most what is there."""
        self.level = max(0.0, self.level - amount)

    @property
    def until_full(self) -> float:
        """In how many seconds it is full."""
        return (self.capacity - self.level) / self.rate


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request is admitted.

    Attributes:
        fault: How it is refused; None if it is admitted.
        headers: Of the answer, of either kind.
    """

    fault: HTTPFault | None
    headers: Mapping[str, str]


ADMITTED = Decision(None, {})
"""What there is to say where there are no limits."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Requests or tokens: how the headers and the texts name them."""

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
        limits: What is admitted.
        now: The time, in seconds.
    """

    def __init__(self, limits: RateLimits, now: float) -> None:
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
            model: How the model is named in the text of a refusal.
            tokens: What it is charged in tokens.
            now: The time, in seconds.
        """
        amounts = {_REQUESTS: 1, _TOKENS: tokens}
        fault: HTTPFault | None = None
        for kind, bucket in self._buckets:
            bucket.fill(now)
            if fault is None and (wait := bucket.wait(amounts[kind])) > 0:
                fault = self._refuse(kind, bucket, model, amounts[kind], wait)
        if fault is None or self._limits.charge_refused:
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


def charged_tokens(request: RecordedRequest) -> int:
    """Return what OpenAI's limiter charges a request before it is answered.

    A quarter of the prompt's characters, and the limit of each answer that is asked for. Pictures
    count nothing here.
    """
    body = request.body if isinstance(request.body, dict) else {}
    prompt = math.ceil(sum(map(_characters, request.messages)) / CHARACTERS_PER_TOKEN)
    if "messages" not in body and isinstance(body.get("input"), str | list):
        prompt = math.ceil(_characters(body["input"]) / CHARACTERS_PER_TOKEN)
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    most = next((body[name] for name in names if isinstance(body.get(name), int)), 0)
    answers = body.get("n")
    return prompt + most * (answers if isinstance(answers, int) else 1)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(value.get(name)) for name in ("content", "text"))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def go_duration(seconds: float) -> str:
    """Write a time as Go does, and so OpenAI's headers: '1h2m0s', '1m2.5s', '120ms', '0s'."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{text}{rest / 1000:g}s"
