"""The command line: `gptx-async`, also as `python -m gptx_async`.

Each subcommand is two functions: `_add_<name>` declares its options, `_<name>` runs it. What a
subcommand needs is imported when it runs, for symbolicai takes seconds and `--help` must not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .._version import __version__
from ..checks import SHARE, Number, NumberRule, numbers, seconds, whole_numbers
from ..errors import ConfigurationError, GPTXAsyncError

if TYPE_CHECKING:
    # A private name in argparse too, but the documented type of what `add_subparsers` returns.
    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["main"]

USER_ERROR = 2
"""The exit code for what the user can correct; argparse has the same."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, as of a shell: 128 + SIGINT."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process when None.

    Returns:
        The exit code: 0 for success, 1 if the subcommand found something wrong, 2 for an error
        that the user can correct, 130 after Ctrl-C.

    Raises:
        SystemExit: By argparse: after `--help` and `--version`, and for arguments it can't parse.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        exit_code: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except GPTXAsyncError as error:
        print(f"gptx-async {options.subcommand}: {error}", file=sys.stderr)
        return USER_ERROR
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptx-async",
        description="symbolicai's GPTXChatEngine for many model calls at once.",
    )
    parser.add_argument("--version", action="version", version=f"gptx-async {__version__}")
    subcommands = parser.add_subparsers(
        title="subcommands", dest="subcommand", metavar="SUBCOMMAND", required=True
    )
    _add_run(subcommands)
    _add_doctor(subcommands)
    _add_demo(subcommands)
    _add_serve(subcommands)
    return parser


def _add_run(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "run",
        help="run an Expression or a prompt over the rows of a file",
        description="Run an Expression of symbolicai, or a prompt, over the rows of a file, many "
        "at once. The output has each input row with its output, or with its error, in the order "
        "of the input. Exits with 1 if rows have failed.",
        epilog="While it runs, the output is OUTPUT.part, and OUTPUT.checkpoint has every result "
        "at once. After Ctrl-C, a kill or failures, the same command with --resume does what is "
        "missing; a run without failures removes the checkpoint.",
    )
    _add_work(parser.add_argument_group("what is asked"))
    _add_files(parser.add_argument_group("files"))
    _add_account(parser.add_argument_group("model"))
    _add_pace(parser.add_argument_group("pace and cost"))
    parser.add_argument("--quiet", action="store_true", help="show no bar and no summary")
    parser.add_argument(
        "--verbose", action="store_true", help="show what symbolicai and this package log"
    )
    parser.set_defaults(run=_run)


def _add_work(group: argparse._ArgumentGroup) -> None:
    work = group.add_mutually_exclusive_group(required=True)
    work.add_argument(
        "--expression",
        metavar="MODULE:NAME",
        help="an Expression (class or instance), or a function of one item; the module is looked "
        "for in this folder, too",
    )
    work.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a prompt with names of fields in braces: 'Summarise: {text}'; {input} for a row that "
        "is no JSON object",
    )
    group.add_argument(
        "--field",
        metavar="NAME",
        help="give this field of each row to the expression (default: the whole row)",
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    formats = ("jsonl", "csv", "parquet")
    group.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="JSON Lines, CSV or Parquet, by its suffix; - for JSON Lines on standard input",
    )
    group.add_argument(
        "--output", required=True, metavar="FILE", help="the same; - for standard output"
    )
    group.add_argument("--input-format", choices=formats, help="whatever the suffix is")
    group.add_argument("--output-format", choices=formats, help="whatever the suffix is")
    group.add_argument("--encoding", metavar="NAME", help="of the input (default: UTF-8)")
    group.add_argument(
        "--output-field", default="output", metavar="NAME", help="(default: %(default)s)"
    )
    group.add_argument(
        "--error-field", default="error", metavar="NAME", help="(default: %(default)s)"
    )
    group.add_argument(
        "--csv-safe",
        action="store_true",
        help="write ' before each cell of a CSV output that begins with =, +, -, @, a tab or a "
        "carriage return, which a spreadsheet would take for a formula",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with a run that was not completed"
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the output, and forget a run that was not completed",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="where results are kept for --resume (default: OUTPUT.checkpoint)",
    )


