"""One POST and its answer over a pooled connection of aiohttp, whose head is ready-made.

`aiohttp.ClientSession.request` prepares for all that a request can be: redirects, cookies, uploads,
middlewares, traces. On a route there is none of it, and the same lines are sent each time. So here
aiohttp's pool connects, its parser reads and its clocks bound the reads; what lies between them,
a task to write with and some thirty objects for each request in flight, is left out.

What `ClientSession.request` and `ClientResponse.start` would raise is raised here as well. The
methods of aiohttp that are used here are none that it promises to keep: `is_known` tells whether
they are as they were when this was written.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import aiohttp
import yarl
from aiohttp import http_writer
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict

from ..private_names import are_there
from .body import check_length
from .connector import may_go_again, new_connection
from .private_names import FAST_PATH

__all__ = ["MAX_HEADER_BYTES", "MOST_BYTES", "Answered", "Exchange", "is_known", "is_too_long"]

MAX_HEADER_BYTES = 100 * 1024
"""How long, and how many, an answer's headers may be: httpcore's limit, so the sync client's."""

MOST_BYTES = 64 * 1024
"""How long a body may be: what asyncio's transports take before they ask for a pause. A longer one
may take its time to be sent, and its answer may come meanwhile."""

_serialize_headers: Any = getattr(http_writer, "_serialize_headers", None)


def is_known() -> bool:
    """Tell whether the installed aiohttp has the methods that are used here, as they are known."""
    return are_there(FAST_PATH)


class Answered:
    """An answer: its head was read, and its body, or what came in that one's place.

    It looks to the SDK's transport as aiohttp's own response does.

    Attributes:
        status: The status.
        reason: The status's phrase.
        headers: The headers, whatever their case.
        raw_headers: The headers as they came.
        body: The body, as it came: perhaps compressed.
        error: Why there is no body, if it could not be read.
    """

    __slots__ = ("body", "error", "headers", "raw_headers", "reason", "status")

    def __init__(self, message: Any) -> None:
        self.status: int = message.code
        self.reason: str = message.reason
        self.headers: Mapping[str, str] = message.headers
        self.raw_headers: Sequence[tuple[bytes, bytes]] = message.raw_headers
        self.body = b""
        self.error: Exception | None = None

    @property
    def content(self) -> Self:
        """Itself, that is to be read by `iter_chunked`."""
        return self

    @property
    def is_too_long(self) -> bool:
        """Whether its headers are more than the sync client would read."""
        return is_too_long(self.raw_headers)

    async def read(self, body: Any, most: int | None) -> None:
        """Read the body, to its end or to what comes in its place.

        Args:
            body: aiohttp's stream.
            most: How long it may be, in bytes; None for no bound.

        Raises:
            ResponseTooLarge: It is longer than it may be.
        """
        length = self.headers.get("content-length", "")
        check_length(int(length) if length.isdecimal() else 0, most)
        blocks, size = [], 0
        try:
            while block := await body.readany():
                blocks.append(block)
                size += len(block)
                check_length(size, most)
            self.body = b"".join(blocks)
        except Exception as error:
            self.error = error

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Yield what was read, or raise what came instead."""
        if self.error is not None:
            raise self.error
        yield self.body

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: the connection was given back when the body was read."""


def is_too_long(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Tell whether the headers of an answer are more than the sync client would read."""
    return sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES


class Exchange:
    """Sends POSTs to one URL, each over a connection of a session's pool. On the session's loop.

    Args:
        session: aiohttp's.
        url: The URL.
        headers: Those of each request, its length among them.
        timeout: Seconds for the connecting and for each read.

    Raises:
        ValueError: A header holds the end of a line.
    """

    __slots__ = ("_request", "_timeout", "_usual_head", "session")

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: yarl.URL,
        headers: CIMultiDict[str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self.session = session
        self._timeout = timeout
        # Never sent: it says how aiohttp would send it, and the pool is asked by it.
        self._request = aiohttp.ClientRequest(
            "POST", url, headers=headers, data=b"", loop=asyncio.get_running_loop()
        )
        self._usual_head = self._head({})

    async def post(
        self, content: bytes, changed: Mapping[str, str], most: int | None = None
    ) -> Answered:
        """Send a request and read the answer.

        Args:
            content: The body; `MOST_BYTES` at most.
            changed: Headers that this request has beside, or instead of, the others.
            most: How long the answer's body may be, in bytes; None for no bound.

        Raises:
            ResponseTooLarge: The answer's body is longer than it may be.
            aiohttp.ClientError: As aiohttp does: no connection, none any more, no HTTP, too slow.
            ValueError: A header holds the end of a line.
        """
        head = self._head(changed) if changed else self._usual_head
        connection = await self._connect()
        protocol: Any = connection.protocol
        try:
            return await self._post_on(connection, head, content, most)
        except aiohttp.ClientConnectionError as error:
            if not may_go_again(protocol, error):
                raise
        with new_connection():
            connection = await self._connect()
        return await self._post_on(connection, head, content, most)

    async def _post_on(
        self, connection: Any, head: bytes, content: bytes, most: int | None
    ) -> Answered:
        protocol: Any = connection.protocol
        try:
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=self._timeout.sock_read,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                max_headers=MAX_HEADER_BYTES,
            )
            _write(protocol, b"%b%d\r\n\r\n%b" % (head, len(content), content))
            message, body = await protocol.read()
            while message.code < 200 and message.code != 101:  # 100 Continue, say
                message, body = await protocol.read()
            answered = Answered(message)
            if not answered.is_too_long:
                body.on_eof(connection.release)  # at once, as aiohttp: the next one may be waiting
                await answered.read(body, most)
        except HttpProcessingError as error:
            raise aiohttp.ClientResponseError(
                self._request.request_info,
                (),
                status=error.code,
                message=error.message,
                headers=error.headers,
            ) from error
        finally:
            connection.close()  # unless it was released
        return answered

    async def _connect(self) -> Any:
        connector = self.session.connector
        if connector is None:
            raise RuntimeError("Session is closed")
        try:
            return await connector.connect(self._request, traces=[], timeout=self._timeout)
        except aiohttp.ClientError:
            raise
        except builtins.TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(
                f"Connection timeout to host {self._request.url}"
            ) from error
        except OSError as error:
            raise aiohttp.ClientOSError(*error.args) from error

    def _head(self, changed: Mapping[str, str]) -> bytes:
        """Return the request line and the headers, up to the digits of the length."""
        headers = self._request.headers.copy()
        headers.update(changed)
        headers.popall("content-length")
        line = f"POST {self._request.url.raw_path_qs} HTTP/1.1"
        head: bytes = _serialize_headers(line, headers)  # which looks for ends of lines in them
        return head.removesuffix(b"\r\n") + b"Content-Length: "


def _write(protocol: Any, request: bytes) -> None:
    """Send all of a request, and begin to count the time for its answer."""
    if protocol.transport is None or protocol.transport.is_closing():
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    protocol.transport.write(request)
    protocol.start_timeout()
