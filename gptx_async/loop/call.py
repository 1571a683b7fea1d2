"""One coroutine that another thread runs on the background loop, and its outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from .scope import LoopScope
from .service import LoopService, closed_error, default_service, is_exiting
from .thread import GRACE_SECONDS, LoopThread

__all__ = ["SLICE_SECONDS", "Call", "Outcome"]

T = TypeVar("T")

SLICE_SECONDS = 0.25
"""The longest wait before checking that the loop's thread and the main thread are still alive.

Jupyter kills a kernel that has not ended 2.5 s after the request to shut down. The waits must use
only a small part of that time.
"""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The result of a call: a value, or the exception that ended it."""

    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        """Return the value, or raise the exception as if it had occurred here."""
        if self.error is None:
            return cast(T, self.value)
        first, context = self.error, self.error.__context__
        try:
            raise self.error
        finally:
            # The raise replaced the exception's own context with the exception that is being
            # handled here, for example by a remedy. Append that one to the end of the chain.
            if context is not None and first.__context__ is not context:
                handled, first.__context__ = first.__context__, context
                _append_context(context, handled)
            # Without this the traceback, which holds this frame, keeps the outcome alive.
            del self, first, context


def _append_context(error: BaseException, last: BaseException | None) -> None:
    seen = {id(last)}
    while error.__context__ is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__context__
    if id(error) not in seen:
        error.__context__ = last


class Call(Generic[T]):
    """One coroutine on the background loop: created, then started, then done.

    Creating a call starts nothing, so its waiter can store it first. An interrupt between the two
    steps then leaves no coroutine running that nobody can cancel.

    Args:
        function: Receives the loop's scope and returns the coroutine; called on the loop's thread.
        service: The service that runs the coroutine; the process's default service if not given.
    """

    __slots__ = (
        "_cancelled",
        "_function",
        "_on_done",
        "_service",
        "outcome",
        "task",
        "thread",
    )

    def __init__(
        self, function: Callable[[LoopScope], Awaitable[T]], service: LoopService | None = None
    ) -> None:
        self.outcome: Outcome[T] | None = None
        """The result, or None until the call is done."""
        self.task: asyncio.Task[None] | None = None
        """The task on the loop while the coroutine runs. Only for the loop's thread."""
        self.thread: LoopThread | None = None
        """The thread that took the call, once it is started."""
        self._function = function
        self._service = service
        self._on_done: Callable[[], None] = _do_nothing
        self._cancelled = False

    def start(self, on_done: Callable[[], None]) -> None:
        """Send the coroutine to the loop. Allowed in any thread except the loop's own.

        Args:
            on_done: Called once, on the loop's thread, when `outcome` is set. It must neither block
                nor raise.

        Raises:
            LoopThreadError: This is the loop's own thread.
            ServiceClosedError: The service was closed.
            ServiceStartError: The thread could not be started.
        """
        self._on_done = on_done
        (self._service or default_service()).submit(self)

    def cancel(self) -> None:
        """Request cancellation. Allowed in any thread; `on_done` is called after the clean-up."""
        self._cancelled = True
        if self.thread is not None and self.outcome is None:
            self.thread.cancel(self)

    def check(self) -> None:
        """Fail the call if no answer can come any more. Allowed in any thread.

        That is the case when the loop's thread is gone, or when the main thread has ended. In the
        latter case the interpreter waits for all non-daemon threads, which must not wait for the
        network.
        """
        thread = self.thread
        if thread is not None and not thread.is_alive():
            self.fail(thread.death())
        elif thread is not None and is_exiting():
            # In this order: the cancelled task sets an outcome too, and only the first one counts.
            self.fail(closed_error())
            thread.cancel(self)

    def fail(self, error: BaseException) -> None:
        """End a started call with an error, unless it is done already. Allowed in any thread."""
        self._finish(Outcome(error=error))

    def wait(self) -> Outcome[T]:
        """Start the call and block this thread until it is done.

        Raises:
            ServiceError: As for `start`.
            BaseException: Anything raised in this thread while it waits, for example a
                KeyboardInterrupt. The coroutine is cancelled first, and has `GRACE_SECONDS` to
                clean up.
        """
        done = threading.Event()
        try:
            self.start(done.set)
            while not done.wait(SLICE_SECONDS):
                self.check()
        except BaseException:
            self.cancel()
            if self.thread is not None:
                done.wait(GRACE_SECONDS)
            raise
        assert self.outcome is not None
        return self.outcome

    async def run(self, thread: LoopThread) -> None:
        """Run the coroutine on the loop and store its outcome. Never raises.

        A SystemExit or KeyboardInterrupt that left the task would end the loop for all callers.
        """
        self.task = asyncio.current_task()
        outcome: Outcome[T]
        try:
            if self._cancelled:  # before the task existed
                self.task.cancel()  # type: ignore[union-attr] # a coroutine on a loop has a task
                await asyncio.sleep(0)
            outcome = Outcome(value=await self._function(thread.scope))
        except BaseException as error:
            outcome = Outcome(error=thread.explain(error, cancelled=self._cancelled))
        finally:
            self.task = None
        self._finish(outcome)

    def _finish(self, outcome: Outcome[T]) -> None:
        """Set the outcome once; the loop's thread and a waiter that finds it dead may both try."""
        assert self.thread is not None
        try:
            self.thread.pending.remove(self)  # succeeds for only one of them
        except KeyError:
            return
        self.outcome = outcome
        # Drop the reference: whoever keeps the call must not keep its waiter alive.
        on_done, self._on_done = self._on_done, _do_nothing
        on_done()


def _do_nothing() -> None:
    """Stand in for `on_done` when nobody waits."""
