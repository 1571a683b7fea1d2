"""The numbers that argparse reads from the command line."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

from ..checks import Number, NumberRule, numbers, seconds, whole_numbers

__all__ = ["COUNT", "NUMBER", "PRICE", "SECONDS", "number_argument"]


def number_argument(rule: NumberRule[Number]) -> Callable[[str], Number]:
    """Make the `type=` function of an argparse argument for the numbers that a rule allows."""

    def read(text: str) -> Number:
        number = None
        with contextlib.suppress(ValueError):
            number = rule.read(int(text) if text.isdecimal() else float(text))
        if number is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not {rule.text}")
        return number

    return read


COUNT = number_argument(whole_numbers())
NUMBER = number_argument(numbers())
PRICE = number_argument(numbers("US$", allows_zero=True))
SECONDS = number_argument(seconds(allows_zero=True))
