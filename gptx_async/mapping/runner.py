"""`map` and `amap`: a symbolicai Expression over a dataset, many items at once.

There is no scheduler and no barrier: each item goes through the whole expression by itself, in a
worker's thread, and what its model calls wait for is the background loop's business. Here is the
consumer's side: a thread for `map`, a coroutine for `amap`; the threads are in `workers.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import operator
import os
import threading
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Hashable,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, get_args, overload

from .. import clock
from ..batch.cancel_scope import holding
from ..checks import check_choice, whole_numbers
from ..errors import (
    AsyncioNeededError,
    ConfigurationError,
    ItemStoppedError,
    MissingPackageError,
)
from ..loop.call import SLICE_SECONDS
from ..loop.thread import GRACE_SECONDS
from ..transport.error_keys import hide_key
from .backends.threads import Arrival, Job, Run, builder_of
from .checkpoint import Checkpoint, CheckpointCheck, check_name
from .dataset import rows_of
from .identity import identity_of
from .progress import Progress

__all__ = ["AsyncMap", "Failed", "Results", "amap", "map"]

T = TypeVar("T")

OnError = Literal["raise", "return"] | Callable[["Failed"], Any]
Path = str | os.PathLike[str]
Key = Hashable | Callable[[Any], Any] | None

STREAM_WINDOW = 2
"""How many items for each worker are read whose values the consumer of a stream has not taken."""

ORDERED_WINDOW = 16
"""The same where values are streamed in the order of the items, and one that is slow holds up those
that come after it."""


@dataclass(frozen=True, eq=False)
class Failed:
    """Stands in the place of an item's value when the item has failed.

    Attributes:
        index: The item's index in the dataset.
        item: The item.
        error: What the expression raised.
    """

    index: int
    item: Any
    error: BaseException


class Results(list[Any]):
    """The values of a run, in the order of the items.

    Attributes:
        failed: The items that failed, in their order, also where `on_error` gave a value for them.
        indices: The item's index in the dataset of each value: all, unless the run was stopped.

    Args:
        values: The values by the items' indices.
        failed: The failed items by their indices.
        labels: The index that pandas has for the dataset, if it has one.
    """

    def __init__(
        self,
        values: dict[int, Any] | None = None,
        failed: Iterable[Failed] = (),
        labels: Any = None,
    ) -> None:
        values = values or {}
        self.indices = sorted(values)
        super().__init__(values[index] for index in self.indices)
        self.failed = sorted(failed, key=operator.attrgetter("index"))
        self._labels = labels

    def to_pandas(self) -> Any:
        """Return the values as a pandas Series, with the index of the dataset if it has one.

        A `Failed` stays in it as it is: `series.map(lambda value: isinstance(value, Failed))`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise MissingPackageError(
                "to_pandas() needs pandas, which is not installed. Install it: pip install pandas."
            ) from error
        index = self.indices if self._labels is None else self._labels[self.indices]
        series = pandas.Series(index=index, dtype=object)
        for position, value in enumerate(self):  # each by itself: a list is a value, too
            series.iat[position] = value
        return series.infer_objects()


@overload
def map(  # noqa: A001 - what it does to a dataset, as the built-in to an iterable
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = ...,
    on_error: OnError = ...,
    as_completed: Literal[False] = ...,
    progress: bool = ...,
    checkpoint: Path | None = ...,
    checkpoint_pickle: bool = ...,
    checkpoint_check: CheckpointCheck = ...,
    key: Key = ...,
) -> Results: ...


@overload
def map(  # noqa: A001
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = ...,
    on_error: OnError = ...,
    as_completed: Literal[True],
    progress: bool = ...,
    checkpoint: Path | None = ...,
    checkpoint_pickle: bool = ...,
    checkpoint_check: CheckpointCheck = ...,
    key: Key = ...,
) -> Generator[tuple[int, Any]]: ...


