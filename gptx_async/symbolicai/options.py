"""The options that this package adds to symbolicai's engines, and the values that they allow.

They are keyword arguments of `AsyncBatchEngine`, of `AsyncGPTXBatchEngine` and of `install`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import openai

from ..checks import NumberRule, check_switch, seconds, whole_numbers
from ..pacing.rate_limit import RateLimit

__all__ = ["EngineOptions", "checked"]


class EngineOptions(TypedDict, total=False):
    """The keyword arguments that every engine of the package takes; see `AsyncBatchEngine`."""

    window: int
    deadline: float | None
    timeout: float | None
    max_concurrency: int
    rate_limit: RateLimit | None
    rate_limit_patience: float
    max_response_bytes: int | None
    fast_path: bool | None
    retry_error_bodies: bool
    idle_client_seconds: float
    adaptive: bool
    prices: Mapping[str, Sequence[float]] | None
    max_cost: float | None
    log_content: bool
    pickle_key: bool


def checked(name: str, value: Any) -> Any:
    """Check an option of an engine or of a call, and return its value as a number or a boolean.

    An option that is not listed here is returned unchanged: other modules check it.

    Raises:
        ConfigurationError: The value is not a number, is too low, or is neither True nor False.
    """
    if name == "fast_path" and value is None:
        return os.environ.get("GPTX_ASYNC_FAST_PATH", "1").strip() != "0"
    if name in _SWITCHES:
        return check_switch(name, value)
    if name == "client_timeout" and isinstance(value, openai.Timeout):
        return value
    if name in _NUMBERS:
        return _NUMBERS[name].check(name, value)
    if name in _NUMBERS_OR_NONE:
        return _NUMBERS_OR_NONE[name].check_or_none(name, value)
    return value


_SWITCHES = frozenset({"fast_path", "pickle_key", "retry_error_bodies"})

_NUMBERS: Mapping[str, NumberRule[Any]] = {
    "idle_client_seconds": seconds(allows_zero=True),
    "max_concurrency": whole_numbers("requests"),
    "rate_limit_patience": seconds(allows_zero=True),
    "window": whole_numbers("items"),
}

_NUMBERS_OR_NONE: Mapping[str, NumberRule[Any]] = {
    "client_max_retries": whole_numbers(allows_zero=True),
    "client_timeout": seconds(),
    "deadline": seconds(),
    "max_response_bytes": whole_numbers("bytes"),
    "timeout": seconds(),
}
