"""The threads of one run over a dataset: one that reads it, and workers that run the expression.

A thread for each worker, so that code which blocks or keeps things in thread-locals does what it
does alone. The dataset is read by one thread only, which also opens and closes the checkpoint, so
that nothing here blocks whoever takes the values: a thread, or a coroutine on a loop.

In the order of an item's way: `_feed` reads it when a worker is free for it, or finds its value in
the checkpoint; `_work_on` runs the expression and keeps the value; `arrived` has what became of it.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ... import clock
from ...batch.cancel_scope import CancelScope
from ...batch.driver import ENDS_RUN
from ...errors import CheckpointError, ConfigurationError, DatasetError, RunCancelledError
from ...loop.thread import GRACE_SECONDS
from ..checkpoint import Checkpoint
from ..dataset import Rows
from ..identity import name_of
from ..kept_values import CheckpointValueError

__all__ = ["Arrival", "Job", "Run", "builder_of"]

logger = logging.getLogger(__name__)

Function = Callable[[Any], Any]


def builder_of(expression: Any) -> Callable[[], Function]:
    """Return what gives each worker its function: the expression, or an instance of its own.

    Raises:
        ConfigurationError: It can't be called, or is a coroutine function.
    """
    if not callable(expression):
        raise ConfigurationError(
            f"The expression is a {type(expression).__name__}, which can't be called. Give an "
            "Expression (the class or an instance), or a function of one item."
        )
    is_class = isinstance(expression, type)
    kind = expression if is_class else type(expression)
    call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
    parts = (expression, call, getattr(expression, "forward", None))
    if any(inspect.iscoroutinefunction(part) for part in parts):
        raise ConfigurationError(
            f"{name_of(expression)} is a coroutine function, and each item is run in a thread. "
            "Give a plain function: the calls in it are made at once all the same."
        )
    return expression if is_class and call is not None else lambda: expression


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run.

    Attributes:
        build: Called in each worker once, for the function that it runs for its items.
        rows: The dataset.
        workers: How many items are worked on at once.
        open_checkpoint: Opens the checkpoint, if there is to be one.
    """

    build: Callable[[], Function]
    rows: Rows
    workers: int
    open_checkpoint: Callable[[], Checkpoint] | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of an item, or of the run.

    Attributes:
        index: The item's index in the dataset; None if this is the end of the run.
        value: What the expression returned.
        item: The item, if it failed.
        error: What it failed with, or what the run ended with.
    """

    index: int | None
    value: Any = None
    item: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    """An item on its way to a worker; the digest is the checkpoint's."""

    index: int
    item: Any
    digest: str | None


