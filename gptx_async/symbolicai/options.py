"""The options of an engine beside those of symbolicai: what they may be, and what is said if not.

They are the keyword arguments of `AsyncBatchEngine`, of `AsyncGPTXBatchEngine` and of `install`.
"""

from __future__ import annotations

import contextlib
import operator
import os
import reprlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import openai

from ..errors import ConfigurationError
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
    """Return an option of an engine or of a call as the number or the switch that it stands for.

    An option that is not known here, or that other rooms check, is returned as it is.

    Raises:
        ConfigurationError: It stands for no number, or for one that is too low; or a switch is
            neither True nor False.
    """
    if name == "fast_path" and value is None:
        return os.environ.get("GPTX_ASYNC_FAST_PATH", "1").strip() != "0"
    if name in _SWITCHES and not isinstance(value, bool):
        raise ConfigurationError(f"{name} is {_shown(value)}, but has to be True or False.")
    if name not in _NUMBERS or (value is None and name not in _NEVER_NONE):
        return value
    if name == "client_timeout" and isinstance(value, openai.Timeout):
        return value
    what, is_whole, least = _NUMBERS[name]
    number: float = -1
    with contextlib.suppress(Exception):  # whatever it is that stands for no number
        if is_whole:
            number = operator.index(value)
        elif not isinstance(value, (str, bytes)):  # which float() would read
            number = float(min(value, threading.TIMEOUT_MAX))
    if not (number > 0 if least is None else number >= least):
        raise ConfigurationError(
            f"{name} is {_shown(value)}, but has to be {what}"
            + ("." if name in _NEVER_NONE else ", or None.")
        )
    return number


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"a {type(value).__name__}"


_SWITCHES = frozenset({"fast_path", "pickle_key", "retry_error_bodies"})

_SECONDS = ("a number of seconds above 0", False, None)

_NUMBERS: Mapping[str, tuple[str, bool, int | None]] = {
    "client_max_retries": ("a whole number, 0 or above", True, 0),
    "client_timeout": _SECONDS,
    "deadline": _SECONDS,
    "idle_client_seconds": ("a number of seconds, 0 or above", False, 0),
    "max_concurrency": ("a whole number of requests above 0", True, 1),
    "max_response_bytes": ("a whole number of bytes above 0", True, 1),
    "rate_limit_patience": ("a number of seconds, 0 or above", False, 0),
    "timeout": _SECONDS,
    "window": ("a whole number of items above 0", True, 1),
}
"""The options that are numbers: what to call them, if they are whole, and the least that they may
be, None for anything above 0."""

_NEVER_NONE = frozenset({"idle_client_seconds", "max_concurrency", "rate_limit_patience", "window"})
