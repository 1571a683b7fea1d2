"""A server that answers chat completions at very low cost, so that the client is measured.

    python -m benchmarks.server

It prints its base URL and serves until standard input ends. It uses only the standard library and
supports only what the clients need of HTTP/1.1: persistent connections, pipelined requests, bodies
with a Content-Length. The answer depends only on the marker in the request's text (`answer_to`), so
lost and swapped answers are detected.

`control` changes the server's behaviour and returns its counters and CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import math
import random
import re
import resource
import subprocess
import sys
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .environment import environment

__all__ = [
    "Connection",
    "Server",
    "answer_to",
    "control",
    "listen",
    "marked",
    "raise_descriptor_limit",
    "running_server",
]

DRAWS = 4096
"""How many delays are drawn in advance. The marker selects one."""

BACKLOG = 4096
"""How many connections may wait to be accepted: a workload may open all at once."""

WAIT_SECONDS = 10.0
"""How long the process may take to start or to end."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)

_BODY = json.dumps(
    {
        "id": "chatcmpl-BkT7hXq9mYw2LrZ5vNcD8sFjGpA3e",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ANSWER",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 9,
            "total_tokens": 39,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_44added55e",
    }
).encode()

_BEFORE, _AFTER = _BODY.split(b"ANSWER")

_ANSWER_LENGTH = 16


def marked(text: str, marker: str) -> str:
    """Return the text with the marker at its end, where the server expects it."""
    return f"{text} [[{marker}]]"


def answer_to(marker: str) -> str:
    """Return the right answer to a text with a marker."""
    return hashlib.sha256(marker.encode()).hexdigest()[:_ANSWER_LENGTH]


class Server:
    """The state that all connections share: how to answer, and the counters.

    Attributes:
        requests: How many completions were requested.
        in_flight: How many of them are not answered yet.
        connections: How many connections are open.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.connections = 0
        self._delays = [0.0]
        self._held: list[Callable[[], None]] | None = None

    def delay_of(self, marker: bytes) -> float:
        """Return the delay of an answer in seconds. It depends only on the marker."""
        return self._delays[zlib.crc32(marker) % len(self._delays)]

    def answer_to(self, marker: str) -> str:
        """Return the content of an answer."""
        return answer_to(marker)

    def hold(self, answer: Callable[[], None]) -> bool:
        """Hold an answer back if all are held; return whether it is held."""
        if self._held is None:
            return False
        self._held.append(answer)
        return True

    def set(self, median: float = 0.0, sigma: float = 0.0, *, held: bool = False) -> None:
        """Change how requests are answered from now on, and send the answers that were held.

        Args:
            median: The median delay, in seconds.
            sigma: The standard deviation of the delay's logarithm; 0 for a fixed delay.
            held: Whether to hold all answers back.
        """
        source = random.Random(0)
        self._delays = [0.0]
        if median:
            draws = DRAWS if sigma else 1
            self._delays = [source.lognormvariate(math.log(median), sigma) for _ in range(draws)]
        waiting, self._held = self._held or [], [] if held else None
        for answer in waiting:
            answer()

    def figures(self) -> dict[str, float]:
        """Return the counters, and the CPU seconds of this process."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu": usage.ru_utime + usage.ru_stime,
            "requests": self.requests,
            "in_flight": self.in_flight,
            "connections": self.connections,
        }


class Connection(asyncio.Protocol):
    """The connection of a client. Its requests are answered one at a time, in order."""

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = b""
        self._is_busy = False
        self._is_last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """Stop counting the connection and its unanswered request."""
        self._server.connections -= 1
        if self._is_busy:
            self._is_busy = False
            self._server.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        """Answer the complete requests."""
        self._received = self._received + data if self._received else data
        self._serve()

    def _serve(self) -> None:
        while not self._is_busy and (request := self._take()) is not None:
            self._handle(*request)

    def _take(self) -> tuple[bytes, bytes] | None:
        """Return the head and body of the first request if it is complete."""
        received = self._received
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(received, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(received) < whole:
            return None
        self._received = received[whole:]
        return received[:end], received[end + 4 : whole]

    def _handle(self, head: bytes, body: bytes) -> None:
        self._is_last = _CLOSE.search(head) is not None
        if not head.startswith(b"POST /v1/chat/completions "):
            self._handle_control(head, body)
            return
        start = body.rfind(b"[[") + 2
        marker = body[start : body.find(b"]]", start)]
        if start < 2:
            self._write(b"400 Bad Request", b'{"error": {"message": "There is no marker."}}')
            return
        server = self._server
        server.requests += 1
        server.in_flight += 1
        self._is_busy = True
        answer = partial(self._answer_late, marker)
        if server.hold(answer):
            return
        delay = server.delay_of(marker)
        if delay:
            asyncio.get_running_loop().call_later(delay, answer)
        else:
            self._answer(marker)

    def _answer_late(self, marker: bytes) -> None:
        if self._is_busy:  # otherwise the client has disconnected
            self._answer(marker)
            self._serve()

    def _answer(self, marker: bytes) -> None:
        self._is_busy = False
        self._server.in_flight -= 1
        said = self._server.answer_to(marker.decode())
        self._write(b"200 OK", _BEFORE + said.encode() + _AFTER)

    def _handle_control(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST /control "):
            self._write(b"404 Not Found", b"{}")
            return
        if body:
            self._server.set(**json.loads(body))
        self._write(b"200 OK", json.dumps(self._server.figures()).encode())

    def _write(self, status: bytes, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-request-id: req_0123456789abcdef\r\n\r\n%b" % (status, len(body), body)
        )
        if self._is_last:
            self._transport.close()


def control(base_url: str, **settings: Any) -> dict[str, float]:
    """Change how a server answers if settings are given, and return its counters.

    Args:
        base_url: The base URL of the server.
        **settings: The arguments of `Server.set`; the others get their defaults.
    """
    address = urllib.parse.urlsplit(base_url)
    connection = http.client.HTTPConnection(address.netloc, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        body = json.dumps(settings) if settings else ""
        connection.request("POST", "/control", body, {"Connection": "close"})
        figures: dict[str, float] = json.loads(connection.getresponse().read())
    return figures


def raise_descriptor_limit() -> None:
    """Raise the limit of open files of this process as far as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Run the server in a separate process in the block, which gets its base URL.

    Raises:
        RuntimeError: The server did not start.
    """
    command = [sys.executable, "-m", __spec__.name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            base_url = process.stdout.readline().strip()
            if not base_url:
                raise RuntimeError("The server ended. Its output above shows why.")
            yield base_url
        finally:
            process.stdin.close()  # the process ends then
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


async def listen(server: Server) -> tuple[asyncio.Server, str]:
    """Listen on loopback with the running loop; return the listener and the base URL."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=BACKLOG)
    port = listener.sockets[0].getsockname()[1]
    return listener, f"http://127.0.0.1:{port}/v1"


async def _main() -> None:
    _listener, base_url = await listen(Server())
    print(base_url, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    raise_descriptor_limit()
    asyncio.run(_main())
