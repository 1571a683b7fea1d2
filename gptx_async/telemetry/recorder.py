"""What the package counts and tells of its calls: `stats()`, costs, events, spans.

A `Recorder` is of one engine; it gives out a `CallRecord` for each call, which is told what becomes
of the call. All of it may be used in any thread. Each change of a call's state is one step under a
lock that is held for a microsecond, with nothing of the application's inside, so a snapshot always
adds up. Counting costs no output: events are told, and spans ended, outside the lock.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from .. import clock
from ..checks import numbers, token_count
from ..errors import ConfigurationError, CostLimitError, ServiceError
from . import tracing
from .events import MAX_TEXT, configure_logging, emit, is_enabled, without_keys
from .reservations import Reservations
from .stats import Counts, Percentiles, Stats

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = [
    "BatchRecord",
    "CallRecord",
    "Percentiles",
    "Recorder",
    "Stats",
    "configure_logging",
    "failure_kind",
    "governor_changed",
    "service_closed",
    "service_restarted",
    "service_started",
    "tokens_of",
]

_PROMPTS = ("messages", "input", "prompt")

_DATE = re.compile(r"-(\d{4}-\d\d-\d\d|\d{8}|\d{4}|latest)\Z", re.ASCII)
"""What a server adds to the name of a model. Any other ending may be another model, at another
price: 'gpt-4o-mini' is not a kind of 'gpt-4o'."""

_KINDS = {
    400: "bad_request",
    401: "authentication",
    403: "permission",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    422: "unprocessable",
    429: "rate_limit",
}

Usage = tuple[int, int, int]
"""Tokens in, those of them that were cached, tokens out."""


class HasPace(Protocol):
    """A governor's `Pace`, as far as it is known here."""

    @property
    def rate(self) -> float | None:
        """Requests a second."""

    @property
    def rate_source(self) -> str | None:
        """What bounds the rate."""

    @property
    def limit_source(self) -> str:
        """What bounds the requests in flight."""

    @property
    def last_cut(self) -> Exception | None:
        """The error that led to the last cut."""

    @property
    def next_call_in(self) -> float | None:
        """Seconds until the next request."""

    @property
    def token_rate(self) -> float | None:
        """Tokens a second."""

    @property
    def token_rate_source(self) -> str | None:
        """What bounds the tokens."""


class HasLimit(Protocol):
    """A governor, as far as it is known here."""

    @property
    def limit(self) -> int:
        """How many requests may be out at once now."""

    @property
    def pace(self) -> HasPace:
        """What bounds the requests now, and why."""