def _add_account(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="NAME", help="(default: symbolicai's configuration)")
    group.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="the environment variable that has the key, OPENAI_API_KEY say (default: symbolicai's "
        "configuration)",
    )
    group.add_argument(
        "--base-url", metavar="URL", help="(default: OPENAI_BASE_URL, else OpenAI's)"
    )


def _add_pace(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=_COUNT,
        default=64,
        metavar="N",
        help="how many rows are worked on at once (default: %(default)s)",
    )
    group.add_argument(
        "--max-concurrency",
        type=_COUNT,
        metavar="N",
        help="how many requests are out at once (default: 256)",
    )
    group.add_argument("--requests-per-minute", type=_POSITIVE, metavar="N")
    group.add_argument("--tokens-per-minute", type=_POSITIVE, metavar="N")
    group.add_argument(
        "--max-cost",
        type=_POSITIVE,
        metavar="USD",
        help="send nothing more once this is spent; needs --price",
    )
    group.add_argument(
        "--price",
        type=_PRICE,
        nargs=2,
        metavar=("IN", "OUT"),
        help="US$ per million tokens in and out: 0.15 0.60",
    )


def _run(options: argparse.Namespace) -> int:
    from .run import RunOptions, run

    if options.prompt is not None and options.field is not None:
        raise ConfigurationError(
            "--field is for --expression: --prompt names its fields itself, in braces."
        )
    if options.resume and options.overwrite:
        raise ConfigurationError("--resume and --overwrite contradict each other. Give one.")
    given = {name: value for name, value in vars(options).items() if name not in _OF_THE_PARSER}
    if given["price"] is not None:
        given["price"] = tuple(given["price"])
    return run(RunOptions(**given))


def _add_doctor(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "doctor",
        help="look for what may be wrong with this machine's configuration",
        description="Look at all that a run needs: symbolicai's configuration, key, model, base "
        "URL, vocabularies, packages, limits, proxies. Nothing is changed, and no key is shown. "
        "One request is sent, for the list of models, with the key as the engine would send it. "
        "Exits with 1 if something fails.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--model", metavar="NAME", help="look at this model (default: symbolicai's configuration)"
    )
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="as for run")
    parser.add_argument("--base-url", metavar="URL", help="as for run")
    parser.add_argument(
        "--max-concurrency",
        type=_COUNT,
        default=256,
        metavar="N",
        help="how many requests are to be out at once (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_POSITIVE,
        default=10.0,
        metavar="SECONDS",
        help="for the base URL (default: %(default)s)",
    )
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    return examine(
        model=options.model,
        api_key_env=options.api_key_env,
        base_url=options.base_url,
        max_concurrency=options.max_concurrency,
        timeout=options.timeout,
        as_json=options.json,
    )


