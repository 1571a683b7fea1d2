"""Check numbers: the options that users give, and the figures that servers send.

An option that is not allowed raises a `ConfigurationError`. A figure from a server never raises:
proxies rewrite headers, providers send epoch times in place of durations, and a server may be
broken or hostile. A figure out of bounds is ignored, so that it can neither divide by zero nor
block a call for years.
"""

from __future__ import annotations

import math
import operator
import reprlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, SupportsFloat, SupportsIndex, TypeVar

from .errors import ConfigurationError

__all__ = [
    "LONGEST_SECONDS",
    "MOST_TOKENS",
    "SHARE",
    "Number",
    "NumberRule",
    "check_choice",
    "check_switch",
    "limit_of",
    "number_of",
    "numbers",
    "seconds",
    "seconds_of",
    "token_count",
    "whole_numbers",
]

Number = TypeVar("Number", int, float)

LONGEST_SECONDS = 31 * 86_400.0
"""The longest wait, and the longest window of a rate limit: a month, the longest window that
providers use. An epoch time, in seconds or milliseconds, is far longer."""

MOST_TOKENS = 2**24
"""The most tokens that one call can have: the longest context of any model is 10 million."""

_HIGHEST_LIMIT = 1e12
"""The highest rate limit. Higher ones mean "no limit", and lose precision in arithmetic."""


@dataclass(frozen=True)
class NumberRule(Generic[Number]):
    """Which numbers an option allows, and how a message describes them.

    Attributes:
        noun: What the number is, with an article: 'a number of seconds'.
        convert: Converts an allowed value to the number; raises an error for other types.
        allows_zero: Whether the least number is 0. If not, the number must be above 0.
        most: The highest number; infinity for any finite number.
    """

    noun: str
    convert: Callable[[Any], Number]
    _: KW_ONLY
    allows_zero: bool = False
    most: float = math.inf

    @property
    def text(self) -> str:
        """The description for a message: 'a number of seconds above 0'."""
        bounds = f"{self.noun}, 0 or more" if self.allows_zero else f"{self.noun} above 0"
        return bounds if self.most == math.inf else f"{bounds} and up to {self.most:g}"

    def read(self, value: object) -> Number | None:
        """Return a value as a number, or None if the rule does not allow it.

        Booleans and text are not numbers, although `int` and `float` accept them.
        """
        if isinstance(value, bool) or not isinstance(value, (SupportsFloat, SupportsIndex)):
            return None
        try:
            number = self.convert(value)
            is_allowed = 0 < number < math.inf or (self.allows_zero and number == 0)
        except Exception:  # the value may be of a class that the user wrote
            return None
        return number if is_allowed and number <= self.most else None

    def check(self, name: str, value: object) -> Number:
        """Return the value of an option as a number.

        Raises:
            ConfigurationError: The rule does not allow the value.
        """
        number = self.read(value)
        if number is None:
            raise _not_allowed(name, value, self.text)
        return number

    def check_or_none(self, name: str, value: object) -> Number | None:
        """Return the value of an option as a number, or None if it is None.

        Raises:
            ConfigurationError: The rule does not allow the value.
        """
        number = None if value is None else self.read(value)
        if number is None and value is not None:
            raise _not_allowed(name, value, f"{self.text}, or None")
        return number


def whole_numbers(of: str = "", *, allows_zero: bool = False) -> NumberRule[int]:
    """Make the rule for a whole number, for example `of="requests"`."""
    return NumberRule(_noun("a whole number", of), operator.index, allows_zero=allows_zero)


def numbers(of: str = "", *, allows_zero: bool = False) -> NumberRule[float]:
    """Make the rule for a finite number, for example `of="US$"`."""
    return NumberRule(_noun("a number", of), float, allows_zero=allows_zero)


def seconds(*, allows_zero: bool = False) -> NumberRule[float]:
    """Make the rule for a number of seconds. Higher numbers than a wait can have are lowered."""
    return NumberRule(_noun("a number", "seconds"), _as_wait, allows_zero=allows_zero)


SHARE = NumberRule("a share", float, most=1)
"""The rule for a share of all requests."""


def check_switch(name: str, value: object) -> bool:
    """Return the value of an option that is on or off.

    Raises:
        ConfigurationError: The value is neither True nor False.
    """
    if not isinstance(value, bool):
        raise _not_allowed(name, value, "True or False")
    return value


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return the value of an option that is one of a few names.

    Raises:
        ConfigurationError: The value is none of them; the message lists them.
    """
    names = [*choices]
    if not isinstance(value, str) or value not in names:
        raise _not_allowed(name, value, f"one of {', '.join(names)}")
    return value


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


def _as_wait(value: Any) -> float:
    return float(min(value, threading.TIMEOUT_MAX))


def _noun(noun: str, of: str) -> str:
    return f"{noun} of {of}" if of else noun


def _not_allowed(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is {_shown(value)}. Give {wanted}.")


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"a {type(value).__name__}"
