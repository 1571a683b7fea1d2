"""The background thread and the one long-lived asyncio loop on it.

Why one loop for the life of the process: connections belong to the loop that opened them, so an
`asyncio.run` per batch over one client loses every second batch ('Event loop is closed').

The order in which things end can be read off `_LoopThread._end`: calls, then what the scope holds
(clients), then the executor's threads and the loop, in the thread that ran it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from .. import clock
from ..errors import (
    LoopThreadDiedError,
    LoopThreadError,
    ServiceClosedError,
    ServiceError,
    ServiceStartError,
)
from ..telemetry import recorder as telemetry
from .late_timeouts import defer_late_timeouts

__all__ = ["Call", "LoopScope", "LoopService", "Outcome", "default_service", "loop_seconds"]

T = TypeVar("T")

START_SECONDS = 10.0
"""How long the start of the thread may take before it is an error."""

GRACE_SECONDS = 0.75
"""How long cancelled calls have for their clean-up: a Ctrl-C is to be raised within a second."""

SLICE_SECONDS = 0.25
"""The longest wait without a look at whether the loop's thread and the main thread are alive.

Jupyter kills a kernel that has not ended by itself 2.5 s after it was told to: the waits must not
take most of that.
"""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of a call: a value, or the exception that it ended with."""

    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        """Return the value, or raise the exception as if it had come up here."""
        if self.error is None:
            return cast(T, self.value)
        first, context = self.error, self.error.__context__
        try:
            raise self.error
        finally:
            # The raise has put what is being handled here, in a remedy say, in the place of the
            # exception's own context. It belongs at the end of that.
            if context is not None and first.__context__ is not context:
                handled, first.__context__ = first.__context__, context
                _append_context(context, handled)
            # Or the traceback, which holds this frame, keeps the outcome and all it holds alive.
            del self, first, context


def _append_context(error: BaseException, last: BaseException | None) -> None:
    seen = {id(last)}
    while error.__context__ is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__context__
    if id(error) not in seen:
        error.__context__ = last


class LoopScope:
    """What lives exactly as long as one loop: built once per key, on the loop, and closed there.

    A coroutine that runs on the service is given its scope; only the loop's thread may use it.
    """

    def __init__(self) -> None:
        self._resources: dict[Hashable, Any] = {}
        self._exits = contextlib.AsyncExitStack()

    def get(
        self, key: Hashable, build: Callable[[], T], close: Callable[[T], Awaitable[None]]
    ) -> T:
        """Return what was built under the key, building it at the first request.

        Args:
            key: What tells this resource from others.
            build: Called on the loop's thread when nothing stands under the key yet.
            close: Awaited on the loop when it ends.
        """
        if key not in self._resources:
            resource = build()
            self._exits.push_async_callback(close, resource)
            self._resources[key] = resource
        return cast(T, self._resources[key])

    async def aclose(self) -> None:
        """Close everything, the last built first."""
        self._resources.clear()
        await self._exits.aclose()