def map(  # noqa: A001
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = 64,
    on_error: OnError = "raise",
    as_completed: bool = False,
    progress: bool = False,
    checkpoint: Path | None = None,
    checkpoint_pickle: bool = False,
    checkpoint_check: CheckpointCheck = "all",
    key: Key = None,
) -> Results | Generator[tuple[int, Any]]:
    """Run a symbolicai Expression over a dataset, with many items at once; blocks this thread.

    Works with this package's engine and with any other that is registered, and with functions that
    ask none. Each item is run in a thread, in a copy of the caller's context. Allowed in any
    thread; in a coroutine use `amap`.

    Args:
        expression: Called with one item: an instance or a function, shared by all workers; or a
            class of callable instances, such as an Expression, of which each worker builds one,
            without arguments.
        dataset: Any iterable, of any length or endless: it is read by one thread, an item at a time
            and only when a worker is free for it. Also a pandas Series; a DataFrame or a mapping of
            columns, whose items are rows as dictionaries; or a Symbol whose value is one of these.
        workers: How many items are worked on at once, a thread each.
        on_error: What an item that fails becomes: "raise" raises its error here, and cancels what
            is in flight; "return" puts a `Failed` in the place of its value; a function is called
            with the `Failed`, in this thread, and returns the value.
        as_completed: Whether to return an iterator of `(index, value)`, in the order in which they
            are done, which keeps nothing; it is run by its consumer, and stops when that does.
        progress: Whether to show a bar on standard error, if that is a terminal or a notebook.
        checkpoint: An SQLite file, in which values are kept as they come: a second run of the same
            expression on the same items does only what is missing. Values are stored as JSON, and
            Symbols of JSON values as tagged JSON; any other value ends the run with a
            `CheckpointError`.
        checkpoint_pickle: Whether other values are stored and read with pickle. Reading a pickled
            value runs the code in it: choose this only if you trust everybody who can write to the
            file.
        checkpoint_check: What must match the run that created the checkpoint: "code" (the
            expression, the plain values that it uses, and the model), "items", "all" for both, or
            "none". Rows are compared by the columns that they had in that run.
        key: What identifies an item in a checkpoint: the name of a column, or a function of the
            item that runs in the thread which reads the dataset; the whole item when None.

    Returns:
        The values in the order of the items; or, with `as_completed`, an iterator.

    Raises:
        ConfigurationError: An argument is not as described above.
        DatasetError: The dataset raised an error; what was read before has been worked on.
        CheckpointError: The checkpoint can't be used, is another job's, or can't store a value.
        BaseException: The error of an item, with "raise"; or what arrives in this thread, a
            KeyboardInterrupt say. What is in flight is then cancelled, and what is done is in the
            error's attribute `results`, as `Results`: with `as_completed` what was not taken yet.
    """
    opener = _opener_of(
        checkpoint, expression, with_pickle=checkpoint_pickle, check=checkpoint_check, key=key
    )
    plan = _plan(expression, dataset, workers, on_error, progress, opener)
    if as_completed:
        return _stream(plan)
    return _collect(plan)


@overload
def amap(
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = ...,
    on_error: OnError = ...,
    as_completed: Literal[False] = ...,
    progress: bool = ...,
    checkpoint: Path | None = ...,
    checkpoint_pickle: bool = ...,
    checkpoint_check: CheckpointCheck = ...,
    key: Key = ...,
) -> AsyncMap[Any]: ...


@overload
def amap(
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = ...,
    on_error: OnError = ...,
    as_completed: Literal[True],
    progress: bool = ...,
    checkpoint: Path | None = ...,
    checkpoint_pickle: bool = ...,
    checkpoint_check: CheckpointCheck = ...,
    key: Key = ...,
) -> AsyncMap[tuple[int, Any]]: ...


def amap(
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = 64,
    on_error: OnError = "raise",
    as_completed: bool = False,
    progress: bool = False,
    checkpoint: Path | None = None,
    checkpoint_pickle: bool = False,
    checkpoint_check: CheckpointCheck = "all",
    key: Key = None,
) -> AsyncMap[Any]:
    """Do what `map` does, for a coroutine, whose loop is never blocked.

    To be awaited, for the `Results`; or iterated over by `async for`, for the values in the order
    of the items, or with `as_completed` for `(index, value)`. Nothing runs before. To cancel the
    coroutine cancels what is in flight. Expression and dataset run in threads, as with `map`; an
    `on_error` function runs on the loop.

    Args:
        expression: As for `map`.
        dataset: As for `map`.
        workers: As for `map`.
        on_error: As for `map`.
        as_completed: As for `map`.
        progress: As for `map`.
        checkpoint: As for `map`.
        checkpoint_pickle: As for `map`.
        checkpoint_check: As for `map`.
        key: As for `map`.

    Raises:
        ConfigurationError: An argument is not as described.
        AsyncioNeededError: While it is awaited under trio, or outside of any loop.
        BaseException: While it is awaited, as `map` does; an asyncio.CancelledError when the caller
            is cancelled.
    """
    opener = _opener_of(
        checkpoint, expression, with_pickle=checkpoint_pickle, check=checkpoint_check, key=key
    )
    plan = _plan(expression, dataset, workers, on_error, progress, opener)
    return AsyncMap(plan, as_completed=as_completed)


