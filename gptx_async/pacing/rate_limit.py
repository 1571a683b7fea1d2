"""The limits that the user configures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigurationError

__all__ = ["RateLimit"]


@dataclass(frozen=True)
class RateLimit:
    """What may be sent in a minute; None for no limit.

    Attributes:
        requests_per_minute: Requests.
        tokens_per_minute: Tokens, of prompts and answers together.

    Raises:
        ConfigurationError: A limit is not a positive number.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value < math.inf
            ):
                raise ConfigurationError(
                    f"{name} is {value!r}. Give a number above 0, or None for no limit."
                )
