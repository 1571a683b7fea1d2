"""The state of one call in the counts: waiting, in flight, or done."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from .call_report import CallReport
from .events import emit
from .failures import failure_kind, status_of
from .spending import Spending
from .stats import Counts
from .usage import Usage, usage_of

__all__ = ["CallRecord"]

_WAITING, _IN_FLIGHT, _DONE = range(3)


class CallRecord:
    """Counts one call: its attempts, and whether it is answered, failed or cancelled.

    All methods are allowed in any thread. After the call has ended they do nothing, so the loop and
    the waiting caller may both report its end. Only `sending` and `check_cost` raise.

    Args:
        model: The model's name.
        counts: The counts of the engine.
        spending: The costs of the engine.
        clock: Returns monotonic seconds.
        report: Emits the call's events.
    """

    __slots__ = (
        "_clock",
        "_counts",
        "_estimate",
        "_made",
        "_report",
        "_since",
        "_spending",
        "_state",
        "_waited",
        "_waited_in_all",
        "attempt",
        "model",
    )

    def __init__(
        self,
        model: str | None,
        counts: Counts,
        spending: Spending,
        clock: Callable[[], float],
        report: CallReport,
    ) -> None:
        self.model = model
        self.attempt = 0
        """The number of attempts sent."""
        self._counts = counts
        self._spending = spending
        self._clock = clock
        self._report = report
        self._state = _WAITING
        self._estimate: Callable[[], float | None] | None = None
        self._waited = self._waited_in_all = 0.0
        self._made = self._since = clock()
        with counts.lock:
            counts.calls += 1
            counts.waiting += 1

    def join(self, batch: str, index: int) -> None:
        """Set the batch's id and the item's position in it, for events."""
        self._report.join(batch, index)

    def attached(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager for an attempt, on the loop. Spans within it become children.

        It sets the caller's OpenTelemetry context, and no other context variable.
        """
        return self._report.attached()

    def check_cost(self) -> None:
        """Check that the cost limit allows an attempt.

        Raises:
            CostLimitError: `max_cost` is reached. The attempt must not be sent.
            ConfigurationError: `max_cost` is set, but there is no price for the model.
        """
        if self._spending.has_prices:
            self._spending.check(self.model)

    def reserving(
        self, prompt_tokens: int, answer_tokens: int | None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Return a context manager that reserves the cost of the call. Only on the loop.

        Args:
            prompt_tokens: Counted or estimated.
            answer_tokens: The most tokens of the answer, or None without a limit.

        Raises:
            CostLimitError: On entry, if the call does not fit into `max_cost`.
        """
        spending = self._spending
        if spending.max_cost is None:
            return _NOTHING
        self._estimate = functools.partial(
            spending.estimate, self.model, prompt_tokens, answer_tokens
        )
        return spending.reserve(self._estimate)

    def sending(self) -> None:
        """Record that an attempt is sent now.

        Raises:
            CostLimitError: As for `check_cost`.
            ConfigurationError: As for `check_cost`.
        """
        self.check_cost()
        counts = self._counts
        now = self._clock()
        with counts.lock:
            if self._state != _WAITING:
                return
            self._state = _IN_FLIGHT
            counts.waiting -= 1
            counts.in_flight += 1
            counts.attempts += 1
            if self.attempt:
                counts.retries += 1
            self.attempt += 1
            self._waited = now - self._since
            self._waited_in_all += self._waited
            self._since = now

    def retried(self, error: BaseException, retry_in: float, response: object = None) -> None:
        """Record that the attempt failed and will be followed by another.

        Args:
            error: The attempt's error.
            retry_in: Seconds until the next attempt, without the wait for its turn.
            response: The response, if it reports tokens.
        """
        self._fail(error, response, retry_in)

    def answered(self, response: object = None) -> None:
        """Record that the call was answered.

        Args:
            response: The return value of the client's method.
        """
        counts, spending = self._counts, self._spending
        now = self._clock()
        usage = usage_of(response)
        cost = charged = 0.0 if not spending.has_prices else self._cost_of(response, usage)
        if usage is None and self._estimate is not None:
            charged = self._estimate()  # otherwise `max_cost` would have no effect
        ended = None
        with counts.lock:
            if self._state == _DONE:
                return
            took = now - self._since
            if self._state == _WAITING:  # `sending` was not called
                self._waited_in_all += took
            self._leave()
            counts.answered += 1
            counts.waited.add(self._waited_in_all)
            counts.took.add(now - self._made)
            if usage is not None:
                counts.tokens_in += usage[0]
                counts.tokens_out += usage[2]
            if cost != 0.0 or charged:
                counts.add_cost(cost, charged, has_model=self.model is not None)
            if counts.retried_burst.suppressed or counts.failed_burst.suppressed:
                ended = counts.retried_burst.end(now) or counts.failed_burst.end(now)
        if ended is not None:
            emit("burst.ended", ended)
        waited = self._waited if self.attempt else None
        self._report.answered(response, usage, self.attempt, waited, took)

    def failed(self, error: BaseException, response: object = None) -> None:
        """Record that the call failed and is not retried.

        Args:
            error: The call's error. If it is not an `Exception`, the call counts as cancelled.
            response: The response, if it reports tokens.
        """
        if isinstance(error, Exception):
            self._fail(error, response, None)
        else:
            self.cancelled()

    def cancelled(self) -> None:
        """Record that the caller gave up the call."""
        counts = self._counts
        now = self._clock()
        with counts.lock:
            if self._state == _DONE:
                return
            waited = self._waited_in_all + (now - self._since if self._state == _WAITING else 0.0)
            self._leave()
            counts.cancelled += 1
            counts.waited.add(waited)
        self._report.cancelled()

    def _fail(self, error: BaseException, response: object, retry_in: float | None) -> None:
        counts, spending = self._counts, self._spending
        now = self._clock()
        kind, status, usage = failure_kind(error), status_of(error), usage_of(response)
        is_free = usage is None or not spending.has_prices
        cost = 0.0 if is_free else spending.cost_of(self.model, response, usage)
        with counts.lock:
            if self._state == _DONE:
                return
            is_sent = self._state == _IN_FLIGHT
            took = now - self._since
            self._leave()
            if retry_in is None:
                counts.failed += 1
                counts.waited.add(self._waited_in_all + (0.0 if is_sent else took))
                counts.took.add(now - self._made)
                burst = counts.failed_burst
            else:
                self._state = _WAITING
                counts.waiting += 1
                self._since = now
                burst = counts.retried_burst
            counts.add_failure(kind, usage, is_429=is_sent and status == 429)
            counts.add_cost(cost, cost, has_model=self.model is not None)
            is_first, ended = burst.note(now)
        if retry_in is None:
            spending.note(self.model, None, None)
        if ended is not None:
            emit("burst.ended", ended)
        self._report.failed(
            error,
            kind,
            status,
            usage,
            self.attempt,
            self._waited if self.attempt else None,
            took if is_sent else None,
            retry_in,
            is_first=is_first,
        )

    def _cost_of(self, response: object, usage: Usage | None) -> float | None:
        cost = self._spending.cost_of(self.model, response, usage)
        self._spending.note(self.model, usage, cost)
        return cost

    def _leave(self) -> None:
        """Remove the call from the waiting calls or those in flight. Needs the lock."""
        if self._state == _IN_FLIGHT:
            self._counts.in_flight -= 1
        else:
            self._counts.waiting -= 1
        self._state = _DONE


_NOTHING = contextlib.nullcontext()
