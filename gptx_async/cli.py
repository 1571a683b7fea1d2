"""The command line: `gptx-async`, also as `python -m gptx_async`.

Each subcommand is two functions: `_add_<name>` declares its options, `_<name>` runs it. What a
subcommand needs is imported when it runs, for symbolicai takes seconds and `--help` must not.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import ConfigurationError, GPTXAsyncError

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
    options = _parser().parse_args(argv)
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
    _add_demo(subcommands)
    _add_serve(subcommands)
    return parser


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
        type=_positive_integer,
        metavar="N",
        help="how many documents (default: all; with --live 20)",
    )
    parser.add_argument(
        "--latency",
        type=_seconds,
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
        type=_seconds,
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
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from .testing import serve

    try:
        serve(
            port=options.port,
            latency=options.latency,
            reply=options.reply,
            api_keys=options.api_keys,
        )
    except OSError as error:
        raise ConfigurationError(
            f"The server can't listen on port {options.port} ({error.strerror}). Choose another "
            "one by --port; 0 takes one that is free."
        ) from error
    return 0


def _positive_integer(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to 65535")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 <= seconds < math.inf:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