class Call(Generic[T]):
    """One coroutine on its way through the loop: made, perhaps started, and in the end done.

    Making one costs nothing and starts nothing, so that whoever waits can note it down before it
    is under way: an interrupt between the two then leaves nothing running that nobody knows of.

    Args:
        function: Given the loop's scope, returns the coroutine; called on the loop's thread.
        service: Where it is to run; the process's own service when not given.
    """

    __slots__ = (
        "_cancelled",
        "_function",
        "_on_done",
        "_service",
        "_task",
        "_thread",
        "outcome",
    )

    def __init__(
        self, function: Callable[[LoopScope], Awaitable[T]], service: LoopService | None = None
    ) -> None:
        self.outcome: Outcome[T] | None = None
        """What became of it; None until it is done."""
        self._function = function
        self._service = service
        self._on_done: Callable[[], None] = _nothing
        self._thread: _LoopThread | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def start(self, on_done: Callable[[], None]) -> None:
        """Send the coroutine to the loop; allowed in every thread but the loop's own.

        Args:
            on_done: Called once, from the loop's thread, when `outcome` is there; it may neither
                block nor raise.

        Raises:
            LoopThreadError: This is the loop's own thread.
            ServiceClosedError: The service was closed.
            ServiceStartError: The thread could not be started.
        """
        self._on_done = on_done
        (self._service or default_service())._start(self)

    def cancel(self) -> None:
        """Ask for an early end; `on_done` tells when the clean-up is over. Allowed anywhere."""
        self._cancelled = True
        if self._thread is not None and self.outcome is None:
            self._thread.cancel(self)

    def check(self) -> None:
        """Fail the call if no answer can come, so that no wait is for ever. Allowed anywhere.

        That is when the loop's thread is gone, or the main thread has ended: the interpreter then
        waits for the threads that are no daemons, and they are not to wait for the network.
        """
        thread = self._thread
        if thread is not None and not thread.is_alive():
            self._finish(Outcome(error=thread.death()))
        elif thread is not None and _is_exiting():
            # In this order: a cancelled task has an outcome of its own, and only the first counts.
            self._finish(Outcome(error=_closed_error()))
            thread.cancel(self)

    def wait(self) -> Outcome[T]:
        """Start the call and block this thread until it is done.

        Raises:
            ServiceError: As `start` does.
            BaseException: Whatever arrives in this thread meanwhile, a KeyboardInterrupt say: the
                coroutine is cancelled first and has `GRACE_SECONDS` for its clean-up.
        """
        done = threading.Event()
        try:
            self.start(done.set)
            while not done.wait(SLICE_SECONDS):
                self.check()
        except BaseException:
            self.cancel()
            if self._thread is not None:
                done.wait(GRACE_SECONDS)
            raise
        assert self.outcome is not None
        return self.outcome

    async def _run(self, thread: _LoopThread) -> None:
        """Run the coroutine on the loop; whatever it raises is its outcome, and harms nothing.

        A SystemExit or KeyboardInterrupt that left a task would end the loop for everybody.
        """
        self._task = asyncio.current_task()
        outcome: Outcome[T]
        try:
            if self._cancelled:  # before the task was there to be cancelled
                self._task.cancel()  # type: ignore[union-attr] # a coroutine on a loop has a task
                await asyncio.sleep(0)
            outcome = Outcome(value=await self._function(thread.scope))
        except BaseException as error:
            outcome = Outcome(error=thread.explain(error, cancelled=self._cancelled))
        finally:
            self._task = None
        self._finish(outcome)

    def _finish(self, outcome: Outcome[T]) -> None:
        """Set the outcome, once: the loop's thread and a waiter that finds it dead may both try."""
        assert self._thread is not None
        try:
            self._thread.pending.remove(self)  # which one of them alone can
        except KeyError:
            return
        self.outcome = outcome
        on_done, self._on_done = self._on_done, _nothing  # who keeps the call keeps no waiter
        on_done()


