"""Run a blocking function for many items in the caller's thread, each item in a greenlet.

An item that has to wait switches out of its greenlet. The driver starts what the item waits for,
continues with the next item, and switches back when the wait is over. SQLAlchemy runs its ORM over
asyncio drivers in the same way. Blocking code needs no change, and holds no thread while it waits.

`Batch.run` drives a batch in a thread, and `Batch.run_async` in a coroutine on the caller's loop. A
batch inside an item of another batch uses `Batch.run` too, which then switches out of that item's
greenlet instead of blocking the thread. Only the way of waiting differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import greenlet

from .. import clock, errors
from ..loop.call import SLICE_SECONDS, Call, Outcome
from ..loop.service import loop_seconds
from ..loop.thread import GRACE_SECONDS
from .cancel_scope import holding
from .window import SAMPLE_SECONDS, WINDOW, Window

__all__ = [
    "ENDS_RUN",
    "Batch",
    "BatchItem",
    "Waitable",
    "current_item",
    "is_item",
    "wait_for",
]

A = TypeVar("A")
T = TypeVar("T")

logger = logging.getLogger(__name__)


ENDS_RUN = (
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    greenlet.GreenletExit,
    errors.RunCancelledError,
)
"""Exceptions of an item that end its batch, or its run over a dataset.

