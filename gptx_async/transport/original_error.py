"""Errors that replace others, and copies of errors.

The rooms above know only the exceptions of OpenAI's SDK. Where another SDK's client raises an
error, an OpenAI error carries the original, and the calling thread gets the original back.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["carry_original", "copy_of", "original_of"]

E = TypeVar("E", bound=Exception)

_ORIGINAL = "_gptx_async_original"
"""The attribute of an error in which it carries the original."""


def carry_original(error: E, original: Exception) -> E:
    """Attach the original to the error that is raised in its place, and return that error."""
    error.__dict__[_ORIGINAL] = original
    return error


def original_of(error: Exception) -> Exception:
    """Return a copy of the original that an error carries, or the error itself if it has none."""
    original = vars(error).get(_ORIGINAL)
    return error if original is None else copy_of(original)


def copy_of(error: Exception) -> Exception:
    """Return a copy of an error.

    An error that is raised to several callers gets a longer traceback with each of them.
    """
    copy: Exception = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    copy.__suppress_context__ = error.__suppress_context__
    return copy