class AsyncMap(Generic[T]):
    """A run over a dataset that a coroutine awaits or iterates over; made by `amap`."""

    def __init__(self, plan: _Plan, *, as_completed: bool) -> None:
        self._plan = plan
        self._as_completed = as_completed

    def __await__(self) -> Generator[Any, None, Results]:
        if self._as_completed:
            raise ConfigurationError(
                "amap(..., as_completed=True) is a stream: iterate over it by `async for`, or "
                "leave as_completed out to await all values in the order of the items."
            )
        return _collect_on_loop(self._plan).__await__()

    def __aiter__(self) -> AsyncGenerator[T]:
        stream: Any = _stream_on_loop if self._as_completed else _stream_in_order_on_loop
        values: AsyncGenerator[T] = stream(self._plan)
        return values


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was asked for, looked over."""

    job: Job
    on_error: OnError
    progress: bool


def _plan(
    expression: Any,
    dataset: Any,
    workers: Any,
    on_error: Any,
    progress: bool,
    open_checkpoint: Callable[[], Checkpoint] | None,
) -> _Plan:
    if not (on_error in ("raise", "return") if isinstance(on_error, str) else callable(on_error)):
        raise ConfigurationError(
            f"on_error={on_error!r} is neither 'raise' nor 'return' nor a function of a Failed."
        )
    build = builder_of(expression)
    rows = rows_of(dataset)
    job = Job(build, rows, whole_numbers().check("workers", workers), open_checkpoint)
    return _Plan(job, on_error, progress)


def _opener_of(
    path: Any, expression: Any, *, with_pickle: bool, check: Any, key: Any
) -> Callable[[], Checkpoint] | None:
    check_choice("checkpoint_check", check, get_args(CheckpointCheck))
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ConfigurationError(f"checkpoint={path!r} is not the name of a file.")
    check_name(path)
    return lambda: Checkpoint(
        path, identity_of(expression), with_pickle=with_pickle, check=check, key=key
    )


class _Consumer:
    """Takes what arrives of a run, in one thread or on one loop.

    Attributes:
        run: The run.
        values: The values that are kept for their caller, by the items' indices.

    Args:
        plan: What to run.
        window: How many items for each worker are read whose values are not taken; None for any
            number.
        wake: Called in any thread when something has arrived.
        in_frame: Whether errors leave through the frame of a generator or a coroutine, which Python
            does not let raise a StopIteration.
    """

    def __init__(
        self, plan: _Plan, window: int | None, wake: Callable[[], None], *, in_frame: bool
    ) -> None:
        self.run = Run(plan.job, window and window * plan.job.workers, wake)
        self.values: dict[int, Any] = {}
        self._plan = plan
        self._failed: dict[int, Failed] = {}
        self._stopped_by: int | None = None
        self._raised: BaseException | None = None
        self._in_frame = in_frame
        self._progress = Progress(plan.job.rows.count, is_wanted=plan.progress)

    @property
    def is_over(self) -> bool:
        return self.run.is_over and not self.run.arrived  # in this order

    def accept(self) -> int:
        """Take the value that arrived first, and return its index.

        Raises:
            ItemStoppedError: In place of a StopIteration, in a generator or a coroutine.
            BaseException: The item's error, if that is to end the run; or what the run ended with.
        """
        try:
            return self._accept()
        except (StopIteration, StopAsyncIteration) as error:
            if not self._in_frame:
                raise
            index = self.run.arrived[0].index
            raise ItemStoppedError(
                f"{'The run' if index is None else f'Item {index}'} raised {type(error).__name__}, "
                "which Python lets no generator or coroutine raise. Let the expression raise "
                'another error, or give on_error="return".'
            ) from error

    def _accept(self) -> int:
        arrival = self.run.arrived[0]
        if arrival.index is None:
            raise self._error_of(arrival)
        failed = arrival.error is not None
        self.values[arrival.index] = self._value_in_place(arrival) if failed else arrival.value
        self.run.arrived.popleft()  # only now: an interrupt in between loses nothing
        self._progress.add(failed=failed)
        return arrival.index

    def hand_over(self, index: int) -> Any:
        """Return a value that its caller takes now; it is kept until `forget`."""
        self.run.taken()
        return self.values[index]

    def forget(self, index: int) -> None:
        """Keep a value no longer."""
        del self.values[index]
        self._failed.pop(index, None)

    def look(self) -> None:
        """Do what is to be done while nothing arrives."""
        self._progress.refresh()

    def results(self) -> Results:
        """Return what is done and was not handed over."""
        arrived = {
            each.index: each.value
            for each in [*self.run.arrived]
            if each.index is not None and each.error is None
        }
        labels = self._plan.job.rows.labels
        return Results(arrived | self.values, self._failed.values(), labels)

    def tell(self, error: BaseException) -> None:
        """Put what is done on the error that has stopped the run."""
        if isinstance(error, GeneratorExit) and error is not self._raised:
            return  # nobody sees it: the caller takes no more values
        results = self.results()
        with contextlib.suppress(Exception):  # its class may have another `results`
            # Not setattr: an error may be a frozen dataclass, or refuse attributes otherwise.
            object.__setattr__(error, "results", results)
        with contextlib.suppress(Exception):
            error.add_note(self._note(results))

    @contextlib.contextmanager
    def telling(self, error: BaseException) -> Iterator[None]:
        """Put what is done on the error after the block, which waits for the threads' ends.

        What interrupts the block, a second Ctrl-C for example, gets it as well.
        """
        try:
            yield
        except BaseException as interrupt:
            self.tell(interrupt)
            raise
        finally:
            self.tell(error)

    def _note(self, results: Results) -> str:
        where = "" if self._stopped_by is None else f"Raised for item {self._stopped_by}. "
        kept = ""
        if self._plan.job.open_checkpoint is not None and results:
            unkept = len({*self.run.unkept} & {*results.indices})
            kept = (
                f", and all but {unkept} of them in the checkpoint"
                if unkept
                else (", and in the checkpoint")
            )
        return (
            f"{where}gptx_async has stopped the run; the values that were done and not taken yet, "
            f"{len(results)}, are in this error's attribute `results`{kept}."
        )

    def close(self) -> None:
        """End the bar."""
        self._progress.close()

    def _value_in_place(self, arrival: Arrival) -> Any:
        """Return what stands in the place of the value of an item that failed."""
        if self._plan.on_error == "raise":
            raise self._error_of(arrival)
        assert arrival.index is not None
        assert arrival.error is not None
        hide_key(arrival.error)  # results are pickled and kept
        failed = Failed(arrival.index, arrival.item, arrival.error)
        self._failed[arrival.index] = failed
        return self._plan.on_error(failed) if callable(self._plan.on_error) else failed

    def _error_of(self, arrival: Arrival) -> BaseException:
        self._stopped_by = arrival.index
        self._raised = arrival.error
        assert arrival.error is not None
        return arrival.error


class _ThreadBell:
    """Wakes the thread that waits for a run."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        if not self._rung.is_set():
            self._rung.set()

    def wait(self) -> None:
        """Wait until it was rung since the last time, or for a slice of time."""
        self._rung.wait(SLICE_SECONDS)
        self._rung.clear()


