"""The process's background loop: started by the first call, shared by all, closed at exit.

All calls use one loop for the life of the process, because connections belong to the loop that
opened them. With an `asyncio.run` per batch and one client, every second batch fails with 'Event
loop is closed'.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .. import errors
from ..telemetry import events
from .scope import LoopScope
from .thread import LoopThread

if TYPE_CHECKING:
    from .call import Call

__all__ = ["LoopService", "closed_error", "default_service", "is_exiting", "loop_seconds"]

T = TypeVar("T")


class LoopService:
    """A background thread with an asyncio loop, started by the first call.

    `default_service` returns the one that the process shares; more are allowed. Every method may be
    called in any thread except the loop's own, where it raises `LoopThreadError` instead of waiting
    for itself. In the child of a fork the service starts a new thread, and does not touch what it
    inherited.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str = "gptx_async-loop") -> None:
        self._name = name
        self._closed = False
        self._current: LoopThread | None = None
        self._become_new()
        _services.add(self)

    def run(self, function: Callable[[LoopScope], Awaitable[T]]) -> T:
        """Run a coroutine on the loop, block until it is done, and return its value.

        Args:
            function: Receives the loop's scope and returns the coroutine; called on the loop's
                thread.

        Raises:
            ServiceError: The service cannot take the call, or its thread died during the call.
            BaseException: Anything the coroutine raises, and a KeyboardInterrupt in this thread.
        """
        from .call import Call  # which imports this module

        return Call(function, self).wait().result()

    def close(self) -> None:
        """Reject new calls, cancel the calls in flight, close the clients, and end the thread.

        A closed service stays closed. Takes a few seconds at most, and may be called again. Callers
        that still wait get a `ServiceClosedError`.

        Raises:
            LoopThreadError: This is the loop's own thread.
        """
        self._check_thread("close the service")
        with self._lock:
            self._closed = True
            thread, self._current = self._current, None
        if thread is not None:
            in_flight = len(thread.pending)
            thread.close()
            events.service_closed(self._name, in_flight)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def seconds_used(self) -> float | None:
        """Return the CPU time of the thread in seconds. Allowed in any thread.

        None if no thread runs, or if the platform has no CPU clock per thread.
        """
        thread = self._current
        if thread is None or thread.clock is None:
            return None
        try:
            return time.clock_gettime(thread.clock)
        except OSError:  # the thread has just ended
            return None

    def _become_new(self) -> None:
        """Start without a thread. In a forked child another thread may have held the old lock."""
        # Re-entrant: the garbage collector may run a `__del__` in here that makes a call.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        _inherited.append(self._current)
        self._current = None
        self._starting = False

    def submit(self, call: Call[Any]) -> None:
        """Send a call to the loop, and start the thread if none runs.

        Raises:
            LoopThreadError: This is the loop's own thread.
            ServiceClosedError: The service was closed, or the interpreter is exiting.
            ServiceStartError: The thread could not be started.
        """
        if self._pid != os.getpid():  # forked by code that runs no hooks
            self._become_new()
        self._check_thread("make a blocking call")
        if is_exiting():
            raise closed_error()
        dead: LoopThread | None = None
        with self._lock:
            before = self._current
            while not (thread := self._running()).submit(call):
                dead, self._current = thread, None
        # Logged without the lock: a log handler may wait for a thread that makes a call.
        if dead is not None:
            events.service_restarted(self._name, dead.cause)
        elif thread is not before:
            events.service_started(self._name)

    def _check_thread(self, what: str) -> None:
        current = self._current
        if current is not None and current.is_current():
            raise errors.LoopThreadError(
                f"An attempt to {what} was made on the background loop's own thread, which would "
                "wait for itself. Make it in another thread, not in a callback or a `__del__` "
                "that runs on the loop."
            )

    def _running(self) -> LoopThread:
        """Return the thread, and start one if there is none. Needs the lock."""
        if self._closed:
            raise closed_error()
        if self._starting:
            raise errors.ServiceStartError(
                "A `__del__` or a signal handler made a model call while the background thread was "
                "being started. Make the call later."
            )
        if self._current is None:
            thread = LoopThread(self._name, self._lock, closed_error)
            self._starting = True
            try:
                thread.start()
            finally:
                self._starting = False
            self._current = thread
        return self._current


def default_service() -> LoopService:
    """Return the service that the process shares; create it if there is none or it was closed.

    Raises:
        ServiceClosedError: The interpreter is exiting.
    """
    global _default
    with _default_lock:
        if is_exiting():
            raise closed_error()
        if _default is None or _default.is_closed:
            _default = LoopService()
        return _default


def loop_seconds() -> float | None:
    """Return the CPU time of the default service's thread in seconds. Allowed in any thread.

    None if no thread runs, or if the platform has no CPU clock per thread.
    """
    return None if _default is None else _default.seconds_used()


def is_exiting() -> bool:
    """Return whether it is too late for a call: the exit handler ran, or the main thread ended.

    The main thread still runs exit handlers after it 'ended'. Their calls are answered until our
    own exit handler runs.
    """
    main = threading.main_thread()
    return _exiting or not (main.is_alive() or threading.current_thread() is main)


def closed_error() -> errors.ServiceClosedError:
    """Build the error for a call to a closed service, a new one for each caller."""
    if is_exiting():
        return errors.ServiceClosedError(
            "The interpreter is exiting, and the service for model calls is closed. Wait for the "
            "answers, or for the threads that ask, before the main thread ends."
        )
    return errors.ServiceClosedError(
        "The service for model calls was closed. Calls made through an engine start a new one."
    )


def _close_at_exit() -> None:
    """Close the process's service. Threads can no longer be started at this point."""
    global _exiting
    _exiting = True
    if _default is not None:
        _default.close()


def _after_fork_in_child() -> None:
    """Leave the parent's threads and loops alone, and start without a thread.

    Nothing is closed: parent and child share the loop's epoll descriptor, and closing an inherited
    client in the child made the parent's request time out (redis-py#2910).
    """
    global _default_lock
    _default_lock = threading.RLock()
    for service in [*_services]:
        service._become_new()


# These are kept when the module is reloaded: the thread may have calls in flight.
_default: LoopService | None = globals().get("_default")
_default_lock = threading.RLock()
_exiting = False
_services: weakref.WeakSet[LoopService] = globals().get("_services") or weakref.WeakSet()
_inherited: list[LoopThread | None] = globals().get("_inherited") or []
"""The parent's loop threads in a forked child. Collecting one would close its descriptors."""

atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