def _add_demo(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "demo",
        help="put real documents through symbolicai on GPTXChatEngine and on this engine",
        description="Put the descriptions of the installed Python packages through a two-step "
        "Expression of symbolicai: on GPTXChatEngine, on this engine from threads, and on this "
        "engine under a scheduler. Exits with 1 if an answer is wrong.",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="ask the API that OPENAI_BASE_URL names, OpenAI's when it is not set, instead of the "
        "embedded fake server; the key is OPENAI_API_KEY, else that of symbolicai's configuration",
    )
    parser.add_argument(
        "--documents",
        type=_COUNT,
        metavar="N",
        help="how many documents (default: all; with --live 20)",
    )
    parser.add_argument(
        "--latency",
        type=_SECONDS,
        default=0.4,
        metavar="SECONDS",
        help="median latency of the fake server (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="one of GPTXChatEngine's models (default: the one configured for symbolicai with "
        "--live, else gpt-4o-mini)",
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(
        live=options.live,
        count=options.documents,
        latency=options.latency,
        model=options.model,
    )


def _add_serve(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "serve",
        help="run a fake OpenAI server, for tests",
        description="Run a fake OpenAI server on the loopback interface, until Ctrl-C or SIGTERM. "
        "It prints its base URL on standard output as soon as it listens.",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="PORT",
        help="the port to listen on; 0 for one that is free (default: %(default)s)",
    )
    parser.add_argument(
        "--latency",
        type=_SECONDS,
        default=0.0,
        metavar="SECONDS",
        help="how long each answer takes (default: %(default)s)",
    )
    parser.add_argument(
        "--reply",
        choices=("digest", "echo"),
        default="digest",
        help="what the model says: 12 digits that stand for the messages, or the last message "
        "itself (default: %(default)s)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        dest="api_keys",
        metavar="KEY",
        help="a key to accept; may be given several times (default: any key is accepted)",
    )
    _add_faults(parser)
    _add_limits(parser)
    parser.set_defaults(run=_serve)


def _add_faults(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        dest="faults",
        default=[],
        metavar="KIND:SHARE",
        help="let this share of the requests fail: 500:0.1 for a status, reset:0.05; kinds are "
        "bad-json, empty-body, empty-choices, html, insufficient-quota, no-choices, reset, "
        "reset-middle, stall, truncated-json; may be given several times",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="chooses which requests fail"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests-per-minute", type=_POSITIVE, metavar="N")
    parser.add_argument("--tokens-per-minute", type=_POSITIVE, metavar="N")
    parser.add_argument(
        "--burst-seconds",
        type=_POSITIVE,
        default=60.0,
        metavar="SECONDS",
        help="of how many seconds' rate the two limits admit a burst (default: %(default)s)",
    )
    parser.add_argument(
        "--hide-limits",
        action="store_true",
        help="send no x-ratelimit-* headers, and no retry-after with a 429",
    )
    parser.add_argument(
        "--max-concurrent",
        type=_COUNT,
        metavar="N",
        help="answer 503 to more requests at once than this",
    )


def _serve(options: argparse.Namespace) -> int:
    from ..testing import fault_named, serve, sometimes

    try:
        faults = sometimes(
            [(fault_named(name), share) for name, share in options.faults], options.seed
        )
    except ValueError as error:
        raise ConfigurationError(f"--fault: {error}") from error
    try:
        serve(
            port=options.port,
            latency=options.latency,
            reply=options.reply,
            api_keys=options.api_keys,
            faults=faults if options.faults else None,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
            burst_seconds=options.burst_seconds,
            tell_limits=not options.hide_limits,
            max_concurrent=options.max_concurrent,
        )
    except OSError as error:
        raise ConfigurationError(
            f"The server can't listen on port {options.port} ({error.strerror}). Choose another "
            "one by --port; 0 takes one that is free."
        ) from error
    return 0


def _argument(rule: NumberRule[Number]) -> Callable[[str], Number]:
    """Make the function by which argparse reads the numbers that a rule allows."""

    def read(text: str) -> Number:
        number = None
        with contextlib.suppress(ValueError):
            number = rule.read(int(text) if text.isdecimal() else float(text))
        if number is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not {rule.text}")
        return number

    return read


_COUNT = _argument(whole_numbers())
_POSITIVE = _argument(numbers())
_PRICE = _argument(numbers("US$", allows_zero=True))
_SECONDS = _argument(seconds(allows_zero=True))


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to 65535")


def _fault(text: str) -> tuple[str, float]:
    kind, separator, share = text.rpartition(":")
    with contextlib.suppress(argparse.ArgumentTypeError):
        if separator:
            return kind, _argument(SHARE)(share)
    raise argparse.ArgumentTypeError(f"{text!r} is not KIND:SHARE, with {SHARE.text}")


_OF_THE_PARSER = frozenset({"arguments", "run", "subcommand"})
"""What parsed options have that are no options of a subcommand."""