class _LoopBell:
    """Wakes the coroutine that waits for a run."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[None] = self._loop.create_future()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._resolve)

    async def wait(self, seconds: float = SLICE_SECONDS) -> None:
        """Wait until it was rung since the last time, or for some seconds."""
        await asyncio.wait([self._rung], timeout=seconds)
        if self._rung.done():
            self._rung = self._loop.create_future()

    def _resolve(self) -> None:
        if not self._rung.done():
            self._rung.set_result(None)


class _Consuming:
    """Runs a plan while its block takes the values; the block gets the consumer and its wait.

    A class, because `contextlib.contextmanager` sets the traceback of an error that leaves its
    block, which errors that are frozen dataclasses do not allow.
    """

    def __init__(self, plan: _Plan, window: int | None, *, in_frame: bool) -> None:
        self._bell = _ThreadBell()
        self._consumer = _Consumer(plan, window, self._bell.ring, in_frame=in_frame)
        self._holding = holding(self._consumer.run)  # it may be part of another run's item

    def __enter__(self) -> tuple[_Consumer, Callable[[], None]]:
        try:
            self._holding.__enter__()
            self._consumer.run.start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self._consumer, self._wait

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._holding.__exit__(kind, error, traceback)
            if error is None:
                self._consumer.run.join()
        except BaseException as failure:
            self._stop(failure)
            raise
        else:
            if error is not None:
                self._stop(error)
        finally:
            self._consumer.run.join()
            self._consumer.close()

    def _stop(self, error: BaseException) -> None:
        self._consumer.run.cancel()
        with self._consumer.telling(error):  # afterwards, because what ends now is done as well
            self._consumer.run.join()

    def _wait(self) -> None:
        self._bell.wait()
        self._consumer.look()


def _collect(plan: _Plan) -> Results:
    with _Consuming(plan, None, in_frame=False) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.arrived:
                consumer.accept()
            else:
                wait()
        return consumer.results()


def _stream(plan: _Plan) -> Generator[tuple[int, Any]]:
    with _Consuming(plan, STREAM_WINDOW, in_frame=True) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.arrived:
                index = consumer.accept()
                yield index, consumer.hand_over(index)
                consumer.forget(index)
            else:
                wait()


class _ConsumingOnLoop:
    """Does what `_Consuming` does, on the caller's loop."""

    def __init__(self, plan: _Plan, window: int | None) -> None:
        if asyncio._get_running_loop() is None:
            raise AsyncioNeededError(
                "gptx_async.amap needs asyncio's event loop, and none is running here. Under trio "
                "use trio.to_thread.run_sync(gptx_async.map, expression, dataset)."
            )
        self._bell = _LoopBell()
        self._consumer = _Consumer(plan, window, self._bell.ring, in_frame=True)
        self._holding = holding(self._consumer.run)

    async def __aenter__(self) -> tuple[_Consumer, Callable[[], Awaitable[None]]]:
        try:
            self._holding.__enter__()
            self._consumer.run.start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self._consumer, self._wait

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._holding.__exit__(kind, error, traceback)
            if error is None:
                await _until_over(self._consumer.run, self._bell)
        except BaseException as failure:
            await self._stop(failure)
            raise
        else:
            if error is not None:
                await self._stop(error)
        finally:
            _leave_on_loop(self._consumer.run)
            self._consumer.close()

    async def _stop(self, error: BaseException) -> None:
        self._consumer.run.cancel()
        if isinstance(error, GeneratorExit):  # the coroutine is thrown away: it can await nothing
            self._consumer.tell(error)
            return
        with self._consumer.telling(error):
            await _until_over(self._consumer.run, self._bell)

    async def _wait(self) -> None:
        await self._bell.wait()
        self._consumer.look()


