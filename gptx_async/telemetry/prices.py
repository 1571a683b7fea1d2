"""What tokens cost: the `prices` that users give, and the price of a model in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .. import errors
from ..checks import numbers

__all__ = ["AMOUNT", "Price", "checked_prices", "find_price"]

Price = tuple[float, float, float]
"""US$ per million input tokens, output tokens, and cached input tokens."""

AMOUNT = numbers("US$", allows_zero=True)
"""The rule for an amount of money."""

_DATE = re.compile(r"-(\d{4}-\d\d-\d\d|\d{8}|\d{4}|latest)\Z", re.ASCII)
"""The version that a server appends to a model's name. Any other suffix may be another model with
another price: 'gpt-4o-mini' is not a version of 'gpt-4o'."""


def checked_prices(prices: Mapping[str, Sequence[float]]) -> dict[str, Price]:
    """Return prices in which the price of a cached token is always given.

    Args:
        prices: US$ per million tokens in and out, and optionally cached in, by model.

    Raises:
        ConfigurationError: A price is not two or three numbers of 0 or more.
    """
    checked = {}
    for model, price in prices.items():
        is_price = isinstance(price, Sequence) and not isinstance(price, str)
        if not isinstance(model, str) or not is_price or len(price) not in (2, 3):
            raise errors.ConfigurationError(
                "prices must be US$ per million tokens in and out (and cached in), by model: "
                f'{{"gpt-4o-mini": (0.15, 0.60)}}. That of {model!r} is not.'
            )
        amounts = [AMOUNT.check(f"A price of {model}", amount) for amount in price]
        checked[model] = (amounts[0], amounts[1], amounts[2] if len(amounts) == 3 else amounts[0])
    return checked


def find_price(prices: Mapping[str, Price] | None, model: str) -> Price | None:
    """Return the price of a model, or of the model without its date, or None."""
    if prices is None:
        return None
    return prices.get(model) or prices.get(_DATE.sub("", model))
