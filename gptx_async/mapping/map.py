"""The public functions `map` and `amap`: a symbolicai Expression over a dataset."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Generic, Literal, TypeVar, overload

from ..errors import ConfigurationError
from .checkpoint import CheckpointCheck
from .job import Key, MapJob, OnError, PathName, checkpoint_opener, make_job
from .results import Results
from .runner import (
    collect,
    collect_on_loop,
    stream,
    stream_in_order_on_loop,
    stream_on_loop,
)

__all__ = ["AsyncMap", "amap", "map"]

T = TypeVar("T")


@overload
def map(  # noqa: A001 - what it does to a dataset, as the built-in to an iterable
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = ...,
    on_error: OnError = ...,
    as_completed: Literal[False] = ...,
    progress: bool = ...,
    checkpoint: PathName | None = ...,
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
    checkpoint: PathName | None = ...,
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
    checkpoint: PathName | None = None,
    checkpoint_pickle: bool = False,
    checkpoint_check: CheckpointCheck = "all",
    key: Key = None,
) -> Results | Generator[tuple[int, Any]]:
    """Run a symbolicai Expression over a dataset, many items at once; blocks this thread.

    It works with every registered engine, and with functions that call none. Each item runs in a
    worker thread, in a copy of the caller's context. Allowed in any thread; coroutines use `amap`.

    Args:
        expression: Called with one item. All workers share a function or an instance. If it is a
            class of callable instances, such as an Expression, each worker builds its own instance,
            without arguments.
        dataset: Any iterable, even an endless one. One thread reads it, an item at a time, when a
            worker is free. Also a pandas Series; a DataFrame or a mapping of columns, whose items
            are rows as dictionaries; or a Symbol whose value is one of these.
        workers: How many items run at once; each has a thread.
        on_error: What happens when an item fails. "raise" raises its error here and cancels calls
            in flight; "return" puts a `Failed` in place of its value; a function is called with the
            `Failed`, in this thread, and returns the value.
        as_completed: Whether to return an iterator of `(index, value)` pairs as items end. Values
            are not kept, and the run stops when the iterator is closed.
        progress: Whether to show a bar on standard error, in a terminal or a notebook.
        checkpoint: An SQLite file for the values: a second run of the same expression on the same
            items computes only those that are missing. It stores JSON values and Symbols of them;
            another value ends the run with a `CheckpointError`.
        checkpoint_pickle: Whether to pickle other values. Reading pickled values runs the code in
            them: use it only if you trust everybody who can write to the file.
        checkpoint_check: What must match the run that created the checkpoint: "code" (the
            expression, the plain values that it uses, the model), "items", "all", or "none". Rows
            are compared by the columns that they had in that run.
        key: What identifies an item in a checkpoint: the name of a column, or a function of the
            item, called in the thread that reads the dataset; None for the whole item.

    Returns:
        The values in the order of the items; or, with `as_completed`, an iterator.

    Raises:
        ConfigurationError: An argument is not allowed.
        DatasetError: The dataset raised an error. The items read before it are completed first.
        CheckpointError: The checkpoint cannot be used, is another job's, or cannot store a value.
        BaseException: An item's error, with "raise"; or an interrupt of this thread. Calls in
            flight are cancelled, and the error's attribute `results` has the values that were done
            and not yet taken, as `Results`.
    """
    opener = checkpoint_opener(
        checkpoint, expression, with_pickle=checkpoint_pickle, check=checkpoint_check, key=key
    )
    job = make_job(expression, dataset, workers, on_error, opener, shows_progress=progress)
    return stream(job) if as_completed else collect(job)


@overload
def amap(
    expression: Callable[..., Any],
    dataset: Any,
    *,
    workers: int = ...,
    on_error: OnError = ...,
    as_completed: Literal[False] = ...,
    progress: bool = ...,
    checkpoint: PathName | None = ...,
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
    checkpoint: PathName | None = ...,
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
    checkpoint: PathName | None = None,
    checkpoint_pickle: bool = False,
    checkpoint_check: CheckpointCheck = "all",
    key: Key = None,
) -> AsyncMap[Any]:
    """Run a symbolicai Expression over a dataset, without blocking the caller's loop.

    Await the result for the `Results`; or iterate over it with `async for`, for the values in the
    order of the items, or with `as_completed` for `(index, value)` pairs. Nothing runs before that.
    Cancelling the coroutine cancels the calls in flight. The expression and the dataset run in
    threads, as with `map`; an `on_error` function runs on the caller's loop.

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
        ConfigurationError: An argument is not allowed.
        AsyncioNeededError: When awaited under trio, or where no loop is running.
        BaseException: When awaited, the same errors as `map`; an asyncio.CancelledError if the
            caller is cancelled.
    """
    opener = checkpoint_opener(
        checkpoint, expression, with_pickle=checkpoint_pickle, check=checkpoint_check, key=key
    )
    job = make_job(expression, dataset, workers, on_error, opener, shows_progress=progress)
    return AsyncMap(job, as_completed=as_completed)


class AsyncMap(Generic[T]):
    """A run over a dataset, to be awaited or iterated over. Returned by `amap`."""

    def __init__(self, job: MapJob, *, as_completed: bool) -> None:
        self._job = job
        self._as_completed = as_completed

    def __await__(self) -> Generator[Any, None, Results]:
        if self._as_completed:
            raise ConfigurationError(
                "amap(..., as_completed=True) is a stream. Iterate over it with `async for`, or "
                "leave out as_completed and await all values in the order of the items."
            )
        return collect_on_loop(self._job).__await__()

    def __aiter__(self) -> AsyncGenerator[T]:
        run: Any = stream_on_loop if self._as_completed else stream_in_order_on_loop
        values: AsyncGenerator[T] = run(self._job)
        return values
