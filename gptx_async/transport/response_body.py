"""Read and decode response bodies within a size limit, large bodies off the loop.

A megabyte of gzip can decode to a gigabyte. httpx reads and decodes a body at once, without a
limit; on the loop this would delay every call of the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, TypeVar

from .httpx_package import package_of

__all__ = [
    "LARGE_BYTES",
    "MAX_RESPONSE_BYTES",
    "ResponseTooLarge",
    "check_length",
    "decoded",
    "drive",
    "leave_loop",
    "read_bounded",
    "restore_headers",
]

T = TypeVar("T")

MAX_RESPONSE_BYTES = 64 * 2**20
"""The default size limit of a decoded response."""

LARGE_BYTES = 256 * 2**10
"""Bodies up to this size are decoded and parsed on the loop, in about a millisecond."""

_PIECE_BYTES = 4096
"""How much of a compressed body is decoded at a time. Some of httpx's decoders have no limit."""

_ENCODING, _HEADERS = "content-encoding", "gptx_async_headers"


class ResponseTooLarge(BaseException):
    """Leaves the SDK when a response is too large. The SDK would retry an `Exception`."""


class _Leave:
    """What a coroutine yields to `drive` to continue in a thread."""


_LEAVE = _Leave()


def check_length(size: int, most: int | None) -> None:
    """Check the received or declared size of a response, in bytes, against its limit.

    Raises:
        ResponseTooLarge: The size is above the limit.
    """
    if most is not None and size > most:
        raise ResponseTooLarge


async def decoded(httpx: Any, headers: Any, body: bytes, most: int | None) -> bytes:
    """Decode a body by its Content-Encoding, as httpx does, in a thread if it is large.

    Args:
        httpx: The package httpx or httpx2.
        headers: The response's headers, or pairs of name and value.
        body: The body as received.
        most: The size limit of the result, in bytes; None for no limit.

    Raises:
        ResponseTooLarge: The result is longer than `most`.
        Exception: httpx's DecodingError.
    """
    source = httpx.Response(200, headers=headers, stream=_pieces_of(httpx, body))
    pieces = source.iter_bytes()
    parts: list[bytes] = []
    if not _collect(pieces, parts, LARGE_BYTES, most):
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, _collect, pieces, parts, sys.maxsize, most)
    return b"".join(parts)


def _collect(pieces: Iterator[bytes], parts: list[bytes], until: int, most: int | None) -> bool:
    """Add pieces to the parts up to a size; return whether all pieces were added."""
    size = sum(map(len, parts))
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        check_length(size, most)
        if size > until:
            return False
    return True


def _pieces_of(httpx: Any, body: bytes) -> Any:
    class Pieces(httpx.SyncByteStream):  # type: ignore[misc] # httpx or httpx2
        def __iter__(self) -> Iterator[bytes]:
            for start in range(0, len(body), _PIECE_BYTES):
                yield body[start : start + _PIECE_BYTES]

    return Pieces()


async def read_bounded(response: Any, most: int | None) -> None:
    """Read and decode the body of httpx's response before httpx does.

    Call it from an event hook of httpx's client, and `restore_headers` after the client's `send`.

    Args:
        response: The response, of which only the head was read.
        most: The size limit of the decoded body, in bytes; None for no limit.

    Raises:
        ResponseTooLarge: The body is longer than `most`.
        Exception: As httpx raises when it cannot read or decode a body.
    """
    length = response.headers.get("content-length", "")
    check_length(int(length) if length.isdecimal() else 0, most)
    blocks, size = [], 0
    async for block in response.stream:
        blocks.append(block)
        size += len(block)
        check_length(size, most)
    await response.stream.aclose()
    httpx = package_of(type(response))
    body = b"".join(blocks)
    if _ENCODING in response.headers:
        body = await decoded(httpx, response.headers, body, most)
        response.extensions[_HEADERS] = response.headers
        response.headers = response.headers.copy()
        del response.headers[_ENCODING]
    response.stream = httpx.ByteStream(body)


def restore_headers(response: Any) -> None:
    """Restore the received headers of a response and of the redirects before it."""
    for each in (*response.history, response):
        each.headers = each.extensions.pop(_HEADERS, each.headers)


@types.coroutine
def leave_loop() -> Generator[Any, None, None]:
    """Continue the coroutine, which `drive` runs, in a thread."""
    yield _LEAVE


@types.coroutine
def drive(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run a coroutine; after it awaits `leave_loop`, it runs in a thread until it waits again.

    The coroutine has a copy of the context, in the thread, too.
    """
    context = contextvars.copy_context()
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            waits_for = context.run(step, value)
            while waits_for is _LEAVE:
                loop = asyncio.get_running_loop()
                is_done, waits_for = yield from loop.run_in_executor(
                    None, context.run, _step, coroutine
                )
                if is_done:
                    return waits_for  # type: ignore[no-any-return]
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        try:
            value = yield waits_for
        except BaseException as error:
            step, value = coroutine.throw, error
        else:
            step = coroutine.send


def _step(coroutine: Coroutine[Any, Any, T]) -> tuple[bool, Any]:
    """Run a coroutine to its next wait; return whether it is done, and its result or future."""
    try:
        return False, coroutine.send(None)
    except StopIteration as stop:  # a future cannot hold it
        return True, stop.value
