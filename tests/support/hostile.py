"""A server that answers with whatever bytes a test wants, and the ways to ask that are compared."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from symai import Symbol
from symai.core import Argument

__all__ = [
    "HostileServer",
    "Received",
    "Respond",
    "answer",
    "completion",
    "make_argument",
    "outcome_of",
    "seen",
]

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    raw: bytes
    question: str


Respond = Callable[[Received, socket.socket], object]
"""Answers on the connection, in a thread of its own; a false value keeps the connection open."""


class HostileServer:
    """Listens on loopback, reads requests by their Content-Length, and answers as it is told.

    Attributes:
        respond: Answers a request; may be set at any time.
        received: The requests so far.
        connections: How many connections there were.
    """

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.received: list[Received] = []
        self.connections = 0
        self._answering = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._accept, name="hostile", daemon=True)]
        self._threads[0].start()

    @property
    def origin(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    def wait_for(self, predicate: Callable[[], bool], seconds: float = 10.0) -> None:
        """Block until the predicate holds; it is looked at whenever a connection has changed."""
        with self._changed:
            assert self._changed.wait_for(predicate, seconds), (
                f"not within {seconds} s; open: {len(self._open)}, received: {len(self.received)}"
            )

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def settle(self) -> None:
        """Wait until every answer that was begun is sent, and closed if it was to be.

        Else the next request may go out on a connection just before its end arrives.
        """
        self.wait_for(lambda: self._answering == 0)

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept
        for connection in [*self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a connection's thread does not end"
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                self._open.add(connection)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="hostile", daemon=True
            )
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                while (received := _read(connection)) is not None:
                    if self._answer(received, connection):
                        # Else unread data makes the kernel reset the connection, answer and all.
                        while connection.recv(65536):
                            pass
                        return
        finally:
            with self._changed:
                self._open.discard(connection)
                self._changed.notify_all()

    def _answer(self, received: Received, connection: socket.socket) -> bool:
        with self._changed:
            self.received.append(received)
            self._answering += 1
            self._changed.notify_all()
        try:
            ends = bool(self.respond(received, connection))
            if ends:
                connection.shutdown(socket.SHUT_WR)
            return ends
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()


def _read(connection: socket.socket) -> Received | None:
    raw = b""
    while b"\r\n\r\n" not in raw:
        if not (part := connection.recv(65536)):
            return None
        raw += part
    head, _, body = raw.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    length = int(found[1]) if found else 0
    while len(body) < length:
        if not (part := connection.recv(65536)):
            return None
        body += part
    return Received(head + b"\r\n\r\n" + body, _question(body))


def _question(body: bytes) -> str:
    try:
        content = json.loads(body)["messages"][-1]["content"]
    except (ValueError, KeyError, IndexError):
        return ""
    return content if isinstance(content, str) else str(content[-1]["text"])


def completion(text: str) -> dict[str, Any]:
    """Make the body of a valid answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": text, "refusal": None},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def answer(text: str) -> bytes:
    """Make a valid answer, head and body."""
    body = json.dumps(completion(text)).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def make_argument(text: str, **keywords: Any) -> Any:
    """Make an Argument as symbolicai's decorators do, not prepared."""
    argument = Argument((), keywords, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


def seen(error: BaseException) -> tuple[str, str, str, str]:
    """Put an exception into what can be compared: its type, its text, and what it came from."""
    text = "(deeper than can be told)" if _is_too_deep(error) else _text_of(error)
    return "raised", type(error).__qualname__, text, type(error.__context__).__qualname__


def outcome_of(ask: Callable[[], Any]) -> Any:
    """Return the outputs that a question led to, or the exception as `seen` puts it."""
    try:
        outputs, _metadata = ask()
    except Exception as error:
        return seen(error)
    return "returned", outputs


def _text_of(error: BaseException) -> str:
    try:
        return _ADDRESS.sub("0x", str(error))
    except Exception as failure:
        return f"no text: {type(failure).__qualname__}"


def _is_too_deep(error: BaseException) -> bool:
    """Tell whether it is of a recursion, whose text says where in the stack it came to its end."""
    return isinstance(error, RecursionError) or "recursion depth" in _text_of(error)
