"""Run any blocking symbolicai code as a coroutine, in a greenlet of the caller's thread.

It is a batch of one item whose driver is the awaiting coroutine, as with SQLAlchemy's bridge from
its ORM to asyncio drivers.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .. import checks, errors
from ..loop.call import Outcome
from .driver import Batch, current_item

__all__ = ["acall", "is_in_batch"]

T = TypeVar("T")

CHECK_SECONDS = 5.0
"""How often a waiting `acall` checks that the background thread is alive. Each has its own timer on
the caller's loop, and thousands may wait at once."""

_DEADLINE = checks.seconds()


async def acall(
    function: Callable[..., T], /, *args: Any, deadline: float | None = None, **kwargs: Any
) -> T:
    """Run a function that queries a model, such as `Symbol(text).query`, as a coroutine.

    The function runs in the caller's thread, in a greenlet that is suspended while its model calls
    are in flight. The loop runs on meanwhile; the rest of the function's work blocks it. Cancelling
    the coroutine cancels the call in flight and unwinds the function.

    Args:
        function: Any function. It runs in a copy of the caller's context.
        *args: The arguments of the function.
        deadline: Seconds for the whole function; the default is no limit. It is checked where the
            function waits for a call.
        **kwargs: The keyword arguments of the function. For one called `deadline` use
            `functools.partial`.

    Returns:
        What the function returns.

    Raises:
        AsyncioNeededError: No asyncio loop is running.
        ConfigurationError: The deadline is not a number above 0.
        TypeError: The function cannot be called, or is a coroutine function.
        TimeoutError: The deadline passed; the call in flight is cancelled.
        asyncio.CancelledError: The caller was cancelled, and the function has ended.
        BaseException: Anything the function raises.
    """
    if asyncio._get_running_loop() is None:
        raise errors.AsyncioNeededError(
            "gptx_async.acall needs asyncio's event loop, and none is running here. Under trio use "
            "trio.to_thread.run_sync(function)."
        )
    _check_function(function)
    seconds = _DEADLINE.check_or_none("deadline", deadline)
    outcomes = await _Coroutine(lambda: function(*args, **kwargs), seconds).run_async()
    return outcomes.pop().result()


def is_in_batch() -> bool:
    """Return whether this code runs in an item of an engine's batch, and not only in `acall`.

    The engine's own deadline covers a whole batch, so it applies to no single item of one. Within
    `acall` it applies to each query.
    """
    item = current_item()
    return item is not None and not isinstance(item.batch, _Coroutine)


class _Coroutine(Batch[Callable[[], T], T]):
    """A batch of one function, which runs in a copy of the caller's context."""

    def __init__(self, function: Callable[[], T], deadline: float | None) -> None:
        super().__init__(_run, [function], 1, deadline)
        self._context = contextvars.copy_context()

    def _slice_seconds(self) -> float:
        return CHECK_SECONDS

    def _results(self) -> list[Outcome[T]]:
        late = errors.TimeoutError(
            f"The deadline of {self._deadline} s passed before the function returned. Give `acall` "
            "more time (deadline=)."
        )
        return [outcome or Outcome(error=late) for outcome in self._outcomes]


def _run(function: Callable[[], T]) -> T:
    return function()


def _check_function(function: object) -> None:
    if not callable(function):
        raise TypeError(
            f"acall takes a function and its arguments, not a {type(function).__name__}. Pass the "
            "function without calling it: acall(Symbol(text).query, 'Summarise.')."
        )
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    ):
        raise TypeError(
            "acall takes a blocking function, not a coroutine function. Await the coroutine "
            "function itself."
        )
