"""Run a `FakeOpenAI` in the foreground, for the command line."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Collection, Iterator

from ..checks import check_choice
from .faults import Fault
from .limits import FakeRateLimits
from .replies import LatencyFunction, RecordedRequest, ReplyFunction, digest, echo
from .server import FakeOpenAI

__all__ = ["serve"]

_REPLIES: dict[str, ReplyFunction] = {"digest": digest, "echo": echo}


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    latency: float | LatencyFunction = 0.0,
    reply: str = "digest",
    api_keys: Collection[str] | None = None,
    faults: Callable[[RecordedRequest], Fault | None] | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    burst_seconds: float = 60.0,
    tell_limits: bool = True,
    max_concurrent: int | None = None,
) -> None:
    """Run a `FakeOpenAI` in the foreground until SIGINT or SIGTERM.

    Prints the base URL on standard output when the server listens. Call it in the main thread,
    before other threads start.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
        latency: The seconds before each answer: a number, or a function of the request.
        reply: The content of answers: 'digest' or 'echo'.
        api_keys: The accepted keys; None to accept any key that is not empty.
        faults: As for `FakeOpenAI`; `sometimes` makes such a function.
        requests_per_minute: The rate limit of each key and model in requests; None for no limit.
        tokens_per_minute: The rate limit of each key and model in tokens; None for no limit.
        burst_seconds: Bursts may have as much as the limits allow in this time, in seconds.
        tell_limits: Whether answers report the limits, in `x-ratelimit-*` headers and
            `retry-after`.
        max_concurrent: How many requests may be in flight; None for no limit.

    Raises:
        ConfigurationError: The reply is unknown, or a rate limit is not above 0; it is a
            ValueError, too.
        OSError: The server can't listen on the address.
    """
    check_choice("reply", reply, _REPLIES)
    limits = FakeRateLimits(
        requests_per_minute,
        tokens_per_minute,
        burst_seconds=burst_seconds,
        send_headers=tell_limits,
        send_retry_after=tell_limits,
    )
    server = FakeOpenAI(
        _REPLIES[reply],
        latency=latency,
        faults=faults,
        api_keys=api_keys,
        rate_limits=limits,
        max_concurrent=max_concurrent,
        host=host,
        port=port,
        keep_requests=0,
    )
    with _blocked_signals({signal.SIGINT, signal.SIGTERM}) as signals, server:
        print(server.base_url, flush=True)
        signal.sigwait(signals)


@contextlib.contextmanager
def _blocked_signals(signals: set[signal.Signals]) -> Iterator[set[signal.Signals]]:
    """Block signals in this thread, and in the threads that start in the block, for `sigwait`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
