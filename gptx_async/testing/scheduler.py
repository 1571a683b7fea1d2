"""`BatchScheduler`: drive an engine like symbolicai's public batch scheduler."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import Any, TypeAlias

from ..checks import whole_numbers

__all__ = ["BatchScheduler"]

Answer: TypeAlias = tuple[list[Any], Any]
"""The engine's result for one argument: outputs and metadata."""


class BatchScheduler:
    """Runs an Expression over a dataset on worker threads, and sends its queries in batches.

    A replacement, for tests, for the scheduler that users of symbolicai install separately. It
    follows the protocol of that scheduler exactly, including its hazards: the newest scheduler owns
    the engine; a batch starts after the last answer of the previous batch was picked up; a query
    after the end of a run waits forever. It differs only where the original hangs or guesses:

    - counters change under a lock, and threads wait for a change in place of polling;
    - if the engine raises or returns too few answers, the queries without an answer raise a
      RuntimeError;
    - KeyboardInterrupt, or any exception of an Expression that is not an Exception, ends the run:
      `forward` raises it at once, and waiting or later queries raise a RuntimeError;
    - a number of workers or a batch size below 1 raises a ValueError.

    Register the engine first: the constructor sets the callback of the 'neurosymbolic' engine.

    Attributes:
        all_batches_complete: Set when the last expression of a run ended. Each run has its own
            event; before the first run there is none.

    Args:
        num_workers: How many items are processed concurrently.
        batch_size: How many queries make a batch, at most the number of workers and of items.

    Raises:
        ConfigurationError: A number is below 1; it is a ValueError, too.
        ValueError: No engine is registered and none is configured.
    """

    all_batches_complete: threading.Event

    def __init__(self, num_workers: int, batch_size: int) -> None:
        from symai.functional import EngineRepository

        self.num_workers = whole_numbers().check("num_workers", num_workers)
        self.batch_size = whole_numbers().check("batch_size", batch_size)
        self._run: _SchedulerRun
        engine = EngineRepository().get("neurosymbolic")
        engine.__setattr__("executor_callback", self.executor_callback)

    def forward(self, expr: Callable[..., Any], dataset: Sequence[Any], **kwargs: Any) -> list[Any]:
        """Run an Expression over all items. Do not start a run before the previous one ends.

        Args:
            expr: A class, which is built once with `kwargs` and called in all workers as
                `expression(input=item, **kwargs)`. Or an instance or a function, which is called
                as `expr(item, **kwargs)`.
            dataset: The items.
            **kwargs: Passed to the class and to every call.

        Returns:
            The result of each item, in order. An item whose Expression raised an Exception has that
            exception as its result.

        Raises:
            BaseException: An exception that is not an Exception, such as KeyboardInterrupt.
        """
        process = _bind_expression(expr, kwargs)
        run = _SchedulerRun(min(self.batch_size, len(dataset) or 1, self.num_workers), len(dataset))
        self._run, self.all_batches_complete = run, run.complete
        # A daemon thread for each run: after an interrupt it may still wait for a call.
        threading.Thread(target=run.execute_queries, name="execute_queries", daemon=True).start()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="BatchScheduler")
        try:
            futures = [pool.submit(run.process, process, item) for item in dataset]
            results = [future.result() for future in futures]
        except BaseException:
            run.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return results

    def executor_callback(self, argument: Any) -> Answer:
        """Queue one query, and block the calling thread until its batch is answered.

        Args:
            argument: symbolicai's prepared Argument.

        Returns:
            The list of outputs, and the metadata.

        Raises:
            AttributeError: No run has started yet.
            RuntimeError: The engine returned no answer, or an interrupt ended the run.
        """
        return self._run.query(argument)


