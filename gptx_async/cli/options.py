"""The options of `gptx-async run`: how argparse reads them, and how the command gets them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ..errors import ConfigurationError
from .arguments import COUNT, NUMBER, PRICE

__all__ = ["RunOptions", "add_run_options", "read_run_options"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `gptx-async run`.

    Attributes:
        input: The file of rows; '-' for standard input.
        output: The file of results; '-' for standard output.
        expression: 'package.module:attribute' of an Expression or of a function of one item.
        prompt: A prompt with field names in braces, in place of an expression.
        field: The field of a row to give to the expression; None for the whole row.
        input_format: One of `formats.FORMATS`; None to take it from the file name.
        output_format: The same for the output.
        encoding: The encoding of the input; None for UTF-8.
        output_field: The name of the field for outputs.
        error_field: The name of the field for errors.
        csv_safe: Whether to quote CSV cells that a spreadsheet would compute as formulas.
        workers: How many rows to process concurrently.
        resume: Whether to continue an incomplete run.
        overwrite: Whether to replace an existing output and discard an incomplete run.
        checkpoint: The file that `resume` continues from; None for one beside the output.
        model: The model; None for the one in symbolicai's configuration.
        api_key_env: The environment variable with the API key; None for the key in symbolicai's
            configuration.
        base_url: The base URL of OpenAI's API; None for OPENAI_BASE_URL.
        max_concurrency: As for `install`.
        requests_per_minute: As for `RateLimit`.
        tokens_per_minute: As for `RateLimit`.
        max_cost: As for `install`, in US$.
        price: US$ per million tokens in and out.
        quiet: Whether to hide the progress bar and the summary.
        verbose: Whether to show the logs of symbolicai and this package.
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


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gptx-async run` to its parser."""
    _add_work(parser.add_argument_group("what to run"))
    _add_files(parser.add_argument_group("files"))
    _add_account(parser.add_argument_group("model"))
    _add_pace(parser.add_argument_group("pace and cost"))
    parser.add_argument(
        "--quiet", action="store_true", help="hide the progress bar and the summary"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show the logs of symbolicai and this package"
    )


def read_run_options(parsed: argparse.Namespace) -> RunOptions:
    """Return the parsed options.

    Raises:
        ConfigurationError: Two of them exclude each other.
    """
    if parsed.prompt is not None and parsed.field is not None:
        raise ConfigurationError(
            "--field works only with --expression. In --prompt, name the fields in braces."
        )
    if parsed.resume and parsed.overwrite:
        raise ConfigurationError("--resume and --overwrite exclude each other. Give one of them.")
    given = {name: value for name, value in vars(parsed).items() if name not in _OF_THE_PARSER}
    if given["price"] is not None:
        given["price"] = tuple(given["price"])
    return RunOptions(**given)


def _add_work(group: argparse._ArgumentGroup) -> None:
    work = group.add_mutually_exclusive_group(required=True)
    work.add_argument(
        "--expression",
        metavar="MODULE:NAME",
        help="an Expression (class or instance), or a function of one item; the module may be in "
        "the current folder",
    )
    work.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a prompt with field names in braces, for example 'Summarise: {text}'; {input} is a "
        "row that is not a JSON object",
    )
    group.add_argument(
        "--field",
        metavar="NAME",
        help="pass this field of each row to the expression (default: the whole row)",
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    formats = ("jsonl", "csv", "parquet")
    group.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="JSON Lines, CSV or Parquet, by suffix; - for JSON Lines on standard input",
    )
    group.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="JSON Lines, CSV or Parquet, by suffix; - for JSON Lines on standard output",
    )
    group.add_argument(
        "--input-format", choices=formats, help="the input format (default: by suffix)"
    )
    group.add_argument(
        "--output-format", choices=formats, help="the output format (default: by suffix)"
    )
    group.add_argument(
        "--encoding", metavar="NAME", help="the encoding of the input (default: UTF-8)"
    )
    group.add_argument(
        "--output-field",
        default="output",
        metavar="NAME",
        help="the field for the output of a row (default: %(default)s)",
    )
    group.add_argument(
        "--error-field",
        default="error",
        metavar="NAME",
        help="the field for the error of a row (default: %(default)s)",
    )
    group.add_argument(
        "--csv-safe",
        action="store_true",
        help="write ' before each CSV cell that begins with =, +, -, @, a tab or a carriage "
        "return, so that a spreadsheet does not compute it as a formula",
    )
    group.add_argument("--resume", action="store_true", help="continue an incomplete run")
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing output, and discard an incomplete run",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the file that stores results for --resume (default: OUTPUT.checkpoint)",
    )


def _add_account(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", metavar="NAME", help="the model (default: from symbolicai's configuration)"
    )
    group.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="the environment variable with the API key, for example OPENAI_API_KEY (default: the "
        "key in symbolicai's configuration)",
    )
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="the base URL of the API (default: OPENAI_BASE_URL, or OpenAI's)",
    )


def _add_pace(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=COUNT,
        default=64,
        metavar="N",
        help="how many rows to process concurrently (default: %(default)s)",
    )
    group.add_argument(
        "--max-concurrency",
        type=COUNT,
        metavar="N",
        help="how many requests may be in flight (default: 256)",
    )
    group.add_argument(
        "--requests-per-minute", type=NUMBER, metavar="N", help="limit the requests per minute"
    )
    group.add_argument(
        "--tokens-per-minute", type=NUMBER, metavar="N", help="limit the tokens per minute"
    )
    group.add_argument(
        "--max-cost",
        type=NUMBER,
        metavar="USD",
        help="stop sending when this is spent; needs --price",
    )
    group.add_argument(
        "--price",
        type=PRICE,
        nargs=2,
        metavar=("IN", "OUT"),
        help="US$ per million tokens in and out, for example 0.15 0.60",
    )


_OF_THE_PARSER = frozenset({"run", "subcommand"})
"""The attributes of parsed options that are not options of the subcommand."""
