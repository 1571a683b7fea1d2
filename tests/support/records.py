"""Calls, answers and errors for the tests of telemetry, without the SDK."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from gptx_async.pacing.governor import Pace
from gptx_async.telemetry.call_record import CallRecord
from gptx_async.telemetry.recorder import Recorder
from gptx_async.telemetry.stats import Stats

__all__ = [
    "MODEL",
    "PRICES",
    "REQUEST",
    "UNBOUND",
    "APIConnectionError",
    "APITimeoutError",
    "Clock",
    "Pacer",
    "StatusError",
    "adds_up",
    "response",
    "sent",
]

MODEL = "gpt-4o-mini"
REQUEST = {"model": MODEL, "messages": [{"role": "user", "content": "the prompt"}]}
PRICES = {MODEL: (0.15, 0.60), "gpt-4o": (2.5, 10.0)}


UNBOUND = Pace(None, None, "configured", None, None)


@dataclass
class Pacer:
    """A stand-in for a governor."""

    limit: int
    pace: Pace = UNBOUND


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class StatusError(Exception):
    """An error with the attributes of the SDK's: status, code and request id."""

    def __init__(self, status: int, code: str | None = None, text: str = "its text") -> None:
        super().__init__(text)
        self.status_code = status
        self.code = code
        self.request_id = "req_7"


class APIConnectionError(Exception):
    """An error named like the SDK's."""


class APITimeoutError(APIConnectionError):
    """An error named like the SDK's."""


def response(
    tokens_in: Any = 10, tokens_out: Any = 5, cached: int = 0, model: str = MODEL
) -> SimpleNamespace:
    """Return an answer of the shape of the SDK\'s chat completions."""
    usage = SimpleNamespace(
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        prompt_tokens_details=SimpleNamespace(cached_tokens=cached),
    )
    choices = [SimpleNamespace(message=SimpleNamespace(content="the answer"))]
    return SimpleNamespace(model=model, usage=usage, choices=choices, _request_id="req_9")


def sent(recorder: Recorder, request: dict[str, Any] = REQUEST) -> CallRecord:
    """Return a call whose first attempt is in flight."""
    call = recorder.call(request)
    call.sending()
    return call


def adds_up(stats: Stats) -> bool:
    """Return whether every call is counted in exactly one state."""
    ended = stats.answered + stats.failed + stats.cancelled
    return stats.calls == ended + stats.in_flight + stats.waiting
