"""The back end that runs items in threads: one reads the dataset, the others run the expression.

Each item that runs has a worker thread of its own, so that code that blocks or uses thread-locals
works as it does alone. One thread reads the dataset, and opens and closes the checkpoint, so that
nothing here blocks the consumer, which may be a coroutine on a loop.

The path of an item: `_feed` reads it when a worker is free, or finds its value in the checkpoint;
`_work_on` runs the expression and stores the value; the outcome is added to `outcomes`.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ... import clock
from ...batch.cancel_scope import CancelScope
from ...batch.driver import ENDS_RUN
from ...errors import CheckpointError, ConfigurationError, RunCancelledError
from ...loop.thread import GRACE_SECONDS
from ..checkpoint import Checkpoint
from ..checkpoint_values import CheckpointValueError
from ..dataset import dataset_errors
from ..job import ItemFunction, MapJob
from .backend import ItemOutcome

__all__ = ["ThreadRun"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Task:
    """An item for a worker, with its digest for the checkpoint."""

    index: int
    item: Any
    digest: str | None


class ThreadRun:
    """One run of a job in threads; a `BackendRun`.

    Args:
        job: What to run, in copies of the context of the thread that creates this object.
        window: How many items are read ahead of the values that were taken; None for no limit.
        wake: Called in any thread when an outcome was added or the run is over.
    """

    def __init__(self, job: MapJob, window: int | None, wake: Callable[[], None]) -> None:
        self.outcomes: deque[ItemOutcome] = deque()
        self.is_over = False
        self.unstored: list[int] = []
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
        """Start to read the dataset and to run its items.

        Raises:
            ConfigurationError: The system cannot start another thread.
        """
        _start(self._reader)

    def free_window(self) -> None:
        """Let the reader read one more item, because a value was taken. Allowed in any thread."""
        if self._window is not None:
            self._window.release()

    def cancel(self) -> None:
        """Cancel the calls in flight and start no more items.

        Does not wait. Allowed in any thread.
        """
        self._is_cancelled = True
        self._scope.cancel()
        self._free_workers.release()  # the reader may be waiting for either
        self.free_window()
        for _ in range(self._job.workers):
            self._tasks.put(None)
        self._wake()

    def join(self, seconds: float = GRACE_SECONDS) -> None:
        """Wait for the threads of a run that is over or cancelled, and close the checkpoint.

        A thread whose code does not return in time is left behind. It is a daemon thread and ends
        with its item.

        Args:
            seconds: The longest time to wait.
        """
        until = clock.seconds() + seconds
        for thread in [*self._workers, self._reader]:  # in the order in which they end
            if thread.ident is not None:
                thread.join(max(0.0, until - clock.seconds()))
        self.close()

    def close(self) -> None:
        """Close the checkpoint. Items that are still running store nothing more."""
        if self._checkpoint is not None:
            self._checkpoint.close()

    def _read(self) -> None:
        """Read the dataset to its end or the end of the run. The target of the reader thread."""
        error: BaseException | None = None
        try:
            self._context.run(self._scope.run, ThreadRun._feed, self)
        except BaseException as failure:  # the consumer raises it
            error = failure
        # Items in progress run to their end, unless the run is cancelled.
        for _ in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join()
        with contextlib.suppress(CheckpointError):  # nothing is lost: all values are committed
            self.close()
        if error is not None:
            self._end(error)
        self.is_over = True
        self._wake()

    def _feed(self) -> None:
        if self._job.open_checkpoint is not None:
            self._checkpoint = self._job.open_checkpoint()
        index = 0
        with dataset_errors(index):
            iterator = iter(self._job.dataset.items)
        while True:
            self._wait_for_room()
            with dataset_errors(index):
                item = next(iterator, _NO_MORE)
            if item is _NO_MORE:
                return
            self._dispatch(index, item)
            del item  # release it before waiting for the next one
            index += 1

    def _wait_for_room(self) -> None:
        """Wait until an item may be read.

        Raises:
            RunCancelledError: The run is cancelled, so that its results are incomplete.
        """
        if self._window is not None:
            self._window.acquire()
        self._acquire_permit()

    def _dispatch(self, index: int, item: Any) -> None:
        """Pass an item to a worker, unless its value is in the checkpoint."""
        digest: str | None = None
        if self._checkpoint is not None:
            digest = self._checkpoint.digest(index, item)
            stored = self._checkpoint.find(index, digest)
            if stored is not None:
                self._free_workers.release()
                self._add(ItemOutcome(index, stored.value))
                return
        self._claim_worker()
        self._tasks.put(_Task(index, item, digest))

    def _claim_worker(self) -> None:
        """Claim an idle worker, or start another one.

        Raises:
            ConfigurationError: The system cannot start even the first one.
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
            self._continue_with_fewer_workers(error)
        else:
            self._workers.append(worker)

    def _claim_idle(self) -> bool:
        with self._idle_lock:
            if not self._idle:
                return False
            self._idle -= 1
            return True

    def _continue_with_fewer_workers(self, error: ConfigurationError) -> None:
        """Claim the first worker that becomes idle, and start no more workers in this run.

        This takes the permits of the workers that cannot be started out of `_free_workers`. The
        waiting item holds one of those permits, so it takes the permit of an idle worker instead.
        """
        logger.warning(
            "Only %d of %d worker threads could be started (%s). The run continues with these. "
            "This is logged once per run.",
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
            raise RunCancelledError(
                "The run was stopped because the run that it is part of was stopped."
            )

    def _work(self) -> None:
        """Build the function and run it for item after item. The target of a worker thread."""
        try:
            function = self._context.copy().run(self._scope.run, MapJob.build_function, self._job)
            while (task := self._tasks.get()) is not None and not self._is_cancelled:
                self._add(self._work_on(function, task))
                del task  # release it before waiting for the next one
                with self._idle_lock:
                    self._idle += 1
                self._free_workers.release()
        except BaseException as error:
            self._end(error)

    def _work_on(self, function: ItemFunction, task: _Task) -> ItemOutcome:
        """Run the function for an item, and store its value.

        Raises:
            BaseException: An error that ends the run. A value that could not be stored is added
                to the outcomes first.
        """
        value, error = _run_item(self._context.copy(), self._scope, function, task.item)
        if error is None and self._checkpoint is not None and task.digest is not None:
            try:
                self._checkpoint.store(task.index, task.digest, value)
            except CheckpointValueError as refused:
                value, error = None, refused
            except BaseException:
                self.unstored.append(task.index)
                self._add(ItemOutcome(task.index, value))  # it may have cost money
                raise
        if error is None:
            return ItemOutcome(task.index, value)
        return ItemOutcome(task.index, item=task.item, error=error)

    def _add(self, outcome: ItemOutcome) -> None:
        self.outcomes.append(outcome)
        self._wake()

    def _end(self, error: BaseException) -> None:
        self._add(ItemOutcome(None, error=error))


def _run_item(
    context: contextvars.Context, scope: CancelScope, function: ItemFunction, item: Any
) -> tuple[Any, BaseException | None]:
    """Run the function for an item, and return its value and error, one of which is None.

    Not a method, because the traceback of the error keeps this frame alive: an error that is kept
    must not keep the run.

    Raises:
        BaseException: An error that ends the run, by `ENDS_RUN`.
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
            f"The thread {thread.name} could not be started ({error}). Use fewer workers."
        ) from error


_NO_MORE = object()
_numbers = itertools.count(1)
