"""Ctrl-C and standard output while `gptx-async run` runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, BinaryIO

from ..errors import DataFileError

__all__ = ["Interrupts", "claimed_stdout"]


class Interrupts:
    """A context manager that handles Ctrl-C, and can delay it while a row is written or counted.

    Enter it in the main thread.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._is_pending = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Delay Ctrl-C until the end of the block, which then raises KeyboardInterrupt."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_held:
            self._is_pending = True
        else:
            raise KeyboardInterrupt


@contextlib.contextmanager
def claimed_stdout() -> Iterator[BinaryIO]:
    """Reserve standard output for results: other output goes to standard error in the block.

    Raises:
        DataFileError: Standard output is closed or can't be written.
        BrokenPipeError: The reader of standard output has closed it.
    """
    if sys.stdout is None:
        raise DataFileError("Standard output is closed. Open it, or give --output a file name.")
    _flush_stdout()
    number = os.dup(1)
    pipe = open(os.dup(number), "wb")  # noqa: SIM115 - closed below, where an error is expected
    _redirect_stdout_to_stderr()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield pipe
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):  # the sink has already raised an error for it
            pipe.close()
        os.dup2(number, 1)
        os.close(number)


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataFileError(
            f"Standard output can't be written ({error.strerror}). Give --output a file name."
        ) from error


def _redirect_stdout_to_stderr() -> None:
    if sys.stderr is not None:
        os.dup2(2, 1)
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
