"""Bounds for the numbers that servers send: a number outside its bounds is ignored.

Proxies rewrite headers, providers send epoch times where a duration belongs, and a server may be
broken or hostile. No number from outside may raise an error, divide by zero, or block a call for
years, so each is read here.
"""

from __future__ import annotations

import math

__all__ = ["LONGEST_SECONDS", "MOST_TOKENS", "limit_of", "number_of", "seconds_of", "token_count"]

LONGEST_SECONDS = 31 * 86_400.0
"""The longest wait, and the longest window of a rate limit: a month, the longest window that
providers use. An epoch time, in seconds or milliseconds, is far longer."""

MOST_TOKENS = 2**24
"""The most tokens that one call can have: the longest context of any model is 10 million."""

_HIGHEST_LIMIT = 1e12
"""The highest rate limit. Higher ones mean "no limit", and lose precision in arithmetic."""


def number_of(text: str | None, least: float, most: float) -> float | None:
    """Read a number within bounds, which are included; None for anything else."""
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if least <= number <= most and math.isfinite(number) else None


def seconds_of(text: str | None, unit: float = 1.0) -> float | None:
    """Read a duration in units of so many seconds; return it in seconds, or None for nonsense."""
    number = number_of(text, 0.0, LONGEST_SECONDS / unit)
    return None if number is None else number * unit


def limit_of(text: str | None) -> float | None:
    """Read a rate limit, of at least one per window; None for nonsense."""
    return number_of(text, 1.0, _HIGHEST_LIMIT)


def token_count(value: object) -> int | None:
    """Return a count of tokens as a server reports it for one call; None for nonsense."""
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else None