class _LoopThread:
    """One thread, its loop, and the calls that are pending on it; of one use.

    Args:
        name: The thread's name.
        lock: The service's own: `submit` is called with it held, so a call is either taken while
            the loop runs or refused.
    """

    def __init__(self, name: str, lock: threading.RLock) -> None:
        self.pending: set[Call[Any]] = set()
        self.scope = LoopScope()
        self.ended = False
        self.clock: int | None = None
        """That of the processor's time which the thread has used, where there is such a clock."""
        self._lock = lock
        self._closing = False
        self._submitted: deque[Call[Any]] = deque()
        self._is_woken = False
        """Whether the loop has been told of what is submitted, and has not looked yet."""
        self.cause: BaseException | None = None
        """What it died of, if it did."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = (
            concurrent.futures.Future()
        )
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        # Of a name that no other has: `_end_executor` finds its threads by it.
        self._executor_name = f"{name}-executor-{next(_numbers)}"
        self._executor = ThreadPoolExecutor(thread_name_prefix=self._executor_name)

    def start(self) -> None:
        """Start the thread and wait, bounded, until its loop runs."""
        try:
            self._thread.start()
            self._loop = self._ready.result(START_SECONDS)
        except BaseException as error:
            self._closing = True
            self._ready.add_done_callback(self._stop_late_starter)
            if not isinstance(error, Exception):
                raise
            raise ServiceStartError(
                f"The background thread for model calls could not be started ({error!r}). Free "
                "threads or file descriptors, and call again."
            ) from error

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def is_current(self) -> bool:
        """Tell whether this is the loop's thread; by the object, for idents are used again."""
        return threading.current_thread() is self._thread

    def death(self) -> ServiceError:
        """Make the error of a call that this thread did not finish: a new one for each caller."""
        if self._closing:
            return _closed_error()
        error = LoopThreadDiedError(
            f"The background thread for model calls ended ({self.cause!r}) with this call in "
            "flight; whether the server has answered it is unknown. Ask again: the next call "
            "starts a new thread."
        )
        error.__cause__ = self.cause
        return error

    def explain(self, error: BaseException, *, cancelled: bool) -> BaseException:
        """Return what an error of a coroutine means to the one who waits for it."""
        if isinstance(error, asyncio.CancelledError) and self.ended and not cancelled:
            return self.death()
        late = isinstance(error, RuntimeError) and not threading.main_thread().is_alive()
        if late and not isinstance(error, ServiceError):
            # asyncio can start no thread then, for a name to look up say (cpython#113964).
            closed = _closed_error()
            closed.__cause__ = error
            return closed
        return error

    def submit(self, call: Call[Any]) -> bool:
        """Send a call to the loop; False if the loop has ended. The service's lock is held."""
        if self.ended or self._loop is None or not self.is_alive():
            return False
        call._thread = self
        self.pending.add(call)
        self._submitted.append(call)
        if self._is_woken:  # to wake a loop takes a system call: once for all that come by then
            return True
        try:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._begin_submitted)
        except BaseException as error:  # an interrupt, say: then it may be woken twice
            self._is_woken = False
            if isinstance(error, Exception):
                self._submitted.remove(call)
                self.pending.discard(call)
            raise
        return True

    def _begin_submitted(self) -> None:
        """Make tasks of the calls that were submitted; on the loop."""
        self._is_woken = False  # before it looks, so that none is missed
        loop = asyncio.get_running_loop()
        while self._submitted:
            call = self._submitted.popleft()
            # Not in the caller's context: what the call opens, a connection say, outlives it, and
            # would keep the first caller's context variables (ogx-ai/ogx#5168).
            coroutine = call._run(self)  # which notes its task down, when it runs
            loop.create_task(coroutine, context=contextvars.Context())  # noqa: RUF006

    def cancel(self, call: Call[Any]) -> None:
        """Cancel the task, not its future: that one is done before the task's clean-up is."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing left to cancel
                self._loop.call_soon_threadsafe(_cancel_task, call)

    def close(self) -> None:
        """End the loop and wait for the thread, both bounded. Not for the loop's own thread."""
        self._closing = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._request_stop)
        self._thread.join(4 * GRACE_SECONDS)
        self._fail_pending()

    def _request_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _stop_late_starter(
        self, ready: concurrent.futures.Future[asyncio.AbstractEventLoop]
    ) -> None:
        if ready.exception() is None:
            ready.result().call_soon_threadsafe(self._request_stop)

    def _main(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # not every platform has one
            self.clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:  # the starter raises it
            self._ready.set_exception(error)
            return
        clock.let_run(loop)
        defer_late_timeouts(loop)
        try:
            loop.set_default_executor(self._executor)
            self._run_until_stopped(loop)
        finally:
            self._fail_pending()
            loop.close()

    def _run_until_stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_until_complete(self._serve(loop))
        except BaseException as error:  # the calls that were in flight raise it
            self.cause = error
        with self._lock:
            self.ended = True
        try:
            loop.run_until_complete(self._end())
        except BaseException as error:
            self.cause = self.cause or error

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stop = asyncio.Event()
        self._ready.set_result(loop)
        await self._stop.wait()

    async def _end(self) -> None:
        """Cancel the calls, close what the scope holds, end what is left; each step bounded."""
        await asyncio.sleep(0)  # what was submitted just now becomes a task
        await _end_tasks({task for call in [*self.pending] if (task := call._task) is not None})
        with contextlib.suppress(Exception):  # a client that does not close must not stop the rest
            await asyncio.wait_for(self.scope.aclose(), GRACE_SECONDS)
        await _end_tasks(asyncio.all_tasks())
        await asyncio.get_running_loop().shutdown_asyncgens()
        self._end_executor()

    def _end_executor(self) -> None:
        """Wait, bounded, for the threads that looked up names and the platform for the clients.

        Not by `loop.shutdown_default_executor`: that has no bound before Python 3.12, and starts a
        thread to wait in, which is refused while the interpreter exits.
        """
        self._executor.shutdown(wait=False, cancel_futures=True)
        until = clock.seconds() + GRACE_SECONDS
        for thread in threading.enumerate():
            if thread.name.startswith(f"{self._executor_name}_"):
                thread.join(max(0.0, until - clock.seconds()))

    def _fail_pending(self) -> None:
        for call in [*self.pending]:
            call._finish(Outcome(error=self.death()))


class LoopService:
    """A background thread with an asyncio loop, started by the first call and shared by all.

    One per process is made by `default_service`; more are allowed. Every method may be called in
    any thread; on the loop's own thread each raises `LoopThreadError` instead of waiting for
    itself. In the child of a fork the service starts anew, and leaves what it inherited alone.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str = "gptx_async-loop") -> None:
        self._name = name
        self._closed = False
        self._current: _LoopThread | None = None
        self._become_new()
        _services.add(self)

    def run(self, function: Callable[[LoopScope], Awaitable[T]]) -> T:
        """Run a coroutine on the loop, block until it is done, and return or raise its outcome.

        Args:
            function: Given the loop's scope, returns the coroutine; called on the loop's thread.

        Raises:
            ServiceError: The service cannot take the call, or its thread died with it in flight.
            BaseException: Whatever the coroutine raises, and a KeyboardInterrupt in this thread.
        """
        return Call(function, self).wait().result()

    def close(self) -> None:
        """Refuse new calls, cancel those in flight, close the loop's clients, end the thread.

        Bounded by a few seconds, idempotent, final. Callers still waiting get a
        `ServiceClosedError`.

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
            telemetry.service_closed(self._name, in_flight)

    def _become_new(self) -> None:
        """Start without thread or loop; in a forked child, where the old lock may be held."""
        # Re-entrant: the garbage collector may run a `__del__` in here that makes a call.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        _inherited.append(self._current)
        self._current = None
        self._starting = False

    def _start(self, call: Call[Any]) -> None:
        if self._pid != os.getpid():  # forked by code that runs no hooks
            self._become_new()
        self._check_thread("make a blocking call")
        if _is_exiting():
            raise _closed_error()
        dead: _LoopThread | None = None
        with self._lock:
            before = self._current
            while not (thread := self._running()).submit(call):
                dead, self._current = thread, None
        # Told without the lock: a log handler may wait for a thread that makes a call.
        if dead is not None:
            telemetry.service_restarted(self._name, dead.cause)
        elif thread is not before:
            telemetry.service_started(self._name)

    def _check_thread(self, what: str) -> None:
        current = self._current
        if current is not None and current.is_current():
            raise LoopThreadError(
                f"An attempt to {what} was made on the background loop's own thread, which would "
                "wait for itself. Make it in another thread, not in a callback or a `__del__` "
                "that runs on the loop."
            )

    def _running(self) -> _LoopThread:
        """Return the thread, starting one if there is none; the lock is held."""
        if self._closed:
            raise _closed_error()
        if self._starting:
            raise ServiceStartError(
                "A model call was made in the middle of the service's own start, by a `__del__` or "
                "a signal handler. Make it later."
            )
        if self._current is None:
            thread = _LoopThread(self._name, self._lock)
            self._starting = True
            try:
                thread.start()
            finally:
                self._starting = False
            self._current = thread
        return self._current


def default_service() -> LoopService:
    """Return the process's own service, made at the first call and again after it was closed.

    Raises:
        ServiceClosedError: The interpreter is exiting.
    """
    global _default
    with _default_lock:
        if _is_exiting():
            raise _closed_error()
        if _default is None or _default._closed:
            _default = LoopService()
        return _default


def loop_seconds() -> float | None:
    """Return for how many seconds the default service's thread has used a processor.

    None if there is no such thread now, or the platform has no such clock. Allowed in any thread.
    """
    thread = None if _default is None else _default._current
    if thread is None or thread.clock is None:
        return None
    try:
        return time.clock_gettime(thread.clock)
    except OSError:  # it has just ended
        return None


def _is_exiting() -> bool:
    """Tell whether it is too late for a call: ours has closed, or the main thread has ended.

    The main thread itself still runs exit handlers then, whose calls are answered up to our own.
    """
    main = threading.main_thread()
    return _exiting or not (main.is_alive() or threading.current_thread() is main)


def _closed_error() -> ServiceClosedError:
    if _is_exiting():
        return ServiceClosedError(
            "The interpreter is exiting, and the service for model calls is closed. Wait for the "
            "answers, or for the threads that ask, before the main thread ends."
        )
    return ServiceClosedError(
        "The service for model calls was closed. Calls made through an engine start a new one."
    )


def _cancel_task(call: Call[Any]) -> None:
    if call._task is not None:
        call._task.cancel()


async def _end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their clean-up, bounded: one may ignore its cancellation."""
    tasks.discard(cast("asyncio.Task[Any]", asyncio.current_task()))
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=GRACE_SECONDS)


def _nothing() -> None:
    """Do nothing: what a call does at its end when nobody waits."""


def _close_at_exit() -> None:
    """Close the process's service; no thread may be started this late, only ended."""
    global _exiting
    _exiting = True
    if _default is not None:
        _default.close()


def _after_fork_in_child() -> None:
    """Leave the parent's threads and loops alone, and start anew.

    Nothing is closed: the loop's epoll descriptor is shared, and closing an inherited client in the
    child made the parent's request time out (redis-py#2910).
    """
    global _default_lock
    _default_lock = threading.RLock()
    for service in [*_services]:
        service._become_new()


# What was there before a reload of this module goes on: its thread may have calls in flight.
_default: LoopService | None = globals().get("_default")
_default_lock = threading.RLock()
_exiting = False
_numbers: Iterator[int] = globals().get("_numbers") or itertools.count()
_services: weakref.WeakSet[LoopService] = globals().get("_services") or weakref.WeakSet()
_inherited: list[_LoopThread | None] = globals().get("_inherited") or []
"""The parent's loop threads in a forked child: kept, for collecting one closes its descriptors."""

atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
