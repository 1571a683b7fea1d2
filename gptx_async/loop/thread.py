"""The background thread: it runs one event loop, and then ends everything on it in order.

`LoopThread._end` states the order: first the calls, then the resources of the scope (clients), then
the executor's threads, and last the loop, in the thread that ran it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from .. import clock, errors
from .late_timeouts import defer_late_timeouts
from .scope import LoopScope

if TYPE_CHECKING:
    from .call import Call

__all__ = ["GRACE_SECONDS", "START_SECONDS", "LoopThread"]

START_SECONDS = 10.0
"""How long the thread may take to start."""

GRACE_SECONDS = 0.75
"""How long cancelled calls may take to clean up. Ctrl-C must be raised within a second."""


class LoopThread:
    """One thread, its loop, and the calls that are pending on it. It runs only once.

    Args:
        name: The thread's name.
        lock: The service's lock. The service holds it during `submit`, so a call is either accepted
            while the loop runs or rejected.
        closed_error: Builds the error for a call to a closed service.
    """

    def __init__(
        self, name: str, lock: threading.RLock, closed_error: Callable[[], errors.ServiceError]
    ) -> None:
        self.pending: set[Call[Any]] = set()
        self.scope = LoopScope()
        self.ended = False
        self.clock: int | None = None
        """The id of the thread's CPU clock, if the platform has one."""
        self._lock = lock
        self._closed_error = closed_error
        self._closing = False
        self._submitted: deque[Call[Any]] = deque()
        self._is_woken = False
        """Whether the loop was woken for the submitted calls and has not looked at them yet."""
        self.cause: BaseException | None = None
        """The exception that ended the loop, if one did."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = (
            concurrent.futures.Future()
        )
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        # A unique name: `_end_executor` finds the executor's threads by it.
        self._executor_name = f"{name}-executor-{next(_numbers)}"
        self._executor = ThreadPoolExecutor(thread_name_prefix=self._executor_name)

    def start(self) -> None:
        """Start the thread and wait until its loop runs, at most `START_SECONDS`."""
        try:
            self._thread.start()
            self._loop = self._ready.result(START_SECONDS)
        except BaseException as error:
            self._closing = True
            self._ready.add_done_callback(self._stop_late_starter)
            if not isinstance(error, Exception):
                raise
            raise errors.ServiceStartError(
                f"The background thread for model calls could not be started ({error!r}). Free "
                "threads or file descriptors, and call again."
            ) from error

    def is_alive(self) -> bool:
        """Return whether the thread runs. Allowed in any thread."""
        return self._thread.is_alive()

    def is_current(self) -> bool:
        """Return whether the caller runs on this thread. Idents are reused, so compare objects."""
        return threading.current_thread() is self._thread

    def death(self) -> errors.ServiceError:
        """Build the error for a call that this thread did not finish, a new one for each caller."""
        if self._closing:
            return self._closed_error()
        error = errors.LoopThreadDiedError(
            f"The background thread for model calls ended ({self.cause!r}) with this call in "
            "flight; whether the server has answered it is unknown. Ask again: the next call "
            "starts a new thread."
        )
        error.__cause__ = self.cause
        return error

    def explain(self, error: BaseException, *, cancelled: bool) -> BaseException:
        """Return the error that the caller of a coroutine sees, given what the coroutine raised."""
        if isinstance(error, asyncio.CancelledError) and self.ended and not cancelled:
            return self.death()
        late = isinstance(error, RuntimeError) and not threading.main_thread().is_alive()
        if late and not isinstance(error, errors.ServiceError):
            # At that point asyncio cannot start a thread, for example to resolve a name
            # (cpython#113964).
            closed = self._closed_error()
            closed.__cause__ = error
            return closed
        return error

    def submit(self, call: Call[Any]) -> bool:
        """Send a call to the loop; return False if the loop has ended. Needs the service's lock."""
        if self.ended or self._loop is None or not self.is_alive():
            return False
        call.thread = self
        self.pending.add(call)
        self._submitted.append(call)
        if self._is_woken:  # waking the loop takes a system call: make one for all calls until then
            return True
        try:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._begin_submitted)
        except BaseException as error:  # after an interrupt the loop may be woken twice
            self._is_woken = False
            if isinstance(error, Exception):
                self._submitted.remove(call)
                self.pending.discard(call)
            raise
        return True

    def _begin_submitted(self) -> None:
        """Create tasks for the submitted calls, on the loop."""
        self._is_woken = False  # before the queue is read, so that no call is missed
        loop = asyncio.get_running_loop()
        while self._submitted:
            call = self._submitted.popleft()
            # Not in the caller's context: a connection that the call opens outlives it, and would
            # keep the first caller's context variables (ogx-ai/ogx#5168).
            coroutine = call.run(self)  # it stores a reference to its task
            loop.create_task(coroutine, context=contextvars.Context())  # noqa: RUF006

    def cancel(self, call: Call[Any]) -> None:
        """Cancel the call's task. Its future would be done before the task has cleaned up."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing left to cancel
                self._loop.call_soon_threadsafe(_cancel_task, call)

    def close(self) -> None:
        """End the loop and wait for the thread, at most 4 `GRACE_SECONDS`. Not on its thread."""
        self._closing = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
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
        with contextlib.suppress(AttributeError, OSError):  # not every platform has this clock
            self.clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:  # `start` raises it
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
        except BaseException as error:  # the calls in flight raise it
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
        """Cancel the calls, close the scope and end the remaining tasks; each step is bounded."""
        await asyncio.sleep(0)  # calls that were just submitted become tasks
        await _end_tasks({task for call in [*self.pending] if (task := call.task) is not None})
        with contextlib.suppress(Exception):  # a client that fails to close must not stop the rest
            await asyncio.wait_for(self.scope.aclose(), GRACE_SECONDS)
        await _end_tasks(asyncio.all_tasks())
        await asyncio.get_running_loop().shutdown_asyncgens()
        self._end_executor()

    def _end_executor(self) -> None:
        """Wait for the threads that resolve names for the clients, at most `GRACE_SECONDS`.

        `loop.shutdown_default_executor` has no timeout before Python 3.12. It also waits in a new
        thread, which cannot be started while the interpreter exits.
        """
        self._executor.shutdown(wait=False, cancel_futures=True)
        until = clock.seconds() + GRACE_SECONDS
        for thread in threading.enumerate():
            if thread.name.startswith(f"{self._executor_name}_"):
                thread.join(max(0.0, until - clock.seconds()))

    def _fail_pending(self) -> None:
        for call in [*self.pending]:
            call.fail(self.death())


def _cancel_task(call: Call[Any]) -> None:
    if call.task is not None:
        call.task.cancel()


async def _end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait at most `GRACE_SECONDS`: a task may ignore its cancellation."""
    tasks.discard(cast("asyncio.Task[Any]", asyncio.current_task()))
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=GRACE_SECONDS)


_numbers: Iterator[int] = globals().get("_numbers") or itertools.count()
"""Kept when the module is reloaded: threads from before may still run."""
