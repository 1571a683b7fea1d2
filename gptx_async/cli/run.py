"""`gptx-async run`: an Expression, or a prompt, over the rows of a file, into another file.

A row's way: `_Rows` gives it to `map`, in map's thread, and remembers it; `Work` picks the field
out of it and asks, in a worker's; `_Results` puts it with its output into the other file, in the
main thread and in the order of the rows.

The checkpoint of `map` lies beside the output until all rows are done. `--resume` goes on from it,
also after a kill, and it has what was done out of order, too. The output is no record of that: it
is written anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from .. import clock
from ..errors import (
    CheckpointError,
    ConfigurationError,
    DataFileError,
    DatasetError,
    GPTXAsyncError,
)
from ..mapping import map as mapping
from ..mapping.checkpoint_file import is_checkpoint, remove_checkpoint
from ..mapping.progress import is_terminal
from ..mapping.results import Failed, Results
from ..symbolicai.configuration import FILE_NAME, KEY, MODEL, read_configuration
from .expression import Prompt, Work, fields_of, load_expression
from .files.formats import PIPE, format_of
from .files.sink import Sink
from .files.source import Row, Source

__all__ = ["RunOptions", "run"]

REORDERED = 16
"""How many rows for each worker are read and not written yet: one that is slow holds up as many."""

CHECKPOINT_SUFFIX = ".checkpoint"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `gptx-async run` is to do.

    Attributes:
        input: The file of rows; '-' for standard input.
        output: The file of results; '-' for standard output.
        expression: 'package.module:attribute', of an Expression or a function of one item.
        prompt: A prompt with the names of fields in braces, in the place of an expression.
        field: Which field of a row is the expression's item; the whole row when None.
        input_format: One of `formats.FORMATS`; by the file's name when None.
        output_format: The same of the output.
        encoding: Of the input's text; UTF-8 when None.
        output_field: Under which name an output stands.
        error_field: Under which name an error stands.
        csv_safe: Quote the cells of CSV that a spreadsheet takes for a formula.
        workers: How many rows are worked on at once.
        resume: Go on with a run that was not completed.
        overwrite: Replace an output, and forget a run that was not completed.
        checkpoint: The file that `resume` goes on from; beside the output when None.
        model: The model; symbolicai's configuration has it when None.
        api_key_env: The environment variable with the key; symbolicai's configuration has it when
            None.
        base_url: Where OpenAI's API is; by OPENAI_BASE_URL when None.
        max_concurrency: As for `install`.
        requests_per_minute: As for `RateLimit`.
        tokens_per_minute: As for `RateLimit`.
        max_cost: As for `install`, in US$.
        price: US$ per million tokens in and out.
        quiet: Show no bar and no summary.
        verbose: Show what symbolicai and this package log.
    """

    input: str
    output: str
    expression: str | None = None
    prompt: str | None = None
    field: str | None = None
    input_format: str | None = None
    output_format: str | None = None
    encoding: str | None = None
    output_field: str = "output"
    error_field: str = "error"
    csv_safe: bool = False
    workers: int = 64
    resume: bool = False
    overwrite: bool = False
    checkpoint: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    base_url: str | None = None
    max_concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_cost: float | None = None
    price: tuple[float, float] | None = None
    quiet: bool = False
    verbose: bool = False


def run(options: RunOptions) -> int:
    """Run from the command line, in the main thread.

    Returns:
        The exit code: 1 if rows have failed, or nobody reads standard output any more; else 0.

    Raises:
        GPTXAsyncError: Something is wrong that the user can correct. What is done is kept.
        KeyboardInterrupt: By Ctrl-C. What is done is in the output, and is kept.
    """
    try:
        return _run(options)
    except BrokenPipeError:
        print("gptx-async run: nobody reads standard output any more.", file=sys.stderr)
        return 1


def _run(options: RunOptions) -> int:
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(_claimed_stdout()) if options.output == PIPE else None
        source = stack.enter_context(_open_source(options))
        rows = _make_rows(source, options)
        sink = _make_sink(options, source, rows.first, pipe)
        checkpoint = _checkpoint_of(options)
        account = _account_of(options)
        _make_quiet(options)
        work = Work(_expression_of(options), options.field)
        engine = _install(options, *account)
        work.try_to_build()
        if checkpoint is not None:
            _prepare_checkpoint(checkpoint, options)
        rows.check = sink.check
        return _Results(rows, sink, work, checkpoint, options).take(engine)