class Recorder:
    """Counts the calls of one engine, knows what they cost, and tells of them.

    In the child of a fork it begins anew, with nothing counted and nothing spent.

    Args:
        prices: US$ per million tokens, in and out, by model: `{"gpt-4o-mini": (0.15, 0.60)}`; a
            third figure is the price of a cached token in. A name without a date is also that of
            its dated versions.
        max_cost: US$ after which nothing more is sent; None for no limit. What calls in flight
            are expected to cost is reserved.
        log_content: Whether events hold prompts, answers and texts of errors.
        clock: Seconds, monotonic.
        tracer_provider: OpenTelemetry's; the application's global one when not given.

    Raises:
        ConfigurationError: A price or the limit is not a number of 0 or more, or there is a limit
            without prices.
    """

    def __init__(
        self,
        prices: Mapping[str, Sequence[float]] | None = None,
        max_cost: float | None = None,
        log_content: bool = False,
        *,
        clock: Callable[[], float] = clock.seconds,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.log_content = log_content
        self._max_cost: float | None = None
        self.prices = prices
        self.max_cost = max_cost
        self._clock = clock
        self._tracer_provider = tracer_provider
        self._counts = Counts()
        self.limit_of: HasLimit | None = None
        """What says how many requests may be out at once: the governor that was asked last."""
        self._reservations = Reservations()
        self._usual_costs: dict[str | None, _UsualCost] = {}
        _recorders.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what it was built with, not what it has counted."""
        return type(self), (self._prices, self.max_cost, self.log_content)

    @property
    def prices(self) -> Mapping[str, tuple[float, float, float]] | None:
        """US$ per million tokens in, out, and cached in; may be set at any time."""
        return self._prices

    @prices.setter
    def prices(self, value: Mapping[str, Sequence[float]] | None) -> None:
        prices = None if value is None else _checked_prices(value)
        if prices is None and self._max_cost is not None:
            raise ConfigurationError("max_cost needs prices. Set it to None first.")
        self._prices = prices
        self._price = functools.lru_cache(maxsize=256)(functools.partial(_price, prices))

    @property
    def max_cost(self) -> float | None:
        """US$ after which nothing more is sent; may be set at any time, to go on for instance."""
        return self._max_cost

    @max_cost.setter
    def max_cost(self, value: float | None) -> None:
        if value is not None:
            value = _AMOUNT.check("max_cost", value)
            if self._prices is None:
                raise ConfigurationError(
                    "max_cost needs to know what tokens cost. Give prices= too, in US$ per million "
                    'tokens in and out: {"gpt-4o-mini": (0.15, 0.60)}.'
                )
        self._max_cost = value

    @property
    def spent(self) -> float:
        """US$ spent since it was made: what `max_cost` limits. A reset of the counts keeps it."""
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
        """Count a call that is made now, and start its span.

        In the thread that calls, where the caller's span is the current one.

        Args:
            request: The keyword arguments of the client's method; `model` among them.
            path: The attributes of the client that lead to the method.
            base_url: Where the request goes; only host and port are told.
            batch: The id of the batch that it is of.
            index: Its place in the batch.
        """
        span = tracing.start_span(path, request, base_url, self._tracer_provider)
        return CallRecord(self, request, span, batch, index)

    def batch(self, items: int, window: int | None = None, model: str | None = None) -> BatchRecord:
        """Tell that a batch has started.

        Args:
            items: How many it has.
            window: How many of them are begun and not yet ended at once.
            model: The engine's model.
        """
        return BatchRecord(self, items, window, model)

    def stats(self) -> Stats:
        """Return what was counted. Allowed in any thread."""
        governor = self.limit_of
        limit = None if governor is None else governor.limit
        stats = self._counts.snapshot(limit, has_prices=self._prices is not None)
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
        """Count from zero; calls in progress are counted as made now. `spent` is kept."""
        self._counts.reset()

    def _check_budget(self, model: str | None, limit: float) -> None:
        if model is not None and self._price(model) is None:
            raise ConfigurationError(
                f"There is a max_cost, but no price for the model {model[:100]!r}, so this call "
                "was not sent. Add the model to prices=, or set max_cost to None."
            )
        if self._left(limit) <= 0:
            raise self._cost_limit_error()

    def _left(self, limit: float | None) -> float:
        """Return the US$ that are not spent; rounding errors of the sum count as nothing."""
        if limit is None:
            return math.inf
        spent, rounding = self._counts.spent, limit * 1e-9
        return 0.0 if spent >= limit - rounding else limit + rounding - spent

    def _cost_limit_error(self, amount: float = 0.0) -> CostLimitError:
        this_call = f"this call may cost {amount:.4f} and" if amount else "this call"
        limit = 0.0 if self._max_cost is None else self._max_cost
        return CostLimitError(
            f"US$ {self._counts.spent:.4f} were spent, and the limit (max_cost) is {limit:.4f}: "
            f"{this_call} was not sent. Raise max_cost, or set it to None, and ask again."
        )

    def _estimate(
        self, model: str | None, prompt_tokens: int, answer_tokens: int | None
    ) -> float | None:
        """Return the US$ that a call is expected to cost; None while nothing is known."""
        price = None if model is None else self._price(model)
        usual = self._usual_costs.get(model)
        if price is None or (usual is None and answer_tokens is None):
            return None
        answer = math.inf if answer_tokens is None else float(answer_tokens)
        if usual is not None:
            answer = min(answer, usual.answer_tokens)
        by_tokens = (prompt_tokens * price[0] + answer * price[1]) / 1_000_000
        return by_tokens if usual is None else max(by_tokens, usual.cost)

    def _note_cost(self, model: str | None, usage: Usage | None, cost: float | None) -> None:
        if self._max_cost is None:
            return
        usual = self._usual_costs.setdefault(model, _UsualCost())
        if usage is not None and cost is not None:
            usual.add(usage[2], cost)

    def _cost(self, model: str | None, response: Any, usage: Usage | None) -> float | None:
        """Return the US$ of an answer, 0 without a price table, None where it is unknown."""
        if self._prices is None:
            return 0.0
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

    def _begin_anew(self) -> None:
        self._counts = Counts()
        self._reservations = Reservations()
        self.limit_of = None


class _UsualCost:
    """What calls to a model cost so far, on average."""

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


_WAITING, _IN_FLIGHT, _DONE = range(3)


class CallRecord:
    """One call: made, sent once or more often, and in the end answered, failed or cancelled.

    After the end every method does nothing, so that the loop and the one who waits for it may both
    tell of it. None raises but `sending` and `check_cost`.
    """

    __slots__ = (
        "_counts",
        "_estimate",
        "_index",
        "_made",
        "_of_batch",
        "_prompt",
        "_recorder",
        "_since",
        "_span",
        "_state",
        "_waited",
        "_waited_in_all",
        "attempt",
        "model",
    )

    def __init__(
        self,
        recorder: Recorder,
        request: Mapping[str, Any],
        span: tracing.CallSpan | None,
        batch: str | None,
        index: int | None,
    ) -> None:
        model = request.get("model")
        self.model: str | None = model if isinstance(model, str) else None
        self.attempt = 0
        """How many attempts were sent."""
        self._recorder = recorder
        self._span = span
        self._of_batch = batch
        self._index = index
        self._prompt = _prompt(request) if recorder.log_content else None
        self._state = _WAITING
        self._estimate: Callable[[], float | None] | None = None
        self._waited = self._waited_in_all = 0.0
        self._made = self._since = recorder._clock()
        self._counts = counts = recorder._counts
        with counts.lock:
            counts.calls += 1
            counts.waiting += 1

    def join(self, batch: str, index: int) -> None:
        """Tell of which batch it is one, and its place in it."""
        self._of_batch = batch
        self._index = index

    def attached(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager for the attempt, on the loop: what is traced in it is a child.

        It brings the OpenTelemetry context of the one who called, and no other context variable.
        """
        return _NOTHING if self._span is None else self._span.attached()

    def check_cost(self) -> None:
        """Tell whether an attempt may be sent, as far as costs are concerned.

        Raises:
            CostLimitError: `max_cost` is reached; the attempt must not be sent.
            ConfigurationError: There is a `max_cost`, and no price for the model.
        """
        recorder = self._recorder
        if recorder._max_cost is not None:
            recorder._check_budget(self.model, recorder._max_cost)

    def reserving(
        self, prompt_tokens: int, answer_tokens: int | None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Return a context manager for the call that reserves what it may cost, on the loop.

        Args:
            prompt_tokens: Counted or estimated.
            answer_tokens: The most that the answer may have; None where nothing limits it.

        Raises:
            CostLimitError: On entry: the call does not fit into `max_cost`.
        """
        recorder, model = self._recorder, self.model
        if recorder._max_cost is None:
            return _NOTHING
        self._estimate = functools.partial(recorder._estimate, model, prompt_tokens, answer_tokens)
        return recorder._reservations.hold(
            self._estimate,
            lambda: recorder._left(recorder._max_cost),
            recorder._cost_limit_error,
        )

    def sending(self) -> None:
        """Tell that an attempt is sent now: its turn has come.

        Raises:
            CostLimitError: As `check_cost` does.
            ConfigurationError: As `check_cost` does.
        """
        self.check_cost()
        recorder, counts = self._recorder, self._counts
        now = recorder._clock()
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
        """Tell that the attempt failed and there will be another: `sending` tells when.

        Args:
            error: What the attempt raised.
            retry_in: Seconds until the next one, its turn not included.
            response: The answer, if it had one that tells of tokens.
        """
        self._fail("attempt.retried", error, response, retry_in)

    def answered(self, response: object = None) -> None:
        """Tell that the call has its answer: what the method of the client returned."""
        recorder, counts = self._recorder, self._counts
        now = recorder._clock()
        usage = _usage(response)
        # 0 without a price table.
        cost = recorder._cost(self.model, response, usage) if recorder._prices is not None else 0.0
        tokens_in, _, tokens_out = usage or (0, 0, 0)
        recorder._note_cost(self.model, usage, cost)
        charged = cost
        if usage is None and self._estimate is not None:
            charged = self._estimate()  # or `max_cost` would limit nothing
        ended = None
        with counts.lock:
            if self._state == _DONE:
                return
            spell = now - self._since
            if self._state == _WAITING:  # nobody told of the sending
                self._waited_in_all += spell
            self._leave()
            counts.answered += 1
            counts.tokens_in += tokens_in
            counts.tokens_out += tokens_out
            counts.waited.add(self._waited_in_all)
            counts.took.add(now - self._made)
            if cost is None:
                counts.unpriced += self.model is not None
            elif cost:
                counts.cost += cost
            counts.spent += charged or 0.0
            if counts.retried_burst.suppressed or counts.failed_burst.suppressed:
                ended = counts.retried_burst.end(now) or counts.failed_burst.end(now)
        if self._span is not None:
            self._span.answered(response, usage)
        if ended is not None:
            emit("burst.ended", ended)
        if is_enabled("call.answered"):
            answer = _answer(response) if recorder.log_content else None
            emit(
                "call.answered",
                self._fields(spell, usage, request_id=_request_id(response), answer=answer),
            )

    def failed(self, error: BaseException, response: object = None) -> None:
        """Tell that the call failed for good; one that is no `Exception` was cancelled.

        Args:
            error: What it failed with.
            response: The answer, if it had one that tells of tokens.
        """
        if isinstance(error, Exception):
            self._fail("attempt.failed", error, response, None)
        else:
            self.cancelled()

    def cancelled(self) -> None:
        """Tell that the call was given up by the one who made it."""
        counts = self._counts
        now = self._recorder._clock()
        with counts.lock:
            if self._state == _DONE:
                return
            waited = self._waited_in_all + (now - self._since if self._state == _WAITING else 0.0)
            self._leave()
            counts.cancelled += 1
            counts.waited.add(waited)
        if self._span is not None:
            self._span.failed("cancelled", None)

    def _fail(
        self, event: str, error: BaseException, response: object, retry_in: float | None
    ) -> None:
        recorder, counts = self._recorder, self._counts
        now = recorder._clock()
        kind, status = failure_kind(error), _status(error)
        usage = _usage(response)
        cost = recorder._cost(self.model, response, usage) if usage is not None else 0.0
        with counts.lock:
            if self._state == _DONE:
                return
            is_sent = self._state == _IN_FLIGHT
            spell = now - self._since
            self._leave()
            if retry_in is None:
                counts.failed += 1
                counts.waited.add(self._waited_in_all + (0.0 if is_sent else spell))
                counts.took.add(now - self._made)
                burst = counts.failed_burst
            else:
                self._state = _WAITING
                counts.waiting += 1
                burst = counts.retried_burst
            counts.failures[kind] = counts.failures.get(kind, 0) + 1
            counts.rate_limited += is_sent and status == 429
            if usage is not None:
                counts.tokens_in += usage[0]
                counts.tokens_out += usage[2]
                counts.failed_tokens_in += usage[0]
                counts.failed_tokens_out += usage[2]
            if cost is None:
                counts.unpriced += self.model is not None
            else:
                counts.cost += cost
                counts.spent += cost
            is_first, ended = burst.note(now)
            if retry_in is not None:
                self._since = now
        if retry_in is None:
            recorder._note_cost(self.model, None, None)
        if self._span is not None and retry_in is not None:
            self._span.retried(self.attempt, type(error).__name__, retry_in)
        elif self._span is not None:
            self._span.failed(type(error).__name__, status)
        if ended is not None:
            emit("burst.ended", ended)
        fields = self._fields(
            spell if is_sent else None,
            usage,
            kind=kind,
            status=status,
            request_id=_request_id(error),
            retry_in=retry_in,
            error=without_keys(str(error)) if recorder.log_content else None,
        )
        emit(event, fields, None if is_first else logging.DEBUG)

    def _leave(self) -> None:
        """Take the call out of where it is counted now. The lock is held."""
        if self._state == _IN_FLIGHT:
            self._counts.in_flight -= 1
        else:
            self._counts.waiting -= 1
        self._state = _DONE

    def _fields(self, took: float | None, usage: Usage | None, **others: Any) -> dict[str, Any]:
        return {
            "batch": self._of_batch,
            "index": self._index,
            "model": None if self.model is None else self.model[:MAX_TEXT],
            "attempt": self.attempt or None,
            "waited": self._waited if self.attempt else None,
            "took": took,
            "tokens_in": None if usage is None else usage[0],
            "tokens_out": None if usage is None else usage[2],
            "prompt": self._prompt,
            **others,
        }


class BatchRecord:
    """One batch, told of at its start and at its end.

    Attributes:
        id: What its events, and those of its calls, have in common; no other batch has it.
    """

    __slots__ = ("_is_open", "_items", "_model", "_recorder", "_since", "id")

    def __init__(
        self, recorder: Recorder, items: int, window: int | None, model: str | None
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self._is_open = True
        self._items = items
        self._model = model
        self._recorder = recorder
        self._since = recorder._clock()
        emit("batch.started", {"batch": self.id, "items": items, "window": window, "model": model})

    def ended(self, answered: int, failed: int, cancelled: int = 0) -> None:
        """Tell that the batch has ended, once; and of bursts of failures that are over.

        Args:
            answered: How many items have a value.
            failed: How many ended with an error.
            cancelled: How many were given up: by an interrupt, say, or never begun.
        """
        if not self._is_open:
            return
        self._is_open = False
        now = self._recorder._clock()
        counts = self._recorder._counts
        with counts.lock:
            bursts = [counts.retried_burst.end(now), counts.failed_burst.end(now)]
        for burst in bursts:
            if burst is not None:
                emit("burst.ended", burst)
        emit(
            "batch.ended",
            {
                "batch": self.id,
                "items": self._items,
                "answered": answered,
                "failed": failed,
                "cancelled": cancelled,
                "took": now - self._since,
                "model": self._model,
            },
        )


def governor_changed(event: str, fields: Mapping[str, Any]) -> None:
    """Tell that more or fewer requests are sent than before, or none: what a governor notifies.

    Args:
        event: `governor_cut`, `governor_grew` or `governor_paused`.
        fields: What `Governor` gives with it, named by the model.
    """
    error = fields.get("error") if event != "governor_grew" else None
    told = {
        "model": fields["governor"] or None,
        "before": fields.get("before"),
        "limit": fields["limit"],
        "rate_before": fields.get("rate_before"),
        "rate": fields["rate"],
        "seconds": fields.get("seconds"),
        "status": None if error is None else _status(error),
        "request_id": None if error is None else _request_id(error),
    }
    emit(event.replace("_", ".", 1), told)


def service_started(thread: str) -> None:
    """Tell that the background thread of this name runs."""
    emit("service.started", {"loop_thread": thread})


def service_closed(thread: str, in_flight: int) -> None:
    """Tell that the background thread ends, with so many calls in flight."""
    emit("service.closed", {"loop_thread": thread, "in_flight": in_flight})


def service_restarted(thread: str, cause: BaseException | str | None) -> None:
    """Tell that a new background thread runs in the place of one that died.

    Args:
        thread: The new one's name.
        cause: What the old one died of; of an exception the class alone is told.
    """
    name = type(cause).__qualname__ if isinstance(cause, BaseException) else cause
    emit("service.restarted", {"loop_thread": thread, "cause": name})


def failure_kind(error: BaseException) -> str:
    """Return under which name `Stats.failures` counts an error: few, and none from its text."""
    status = _status(error)
    if status is not None:
        if status == 429 and getattr(error, "code", None) == "insufficient_quota":
            return "insufficient_quota"
        return _KINDS.get(status, f"status_{status}")
    for kind, classes in _CLASSES.items():
        if isinstance(error, classes):
            return kind
    names = {base.__name__ for base in type(error).__mro__}
    if "APITimeoutError" in names:  # the SDK's; it is a connection error there, too
        return "timeout"
    return "connection" if "APIConnectionError" in names else type(error).__name__


_CLASSES: dict[str, type[BaseException]] = {
    "cost_limit": CostLimitError,
    "configuration": ConfigurationError,
    "service": ServiceError,
    "timeout": TimeoutError,
}


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _request_id(holder: object) -> str | None:
    """Return the request id that a server gave: of an error, or of the SDK's answer."""
    for name in ("request_id", "_request_id"):
        if isinstance(value := getattr(holder, name, None), str):
            return value[:MAX_TEXT]
    return None


def _usage(response: object) -> Usage | None:
    """Read the tokens of an answer, of chat or of responses; None unless the server told."""
    usage = getattr(response, "usage", None)
    if usage is None:
        return None
    if getattr(usage, "prompt_tokens", None) is not None:
        names = ("prompt_tokens", "completion_tokens", "prompt_tokens_details")
    else:
        names = ("input_tokens", "output_tokens", "input_tokens_details")
    told_in, told_out, details = (getattr(usage, name, None) for name in names)
    tokens_in = token_count(told_in)
    tokens_out = token_count(0 if told_out is None else told_out)  # embeddings have none
    if tokens_in is None or tokens_out is None:
        return None
    cached = token_count(getattr(details, "cached_tokens", None)) or 0
    return tokens_in, min(cached, tokens_in), tokens_out


def tokens_of(response: object) -> int | None:
    """Return how many tokens an answer and its prompt have; None unless the server told."""
    usage = _usage(response)
    return None if usage is None else usage[0] + usage[2]


def _prompt(request: Mapping[str, Any]) -> Any:
    return next((request[name] for name in _PROMPTS if name in request), None)


def _answer(response: Any) -> Any:
    """Return the texts of an answer of chat, or the text of one of responses."""
    with contextlib.suppress(Exception):  # a server's answer may have any shape
        choices = getattr(response, "choices", None)
        if choices is None:
            return getattr(response, "output_text", None)
        return [choice.message.content for choice in choices]
    return None


def _price(
    prices: Mapping[str, tuple[float, float, float]] | None, model: str
) -> tuple[float, float, float] | None:
    if prices is None:
        return None
    return prices.get(model) or prices.get(_DATE.sub("", model))


def _checked_prices(
    prices: Mapping[str, Sequence[float]],
) -> dict[str, tuple[float, float, float]]:
    checked = {}
    for model, price in prices.items():
        is_price = isinstance(price, Sequence) and not isinstance(price, str)
        if not isinstance(model, str) or not is_price or len(price) not in (2, 3):
            raise ConfigurationError(
                "prices must be US$ per million tokens in and out (and cached in), by model: "
                f'{{"gpt-4o-mini": (0.15, 0.60)}}. That of {model!r} is not.'
            )
        amounts = [_AMOUNT.check(f"A price of {model}", amount) for amount in price]
        checked[model] = (amounts[0], amounts[1], amounts[2] if len(amounts) == 3 else amounts[0])
    return checked


_AMOUNT = numbers("US$", allows_zero=True)


def _begin_anew_in_child() -> None:
    for recorder in [*_recorders]:
        recorder._begin_anew()  # another thread may have held the lock when the process forked


_NOTHING = contextlib.nullcontext()
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)
