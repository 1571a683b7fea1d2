"""`gptx-async run`: run an Expression or a prompt over the rows of a file, into another file.

The checkpoint of `map` lies beside the output until no row is missing or failed. `--resume`
continues from the checkpoint, also after a kill, and writes the output from the beginning: the
output may lack rows that finished out of order, and the checkpoint has them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, ConfigurationError, DataFileError
from ..mapping.checkpoint_file import is_checkpoint, remove_checkpoint
from ..mapping.progress import is_terminal
from ..symbolicai.configuration import FILE_NAME, KEY, MODEL, read_configuration
from .expression import Prompt, Work, fields_of, load_expression
from .files.formats import PIPE, format_of
from .files.sink import Sink
from .files.source import Row, Source
from .options import RunOptions
from .rows import CountedInputRows, InputRows, ResultWriter
from .terminal import claimed_stdout

__all__ = ["run"]

CHECKPOINT_SUFFIX = ".checkpoint"


def run(options: RunOptions) -> int:
    """Run the command. Call it in the main thread.

    Returns:
        The exit code: 1 if rows failed or the reader of standard output closed it, else 0.

    Raises:
        GPTXAsyncError: The run ended early, for a reason that the user can correct. Results so far
            are stored.
        KeyboardInterrupt: The user pressed Ctrl-C. Results so far are written and stored.
    """
    try:
        return _run(options)
    except BrokenPipeError:
        print("gptx-async run: the reader of standard output closed it.", file=sys.stderr)
        return 1


def _run(options: RunOptions) -> int:
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(claimed_stdout()) if options.output == PIPE else None
        source = stack.enter_context(_open_source(options))
        rows = _make_rows(source, options)
        sink = _make_sink(options, source, rows.first, pipe)
        checkpoint = _checkpoint_of(options)
        account = _account_of(options)
        _silence_logs(options)
        work = Work(_expression_of(options), options.field)
        engine = _install(options, *account)
        work.try_to_build()
        if checkpoint is not None:
            _prepare_checkpoint(checkpoint, options)
        rows.check = sink.check
        return ResultWriter(rows, sink, work, checkpoint, options).run(engine)


def _open_source(options: RunOptions) -> Source:
    form = format_of(options.input, options.input_format, "--input-format")
    if options.input == PIPE and is_terminal(sys.stdin):
        print("gptx-async run reads rows from the terminal; Ctrl-D ends them.", file=sys.stderr)
    return Source(options.input, form, options.encoding)


def _make_rows(source: Source, options: RunOptions) -> InputRows:
    count = None if options.quiet or not is_terminal(sys.stderr) else source.count()
    return InputRows(source, options) if count is None else CountedInputRows(source, options, count)


def _make_sink(
    options: RunOptions, source: Source, first: Row | None, pipe: BinaryIO | None
) -> Sink:
    form = format_of(options.output, options.output_format, "--output-format")
    fields = source.fields
    if fields is None and first is not None:
        fields = list(fields_of(first.value))
    own = (options.output_field, options.error_field)
    if own[0] == own[1]:
        raise ConfigurationError(
            "--output-field and --error-field have the same name. Give different names."
        )
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
        raise ConfigurationError("--input and --output are the same file. Give another --output.")
    parent = Path(os.path.realpath(output)).parent
    if output.is_dir() or not parent.is_dir():
        raise DataFileError(
            f"{output} can't be written: it is a folder, or its folder does not exist. Give "
            "another --output."
        )
    if (output.is_file() or not output.exists()) and not os.access(parent, os.W_OK):
        raise DataFileError(
            f"{output} can't be written: its folder is read-only. Give another --output."
        )
    if output.is_file() and not (options.resume or options.overwrite):
        raise ConfigurationError(
            f"{output} already exists. Continue the run that wrote it with --resume, replace it "
            "with --overwrite, or give another --output."
        )


def _checkpoint_of(options: RunOptions) -> Path | None:
    if options.checkpoint is not None:
        return Path(options.checkpoint)
    output = Path(os.path.realpath(options.output))
    if options.output != PIPE and (output.is_file() or not output.exists()):
        return output.with_name(f"{output.name}{CHECKPOINT_SUFFIX}")
    if options.resume:
        raise ConfigurationError(
            "A run into a pipe has no checkpoint by default. Give --checkpoint, in the first run "
            "as well; --resume then writes the finished rows again."
        )
    return None


def _prepare_checkpoint(path: Path, options: RunOptions) -> None:
    """Check that the options fit the existing checkpoint, and remove it with --overwrite."""
    if options.resume:
        if not path.exists() and options.output != PIPE and Path(options.output).is_file():
            raise ConfigurationError(
                f"There is no checkpoint {path} for --resume. A run without failures removes it, "
                f"so {options.output} may be complete. To start from the beginning, give "
                "--overwrite in place of --resume."
            )
    elif path.exists():
        if not options.overwrite:
            raise ConfigurationError(
                f"The checkpoint {path} of an incomplete run exists. Continue that run with "
                "--resume, or discard its results with --overwrite."
            )
        if not is_checkpoint(path):
            raise CheckpointError(
                f"{path} is not a checkpoint of gptx_async, so it is not overwritten. Give another "
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
    where = f"symbolicai's {FILE_NAME} ({configuration.path or 'which does not exist'})"
    if not model:
        raise ConfigurationError(
            f"There is no model. Give --model, or set {MODEL} in {where}. `gptx-async doctor` "
            "shows more."
        )
    if not key:
        hint = ", which is set here" if "OPENAI_API_KEY" in os.environ else ""
        raise ConfigurationError(
            "There is no API key. Name the environment variable that has the key with "
            f"--api-key-env (for example OPENAI_API_KEY{hint}), or set {KEY} in {where}. "
            "`gptx-async doctor` shows more."
        )
    return key, model


def _silence_logs(options: RunOptions) -> None:
    """Keep log lines about single failures out of the progress bar, which counts them."""
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
        raise ConfigurationError("--max-cost needs the prices of tokens. Give --price.")
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
            f"symbolicai's engine for {model} always uses {asked}. Leave --base-url out, or give "
            "an OpenAI model with --model."
        )
    return engine
