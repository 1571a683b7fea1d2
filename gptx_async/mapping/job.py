"""A job: what `map` or `amap` was asked to run, with checked options."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..checks import check_choice, whole_numbers
from ..errors import ConfigurationError
from .checkpoint import Checkpoint, CheckpointCheck
from .checkpoint_file import check_name
from .dataset import DatasetItems, dataset_items
from .identity import identity_of, name_of
from .results import Failed

__all__ = [
    "ItemFunction",
    "Key",
    "MapJob",
    "OnError",
    "PathName",
    "builder_of",
    "checkpoint_opener",
    "make_job",
]

ItemFunction = Callable[[Any], Any]
Key = Hashable | Callable[[Any], Any] | None
OnError = Literal["raise", "return"] | Callable[[Failed], Any]
PathName = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class MapJob:
    """What to run over a dataset, and how.

    Attributes:
        build: Returns the function that a worker runs for its items; each worker calls it once.
        dataset: The items.
        workers: The highest number of items that are in progress at once.
        open_checkpoint: Opens the checkpoint; None if the run has none.
        on_error: What becomes of an item that fails.
        shows_progress: Whether to show a progress bar.
    """

    build: Callable[[], ItemFunction]
    dataset: DatasetItems
    workers: int
    open_checkpoint: Callable[[], Checkpoint] | None
    on_error: OnError
    shows_progress: bool

    def build_function(self) -> ItemFunction:
        """Return the function that a worker runs for its items. Call it in the worker.

        Raises:
            Exception: Whatever the expression's class raised, with a note that says where.
        """
        try:
            return self.build()
        except Exception as error:
            with contextlib.suppress(Exception):  # a frozen dataclass accepts no notes
                error.add_note(
                    "Raised while gptx_async.map built the expression's class, once in each worker "
                    "and without arguments. Give an instance, or a function that builds one."
                )
            raise


def make_job(
    expression: Any,
    dataset: Any,
    workers: Any,
    on_error: Any,
    open_checkpoint: Callable[[], Checkpoint] | None,
    *,
    shows_progress: bool,
) -> MapJob:
    """Check the arguments of `map`, and return them as a job; reads nothing of the dataset.

    Raises:
        ConfigurationError: An argument is not allowed.
    """
    if not (on_error in ("raise", "return") if isinstance(on_error, str) else callable(on_error)):
        raise ConfigurationError(
            f"on_error={on_error!r} is not allowed. Give 'raise', 'return', or a function of a "
            "Failed."
        )
    return MapJob(
        builder_of(expression),
        dataset_items(dataset),
        whole_numbers().check("workers", workers),
        open_checkpoint,
        on_error,
        shows_progress,
    )


def checkpoint_opener(
    path: Any, expression: Any, *, with_pickle: bool, check: Any, key: Any
) -> Callable[[], Checkpoint] | None:
    """Return a function that opens the checkpoint, or None if there is none.

    The thread that reads the dataset opens the checkpoint, because opening it may block.

    Raises:
        ConfigurationError: An argument is not allowed.
    """
    check_choice("checkpoint_check", check, get_args(CheckpointCheck))
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ConfigurationError(f"checkpoint={path!r} is not the name of a file.")
    check_name(path)
    return lambda: Checkpoint(
        path, identity_of(expression), with_pickle=with_pickle, check=check, key=key
    )


def builder_of(expression: Any) -> Callable[[], ItemFunction]:
    """Return a function that builds what a worker runs: the expression, or an instance of it.

    Raises:
        ConfigurationError: The expression cannot be called, or is a coroutine function.
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
            f"{name_of(expression)} is a coroutine function, but each item runs in a thread. Give "
            "a plain function: its calls run concurrently with those of other items."
        )
    return expression if is_class and call is not None else lambda: expression