class Run:
    """One run, from `start` to `join`; of one use.

    Attributes:
        arrived: What became of items, in the order of its coming; taken from the left by one
            consumer, which then calls `taken`.
        is_over: Whether all threads have done their work: nothing more arrives.
        unkept: The indices of values that arrived although the checkpoint could not store them.

    Args:
        job: What is to be run, in copies of the context of the thread that makes the run.
        window: How many items are read whose values are not taken yet; None for any number.
        wake: Called in any thread when something has arrived, or the run is over.
    """

    def __init__(self, job: Job, window: int | None, wake: Callable[[], None]) -> None:
        self.arrived: deque[Arrival] = deque()
        self.is_over = False
        self.unkept: list[int] = []
        self._job = job
        self._wake = wake
        self._context = contextvars.copy_context()
        self._scope = CancelScope()
        self._is_cancelled = False
        self._free_workers = threading.Semaphore(job.workers)
        self._window = None if window is None else threading.Semaphore(window)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._name = f"gptx_async-map-{next(_numbers)}"
        self._workers: list[threading.Thread] = []
        self._idle = 0
        self._idle_lock = threading.Lock()
        self._checkpoint: Checkpoint | None = None
        self._reader = threading.Thread(target=self._read, name=self._name, daemon=True)

    def start(self) -> None:
        """Start to read and to work.

        Raises:
            ConfigurationError: There can be no more threads.
        """
        _start(self._reader)

    def taken(self) -> None:
        """Tell that a value has left the window. Allowed in any thread."""
        if self._window is not None:
            self._window.release()

    def cancel(self) -> None:
        """Cancel what is in flight and begin nothing more; does not wait. Allowed in any thread."""
        self._is_cancelled = True
        self._scope.cancel()
        self._free_workers.release()  # the reader may wait for either
        self.taken()
        for _ in range(self._job.workers):
            self._tasks.put(None)
        self._wake()

    def join(self, seconds: float = GRACE_SECONDS) -> None:
        """Wait for the threads, which are over or cancelled.

        One that runs code which does not end is left behind: it is a daemon, and ends with its
        item. The checkpoint is closed in any case.

        Args:
            seconds: How long to wait at most.
        """
        until = clock.seconds() + seconds
        for thread in [*self._workers, self._reader]:  # in the order of their ends
            if thread.ident is not None:
                thread.join(max(0.0, until - clock.seconds()))
        self.close()

    def close(self) -> None:
        """Close the checkpoint, if there is one; what is still running keeps nothing more."""
        if self._checkpoint is not None:
            self._checkpoint.close()

    def _read(self) -> None:
        """Read the dataset, in a thread of its own, until its end or that of the run."""
        error: BaseException | None = None
        try:
            self._context.run(self._scope.run, Run._feed, self)
        except BaseException as failure:  # the consumer raises it
            error = failure
        # What is in flight ends by itself, if the run is not cancelled: it did nothing wrong.
        for _ in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join()
        with contextlib.suppress(CheckpointError):  # nothing is lost by that: all is committed
            self.close()
        if error is not None:
            self._end(error)
        self.is_over = True
        self._wake()

    def _feed(self) -> None:
        if self._job.open_checkpoint is not None:
            self._checkpoint = self._job.open_checkpoint()
        index = 0
        with _told_as_of_the_dataset(index):
            iterator = iter(self._job.rows.items)
        while True:
            self._wait_for_room()
            with _told_as_of_the_dataset(index):
                item = next(iterator, _NO_MORE)
            if item is _NO_MORE:
                return
            self._give(index, item)
            del item  # not to be held while the next one is waited for
            index += 1

    def _wait_for_room(self) -> None:
        """Wait until an item may be read.

        Raises:
            RunCancelledError: The run is cancelled: what its consumer has is not all.
        """
        if self._window is not None:
            self._window.acquire()
        self._acquire_permit()

    def _give(self, index: int, item: Any) -> None:
        """Give an item to a worker, if its value is not in the checkpoint."""
        digest: str | None = None
        if self._checkpoint is not None:
            digest = self._checkpoint.digest(index, item)
            kept = self._checkpoint.find(index, digest)
            if kept is not None:
                self._free_workers.release()
                self._arrive(Arrival(index, kept.value))
                return
        self._find_worker()
        self._tasks.put(_Task(index, item, digest))

    def _find_worker(self) -> None:
        """Claim a worker that is idle, or start one: there are as many as were ever needed.

        Raises:
            ConfigurationError: Not even one can be started.
        """
        if self._claim_idle():
            return
        number = len(self._workers) + 1
        worker = threading.Thread(
            target=self._work, name=f"{self._name}-worker-{number}", daemon=True
        )
        try:
            _start(worker)
        except ConfigurationError as error:
            if not self._workers:
                raise
            self._go_on_with_the_workers_there_are(error)
        else:
            self._workers.append(worker)

    def _claim_idle(self) -> bool:
        with self._idle_lock:
            if not self._idle:
                return False
            self._idle -= 1
            return True

    def _go_on_with_the_workers_there_are(self, error: ConfigurationError) -> None:
        """Claim the first of the workers that becomes idle, and start no more from now on.

        The permits of the workers that cannot be started are taken out of `_free_workers`. One of
        them is the permit of the item that is waiting for a worker: in its place it gets that of
        the worker.
        """
        logger.warning(
            "Only %d of %d worker threads could be started (%s). The run goes on with these. This "
            "is logged once for a run.",
            len(self._workers),
            self._job.workers,
            error.__cause__,
        )
        for _ in range(self._job.workers - len(self._workers)):
            self._acquire_permit()
        self._claim_idle()

    def _acquire_permit(self) -> None:
        self._free_workers.acquire()
        if self._is_cancelled:
            raise RunCancelledError("The run was stopped, by the one that it is part of.")

    def _work(self) -> None:
        """Build the function and run it for one item after the other, in a worker's thread."""
        try:
            function = self._context.copy().run(self._scope.run, _build, self._job.build)
            while (task := self._tasks.get()) is not None and not self._is_cancelled:
                self._arrive(self._work_on(function, task))
                del task  # not to be held while the next one is waited for
                with self._idle_lock:
                    self._idle += 1
                self._free_workers.release()
        except BaseException as error:
            self._end(error)

    def _work_on(self, function: Function, task: _Task) -> Arrival:
        """Run the function for an item, and store its value.

        Raises:
            BaseException: What ends the run; a value that could not be stored has then arrived.
        """
        value, error = _try(self._context.copy(), self._scope, function, task.item)
        if error is None and self._checkpoint is not None and task.digest is not None:
            try:
                self._checkpoint.keep(task.index, task.digest, value)
            except CheckpointValueError as refused:
                value, error = None, refused
            except BaseException:
                self.unkept.append(task.index)
                self._arrive(Arrival(task.index, value))  # it may have cost something
                raise
        if error is None:
            return Arrival(task.index, value)
        return Arrival(task.index, item=task.item, error=error)

    def _arrive(self, arrival: Arrival) -> None:
        self.arrived.append(arrival)
        self._wake()

    def _end(self, error: BaseException) -> None:
        self._arrive(Arrival(None, error=error))


@contextlib.contextmanager
def _told_as_of_the_dataset(index: int) -> Iterator[None]:
    try:
        yield
    except ENDS_RUN:
        raise
    except BaseException as error:
        raise DatasetError(
            f"The dataset raised {type(error).__name__} in place of item {index}. Fix the dataset, "
            "or make it skip that item."
        ) from error


def _build(build: Callable[[], Function]) -> Function:
    try:
        return build()
    except Exception as error:
        with contextlib.suppress(Exception):  # a frozen dataclass takes no notes
            error.add_note(
                "Raised as gptx_async.map built the expression's class, once in each worker and "
                "without arguments. Give an instance, or a function that builds one."
            )
        raise


def _try(
    context: contextvars.Context, scope: CancelScope, function: Function, item: Any
) -> tuple[Any, BaseException | None]:
    """Run the function for an item, and return its value, or the error.

    A function of its own, because an error's traceback holds this frame: whoever keeps the error
    does not keep the run.

    Raises:
        BaseException: What `ENDS_RUN` names.
    """
    try:
        return context.run(scope.run, function, item), None
    except ENDS_RUN:
        raise
    except BaseException as error:
        return None, error


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise ConfigurationError(
            f"The thread {thread.name} could not be started ({error}). Ask for fewer workers."
        ) from error


_NO_MORE = object()
_numbers = itertools.count(1)
