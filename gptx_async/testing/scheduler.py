"""`BatchScheduler`: drives an engine by the protocol of symbolicai's public batch scheduler."""

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
"""What the engine made of one argument: outputs and metadata."""


class BatchScheduler:
    """Runs an Expression over a dataset on worker threads, and its queries in batches.

    A stand-in, for tests, for the scheduler that symbolicai's users install beside it. It follows
    that one's protocol to the letter, its hazards included: the scheduler made last owns the
    engine; a batch begins when the one before was picked up to its last answer; a query that comes
    to it after a run waits for ever. It differs only where the original hangs or guesses:

    - counters are changed under a lock, and threads wait for a change in place of polling;
    - an engine that raises, or answers less than it was asked, makes the queries without an answer
      raise a RuntimeError;
    - an interrupt, and what is no Exception in an Expression, ends the run: queries that wait or
      come later raise a RuntimeError, and `forward` raises at once;
    - a number of workers or a batch size below 1 raises a ValueError.

    Register the engine first: making the scheduler puts its callback into 'neurosymbolic'.

    Attributes:
        all_batches_complete: Set when a run's last expression has ended; there is none before the
            first run, and a new one with each.

    Args:
        num_workers: How many items are worked on at once.
        batch_size: How many queries make a batch; never more than there are workers or items.

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
        """Run an Expression over all items; one run at a time.

        Args:
            expr: An Expression's class: it is made once, with `kwargs`, and called from all workers
                as `expression(input=item, **kwargs)`. Or something made already, an instance or a
                function, which is called as `expr(item, **kwargs)`.
            dataset: The items.
            **kwargs: Handed to the class, and to every call.

        Returns:
            What each item came to, in their order. An Exception that left the Expression stands in
            its item's place.

        Raises:
            BaseException: What is no Exception ends the run: KeyboardInterrupt, say.
        """
        process = _bind_expression(expr, kwargs)
        run = _SchedulerRun(min(self.batch_size, len(dataset) or 1, self.num_workers), len(dataset))
        self._run, self.all_batches_complete = run, run.complete
        # New for every run, and a daemon: after an interrupt it may have to wait for a call.
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
            argument: symbolicai's Argument, prepared.

        Returns:
            The outputs, a list always, and the metadata.

        Raises:
            AttributeError: No run has begun yet.
            RuntimeError: The engine has not answered, or the run was ended by an interrupt.
        """
        return self._run.query(argument)


class _SchedulerRun:
    """One run: the queue between the workers and the query thread, and the counters of both."""

    def __init__(self, batch_size: int, expressions: int) -> None:
        self.complete = threading.Event()
        self._batch_size = batch_size
        # Guards what follows, and wakes the query thread when any of it has changed.
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
        """Work on one item, in a worker; an Exception is its result."""
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
        """Wait for the answer of a batch, in a worker; picking it up lets the next one begin."""
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
        """End the run: what waits for an answer fails now, though the engine may go on."""
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
        """Bring the queries to the engine, one batch at a time, until no expression is left."""
        while batch := self._next_batch():
            self._deliver(batch, *_call_engine([argument for argument, _ in batch]))

    def _next_batch(self) -> list[tuple[Any, Future[Answer]]]:
        """Wait until the last batch is picked up and the next one is due, and take it."""
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
    """Look the engine up, as for every batch, and return its answers, or what it raised."""
    from symai.core_ext import bind

    @bind(engine="neurosymbolic", property="__call__")  # type: ignore[untyped-decorator]
    def engine_call() -> Any:
        """Be replaced by the look-up."""

    try:
        answers = engine_call()(arguments)
        return [(x if isinstance(x, list) else [x], y) for x, y in answers], None
    except BaseException as error:  # or the workers would wait for ever
        return [], error


def _engine_error(cause: BaseException | None) -> RuntimeError:
    """Make the error of a query without an answer: a new one for each, for each is raised."""
    if cause is None:
        return RuntimeError("The engine answered fewer queries than it was asked in a batch.")
    error = RuntimeError(f"The engine raised {cause!r} in place of answering the batch.")
    error.__cause__ = cause
    return error


def _abort_error() -> RuntimeError:
    return RuntimeError("The scheduler's run was ended before this query was answered.")
