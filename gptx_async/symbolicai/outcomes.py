"""What an item of a batch returns, whether it was answered or failed."""

from __future__ import annotations

from typing import Any

from ..loop.call import Outcome
from ..transport.redaction import hide_key

__all__ = ["Answer", "answer_of", "failed_answer", "transpose", "without_key"]

Answer = tuple[list[Any], dict[str, Any]]
"""What an engine's `forward` returns for one argument: the outputs and the metadata."""


def answer_of(outcome: Outcome[Answer]) -> Answer:
    """Return an item's answer, or the pair that stands for its error."""
    if outcome.error is None:
        return outcome.result()
    hide_key(outcome.error)
    return failed_answer(outcome.error)


def failed_answer(error: BaseException) -> Answer:
    """Return the pair that stands for the error of an item."""
    try:
        text = str(error)
    except Exception:  # raised by an error class of a user: only this item may fail
        text = f"{type(error).__name__}, whose text cannot be made"
    return [text], {"error": True, "raw_output": None, "exception": error}


def transpose(outcomes: list[Outcome[Answer]]) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Return a list of all outputs and a list of all metadata."""
    answers = [answer_of(outcome) for outcome in outcomes]
    return [outputs for outputs, _ in answers], [metadata for _, metadata in answers]


def without_key(outcome: Outcome[Answer]) -> Outcome[Answer]:
    """Return the outcome, with the API key removed from its error."""
    if outcome.error is not None:
        hide_key(outcome.error)
    return outcome
