"""The rows of `gptx-async run`: from the input through `map` to the output.

`map` reads `InputRows` in a thread of its own. `ResultWriter` writes each row with its output in
the main thread, in the order of the input.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import clock
from ..errors import DataFileError
from ..mapping import map as mapping
from ..mapping.checkpoint_file import remove_checkpoint
from ..mapping.results import Failed, Results
from .expression import Prompt, Work, fields_of
from .files.formats import PIPE, format_of
from .files.sink import Sink
from .files.source import Row, Source
from .options import RunOptions
from .report import RunReport, error_fields, error_to_report
from .terminal import Interrupts

__all__ = ["CountedInputRows", "InputRows", "ResultWriter"]

REORDERED = 16
"""How many rows per worker may be read and not yet written: a slow row delays that many others."""


class InputRows:
    """The rows of the input. `map` iterates over them; each is kept until it is written.

    Attributes:
        first: The first row, read at once because it shows errors that all rows have; None if there
            are no rows.
        check: Called with the fields and the place of each row before `map` gets the row.

    Raises:
        DataFileError: The first row can't be read, or lacks a field that the options name.
    """

    def __init__(self, source: Source, options: RunOptions) -> None:
        self._source = source
        self._names = _field_names(options)
        self._kept: dict[int, Row] = {}
        self._room = threading.Semaphore(REORDERED * options.workers)
        self._is_closed = False
        self.check: Callable[[Mapping[str, Any], str], None] = lambda _fields, _place: None
        self.first = next(source.rows(), None)
        self._check_names()

    def __iter__(self) -> Iterator[Any]:
        index, row = 0, self.first
        while row is not None:
            self._room.acquire()
            if self._is_closed:
                return
            self.check(fields_of(row.value), f"{self._source.name}, {row.place}")
            self._kept[index] = row
            yield row.value
            index, row = index + 1, next(self._source.rows(), None)

    def take(self, index: int) -> Row:
        """Return a row that is about to be written, and make room for another."""
        row = self._kept.pop(index)
        self._room.release()
        return row

    def close(self) -> None:
        """End the iteration, even in a thread that waits for room."""
        self._is_closed = True
        self._room.release()

    def _check_names(self) -> None:
        if self.first is None:
            return
        fields = self._source.fields or fields_of(self.first.value)
        for option, name in self._names:
            if name not in fields:
                raise DataFileError(
                    f"{self._source.name} has no field {name!r}, which {option} names. Its fields "
                    f"are: {', '.join(fields) or 'none'}."
                )


class CountedInputRows(InputRows):
    """Input rows of a known number, for the progress bar."""

    def __init__(self, source: Source, options: RunOptions, count: int) -> None:
        super().__init__(source, options)
        self._count = count

    def __len__(self) -> int:
        return self._count


class ResultWriter:
    """Runs the work for all rows, and writes the results in the order of the rows.

    Args:
        rows: The input.
        sink: The output.
        work: The function to run for each row.
        checkpoint: The file in which `map` stores results, or None.
        options: The options of the command.
    """

    def __init__(
        self,
        rows: InputRows,
        sink: Sink,
        work: Work,
        checkpoint: Path | None,
        options: RunOptions,
    ) -> None:
        self._rows = rows
        self._sink = sink
        self._work = work
        self._checkpoint = checkpoint
        self._options = options
        self._done: dict[int, Any] = {}
        self._next = 0
        self._written = 0
        self._errors: Counter[str] = Counter()
        self._is_sink_broken = False
        self._is_output_unchanged = False

    def run(self, engine: Any) -> int:
        """Process all rows, print the summary, and return the exit code. Use the main thread.

        Raises:
            GPTXAsyncError: The run ended early. Results so far are written and stored.
            KeyboardInterrupt: The user pressed Ctrl-C. Results so far are written and stored.
        """
        begun = clock.seconds()
        with Interrupts() as interrupts:
            error = self._take_all(interrupts)
            with interrupts.held():
                self._end(error)
                if not self._options.quiet:
                    self._report(error, clock.seconds() - begun).print(engine.stats())
        if error is not None:
            raise error_to_report(error)
        return 1 if self._errors else 0

    def _take_all(self, interrupts: Interrupts) -> BaseException | None:
        """Write results until all are written or an error ends the run; return that error."""
        stream = mapping.map(
            self._work,
            self._rows,
            workers=self._options.workers,
            on_error="return",
            as_completed=True,
            progress=not self._options.quiet,
            checkpoint=self._checkpoint,
        )
        try:
            for index, value in stream:
                with interrupts.held():
                    self._done[index] = value
                    self._write_in_order()
        except BaseException as error:
            # An error from this block must end the stream as well. An error from the stream is just
            # raised again. Either then has the results that were not taken.
            with contextlib.suppress(BaseException):
                stream.throw(error)
            self._add_untaken(getattr(error, "results", None))
            return error
        return None

    def _add_untaken(self, results: Results | None) -> None:
        if results is not None:
            for index, value in zip(results.indices, results, strict=True):
                if index >= self._next:
                    self._done.setdefault(index, value)

    def _write_in_order(self) -> None:
        if self._next not in self._done:
            return
        while self._next in self._done:
            self._write(self._next, self._done.pop(self._next))
            self._next += 1
        with self._sink_errors_noted():
            self._sink.flush()

    def _write(self, index: int, value: Any) -> None:
        fields = dict(fields_of(self._rows.take(index).value))
        if isinstance(value, Failed):
            self._errors[type(value.error).__name__] += 1
            fields[self._options.error_field] = error_fields(value.error)
        else:
            fields[self._options.output_field] = value
        with self._sink_errors_noted():
            self._sink.write(fields)
        self._written += 1

    @contextlib.contextmanager
    def _sink_errors_noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._is_sink_broken = True
            raise

    def _end(self, error: BaseException | None) -> None:
        """Write the results that are out of order if the run ended early, and close the output."""
        self._rows.close()
        if error is not None and not self._sink.is_begun and not self._done:
            return  # there are no results, so an existing output stays
        try:
            if not self._is_sink_broken:
                for index in sorted(self._done):
                    self._write(index, self._done[index])
                self._is_output_unchanged = error is not None and self._had_more_rows()
                if not self._is_output_unchanged:
                    self._sink.close()
        except (DataFileError, BrokenPipeError):
            if error is None:
                raise
        finally:
            self._sink.abandon()
        if error is None and not self._errors and self._checkpoint is not None:
            remove_checkpoint(self._checkpoint)

    def _had_more_rows(self) -> bool:
        """Return whether the existing output, of the run that this run resumes, has more rows."""
        path, chosen = self._options.output, self._options.output_format
        if not self._options.resume or path == PIPE or not Path(path).is_file():
            return False
        with Source(path, format_of(path, chosen, "--output-format")) as before:
            return (before.count() or 0) > self._written

    def _report(self, error: BaseException | None, seconds: float) -> RunReport:
        is_complete = error is None and not self._errors
        return RunReport(
            written=self._written,
            kept=max(0, self._written - self._work.asked),
            errors=self._errors,
            seconds=seconds,
            output=self._sink.name,
            is_output_unchanged=self._is_output_unchanged,
            can_resume=self._checkpoint is not None and not is_complete,
        )


def _field_names(options: RunOptions) -> list[tuple[str, str]]:
    """Return the options that name fields, each with a name."""
    if options.prompt is not None:
        return [("--prompt", name) for name in Prompt(options.prompt).names]
    return [] if options.field is None else [("--field", options.field)]