Any other exception fails only its item. That includes a BaseException such as the `PanicException`
of libraries written in Rust, and asyncio.CancelledError: inside an item it comes from a loop that
the item runs, because the cancellation of a caller does not pass through its items.
"""


class Waitable(Protocol):
    """Anything an item can wait for: a call on the loop, or the answers of a nested batch."""

    def start(self, on_done: Callable[[], None]) -> None:
        """Start it. `on_done` is called once when it is done, in any thread."""

    def cancel(self) -> None:
        """Request cancellation. `on_done` is called then, too."""

    def check(self) -> None:
        """End it with an error if it can no longer end by itself."""


class BatchItem(greenlet.greenlet, Generic[T]):
    """One item of a batch: a greenlet that returns the outcome of the batch's function.

    Attributes:
        batch: The batch.
        index: The item's position in the batch.
        waits_for: What the item waits for now, if anything.
    """

    __slots__ = ("batch", "index", "waits_for")

    def __init__(self, batch: Batch[Any, T], index: int) -> None:
        super().__init__(self._outcome)
        self.batch = batch
        self.index = index
        self.waits_for: Waitable | None = None

    def arrive(self) -> None:
        """Tell the batch that the item can continue. Allowed in any thread."""
        self.batch.arrivals.put(self)

    def leave(self, waitable: Waitable) -> None:
        """Switch out of the greenlet until the waitable is done. Only within the greenlet."""
        if self.batch.abandoned:  # the item is being unwound, and gets no answer
            raise greenlet.GreenletExit
        driver = cast(greenlet.greenlet, self.parent)
        del self  # for the reason given in _outcome
        driver.switch(waitable)

    def _outcome(self) -> Outcome[T]:
        """Run the function. Exceptions in `ENDS_RUN` go to the driver."""
        function, argument = self.batch.function, self.batch.items[self.index]
        del self  # an error's traceback refers to this frame, and must not keep the batch alive
        try:
            return Outcome(value=function(argument))
        except ENDS_RUN:
            raise
        except BaseException as error:
            return Outcome(error=error)


class Batch(Generic[A, T]):
    """Runs a blocking function for many items concurrently, in greenlets of the calling thread.

    The items share the context variables of their caller. A failed item does not affect the others.

    Args:
        function: The function to run for each item. It waits by `wait_for`.
        items: The arguments of the function.
        window: The largest number of items in progress, so that a long batch does not hold a stack
            for every item. `Window` starts with fewer.
        deadline: Seconds for the whole batch. Items without an answer by then end with a
            `TimeoutError`. None for no limit.
        timeout: Seconds for one attempt of an item's call, or None for no limit. Items read it
            through `current_item`.
        shared: An object that the calls of the items share. Items read it through `current_item`.
    """

    def __init__(
        self,
        function: Callable[[A], T],
        items: Sequence[A],
        window: int = WINDOW,
        deadline: float | None = None,
        timeout: float | None = None,
        shared: Any = None,
    ) -> None:
        self.function = function
        self.items = items
        self.timeout = timeout
        self.shared = shared
        self.abandoned = False
        self._window = Window(window, loop_seconds)
        self._deadline = deadline
        self._is_late = False
        self._outcomes: list[Outcome[T] | None] = [None] * len(items)
        self._next = 0
        self._context: contextvars.Context | None = None
        self._begun: dict[BatchItem[T], None] = {}  # ordered, unlike a set
        self.arrivals = _Arrivals(self._begun)

    def run(self) -> list[Outcome[T]]:
        """Run the batch, and block the thread, or switch out of the item that the batch is part of.

        Returns:
            The outcome of each item, in the order of the items.

        Raises:
            BaseException: An exception in `ENDS_RUN` from an item, or anything raised in this
                thread, for example a KeyboardInterrupt. Before that, calls in flight are cancelled,
                have `GRACE_SECONDS` to clean up, and every item in progress is unwound.
        """
        outer = current_item()
        if outer is None:
            _warn_of_a_blocked_loop()
        else:
            self._window.open_fully()
        timer = self._start_timer()
        try:
            while self._goes_on():
                if self._advance():
                    continue
                if outer is not None:
                    outer.leave(self.arrivals)
                    continue
                with self._window.waiting():
                    has_arrived = _wait_in_thread(self.arrivals, self._slice_seconds())
                if not has_arrived:
                    self.arrivals.check()
        except BaseException as error:
            until = self._cancel()
            while self._is_in_flight() and (seconds := until - clock.seconds()) > 0:
                _wait_in_thread(self.arrivals, seconds)
            if not isinstance(error, _DeadlinePassed):
                raise
        finally:
            self._unwind()
            if timer is not None:
                timer.cancel()
        return self._results()

    def tally(self) -> tuple[int, int, int]:
        """Return how many items were answered, how many failed, and how many did not end."""
        ended = [outcome for outcome in self._outcomes if outcome is not None]
        failed = sum(outcome.error is not None for outcome in ended)
        return len(ended) - failed, failed, len(self.items) - len(ended)

    async def run_async(self) -> list[Outcome[T]]:
        """Run the batch as a coroutine on the caller's loop, which is not blocked.

        Returns:
            The outcome of each item, in the order of the items.

        Raises:
            BaseException: As for `run`; an asyncio.CancelledError if the caller is cancelled.
        """
        timer = self._start_timer()
        try:
            while self._goes_on():
                if self._advance():
                    await asyncio.sleep(0)
                    continue
                with self._window.waiting():
                    has_arrived = await _wait_on_loop(self.arrivals, self._slice_seconds())
                if not has_arrived:
                    self.arrivals.check()
        except GeneratorExit:  # discarded together with its loop, so nothing can be awaited
            self._cancel()
            raise
        except BaseException as error:
            until = self._cancel()
            while self._is_in_flight() and (seconds := until - clock.seconds()) > 0:
                await _wait_on_loop(self.arrivals, seconds)
            if not isinstance(error, _DeadlinePassed):
                raise
        finally:
            self._unwind()
            if timer is not None:
                timer.cancel()
        return self._results()

    def _start_timer(self) -> Call[None] | None:
        """Start the deadline on the background loop, which wakes the driver however it waits."""
        seconds = self._deadline
        if seconds is None:
            return None
        timer = Call(lambda _scope: asyncio.sleep(seconds))
        with contextlib.suppress(errors.ServiceError):  # the items' own calls raise the same error
            timer.start(functools.partial(self._end_in_time, timer))
        return timer

    def _end_in_time(self, timer: Call[None]) -> None:
        # A timer that was cancelled, for example by a closing service, has not expired.
        self._is_late = timer.outcome is not None and timer.outcome.error is None
        self.arrivals.wake()

    def _goes_on(self) -> bool:
        return bool(self._begun) or self._next < len(self.items)

    def _slice_seconds(self) -> float:
        """Return the longest wait: short if the window holds items back and may grow."""
        is_held_back = self._next < len(self.items) and not self._window.is_fully_open
        return SAMPLE_SECONDS if is_held_back else SLICE_SECONDS

    def _advance(self) -> bool:
        """Resume the item answered first, or begin the next; return False if there is none."""
        if self._is_late:
            for answered in self.arrivals.take_all():  # keep the answers that came in time
                self._resume(answered)
            raise _DeadlinePassed
        item = self.arrivals.take()
        if item is None and self._next < len(self.items) and len(self._begun) < self._window.limit:
            item = self._begin()
        if item is None:
            return False
        self._resume(item)
        return True

    def _begin(self) -> BatchItem[T]:
        if self._context is None:
            self._context = _current_context()
        item: BatchItem[T] = BatchItem(self, self._next)
        item.gr_context = self._context
        self._next += 1
        self._begun[item] = None
        return item

    def _resume(self, item: BatchItem[T]) -> None:
        """Run an item until it ends or waits, and start what it waits for."""
        item.waits_for = None
        error: Exception | None = None
        while True:
            left = _switch(item, error)
            error = None
            if item.dead:
                self._begun.pop(item, None)
                if isinstance(left, greenlet.GreenletExit):  # which a greenlet returns
                    raise left
                self._outcomes[item.index] = left
                return
            item.waits_for = left
            try:
                left.start(item.arrive)
            except Exception as failure:
                error = failure  # raise it in the item, where the item waits
            else:
                return

    def _cancel(self) -> float:
        """Cancel the calls in flight; return the time, by `clock`, until which to wait for them."""
        self.abandoned = True
        # In reverse: a call that waits for its turn must not get the turn of a cancelled call.
        for item in reversed(self._begun):
            if item.waits_for is not None:
                item.waits_for.cancel()
        return clock.seconds() + GRACE_SECONDS

    def _is_in_flight(self) -> bool:
        for item in self.arrivals.take_all():
            item.waits_for = None
        return any(item.waits_for is not None for item in self._begun)

    def _unwind(self) -> None:
        """Run the `finally` clauses of the items in progress, and ignore what they raise."""
        self.abandoned = True
        for item in [*self._begun]:
            with contextlib.suppress(BaseException):
                _switch(item, greenlet.GreenletExit())
        # The garbage collector ignores greenlets that can be resumed, and may have stopped tracking
        # this dictionary of them. Its contents, and with them the batch, would never be freed.
        self._begun.clear()

    def _results(self) -> list[Outcome[T]]:
        answered = sum(outcome is not None for outcome in self._outcomes)
        return [
            outcome or Outcome(error=_deadline_error(self._deadline, answered, len(self.items)))
            for outcome in self._outcomes
        ]


class _DeadlinePassed(BaseException):
    """Ends a batch whose deadline has passed."""


class _Arrivals(Generic[T]):
    """The queue of items that can continue, first come first served.

    It is itself a `Waitable`, which is done when the queue has an item.
    """

    def __init__(self, begun: Collection[BatchItem[T]]) -> None:
        self._begun = begun
        self._items: deque[BatchItem[T]] = deque()
        self._on_done: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def put(self, item: BatchItem[T]) -> None:
        """Add an item, and wake the driver. Allowed in any thread."""
        self._items.append(item)
        self.wake()

    def take(self) -> BatchItem[T] | None:
        """Remove and return the first item, or None."""
        return self._items.popleft() if self._items else None

    def take_all(self) -> list[BatchItem[T]]:
        """Remove and return all items."""
        return [self._items.popleft() for _ in range(len(self._items))]

    def start(self, on_done: Callable[[], None]) -> None:
        with self._lock:
            self._on_done = on_done
        if self._items:
            self.wake()

    def cancel(self) -> None:
        """Wake the driver. The batch runs in an item of another batch, which unwinds it."""
        self.wake()

    def check(self) -> None:
        for item in [*self._begun]:
            if item.waits_for is not None:
                item.waits_for.check()

    def wake(self) -> None:
        """End the driver's wait. Allowed in any thread."""
        with self._lock:
            on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done()


