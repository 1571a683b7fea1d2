"""`gptx-async serve`: run a `FakeOpenAI` server in the foreground."""

from __future__ import annotations

import argparse
import contextlib

from ..checks import SHARE
from ..errors import ConfigurationError
from .arguments import COUNT, NUMBER, SECONDS, number_argument

__all__ = ["add_serve_options", "run_server"]


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gptx-async serve` to its parser."""
    parser.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="PORT",
        help="the port to listen on; 0 for any free port (default: %(default)s)",
    )
    parser.add_argument(
        "--latency",
        type=SECONDS,
        default=0.0,
        metavar="SECONDS",
        help="how long each answer takes (default: %(default)s)",
    )
    parser.add_argument(
        "--reply",
        choices=("digest", "echo"),
        default="digest",
        help="the content of an answer: 12 digits computed from the messages, or the last message "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        dest="api_keys",
        metavar="KEY",
        help="an accepted key; may be repeated (default: any key is accepted)",
    )
    _add_faults(parser)
    _add_limits(parser)


def run_server(options: argparse.Namespace) -> int:
    """Run the server until Ctrl-C or SIGTERM, and return the exit code. Call it in the main thread.

    Raises:
        ConfigurationError: The server can't listen on the port, or a fault is unknown.
    """
    from ..testing import fault_named, serve, sometimes

    try:
        faults = sometimes(
            [(fault_named(name), share) for name, share in options.faults], options.seed
        )
    except ConfigurationError as error:
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
            "port with --port; 0 takes any free port."
        ) from error
    return 0


def _add_faults(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        dest="faults",
        default=[],
        metavar="KIND:SHARE",
        help="make this share of the requests fail, for example 500:0.1 (an HTTP status) or "
        "reset:0.05; the other kinds are bad-json, empty-body, empty-choices, html, "
        "insufficient-quota, no-choices, reset-middle, stall, truncated-json; may be repeated",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="selects the requests that fail (default: %(default)s)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--requests-per-minute",
        type=NUMBER,
        metavar="N",
        help="limit the requests of each key and model",
    )
    parser.add_argument(
        "--tokens-per-minute",
        type=NUMBER,
        metavar="N",
        help="limit the tokens of each key and model",
    )
    parser.add_argument(
        "--burst-seconds",
        type=NUMBER,
        default=60.0,
        metavar="SECONDS",
        help="allow bursts of as much as the two limits allow in this time (default: %(default)s)",
    )
    parser.add_argument(
        "--hide-limits",
        action="store_true",
        help="send no x-ratelimit-* headers, and no retry-after with a 429",
    )
    parser.add_argument(
        "--max-concurrent",
        type=COUNT,
        metavar="N",
        help="answer 503 when more requests than this are in flight",
    )


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to 65535")


def _fault(text: str) -> tuple[str, float]:
    kind, separator, share = text.rpartition(":")
    with contextlib.suppress(argparse.ArgumentTypeError):
        if separator:
            return kind, number_argument(SHARE)(share)
    raise argparse.ArgumentTypeError(f"{text!r} is not KIND:SHARE, with {SHARE.text}")
