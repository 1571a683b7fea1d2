"""The limits that the user configures."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import numbers

__all__ = ["RateLimit"]


@dataclass(frozen=True)
class RateLimit:
    """The most that may be sent in a minute; None for no limit.

    Attributes:
        requests_per_minute: The number of requests.
        tokens_per_minute: The number of tokens, in prompts and answers together.

    Raises:
        ConfigurationError: A limit is not a positive number.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = numbers().check_or_none(name, getattr(self, name))
            object.__setattr__(self, name, value)
