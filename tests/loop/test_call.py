"""The outcome of a call."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest

from gptx_async.loop.call import Outcome


def test_outcome_raises_its_error_or_returns_its_value() -> None:
    assert Outcome(value=3).result() == 3
    with pytest.raises(ValueError, match="of the outcome"):
        Outcome(error=ValueError("of the outcome")).result()


def raise_while_handling(error: Exception, handled: Exception) -> None:
    try:
        raise handled
    except type(handled):
        Outcome(error=error).result()


def test_outcome_appends_the_error_being_handled_to_the_context_of_its_own() -> None:
    """A remedy makes a call while it handles the error that it remedies."""
    error, inner, innermost = ValueError("error"), KeyError("inner"), OSError("innermost")
    error.__context__, inner.__context__ = inner, innermost
    handled = RuntimeError("handled here")
    with pytest.raises(ValueError, match="error"):
        raise_while_handling(error, handled)
    assert error.__context__ is inner
    assert inner.__context__ is innermost
    assert innermost.__context__ is handled


def test_outcome_without_context_gets_the_error_being_handled() -> None:
    error, handled = ValueError("error"), RuntimeError("handled here")
    with pytest.raises(ValueError, match="error"):
        raise_while_handling(error, handled)
    assert error.__context__ is handled


def test_outcome_creates_no_cycle_of_contexts() -> None:
    error, inner = ValueError("error"), KeyError("inner")
    error.__context__ = inner
    with pytest.raises(ValueError, match="error"):
        raise_while_handling(error, inner)
    assert error.__context__ is inner
    assert inner.__context__ is None


class Failure(Exception):  # noqa: N818 - a stand-in for any error
    """An error that supports weak references."""


def test_an_error_that_was_handled_is_freed_at_once() -> None:
    """A reference cycle would keep the error, and its batch, until the next collection."""
    references: list[weakref.ref[Failure]] = []

    def outcome() -> Outcome[None]:
        error = Failure()
        references.append(weakref.ref(error))
        return Outcome(error=error)

    gc.disable()
    try:
        with contextlib.suppress(Failure):
            outcome().result()
        assert references[0]() is None
    finally:
        gc.enable()