class _SchedulerRun:
    """A run: the queue between the workers and the query thread, and their counters."""

    def __init__(self, batch_size: int, expressions: int) -> None:
        self.complete = threading.Event()
        self._batch_size = batch_size
        # Guards the attributes below, and wakes the query thread when one of them changes.
        self._changed = threading.Condition()
        self._queue: deque[tuple[Any, Future[Answer]]] = deque()
        self._batch: list[tuple[Any, Future[Answer]]] = []
        self._pending = expressions
        self._running = 0
        self._waiting = 0
        self._aborted = False
        if expressions == 0:
            self.complete.set()

    def process(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Process one item in a worker thread. An Exception becomes its result."""
        with self._changed:
            self._running += 1
        try:
            return None if self._aborted else function(item)
        except Exception as error:
            return error
        finally:
            with self._changed:
                self._running -= 1
                self._pending -= 1
                if self._running == 0 and (self._pending == 0 or self._aborted):
                    self.complete.set()
                self._changed.notify()

    def query(self, argument: Any) -> Answer:
        """Wait for an answer in a worker thread. The next batch starts when all are picked up."""
        future: Future[Answer] = Future()
        with self._changed:
            if self._aborted:
                raise _abort_error()
            self._waiting += 1
            self._queue.append((argument, future))
            self._changed.notify()
        try:
            return future.result()
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify()

    def abort(self) -> None:
        """End the run: waiting queries fail now, although the engine may still be working."""
        with self._changed:
            self._aborted = True
            for _, future in [*self._batch, *self._queue]:
                if not future.done():
                    future.set_exception(_abort_error())
            self._queue.clear()
            if self._running == 0:
                self.complete.set()
            self._changed.notify()

    def execute_queries(self) -> None:
        """Send the queries to the engine, one batch at a time, until all expressions ended."""
        while batch := self._next_batch():
            self._deliver(batch, *_call_engine([argument for argument, _ in batch]))

    def _next_batch(self) -> list[tuple[Any, Future[Answer]]]:
        """Wait until the previous batch is picked up and the next one is due, and return it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_batch_due() or self._pending == 0 or self._aborted
            )
            size = min(self._batch_size, len(self._queue))
            self._batch = [self._queue.popleft() for _ in range(size)]
            return self._batch

    def _is_batch_due(self) -> bool:
        queued = len(self._queue)
        return self._waiting == queued and (
            queued >= self._batch_size or (queued > 0 and self._pending < self._batch_size)
        )

    def _deliver(
        self,
        batch: list[tuple[Any, Future[Answer]]],
        answers: list[Answer],
        cause: BaseException | None,
    ) -> None:
        with self._changed:
            for (_, future), answer in zip_longest(batch, answers[: len(batch)]):
                if future.done():  # the run was aborted
                    continue
                if answer is None:
                    future.set_exception(_engine_error(cause))
                else:
                    future.set_result(answer)


def _bind_expression(expr: Callable[..., Any], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    if not isinstance(expr, type):
        return lambda item: expr(item, **kwargs)
    expression = expr(**kwargs)
    return lambda item: expression(input=item, **kwargs)


def _call_engine(arguments: list[Any]) -> tuple[list[Answer], BaseException | None]:
    """Look up the engine, and return its answers or the exception that it raised."""
    from symai.core_ext import bind

    @bind(engine="neurosymbolic", property="__call__")  # type: ignore[untyped-decorator]
    def engine_call() -> Any:
        """`bind` replaces this body by the look-up."""

    try:
        answers = engine_call()(arguments)
        return [(x if isinstance(x, list) else [x], y) for x, y in answers], None
    except BaseException as error:  # otherwise the workers would wait forever
        return [], error


def _engine_error(cause: BaseException | None) -> RuntimeError:
    """Make the error of a query without an answer. Each query raises a new one."""
    if cause is None:
        return RuntimeError("The engine returned fewer answers than the batch has queries.")
    error = RuntimeError(f"The engine raised {cause!r} in place of answers to the batch.")
    error.__cause__ = cause
    return error


def _abort_error() -> RuntimeError:
    return RuntimeError("The scheduler's run ended before this query was answered.")