def wait_for(call: Call[T]) -> T:
    """Start a call and return its result.

    Within an item of a batch, other items run until the result is there. Anywhere else the function
    blocks the thread.

    Args:
        call: A call that is not started yet.

    Raises:
        CallCancelledError: The call was cancelled on the loop, not by its caller.
        RunCancelledError: The `CancelScope` in which this code runs was cancelled.
        BaseException: Anything the call raises.
    """
    with holding(call):
        outcome = _outcome_of(call)
    # Raised here, a CancelledError would look like a cancellation of this caller.
    if isinstance(outcome.error, asyncio.CancelledError):
        raise errors.CallCancelledError(
            "The model call was cancelled on the background loop, by something other than its "
            "caller. Ask again."
        )
    return outcome.result()


def _outcome_of(call: Call[T]) -> Outcome[T]:
    """Start a call and wait until it is done, in the current greenlet or thread."""
    item = current_item()
    if item is None:
        _warn_of_a_blocked_loop()
        return call.wait()
    item.leave(call)
    del item  # otherwise the traceback of an error keeps the batch alive
    return cast("Outcome[T]", call.outcome)


def is_item() -> bool:
    """Return whether this code runs in an item of a batch."""
    return current_item() is not None


def current_item() -> BatchItem[Any] | None:
    """Return the item of a batch in which this code runs, or None. The innermost, if nested."""
    current = greenlet.getcurrent()
    return current if isinstance(current, BatchItem) else None


