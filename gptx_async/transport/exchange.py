"""Send POSTs over aiohttp's pooled connections, with a head that is built once.

`aiohttp.ClientSession.request` supports redirects, cookies, uploads, middlewares and traces. A
route has none of these and always sends the same lines. So this module uses only aiohttp's pool,
parser and read timeouts. It leaves out the layer between them, which creates a writer task and
about thirty objects for each request in flight.

The errors are those of `ClientSession.request` and `ClientResponse.start`. The module uses private
methods of aiohttp; `is_known` checks that they are as expected.
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
from .connector import may_go_again, new_connection
from .private_names import FAST_PATH
from .response_body import check_length

__all__ = ["MAX_HEADER_BYTES", "MOST_BYTES", "Exchange", "RawResponse", "is_known", "is_too_long"]

MAX_HEADER_BYTES = 100 * 1024
"""The limit for the size and the number of a response's headers: httpcore's, so the sync client's.
"""

MOST_BYTES = 64 * 1024
"""The size limit of a request's body. asyncio's transports accept as much without a pause; a longer
body may be answered before it is sent."""

_serialize_headers: Any = getattr(http_writer, "_serialize_headers", None)


def is_known() -> bool:
    """Return whether the private names that routes need are as expected."""
    return are_there(FAST_PATH)


class RawResponse:
    """A response with its head and its body, or the error that ended the body.

    It has the attributes of aiohttp's response that the SDK's transport reads.

    Attributes:
        status: The status.
        reason: The reason phrase.
        headers: The headers; names are case-insensitive.
        raw_headers: The headers as received.
        body: The body as received, perhaps compressed.
        error: Why the body could not be read, or None.
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
        """The object itself, on which the transport calls `iter_chunked`."""
        return self

    @property
    def is_too_long(self) -> bool:
        """Whether the headers are longer than the sync client accepts."""
        return is_too_long(self.raw_headers)

    async def read(self, body: Any, most: int | None) -> None:
        """Read the body, to its end or to an error, which is kept.

        Args:
            body: aiohttp's stream.
            most: The size limit, in bytes; None for no limit.

        Raises:
            ResponseTooLarge: The body is longer than `most`.
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
        """Yield the body, or raise the error that ended it."""
        if self.error is not None:
            raise self.error
        yield self.body

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: the connection was released when the body was read."""


def is_too_long(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether a response's headers are longer than the sync client accepts."""
    return sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES


class Exchange:
    """Sends POSTs to one URL over pooled connections of a session. On the session's loop.

    Args:
        session: aiohttp's session.
        url: The URL.
        headers: The headers of each request, including Content-Length.
        timeout: Seconds for connecting and for each read.

    Raises:
        ValueError: A header contains a line break.
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
        # Never sent: aiohttp's pool chooses a connection by it.
        self._request = aiohttp.ClientRequest(
            "POST", url, headers=headers, data=b"", loop=asyncio.get_running_loop()
        )
        self._usual_head = self._head({})

    async def post(
        self, content: bytes, changed: Mapping[str, str], most: int | None = None
    ) -> RawResponse:
        """Send a request and read the response.

        Args:
            content: The body, of at most `MOST_BYTES`.
            changed: Headers of this request that are added or replaced.
            most: The size limit of the response's body, in bytes; None for no limit.

        Raises:
            ResponseTooLarge: The response's body is longer than `most`.
            aiohttp.ClientError: As aiohttp does: the connection failed, was lost or timed out, or
                the response is not HTTP.
            ValueError: A header contains a line break.
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
    ) -> RawResponse:
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
            while message.code < 200 and message.code != 101:  # for example 100 Continue
                message, body = await protocol.read()
            response = RawResponse(message)
            if not response.is_too_long:
                body.on_eof(connection.release)  # at once, as aiohttp does: others may wait for it
                await response.read(body, most)
        except HttpProcessingError as error:
            raise aiohttp.ClientResponseError(
                self._request.request_info,
                (),
                status=error.code,
                message=error.message,
                headers=error.headers,
            ) from error
        finally:
            connection.close()  # does nothing if it was released
        return response

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
        """Return the request line and the headers, up to the value of Content-Length."""
        headers = self._request.headers.copy()
        headers.update(changed)
        headers.popall("content-length")
        line = f"POST {self._request.url.raw_path_qs} HTTP/1.1"
        head: bytes = _serialize_headers(line, headers)  # raises if one contains a line break
        return head.removesuffix(b"\r\n") + b"Content-Length: "


def _write(protocol: Any, request: bytes) -> None:
    """Send a whole request, and start the time limit for its response."""
    if protocol.transport is None or protocol.transport.is_closing():
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    protocol.transport.write(request)
    protocol.start_timeout()
