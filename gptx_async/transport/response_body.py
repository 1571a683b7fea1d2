"""The body of a response: read and decoded within a bound, and a large one off the loop.

A megabyte of gzip can become a gigabyte. Decoded and parsed on the loop it would hold up every
call of the process (httpx reads a body in one go, without a bound).
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
"""How long a response may be, decoded, when its engine does not say."""

LARGE_BYTES = 256 * 2**10
"""Up to this size a body is decoded and parsed on the loop, which takes about a millisecond."""

_PIECE_BYTES = 4096
"""How much of a compressed body is decoded at a time; some decoders of httpx have no bound."""

_ENCODING, _HEADERS = "content-encoding", "gptx_async_headers"


class ResponseTooLarge(BaseException):
    """Takes a response that is too large out of the SDK, which would retry an `Exception`."""


class _Leave:
    """What a coroutine under `drive` gives to its driver to go on in a thread."""


_LEAVE = _Leave()


def check_length(size: int, most: int | None) -> None:
    """Check how long a response is so far, or how long it says to be.

    Raises:
        ResponseTooLarge: It is longer than it may be.
    """
    if most is not None and size > most:
        raise ResponseTooLarge


async def decoded(httpx: Any, headers: Any, body: bytes, most: int | None) -> bytes:
    """Decode a body by its Content-Encoding, as httpx does; what is large in a thread.

    Args:
        httpx: The module, httpx2 for openai 3.
        headers: The response's headers, or the pairs of them.
        body: The body as it came.
        most: How long the result may be, in bytes; None for no bound.

    Raises:
        ResponseTooLarge: It is longer than it may be.
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
    """Add pieces to the parts up to a size; tell whether there are no more."""
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
    """Read and decode the body of a response of httpx, before httpx does.

    To be an event hook of the client; `restore_headers` has to follow.

    Args:
        response: The response, of which only the head was read.
        most: How long the body may be, in bytes; None for no bound.

    Raises:
        ResponseTooLarge: It is longer than it may be.
        Exception: What httpx raises when it cannot read or decode a body.
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
    """Give a response, and those that led to it, the headers that came."""
    for each in (*response.history, response):
        each.headers = each.extensions.pop(_HEADERS, each.headers)


@types.coroutine
def leave_loop() -> Generator[Any, None, None]:
    """Let the rest of a coroutine that `drive` runs go on in a thread."""
    yield _LEAVE


@types.coroutine
def drive(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run a coroutine; after it has awaited `leave_loop`, in a thread up to its next wait.

    Its context variables are its own, in the thread as well.
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
    """Go on with a coroutine; return whether it is done, and its result or what it waits for."""
    try:
        return False, coroutine.send(None)
    except StopIteration as stop:  # which no future can hold
        return True, stop.value