async def _until_over(run: Run, bell: _LoopBell) -> None:
    until = clock.seconds() + GRACE_SECONDS
    while not run.is_over and (seconds := until - clock.seconds()) > 0:
        await bell.wait(seconds)


def _leave_on_loop(run: Run) -> None:
    """Wait for the threads if they are at their very ends, else let another thread do it."""
    if run.is_over:
        run.join()
        return
    try:
        threading.Thread(target=run.join, name="gptx_async-map-end", daemon=True).start()
    except RuntimeError:  # there can be no more threads
        run.close()


async def _collect_on_loop(plan: _Plan) -> Results:
    async with _ConsumingOnLoop(plan, None) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.arrived:
                consumer.accept()
                await asyncio.sleep(0)  # the loop goes on, however many there are
            else:
                await wait()
        return consumer.results()


async def _stream_on_loop(plan: _Plan) -> AsyncGenerator[tuple[int, Any]]:
    async with _ConsumingOnLoop(plan, STREAM_WINDOW) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.arrived:
                index = consumer.accept()
                await asyncio.sleep(0)
                yield index, consumer.hand_over(index)
                consumer.forget(index)
            else:
                await wait()


async def _stream_in_order_on_loop(plan: _Plan) -> AsyncGenerator[Any]:
    index = 0
    async with _ConsumingOnLoop(plan, ORDERED_WINDOW) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.arrived:
                consumer.accept()
                await asyncio.sleep(0)
            else:
                await wait()
            while index in consumer.values:
                yield consumer.hand_over(index)
                consumer.forget(index)
                index += 1
