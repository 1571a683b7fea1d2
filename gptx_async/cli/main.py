"""The command line: `gptx-async`, or `python -m gptx_async`.

Each subcommand has two functions here: `_add_<name>` declares it, and `_<name>` runs it. A
subcommand's modules are imported when it runs: symbolicai takes seconds to import, and `--help`
must be fast.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._version import __version__
from ..errors import GPTXAsyncError
from .arguments import COUNT, NUMBER, SECONDS
from .options import add_run_options, read_run_options
from .serve import add_serve_options, run_server

if TYPE_CHECKING:
    # Private in argparse, but the documented type of what `add_subparsers` returns.
    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["main"]

USER_ERROR = 2
"""The exit code for errors that the user can correct; argparse uses the same."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in a shell: 128 + SIGINT."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code: 0 for success, 1 if the subcommand found something wrong, 2 for an error
        that the user can correct, 130 after Ctrl-C.

    Raises:
        SystemExit: By argparse, after `--help` and `--version`, and for arguments that it rejects.
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
        description="symbolicai's GPTXChatEngine for many concurrent model calls.",
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
        description="Run a symbolicai Expression, or a prompt, over the rows of a file, many rows "
        "concurrently. The output has each input row with its output or its error, in the order "
        "of the input. Exits with 1 if rows failed.",
        epilog="The output is written to OUTPUT.part and renamed when it is complete. Every result "
        "is also stored in OUTPUT.checkpoint. After Ctrl-C, a kill or failures, run the same "
        "command with --resume to process the missing and failed rows. A run without failures "
        "removes the checkpoint.",
    )
    add_run_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from .run import run

    return run(read_run_options(options))


def _add_doctor(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "doctor",
        help="find problems in this machine's configuration",
        description="Check everything that a run needs: symbolicai's configuration, key, model, "
        "base URL, vocabularies, packages, limits, proxies. Changes nothing and shows no key. "
        "Sends one request, for the list of models, with the key as the engine would send it. "
        "Exits with 1 if a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="check this model (default: from symbolicai's configuration)",
    )
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="as for run")
    parser.add_argument("--base-url", metavar="URL", help="as for run")
    parser.add_argument(
        "--max-concurrency",
        type=COUNT,
        default=256,
        metavar="N",
        help="how many requests you want in flight (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=NUMBER,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the base URL (default: %(default)s)",
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
        help="compare GPTXChatEngine with this engine on real documents",
        description="Process the descriptions of the installed Python packages with a two-step "
        "symbolicai Expression: on GPTXChatEngine, on this engine from threads, and on this "
        "engine under a scheduler. Exits with 1 if an answer is wrong.",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="use the API at OPENAI_BASE_URL (default: OpenAI's) in place of the embedded fake "
        "server; the key is OPENAI_API_KEY, or the one in symbolicai's configuration",
    )
    parser.add_argument(
        "--documents",
        type=COUNT,
        metavar="N",
        help="how many documents (default: all; 20 with --live)",
    )
    parser.add_argument(
        "--latency",
        type=SECONDS,
        default=0.4,
        metavar="SECONDS",
        help="median latency of the fake server (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model of GPTXChatEngine (default: gpt-4o-mini; with --live, the one in "
        "symbolicai's configuration)",
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
        "Prints its base URL on standard output as soon as it listens.",
    )
    add_serve_options(parser)
    parser.set_defaults(run=run_server)
