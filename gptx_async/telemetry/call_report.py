"""The events and the span of one call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .events import MAX_TEXT, emit, is_enabled, without_keys
from .failures import request_id_of
from .usage import Usage

if TYPE_CHECKING:
    from .tracing import CallSpan

__all__ = ["CallReport"]

_PROMPTS = ("messages", "input", "prompt")


class CallReport:
    """Emits the events of one call, and updates and ends its span. Allowed in any thread.

    Args:
        request: The keyword arguments of the client's method.
        model: The model's name.
        span: The call's span, if it is traced.
        batch: The id of the call's batch.
        index: The item's position in the batch.
        logs_content: Whether events contain prompts, answers and error texts.
    """

    __slots__ = ("_batch", "_index", "_logs_content", "_model", "_prompt", "_span")

    def __init__(
        self,
        request: Mapping[str, Any],
        model: str | None,
        span: CallSpan | None,
        batch: str | None,
        index: int | None,
        *,
        logs_content: bool,
    ) -> None:
        self._model = model
        self._span = span
        self._batch = batch
        self._index = index
        self._logs_content = logs_content
        self._prompt = _prompt(request) if logs_content else None

    def join(self, batch: str, index: int) -> None:
        """Set the batch's id and the item's position in it."""
        self._batch = batch
        self._index = index

    def attached(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager in which the call's span is the current one."""
        return _NOTHING if self._span is None else self._span.attached()

    def answered(
        self,
        response: object,
        usage: Usage | None,
        attempt: int,
        waited: float | None,
        took: float,
    ) -> None:
        """Report the answer.

        Args:
            response: The return value of the client's method.
            usage: The answer's tokens.
            attempt: The number of attempts.
            waited: Seconds that the last attempt waited for its turn.
            took: Seconds that the last attempt took.
        """
        if self._span is not None:
            self._span.answered(response, usage)
        if not is_enabled("call.answered"):
            return
        fields = self._fields(usage, attempt, waited, took)
        fields["request_id"] = request_id_of(response)
        fields["answer"] = _answer(response) if self._logs_content else None
        emit("call.answered", fields)

    def failed(
        self,
        error: BaseException,
        kind: str,
        status: int | None,
        usage: Usage | None,
        attempt: int,
        waited: float | None,
        took: float | None,
        retry_in: float | None,
        *,
        is_first: bool,
    ) -> None:
        """Report a failed attempt.

        Args:
            error: The attempt's error.
            kind: The error's kind.
            status: The HTTP status, if there was a response.
            usage: The response's tokens.
            attempt: The number of attempts so far.
            waited: Seconds that the attempt waited for its turn.
            took: Seconds that the attempt took; None if it was not sent.
            retry_in: Seconds until the next attempt; None if there is none.
            is_first: Whether this is the first failure of a burst. Later ones are logged at DEBUG.
        """
        if self._span is not None and retry_in is not None:
            self._span.retried(attempt, type(error).__name__, retry_in)
        elif self._span is not None:
            self._span.failed(type(error).__name__, status)
        fields = self._fields(usage, attempt, waited, took)
        fields["kind"] = kind
        fields["status"] = status
        fields["request_id"] = request_id_of(error)
        fields["retry_in"] = retry_in
        fields["error"] = without_keys(str(error)) if self._logs_content else None
        event = "attempt.failed" if retry_in is None else "attempt.retried"
        emit(event, fields, None if is_first else logging.DEBUG)

    def cancelled(self) -> None:
        """End the span of a cancelled call. There is no event for it."""
        if self._span is not None:
            self._span.failed("cancelled", None)

    def _fields(
        self, usage: Usage | None, attempt: int, waited: float | None, took: float | None
    ) -> dict[str, Any]:
        return {
            "batch": self._batch,
            "index": self._index,
            "model": None if self._model is None else self._model[:MAX_TEXT],
            "attempt": attempt or None,
            "waited": waited,
            "took": took,
            "tokens_in": None if usage is None else usage[0],
            "tokens_out": None if usage is None else usage[2],
            "prompt": self._prompt,
        }


def _prompt(request: Mapping[str, Any]) -> Any:
    return next((request[name] for name in _PROMPTS if name in request), None)


def _answer(response: Any) -> Any:
    """Return the texts of a chat answer, or the text of a responses answer."""
    with contextlib.suppress(Exception):  # a server's answer may have any shape
        choices = getattr(response, "choices", None)
        if choices is None:
            return getattr(response, "output_text", None)
        return [choice.message.content for choice in choices]
    return None


_NOTHING = contextlib.nullcontext()
