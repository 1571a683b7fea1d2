"""What the calls of one engine cost, and the limit `max_cost` on it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import errors
from .prices import AMOUNT, Price, checked_prices, find_price
from .reservations import Reservations
from .stats import Counts
from .usage import Usage

__all__ = ["Spending"]


class Spending:
    """Computes costs and keeps calls within `max_cost`.

    Everything but `reserve` is allowed in any thread.

    Attributes:
        has_prices: Whether prices are set. Without them there are neither costs nor a limit.

    Args:
        prices: US$ per million tokens in and out, and optionally cached in, by model.
        max_cost: The limit in US$, or None.
        counts: The counts of the engine, which contain the amount spent.

    Raises:
        ConfigurationError: A price or the limit is not allowed, or there is a limit without prices.
    """

    def __init__(
        self,
        prices: Mapping[str, Sequence[float]] | None,
        max_cost: float | None,
        counts: Counts,
    ) -> None:
        self._max_cost: float | None = None
        self.prices = prices
        self.max_cost = max_cost
        self._typical_costs: dict[str | None, _TypicalCost] = {}
        self.begin_anew(counts)

    def begin_anew(self, counts: Counts) -> None:
        """Forget all reservations and use new counts, in the child of a fork."""
        self._counts = counts
        self._reservations = Reservations()

    @property
    def prices(self) -> Mapping[str, Price] | None:
        """US$ per million tokens in, out, and cached in, by model."""
        return self._prices

    @prices.setter
    def prices(self, value: Mapping[str, Sequence[float]] | None) -> None:
        prices = None if value is None else checked_prices(value)
        if prices is None and self._max_cost is not None:
            raise errors.ConfigurationError("max_cost needs prices. Set it to None first.")
        self._prices = prices
        self.has_prices = prices is not None
        self._price = functools.lru_cache(maxsize=256)(functools.partial(find_price, prices))

    @property
    def max_cost(self) -> float | None:
        """The limit in US$, or None."""
        return self._max_cost

    @max_cost.setter
    def max_cost(self, value: float | None) -> None:
        if value is not None:
            value = AMOUNT.check("max_cost", value)
            if self._prices is None:
                raise errors.ConfigurationError(
                    "max_cost needs to know what tokens cost. Give prices= too, in US$ per million "
                    'tokens in and out: {"gpt-4o-mini": (0.15, 0.60)}.'
                )
        self._max_cost = value

    def check(self, model: str | None) -> None:
        """Check that an attempt may be sent.

        Raises:
            CostLimitError: `max_cost` is reached.
            ConfigurationError: `max_cost` is set, but there is no price for the model.
        """
        limit = self._max_cost
        if limit is None:
            return
        if model is not None and self._price(model) is None:
            raise errors.ConfigurationError(
                f"There is a max_cost, but no price for the model {model[:100]!r}, so this call "
                "was not sent. Add the model to prices=, or set max_cost to None."
            )
        if self._left() <= 0:
            raise self._limit_error()

    def estimate(
        self, model: str | None, prompt_tokens: int, answer_tokens: int | None
    ) -> float | None:
        """Return the expected cost of a call in US$, or None while nothing is known.

        Args:
            model: The model's name.
            prompt_tokens: Counted or estimated.
            answer_tokens: The most tokens of the answer, or None without a limit.
        """
        price = None if model is None else self._price(model)
        typical = self._typical_costs.get(model)
        if price is None or (typical is None and answer_tokens is None):
            return None
        answer = math.inf if answer_tokens is None else float(answer_tokens)
        if typical is not None:
            answer = min(answer, typical.answer_tokens)
        by_tokens = (prompt_tokens * price[0] + answer * price[1]) / 1_000_000
        return by_tokens if typical is None else max(by_tokens, typical.cost)

    def reserve(
        self, estimate: Callable[[], float | None]
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Return a context manager that reserves the cost of a call. Only on the loop.

        Args:
            estimate: Returns the expected cost, as `estimate` does.

        Raises:
            CostLimitError: On entry, if the call does not fit into `max_cost`.
        """
        return self._reservations.hold(estimate, self._left, self._limit_error)

    def cost_of(self, model: str | None, response: Any, usage: Usage | None) -> float | None:
        """Return the cost of an answer in US$, or None if it is unknown. Only with prices."""
        if usage is None:
            return None
        price = None if model is None else self._price(model)
        if price is None and isinstance(answering := getattr(response, "model", None), str):
            price = self._price(answering)
        if price is None:
            return None
        tokens_in, cached, tokens_out = usage
        return (
            (tokens_in - cached) * price[0] + cached * price[2] + tokens_out * price[1]
        ) / 1_000_000

    def note(self, model: str | None, usage: Usage | None, cost: float | None) -> None:
        """Learn from an ended call what calls to its model cost, for later estimates."""
        if self._max_cost is None:
            return
        typical = self._typical_costs.setdefault(model, _TypicalCost())
        if usage is not None and cost is not None:
            typical.add(usage[2], cost)

    def _left(self) -> float:
        """Return the US$ that may still be spent, with a tolerance for rounding errors."""
        limit = self._max_cost
        if limit is None:
            return math.inf
        spent, rounding = self._counts.spent, limit * 1e-9
        return 0.0 if spent >= limit - rounding else limit + rounding - spent

    def _limit_error(self, amount: float = 0.0) -> errors.CostLimitError:
        this_call = f"this call may cost {amount:.4f} and" if amount else "this call"
        limit = 0.0 if self._max_cost is None else self._max_cost
        return errors.CostLimitError(
            f"US$ {self._counts.spent:.4f} were spent, and the limit (max_cost) is {limit:.4f}: "
            f"{this_call} was not sent. Raise max_cost, or set it to None, and ask again."
        )


class _TypicalCost:
    """The average cost and answer length of the calls to a model."""

    __slots__ = ("_count", "answer_tokens", "cost")

    def __init__(self) -> None:
        self._count = 0
        self.answer_tokens = 256.0
        self.cost = 0.0

    def add(self, answer_tokens: int, cost: float) -> None:
        self._count += 1
        if self._count == 1:
            self.answer_tokens = 0.0
        self.answer_tokens += (answer_tokens - self.answer_tokens) / self._count
        self.cost += (cost - self.cost) / self._count
