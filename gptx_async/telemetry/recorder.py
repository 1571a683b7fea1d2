"""The statistics, costs, events and spans of one engine.

A `Recorder` belongs to one engine and creates a `CallRecord` for each call. All of this may be used
in any thread. Each change of a call's state is one step under a lock, which is held for about a
microsecond and never while code of the application runs, so a snapshot always adds up. Events are
emitted, and spans ended, outside the lock.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from .. import clock
from . import tracing
from .batch_record import BatchRecord
from .call_record import CallRecord
from .call_report import CallReport
from .failures import failure_kind
from .prices import Price
from .spending import Spending
from .stats import Counts, Stats

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Recorder"]


class HasPace(Protocol):
    """The part of a governor's `Pace` that statistics show."""

    @property
    def rate(self) -> float | None:
        """Requests per second."""

    @property
    def rate_source(self) -> str | None:
        """What limits the rate."""

    @property
    def limit_source(self) -> str:
        """What limits the requests in flight."""

    @property
    def last_cut(self) -> Exception | None:
        """The error that led to the last cut."""

    @property
    def next_call_in(self) -> float | None:
        """Seconds until the next request."""

    @property
    def token_rate(self) -> float | None:
        """Tokens per second."""

    @property
    def token_rate_source(self) -> str | None:
        """What limits the tokens."""


class HasLimit(Protocol):
    """The part of a governor that statistics show."""

    @property
    def limit(self) -> int:
        """The largest number of requests in flight now."""

    @property
    def pace(self) -> HasPace:
        """What limits the requests now, and why."""


class Recorder:
    """Counts the calls of one engine, computes their costs, and emits their events.

    In the child of a fork it starts with nothing counted and nothing spent.

    Args:
        prices: US$ per million tokens in and out, by model: `{"gpt-4o-mini": (0.15, 0.60)}`. A
            third number is the price of cached input tokens. A name without a date also applies to
            the model's dated versions.
        max_cost: US$ after which nothing more is sent; None for no limit. The expected cost of
            calls in flight is reserved.
        log_content: Whether events contain prompts, answers and error texts.
        clock: Returns monotonic seconds.
        tracer_provider: OpenTelemetry's provider; the application's global one if not given.

    Raises:
        ConfigurationError: A price or the limit is not a number of 0 or more, or there is a limit
            without prices.
    """

    def __init__(
        self,
        prices: Mapping[str, Sequence[float]] | None = None,
        max_cost: float | None = None,
        log_content: bool = False,  # noqa: FBT001, FBT002 - pickle passes it on by position
        *,
        clock: Callable[[], float] = clock.seconds,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.log_content = log_content
        self._clock = clock
        self._tracer_provider = tracer_provider
        self._counts = Counts()
        self._spending = Spending(prices, max_cost, self._counts)
        self.limit_of: HasLimit | None = None
        """The governor that was last used, for statistics."""
        _recorders.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings, and not the counts."""
        return type(self), (self.prices, self.max_cost, self.log_content)

    @property
    def prices(self) -> Mapping[str, Price] | None:
        """US$ per million tokens in, out, and cached in. May be set at any time."""
        return self._spending.prices

    @prices.setter
    def prices(self, value: Mapping[str, Sequence[float]] | None) -> None:
        self._spending.prices = value

    @property
    def max_cost(self) -> float | None:
        """US$ after which nothing more is sent. May be set at any time, for example to go on."""
        return self._spending.max_cost

    @max_cost.setter
    def max_cost(self, value: float | None) -> None:
        self._spending.max_cost = value

    @property
    def spent(self) -> float:
        """US$ spent so far, which `max_cost` limits. `reset` does not change it."""
        return self._counts.spent

    def call(
        self,
        request: Mapping[str, Any],
        path: Sequence[str] = ("chat", "completions", "create"),
        *,
        base_url: str | None = None,
        batch: str | None = None,
        index: int | None = None,
    ) -> CallRecord:
        """Count a new call, and start its span.

        Call it in the caller's thread, where the parent of the span is the current span.

        Args:
            request: The keyword arguments of the client's method, including `model`.
            path: The client's attributes that lead to the method.
            base_url: The server; only host and port are recorded.
            batch: The id of the call's batch.
            index: The item's position in the batch.
        """
        model = request.get("model")
        model = model if isinstance(model, str) else None
        span = tracing.start_span(path, request, base_url, self._tracer_provider)
        report = CallReport(request, model, span, batch, index, logs_content=self.log_content)
        return CallRecord(model, self._counts, self._spending, self._clock, report)

    def batch(self, items: int, window: int | None = None, model: str | None = None) -> BatchRecord:
        """Report the start of a batch.

        Args:
            items: The number of items.
            window: The largest number of items in progress.
            model: The engine's model.
        """
        return BatchRecord(self._counts, self._clock, items, window, model)

    def stats(self) -> Stats:
        """Return the statistics. Allowed in any thread."""
        governor = self.limit_of
        limit = None if governor is None else governor.limit
        stats = self._counts.snapshot(limit, has_prices=self._spending.has_prices)
        if governor is None:
            return stats
        pace = governor.pace
        return replace(
            stats,
            limit_source=pace.limit_source,
            rate=pace.rate,
            rate_source=pace.rate_source,
            last_cut=None if pace.last_cut is None else failure_kind(pace.last_cut),
            next_call_in=pace.next_call_in,
            token_rate=pace.token_rate,
            token_rate_source=pace.token_rate_source,
        )

    def reset(self) -> None:
        """Count from zero. Calls in progress count as new; `spent` does not change."""
        self._counts.reset()

    def _begin_anew(self) -> None:
        self._counts = Counts()
        self._spending.begin_anew(self._counts)
        self.limit_of = None


def _begin_anew_in_child() -> None:
    # Another thread may have held the counts' lock at the fork, and does not exist in the child.
    for recorder in [*_recorders]:
        recorder._begin_anew()


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)
