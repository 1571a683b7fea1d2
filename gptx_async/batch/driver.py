"""One batch in its caller's thread: a blocking function run for many items, each in a greenlet.

An item that has to wait leaves its greenlet with what it waits for; the driver starts that, goes on
with the next item, and switches back when it is done, as SQLAlchemy runs its ORM over asynchronous
drivers. So code that blocks stays as it is, and holds no thread while it waits.

The driver is the same for a thread (`Batch.run`), for a coroutine on a caller's own loop
(`Batch.run_async`), and for a batch within an item of another one (`Batch.run` again, which then
leaves that item's greenlet instead of blocking the thread). They differ only in how they wait.
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
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import greenlet

from .. import clock, errors
from ..loop.call import SLICE_SECONDS, Call, Outcome
from ..loop.service import loop_seconds
from ..loop.thread import GRACE_SECONDS
from .window import LOOK_SECONDS, Opening

__all__ = [
    "ENDS_RUN",
    "WINDOW",
    "Batch",
    "CancelScope",
    "Cancellable",
    "Place",
    "Waitable",
    "current_scope",
    "holding",
    "is_item",
    "place",
    "wait_for",
]

A = TypeVar("A")
T = TypeVar("T")

logger = logging.getLogger(__name__)

WINDOW = 512
"""How many items of a batch are begun and not yet ended at once: twice what is sent at once."""


ENDS_RUN = (
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    greenlet.GreenletExit,
    errors.RunCancelledError,
)
"""What ends a batch, or a run over a dataset, when an item raises it.

Anything else is the failure of that item alone: also a BaseException such as the `PanicException`
of libraries written in Rust, and an asyncio.CancelledError, which within an item comes from a loop
that the item runs. The cancellation of a caller does not pass through its items.
"""


class Waitable(Protocol):
    """What an item can wait for: a call on the loop, or the answers of a batch within the item."""

    def start(self, on_done: Callable[[], None]) -> None:
        """Start it; `on_done` is called once, in any thread, when it is done."""

    def cancel(self) -> None:
        """Ask for an early end, which `on_done` tells as well."""

    def check(self) -> None:
        """See whether it can still end, and end it if not."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands: its batch, and its index there."""

    batch: Batch[Any, Any]
    index: int


class _Item(greenlet.greenlet, Generic[T]):
    """One item of a batch: a greenlet that returns the outcome of the batch's function."""

    __slots__ = ("batch", "index", "waits_for")

    def __init__(self, batch: Batch[Any, T], index: int) -> None:
        super().__init__(self._outcome)
        self.batch = batch
        self.index = index
        self.waits_for: Waitable | None = None

    def arrive(self) -> None:
        """Tell the batch that what the item waits for is there. Allowed in any thread."""
        self.batch.arrivals.put(self)

    def leave(self, waitable: Waitable) -> None:
        """Leave the greenlet until the waitable is done; called within the greenlet."""
        if self.batch.abandoned:  # no answer will come: the item is being unwound
            raise greenlet.GreenletExit
        driver = cast(greenlet.greenlet, self.parent)
        del self  # as in _outcome
        driver.switch(waitable)

    def _outcome(self) -> Outcome[T]:
        """Run the function; what `ENDS_RUN` names goes to the driver."""
        function, argument = self.batch.function, self.batch.items[self.index]
        del self  # an error's frames end here: who keeps the error is not to keep the batch
        try:
            return Outcome(value=function(argument))
        except ENDS_RUN:
            raise
        except BaseException as error:
            return Outcome(error=error)