def _warn_of_a_blocked_loop() -> None:
    """Log once per process that a synchronous call blocks the caller's running event loop.

    It is logged because symbolicai turns off all warnings. Notebooks are exempt: a loop runs their
    cells, which have to wait for their calls.
    """
    global _has_warned
    if _has_warned or asyncio._get_running_loop() is None or _is_in_notebook():
        return
    _has_warned = True
    logger.warning(
        "A synchronous model call blocks the event loop that is running in this thread. In a "
        "coroutine use `await gptx_async.acall(...)`, or `await engine.aforward([...])` for a "
        "batch. This is logged once."
    )


def _is_in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _deadline_error(deadline: float | None, answered: int, count: int) -> errors.TimeoutError:
    return errors.TimeoutError(
        f"The deadline of {deadline} s passed before this item was answered; {answered} of the "
        f"batch's {count} were. Give the batch more time (deadline=), or send fewer items at once."
    )


def _current_context() -> contextvars.Context | None:
    """Return the thread's own context, not a copy, so that the caller sees what items set."""
    contextvars.copy_context()  # a thread has no context until it is first used
    context: contextvars.Context | None = greenlet.getcurrent().gr_context
    return context


def _switch(item: BatchItem[T], error: BaseException | None) -> Any:
    """Resume an item, or raise the error in it; return what it waits for next, or its outcome."""
    item.parent = greenlet.getcurrent()  # a coroutine may be resumed in another greenlet
    return item.switch() if error is None else item.throw(error)


def _wait_in_thread(waitable: Waitable, seconds: float) -> bool:
    """Block until the waitable is done or the time is over; return whether it is done."""
    done = threading.Event()
    waitable.start(done.set)
    return done.wait(seconds)


async def _wait_on_loop(waitable: Waitable, seconds: float) -> bool:
    """Wait on the caller's loop, as `_wait_in_thread` does in a thread."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def on_done() -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed, so nobody waits
            loop.call_soon_threadsafe(_resolve, done)

    waitable.start(on_done)
    await asyncio.wait([done], timeout=seconds)
    return done.done()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_has_warned = False