class _Rows:
    """The rows of the input, on their way to `map`, and until they are written.

    Attributes:
        first: The first row, which is read at once: what is wrong with all shows there.
        check: Called with the fields of each row, and where it stands, before it is given out.
    """

    def __init__(self, source: Source, options: RunOptions) -> None:
        self._source = source
        self._names = _names_wanted(options)
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
        """Return a row that is written now."""
        row = self._kept.pop(index)
        self._room.release()
        return row

    def close(self) -> None:
        """Give out no more rows, also to who waits for one."""
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


class _CountedRows(_Rows):
    """The same, for a bar that knows its end."""

    def __init__(self, source: Source, options: RunOptions, count: int) -> None:
        super().__init__(source, options)
        self._count = count

    def __len__(self) -> int:
        return self._count


class _Results:
    """Takes what comes of the rows, and writes it in their order.

    Args:
        rows: The rows.
        sink: Where to write.
        work: What is run for each row.
        checkpoint: What `map` keeps results in, if anything.
        options: The command's.
    """

    def __init__(
        self, rows: _Rows, sink: Sink, work: Work, checkpoint: Path | None, options: RunOptions
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
        self._stays = False

    def take(self, engine: Any) -> int:
        """Run, and return the exit code.

        Raises:
            BaseException: As `run`.
        """
        begun = clock.seconds()
        with Interrupts() as interrupts:
            error = self._take_all(interrupts)
            with interrupts.held():
                self._end(error)
                if not self._options.quiet:
                    self._tell(error, engine, clock.seconds() - begun)
        if error is not None:
            raise _as_told(error)
        return 1 if self._errors else 0

    def _take_all(self, interrupts: Interrupts) -> BaseException | None:
        """Write what comes until all is done, or something ends it; return that."""
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
            # One that was raised here, not in the stream, is yet to end that; the other is only
            # raised again. What was done and not taken comes with it.
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
        with self._told_of_the_sink():
            self._sink.flush()

    def _write(self, index: int, value: Any) -> None:
        fields = dict(fields_of(self._rows.take(index).value))
        if isinstance(value, Failed):
            self._errors[type(value.error).__name__] += 1
            fields[self._options.error_field] = _told(value.error)
        else:
            fields[self._options.output_field] = value
        with self._told_of_the_sink():
            self._sink.write(fields)
        self._written += 1

    @contextlib.contextmanager
    def _told_of_the_sink(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._is_sink_broken = True
            raise

    def _end(self, error: BaseException | None) -> None:
        """Write what is done out of order, if the run was stopped, and end the file."""
        self._rows.close()
        if error is not None and not self._sink.is_begun and not self._done:
            return  # nothing has come of it, so an output that is there stays
        try:
            if not self._is_sink_broken:
                for index in sorted(self._done):
                    self._write(index, self._done[index])
                self._stays = error is not None and self._has_more_before()
                if not self._stays:
                    self._sink.close()
        except (DataFileError, BrokenPipeError):
            if error is None:
                raise
        finally:
            self._sink.abandon()
        if error is None and not self._errors and self._checkpoint is not None:
            remove_checkpoint(self._checkpoint)

    def _has_more_before(self) -> bool:
        """Tell whether the output of the run that this one resumes has more rows."""
        path, chosen = self._options.output, self._options.output_format
        if not self._options.resume or path == PIPE or not Path(path).is_file():
            return False
        with Source(path, format_of(path, chosen, "--output-format")) as before:
            return (before.count() or 0) > self._written

    def _tell(self, error: BaseException | None, engine: Any, seconds: float) -> None:
        failed = self._errors.total()
        kept = max(0, self._written - self._work.asked)
        lines = [
            (
                "rows",
                f"{self._written:,}: {self._written - failed:,} done"
                + (f" ({kept:,} of them before)" if kept else "")
                + f", {failed:,} failed",
            ),
            *_lines_of_stats(engine.stats()),
            ("took", f"{seconds:,.1f} s"),
            ("output", self._sink.name + (", as it was: it has more" if self._stays else "")),
        ]
        if self._errors:
            counted = ", ".join(f"{name} {count:,}" for name, count in self._errors.most_common())
            lines.insert(1, ("errors", counted))
        print(*(f"{name:<9} {text}" for name, text in lines), sep="\n", file=sys.stderr)
        if self._checkpoint is not None and (self._errors or error is not None):
            print(
                "The same command with --resume does what is missing"
                + (", and tries again what has failed." if self._errors else "."),
                file=sys.stderr,
            )


class Interrupts:
    """Ctrl-C, which is put off where a row is half written or half counted; a context manager."""

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
        """Put off Ctrl-C until the end of the block."""
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


def _open_source(options: RunOptions) -> Source:
    form = format_of(options.input, options.input_format, "--input-format")
    if options.input == PIPE and is_terminal(sys.stdin):
        print("gptx-async run reads rows from the terminal; Ctrl-D ends them.", file=sys.stderr)
    return Source(options.input, form, options.encoding)


def _make_rows(source: Source, options: RunOptions) -> _Rows:
    count = None if options.quiet or not is_terminal(sys.stderr) else source.count()
    return _Rows(source, options) if count is None else _CountedRows(source, options, count)


def _make_sink(
    options: RunOptions, source: Source, first: Row | None, pipe: BinaryIO | None
) -> Sink:
    form = format_of(options.output, options.output_format, "--output-format")
    fields = source.fields
    if fields is None and first is not None:
        fields = list(fields_of(first.value))
    own = (options.output_field, options.error_field)
    if own[0] == own[1]:
        raise ConfigurationError("--output-field and --error-field are one name. Give two.")
    if options.csv_safe and form != "csv":
        raise ConfigurationError(f"--csv-safe is for CSV, and the output is {form}. Leave it out.")
    if options.output != PIPE:
        _check_output(options)
    sink = Sink(
        options.output,
        form,
        fields,
        source.schema,
        *own,
        pipe,
        overwrite=options.overwrite,
        safe_csv=options.csv_safe,
    )
    sink.check_names(fields or (), source.name)
    sink.check_part()
    return sink


def _check_output(options: RunOptions) -> None:
    output = Path(options.output)
    if options.input != PIPE and output.exists() and output.samefile(options.input):
        raise ConfigurationError("--input and --output are one file. Give another --output.")
    parent = Path(os.path.realpath(output)).parent
    if output.is_dir() or not parent.is_dir():
        raise DataFileError(
            f"{output} can't be written: it is a folder, or in one that is not there."
        )
    if (output.is_file() or not output.exists()) and not os.access(parent, os.W_OK):
        raise DataFileError(
            f"{output} can't be written: its folder is read-only. Give another --output."
        )
    if output.is_file() and not (options.resume or options.overwrite):
        raise ConfigurationError(
            f"{output} is there already. Go on with the run that made it by --resume, replace it "
            "by --overwrite, or give another --output."
        )


def _checkpoint_of(options: RunOptions) -> Path | None:
    if options.checkpoint is not None:
        return Path(options.checkpoint)
    output = Path(os.path.realpath(options.output))
    if options.output != PIPE and (output.is_file() or not output.exists()):
        return output.with_name(f"{output.name}{CHECKPOINT_SUFFIX}")
    if options.resume:
        raise ConfigurationError(
            "A pipe can't be resumed by itself. Give --checkpoint, in the first run as well; what "
            "was done is then written again."
        )
    return None


def _prepare_checkpoint(path: Path, options: RunOptions) -> None:
    """See that a checkpoint which is there is meant, and that one which is meant is there."""
    if options.resume:
        if not path.exists() and options.output != PIPE and Path(options.output).is_file():
            raise ConfigurationError(
                f"{path}, which --resume goes on from, is not there: a run without failures "
                f"removes it, so that {options.output} may be complete. To begin anew give "
                "--overwrite in the place of --resume."
            )
    elif path.exists():
        if not options.overwrite:
            raise ConfigurationError(
                f"{path} is there, of a run that was not completed. Go on with that by --resume, "
                "or forget what it did by --overwrite."
            )
        if not is_checkpoint(path):
            raise CheckpointError(
                f"{path} is not a checkpoint of gptx_async, and is not overwritten. Give another "
                "--checkpoint."
            )
        remove_checkpoint(path)


def _account_of(options: RunOptions) -> tuple[str, str]:
    """Return the key and the model.

    Raises:
        ConfigurationError: One of them is missing.
    """
    configuration = read_configuration()
    key, model = configuration.key, options.model or configuration.model
    if options.api_key_env is not None:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise ConfigurationError(
                f"--api-key-env names {options.api_key_env}, which is not set. Set it to the key: "
                f"export {options.api_key_env}=..."
            )
    where = f"{FILE_NAME} of symbolicai ({configuration.path or 'which is not there'})"
    if not model:
        raise ConfigurationError(
            f"There is no model. Give --model, or set {MODEL} in {where}. `gptx-async doctor` "
            "tells more."
        )
    if not key:
        hint = " OPENAI_API_KEY, say, which is set here." if "OPENAI_API_KEY" in os.environ else ""
        raise ConfigurationError(
            f"There is no API key. Give the name of the environment variable that has it by "
            f"--api-key-env,{hint or ' OPENAI_API_KEY say;'} or set {KEY} in {where}. `gptx-async "
            "doctor` tells more."
        )
    return key, model


def _make_quiet(options: RunOptions) -> None:
    """Keep what symbolicai and this package log, of each failure, from the bar: it is counted."""
    if not options.verbose:
        os.environ.setdefault("SYMAI_WARNINGS", "0")
        logging.getLogger("gptx_async").setLevel(logging.ERROR)


def _expression_of(options: RunOptions) -> Any:
    if options.prompt is not None:
        return Prompt(options.prompt)
    assert options.expression is not None
    return load_expression(options.expression)


def _install(options: RunOptions, api_key: str, model: str) -> Any:
    if options.base_url is not None:
        os.environ["OPENAI_BASE_URL"] = options.base_url
    if options.max_cost is not None and options.price is None:
        raise ConfigurationError("--max-cost needs the prices by which to count. Give --price.")
    from loguru import logger

    from .. import RateLimit, install

    if not options.verbose:
        logger.disable("symai")
    chosen: dict[str, Any] = {}
    if options.max_concurrency is not None:
        chosen["max_concurrency"] = options.max_concurrency
    if (options.requests_per_minute, options.tokens_per_minute) != (None, None):
        chosen["rate_limit"] = RateLimit(
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
        )
    if options.price is not None:
        chosen |= {"prices": {model: options.price}, "max_cost": options.max_cost}
    engine = install(api_key, model, **chosen)
    asked = str(engine.client.base_url)
    if options.base_url is not None and asked.rstrip("/") != options.base_url.rstrip("/"):
        raise ConfigurationError(
            f"symbolicai's engine for {model} always asks {asked}. Leave --base-url out, or give a "
            "--model of OpenAI's."
        )
    return engine


@contextlib.contextmanager
def _claimed_stdout() -> Iterator[BinaryIO]:
    """Take standard output for results alone: what is printed meanwhile goes to standard error."""
    if sys.stdout is None:
        raise DataFileError(
            "Standard output is closed. Open it, or give --output the name of a file."
        )
    _flush_stdout()
    number = os.dup(1)
    pipe = open(os.dup(number), "wb")  # noqa: SIM115 - closed below, where an error is expected
    _give_stdout_to_stderr()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield pipe
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):  # what could not be written was an error of the sink
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
            f"Standard output can't be written ({error.strerror}). Give --output the name of a "
            "file."
        ) from error


def _give_stdout_to_stderr() -> None:
    if sys.stderr is not None:
        os.dup2(2, 1)
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _names_wanted(options: RunOptions) -> list[tuple[str, str]]:
    if options.prompt is not None:
        return [("--prompt", name) for name in Prompt(options.prompt).names]
    return [] if options.field is None else [("--field", options.field)]


def _told(error: BaseException) -> dict[str, str]:
    try:
        text = str(error)
    except Exception:  # of a class that somebody wrote
        text = "its text can't be made"
    return {"type": type(error).__name__, "message": text}


def _as_told(error: BaseException) -> BaseException:
    """Return the error to tell: that of a row says more than what `map` knows of it."""
    if isinstance(error, DatasetError) and isinstance(error.__cause__, GPTXAsyncError):
        return error.__cause__
    return error


def _lines_of_stats(stats: Any) -> list[tuple[str, str]]:
    lines = [
        ("calls", f"{stats.calls:,}: {stats.retries:,} retries, {stats.rate_limited:,} times 429"),
        ("tokens", f"{stats.tokens_in:,} in, {stats.tokens_out:,} out"),
    ]
    if stats.cost is not None:
        lines.append(("cost", f"US$ {stats.cost:,.4f}"))
    return lines