class Batch(Generic[A, T]):
    """Runs a blocking function for many items at once, in greenlets of the calling thread.

    They share the context variables of their caller, and an item that fails does no harm to
    another.

    Args:
        function: What to run for each item; waits by `wait_for`.
        items: What to run it for.
        window: How many items are begun and not yet ended at once, so that a long batch does not
            hold a frame for each; it opens as `opening.py` tells.
        deadline: Seconds for the whole batch; what is not answered by then ends with a
            `TimeoutError`. None for no limit.
        timeout: Seconds for one attempt of an item's call, which the items ask for by `place`; None
            for no such limit.
        shared: Whatever the calls of the items share, likewise.
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
        self._opening = Opening(window, loop_seconds)
        self._deadline = deadline
        self._is_late = False
        self._outcomes: list[Outcome[T] | None] = [None] * len(items)
        self._next = 0
        self._context: contextvars.Context | None = None
        self._begun: dict[_Item[T], None] = {}  # in their order
        self.arrivals = _Arrivals(self._begun)

    def run(self) -> list[Outcome[T]]:
        """Run the batch, blocking the thread, or leaving the greenlet of the item it is part of.

        Returns:
            The outcome of each item, in the order of the items.

        Raises:
            BaseException: What `ENDS_RUN` names, from an item, or anything that arrives in this
                thread, for example a KeyboardInterrupt. Before it leaves, what is in flight is
                cancelled (and given `GRACE_SECONDS` for its clean-up) and every begun item is
                unwound.
        """
        outer = _current_item()
        if outer is None:
            _warn_of_a_blocked_loop()
        else:
            self._opening.open_whole()
        timer = self._start_timer()
        try:
            while self._goes_on():
                if self._advance():
                    continue
                if outer is not None:
                    outer.leave(self.arrivals)
                    continue
                with self._opening.waiting():
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
        """Return how many items were answered, failed, and were given up or not begun."""
        ended = [outcome for outcome in self._outcomes if outcome is not None]
        failed = sum(outcome.error is not None for outcome in ended)
        return len(ended) - failed, failed, len(self.items) - len(ended)

    async def run_async(self) -> list[Outcome[T]]:
        """Run the batch as a coroutine on the caller's loop, which goes on between the items.

        Returns:
            The outcome of each item, in the order of the items.

        Raises:
            BaseException: As `run` does; an asyncio.CancelledError when the caller is cancelled.
        """
        timer = self._start_timer()
        try:
            while self._goes_on():
                if self._advance():
                    await asyncio.sleep(0)
                    continue
                with self._opening.waiting():
                    has_arrived = await _wait_on_loop(self.arrivals, self._slice_seconds())
                if not has_arrived:
                    self.arrivals.check()
        except GeneratorExit:  # thrown away with its loop, which nothing can be awaited on
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
        """Let the deadline be told by the loop, which wakes the driver however it waits."""
        seconds = self._deadline
        if seconds is None:
            return None
        timer = Call(lambda _scope: asyncio.sleep(seconds))
        with contextlib.suppress(errors.ServiceError):  # the calls of the items say so themselves
            timer.start(functools.partial(self._end_in_time, timer))
        return timer

    def _end_in_time(self, timer: Call[None]) -> None:
        # A timer that was cancelled, for example by a service that closes, has not run out.
        self._is_late = timer.outcome is not None and timer.outcome.error is None
        self.arrivals.wake()

    def _goes_on(self) -> bool:
        return bool(self._begun) or self._next < len(self.items)

    def _slice_seconds(self) -> float:
        """Return how long to wait at most: a moment, if more could be begun in an open window."""
        is_held_back = self._next < len(self.items) and not self._opening.is_whole
        return LOOK_SECONDS if is_held_back else SLICE_SECONDS

    def _advance(self) -> bool:
        """Resume the item whose answer came first, or begin the next; False if neither is there."""
        if self._is_late:
            for answered in self.arrivals.take_all():  # what was answered in time stays
                self._resume(answered)
            raise _DeadlinePassed
        item = self.arrivals.take()
        if item is None and self._next < len(self.items) and len(self._begun) < self._opening.limit:
            item = self._begin()
        if item is None:
            return False
        self._resume(item)
        return True

    def _begin(self) -> _Item[T]:
        if self._context is None:
            self._context = _current_context()
        item: _Item[T] = _Item(self, self._next)
        item.gr_context = self._context
        self._next += 1
        self._begun[item] = None
        return item

    def _resume(self, item: _Item[T]) -> None:
        """Run an item until it ends, or waits for something, which is started."""
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
                error = failure  # the item's own: it is raised where the item waits
            else:
                return

    def _cancel(self) -> float:
        """Cancel what is in flight; return until when, by the monotonic clock, to wait for it."""
        self.abandoned = True
        # The last first: one that waits for its turn must not get it from one that is cancelled.
        for item in reversed(self._begun):
            if item.waits_for is not None:
                item.waits_for.cancel()
        return clock.seconds() + GRACE_SECONDS

    def _is_in_flight(self) -> bool:
        for item in self.arrivals.take_all():
            item.waits_for = None
        return any(item.waits_for is not None for item in self._begun)

    def _unwind(self) -> None:
        """Run the `finally` clauses of what was begun; what they raise does not leave the batch."""
        self.abandoned = True
        for item in [*self._begun]:
            with contextlib.suppress(BaseException):
                _switch(item, greenlet.GreenletExit())
        # Greenlets that can go on are nothing to the garbage collector. It may have ceased to track
        # this dictionary of them, and then what it holds, the batch too, would never be freed.
        self._begun.clear()

    def _results(self) -> list[Outcome[T]]:
        answered = sum(outcome is not None for outcome in self._outcomes)
        return [
            outcome or Outcome(error=_deadline_error(self._deadline, answered, len(self.items)))
            for outcome in self._outcomes
        ]


class _DeadlinePassed(BaseException):
    """Ends a batch whose time is over."""


class _Arrivals(Generic[T]):
    """The items whose answers are there, in the order in which they came.

    It can itself be waited for, until an item is there.
    """

    def __init__(self, begun: Collection[_Item[T]]) -> None:
        self._begun = begun
        self._items: deque[_Item[T]] = deque()
        self._on_done: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def put(self, item: _Item[T]) -> None:
        """Add an item and wake the driver. Allowed in any thread."""
        self._items.append(item)
        self.wake()

    def take(self) -> _Item[T] | None:
        """Take the item that came first, if there is one."""
        return self._items.popleft() if self._items else None

    def take_all(self) -> list[_Item[T]]:
        """Take the items that are there now."""
        return [self._items.popleft() for _ in range(len(self._items))]

    def start(self, on_done: Callable[[], None]) -> None:
        with self._lock:
            self._on_done = on_done
        if self._items:
            self.wake()

    def cancel(self) -> None:
        """Wake the driver: it is an item of another batch, which unwinds it."""
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


class Cancellable(Protocol):
    """What can be told, in any thread, that nobody waits for it any more."""

    def cancel(self) -> None:
        """Ask for an early end."""


class CancelScope:
    """Ends the calls that code in other threads waits for, and refuses those that come after.

    What it does to that code is what Ctrl-C does to the main thread's: an error that is no
    `Exception` comes out of the call, past remedies and retries, and runs the `finally` clauses.
    All methods may be called in any thread.
    """

    def __init__(self) -> None:
        # Re-entrant: the garbage collector may run a `__del__` in here that makes a call.
        self._lock = threading.RLock()
        self._held: dict[Cancellable, None] = {}  # in their order
        self._is_cancelled = False
        self._shared: Any = None

    def shared(self, build: Callable[[], T]) -> T:
        """Return what the calls of the scope share, built by the first that asks for it."""
        with self._lock:
            if self._shared is None:
                self._shared = build()
            shared: T = self._shared
            return shared

    def run(self, function: Callable[[A], T], argument: A) -> T:
        """Run a function in this thread; the calls that it makes here are the scope's.

        Args:
            function: What to run. Threads that it starts are not the scope's, unless they run in a
                copy of its context.
            argument: What it is given.

        Raises:
            RunCancelledError: The scope was cancelled while the function waited for a call, or
                before it made one; also when the function has caught that.
            BaseException: Whatever the function raises.
        """
        inside = _InScope(self)
        token = _in_scope.set(inside)
        try:
            value = function(argument)
        finally:
            _in_scope.reset(token)
        if inside.was_refused:  # what it made of that is not what it was asked for
            raise _run_cancelled()
        return value

    def cancel(self) -> None:
        """Cancel what is waited for, now and from now on; does not wait for its end."""
        with self._lock:
            self._is_cancelled = True
            held = [*self._held]
        for each in reversed(held):  # the last first, as in Batch._cancel
            each.cancel()

    def _add(self, cancellable: Cancellable) -> bool:
        """Hold what is waited for; False if the scope is cancelled."""
        with self._lock:
            if not self._is_cancelled:
                self._held[cancellable] = None
            return not self._is_cancelled

    def _remove(self, cancellable: Cancellable) -> bool:
        """Hold it no longer; False if the scope is cancelled."""
        with self._lock:
            self._held.pop(cancellable, None)
            return not self._is_cancelled


class _InScope:
    """One function that runs in a scope."""

    def __init__(self, scope: CancelScope) -> None:
        self.scope = scope
        self.was_refused = False

    def hold(self, cancellable: Cancellable) -> contextlib.AbstractContextManager[None]:
        return _Held(self, cancellable)

    def enter(self, cancellable: Cancellable) -> None:
        self._check(goes_on=self.scope._add(cancellable))

    def leave(self, cancellable: Cancellable, *, failed: bool) -> None:
        goes_on = self.scope._remove(cancellable)
        if not failed:
            self._check(goes_on=goes_on)

    def _check(self, *, goes_on: bool) -> None:
        if not goes_on:
            self.was_refused = True
            raise _run_cancelled()


class _Held(contextlib.AbstractContextManager[None]):
    """What a function in a scope waits for; a class, for the reason that `_Consuming` gives."""

    def __init__(self, inside: _InScope, cancellable: Cancellable) -> None:
        self._inside = inside
        self._cancellable = cancellable

    def __enter__(self) -> None:
        self._inside.enter(self._cancellable)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._inside.leave(self._cancellable, failed=error is not None)


def _run_cancelled() -> errors.RunCancelledError:
    return errors.RunCancelledError(
        "The run that this code is part of was stopped: its model calls are cancelled, and no more "
        "are made. Let this error pass."
    )


def current_scope() -> CancelScope | None:
    """Return the scope that this code runs in, if there is one."""
    inside = _in_scope.get()
    return None if inside is None else inside.scope


def holding(cancellable: Cancellable) -> contextlib.AbstractContextManager[None]:
    """Let the scope that this code runs in, if there is one, cancel what the block waits for.

    Args:
        cancellable: It, whose end the block then sees.

    Raises:
        RunCancelledError: On entry or exit of the block: the scope is cancelled.
    """
    inside = _in_scope.get()
    return _NO_SCOPE if inside is None else inside.hold(cancellable)


def wait_for(call: Call[T]) -> T:
    """Make a call and return its result, letting the other items of a batch go on meanwhile.

    Within an item of a batch it leaves the item's greenlet; anywhere else it blocks the thread.

    Args:
        call: The call; not started.

    Raises:
        CallCancelledError: It was cancelled on the loop, not by its caller.
        RunCancelledError: The `CancelScope` that this code runs in was cancelled.
        BaseException: Whatever the call raised.
    """
    with holding(call):
        outcome = _outcome_of(call)
    if isinstance(outcome.error, asyncio.CancelledError):  # which here would mean this caller
        raise errors.CallCancelledError(
            "The model call was cancelled on the background loop, by something other than its "
            "caller. Ask again."
        )
    return outcome.result()


def _outcome_of(call: Call[T]) -> Outcome[T]:
    """Start a call and wait until it is done, in the greenlet or the thread that this is."""
    item = _current_item()
    if item is None:
        _warn_of_a_blocked_loop()
        return call.wait()
    item.leave(call)
    del item  # or an error that is raised here keeps the batch alive
    return cast("Outcome[T]", call.outcome)


def is_item() -> bool:
    """Tell whether this code runs as an item of a batch, in its greenlet."""
    return _current_item() is not None


def place() -> Place | None:
    """Return which item of which batch this code runs as, or None; of nested ones the innermost."""
    item = _current_item()
    return None if item is None else Place(item.batch, item.index)


def _warn_of_a_blocked_loop() -> None:
    """Say once in a process that a caller's running loop stands still, as is allowed.

    To the log, for symbolicai turns all warnings off. Not in a notebook, whose cells are run by a
    loop, and wait for what they call.
    """
    global _has_warned
    if _has_warned or asyncio._get_running_loop() is None or _is_in_notebook():
        return
    _has_warned = True
    logger.warning(
        "A synchronous model call blocks the event loop that is running in this thread: nothing "
        "else on it goes on until the answer is there. In a coroutine use "
        "`await engine.aforward([...])`. This is said once."
    )


def _is_in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _deadline_error(deadline: float | None, answered: int, count: int) -> errors.TimeoutError:
    return errors.TimeoutError(
        f"The deadline of {deadline} s passed before this item was answered; {answered} of the "
        f"batch's {count} were. Give the batch more time (deadline=), or send fewer items at once."
    )


def _current_item() -> _Item[Any] | None:
    current = greenlet.getcurrent()
    return current if isinstance(current, _Item) else None


def _current_context() -> contextvars.Context | None:
    """Return the thread's own context, not a copy: what an item sets, its caller sees."""
    contextvars.copy_context()  # a thread has none before it is first asked for
    context: contextvars.Context | None = greenlet.getcurrent().gr_context
    return context


def _switch(item: _Item[T], error: BaseException | None) -> Any:
    """Go on with an item, raising the error in it if there is one; return what it leaves with."""
    item.parent = greenlet.getcurrent()  # a coroutine may go on in another greenlet than it began
    return item.switch() if error is None else item.throw(error)


def _wait_in_thread(waitable: Waitable, seconds: float) -> bool:
    """Block until the waitable is done or the time is over, and tell which."""
    done = threading.Event()
    waitable.start(done.set)
    return done.wait(seconds)


async def _wait_on_loop(waitable: Waitable, seconds: float) -> bool:
    """Wait on the caller's loop until the waitable is done or the time is over, and tell which."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits
            loop.call_soon_threadsafe(_resolve, done)

    waitable.start(tell)
    await asyncio.wait([done], timeout=seconds)
    return done.done()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_has_warned = False
_in_scope: contextvars.ContextVar[_InScope | None] = contextvars.ContextVar(
    "gptx_async_cancel_scope", default=None
)
_NO_SCOPE = contextlib.nullcontext()
