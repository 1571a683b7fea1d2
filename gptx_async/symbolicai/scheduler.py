"""Queries that a scheduler collects: an argument goes out with its request and returns in a batch.

A scheduler sets the engine's `executor_callback`. While its run is active, a query hands its
argument to that callback and waits. The scheduler passes the collected arguments to the engine as
one batch, which sends their requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..batch.driver import is_item
from ..calls.request import Request
from ..errors import SchedulerError
from ..loop.call import Outcome
from .engine_calls import EngineCalls, send_request
from .outcomes import Answer, failed_answer

__all__ = ["ScheduledQuery", "active_callback", "ask_scheduler", "take_query"]

_QUERY = "_gptx_async_query"
"""The attribute of `argument.prop` that holds the query while a scheduler has the argument."""


class ScheduledQuery:
    """A query whose argument is with a scheduler: its request, and later its outcome.

    It is created in the thread that makes the query, and travels with the argument to the
    scheduler's batch, which sends the request in its own thread.
    """

    def __init__(self, argument: Any, callback: Callable[[Any], Any]) -> None:
        self._argument = argument
        self._callback = callback
        self._request: Request | None = None
        self._outcome: Outcome[Any] | None = None

    def ask(self, request: Request) -> Any:
        """Give the argument to the scheduler, wait, and return or raise the request's outcome.

        Raises:
            AnsweredByScheduler: The scheduler returned an answer of its own.
            SchedulerError: The scheduler returned something that is not an answer.
        """
        self._request = request
        setattr(self._argument.prop, _QUERY, self)
        try:
            answer = self._callback(self._argument)
        finally:
            take_query(self._argument)
        outputs, metadata = _unpack(answer)
        if self._outcome is not None and _carries(metadata, self._outcome):
            return self._outcome.result()
        raise AnsweredByScheduler(outputs, metadata)

    def send(self) -> Answer:
        """Send the request as an item of the scheduler's batch."""
        assert self._request is not None
        try:
            response = send_request(self._request)
        except Exception as error:
            self._outcome = Outcome(error=error)
            return failed_answer(error)
        self._outcome = Outcome(value=response)
        return _texts(response), {"raw_output": response}


class AnsweredByScheduler(BaseException):
    """Carries a scheduler's own answer past the `except Exception` of the sync engine's forward."""

    def __init__(self, outputs: list[Any], metadata: dict[str, Any]) -> None:
        super().__init__(outputs, metadata)
        self._outputs = outputs
        self._metadata = metadata

    def answer(self) -> Answer:
        """Return the scheduler's answer, or raise the error in its metadata."""
        error = self._metadata.get("exception")
        if self._metadata.get("error") and isinstance(error, BaseException):
            raise error
        return self._outputs, self._metadata


def ask_scheduler(
    calls: EngineCalls,
    forward: Callable[[Any], Answer],
    argument: Any,
    callback: Callable[[Any], Any],
) -> Answer:
    """Run the sync engine's forward for an argument whose request goes to a scheduler.

    Args:
        calls: The calls of the engine.
        forward: The sync engine's forward.
        argument: The prepared argument.
        callback: The scheduler's callback.

    Raises:
        SchedulerError: The scheduler returned something that is not an answer.
        Exception: What `forward` raises.
    """
    try:
        with calls.going_to(ScheduledQuery(argument, callback).ask):
            return forward(argument)
    except AnsweredByScheduler as answered:
        return answered.answer()


def active_callback(callback: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """Return a scheduler's callback if it can answer a query of this thread now, otherwise None."""
    if callback is None or is_item():  # this thread drives a batch, perhaps the scheduler's
        return None
    scheduler = getattr(callback, "__self__", None)
    complete = getattr(scheduler, "all_batches_complete", None)
    if complete is None:  # a BatchScheduler has this attribute from its first run on
        return None if _is_batch_scheduler(scheduler) else callback
    return None if complete.is_set() else callback


def take_query(argument: Any) -> ScheduledQuery | None:
    """Remove the query from an argument, and return it if there was one."""
    query: ScheduledQuery | None = vars(argument.prop).pop(_QUERY, None)
    return query


def _is_batch_scheduler(scheduler: object) -> bool:
    return any(base.__name__ == "BatchScheduler" for base in type(scheduler).__mro__)


def _unpack(answer: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the outputs and the metadata of a scheduler's answer; raise an error among them.

    Raises:
        SchedulerError: It is not a pair of outputs and metadata, or only the text of an error.
        Exception: The error that the scheduler returned as output.
    """
    try:
        outputs, metadata = answer
    except (TypeError, ValueError):
        raise SchedulerError(
            f"The scheduler's callback returned {type(answer).__name__}, not a pair of outputs "
            "and metadata. Return what the engine returned for the argument."
        ) from None
    outputs = outputs if isinstance(outputs, list) else [outputs]
    metadata = metadata if isinstance(metadata, dict) else {}
    if outputs and isinstance(outputs[0], Exception):
        raise outputs[0]
    if metadata.get("error") and not isinstance(metadata.get("exception"), BaseException):
        raise SchedulerError(f"The scheduler answered with an error: {outputs}")
    return outputs, metadata


def _carries(metadata: dict[str, Any], outcome: Outcome[Any]) -> bool:
    """Return whether a scheduler passed on the metadata of our own call."""
    if outcome.error is not None:
        return metadata.get("exception") is outcome.error
    return "raw_output" in metadata and metadata["raw_output"] is outcome.value


def _texts(response: Any) -> list[Any]:
    """Return the texts of a response for the scheduler; `forward` itself reads the response."""
    try:
        return [choice.message.content for choice in response.choices]
    except (AttributeError, TypeError):
        text = getattr(response, "output_text", None)  # Responses API
        return [text] if isinstance(text, str) else []
