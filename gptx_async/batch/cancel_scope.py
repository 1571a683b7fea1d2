"""Cancel the calls that code in other threads waits for, as the end of a `map` run does."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .. import errors

__all__ = ["CancelScope", "Cancellable", "current_scope", "holding"]

A = TypeVar("A")
T = TypeVar("T")


class Cancellable(Protocol):
    """Anything that can be cancelled from any thread when its result is no longer needed."""

    def cancel(self) -> None:
        """Request cancellation."""


class CancelScope:
    """Cancels the calls that code in other threads waits for, and rejects later calls of that code.

    The effect on that code is the same as Ctrl-C in the main thread: the call raises an error that
    is not an `Exception`, which passes through remedies and retries and runs the `finally` clauses.
    All methods may be called in any thread.
    """

    def __init__(self) -> None:
        # Re-entrant: the garbage collector may run a `__del__` in here that makes a call.
        self._lock = threading.RLock()
        self._held: dict[Cancellable, None] = {}  # ordered, unlike a set
        self._is_cancelled = False
        self._shared: Any = None

    def shared(self, build: Callable[[], T]) -> T:
        """Return the object that the scope's calls share, and build it on the first request."""
        with self._lock:
            if self._shared is None:
                self._shared = build()
            shared: T = self._shared
            return shared

    def run(self, function: Callable[[A], T], argument: A) -> T:
        """Run a function in this thread, within the scope.

        Args:
            function: The function. Threads that it starts belong to the scope only if they run in a
                copy of its context.
            argument: The function's argument.

        Raises:
            RunCancelledError: The scope was cancelled while the function waited for a call, or
                before it made one, even if the function caught that error.
            BaseException: Anything the function raises.
        """
        inside = _ScopedRun(self)
        token = _current_run.set(inside)
        try:
            value = function(argument)
        finally:
            _current_run.reset(token)
        if inside.was_refused:  # the function caught the error, so its value is not a real result
            raise _run_cancelled()
        return value

    def cancel(self) -> None:
        """Cancel all present and future waits in the scope. Does not wait for them to end."""
        with self._lock:
            self._is_cancelled = True
            held = [*self._held]
        for each in reversed(held):  # in reverse, for the reason given in Batch._cancel
            each.cancel()

    def add(self, cancellable: Cancellable) -> bool:
        """Register something to cancel; return False if the scope is cancelled already."""
        with self._lock:
            if not self._is_cancelled:
                self._held[cancellable] = None
            return not self._is_cancelled

    def remove(self, cancellable: Cancellable) -> bool:
        """Unregister it; return False if the scope is cancelled."""
        with self._lock:
            self._held.pop(cancellable, None)
            return not self._is_cancelled


class _ScopedRun:
    """One function that runs in a scope, and whether any of its calls was rejected."""

    def __init__(self, scope: CancelScope) -> None:
        self.scope = scope
        self.was_refused = False

    def hold(self, cancellable: Cancellable) -> contextlib.AbstractContextManager[None]:
        return _Held(self, cancellable)

    def enter(self, cancellable: Cancellable) -> None:
        self._check(goes_on=self.scope.add(cancellable))

    def leave(self, cancellable: Cancellable, *, failed: bool) -> None:
        goes_on = self.scope.remove(cancellable)
        if not failed:
            self._check(goes_on=goes_on)

    def _check(self, *, goes_on: bool) -> None:
        if not goes_on:
            self.was_refused = True
            raise _run_cancelled()


class _Held(contextlib.AbstractContextManager[None]):
    """Registers a cancellable for the duration of a block.

    A class, because `contextlib.contextmanager` sets the traceback of an error that leaves its
    block, and errors that are frozen dataclasses do not allow that.
    """

    def __init__(self, inside: _ScopedRun, cancellable: Cancellable) -> None:
        self._inside = inside
        self._cancellable = cancellable

    def __enter__(self) -> None:
        self._inside.enter(self._cancellable)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._inside.leave(self._cancellable, failed=error is not None)


def _run_cancelled() -> errors.RunCancelledError:
    return errors.RunCancelledError(
        "The run that this code is part of was stopped: its model calls are cancelled, and no more "
        "are made. Do not catch this error."
    )


def current_scope() -> CancelScope | None:
    """Return the scope in which this code runs, or None."""
    inside = _current_run.get()
    return None if inside is None else inside.scope


def holding(cancellable: Cancellable) -> contextlib.AbstractContextManager[None]:
    """Let the scope in which this code runs, if any, cancel what the block waits for.

    Args:
        cancellable: What the block waits for. When it is cancelled, the block's wait must end.

    Raises:
        RunCancelledError: On entry to or exit from the block, if the scope is cancelled.
    """
    inside = _current_run.get()
    return _NO_SCOPE if inside is None else inside.hold(cancellable)


_current_run: contextvars.ContextVar[_ScopedRun | None] = contextvars.ContextVar(
    "gptx_async_cancel_scope", default=None
)
_NO_SCOPE = contextlib.nullcontext()
