"""aiohttp's connection pool, made safe for bursts and for servers that close idle connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from .ramp import Ramp

__all__ = ["Connector", "connection_noted", "may_go_again", "new_connection"]

MOST_RAMPS = 64
"""The most servers for which a ramp is kept; more only while their ramps are in use."""

_needs_new: ContextVar[bool] = ContextVar("_needs_new", default=False)
_noted: ContextVar[list[Any] | None] = ContextVar("_noted", default=None)


class _Protocol(ResponseHandler):
    """aiohttp's protocol, which counts its uses and records whether the current use got data."""

    uses = 0
    has_received = False

    def data_received(self, data: bytes) -> None:
        self.has_received = True
        super().data_received(data)


class Connector(aiohttp.TCPConnector):
    """A pool that limits how fast it opens connections, and reuses only connections without data.

    aiohttp would take data that came on an idle connection for the response to the next request.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory: Any = functools.partial(_Protocol, loop=self._loop)
        self._ramps: dict[Any, Ramp] = {}

    async def connect(self, req: Any, traces: list[Any], timeout: Any) -> Any:  # noqa: ASYNC109
        """Return a pooled connection, or open a new one."""
        ramp = self._ramp_to(req.connection_key)
        missed = False
        while (connection := await self._get(req.connection_key, traces)) is None:
            if await ramp.turn(timeout.sock_connect, first=missed):
                connection = await self._open(ramp, req, traces, timeout)
                break
            missed = True
        connection.add_callback(ramp.given_back)
        _note(connection.protocol)
        return connection

    async def _open(self, ramp: Ramp, req: Any, traces: list[Any], limits: Any) -> Any:
        """Open a connection, or take one that came into the pool meanwhile, and end the turn."""
        began = self._loop.time()
        try:
            connection = await super().connect(req, traces, limits)
        except asyncio.CancelledError:
            ramp.unused()
            raise
        except BaseException:
            ramp.failed(began)
            raise
        if getattr(connection.protocol, "uses", 0):
            ramp.unused()
        else:
            ramp.opened(began)
        return connection

    async def _get(self, *args: Any) -> Any:
        if _needs_new.get():
            return None
        while (connection := await super()._get(*args)) is not None:
            if connection.protocol is not None and _is_idle(connection.protocol):
                return connection
            connection.close()
        return None

    def _ramp_to(self, server: Any) -> Ramp:
        ramp = self._ramps.get(server)
        if ramp is None:
            if len(self._ramps) >= MOST_RAMPS:
                self._ramps = {key: each for key, each in self._ramps.items() if not each.is_unused}
            ramp = self._ramps[server] = Ramp()
        return ramp


def _is_idle(protocol: Any) -> bool:
    """Return whether a pooled connection is open and has no unread data, in aiohttp or the kernel.

    httpcore checks its connections in the same way.
    """
    if protocol.should_close:
        return False
    sock = protocol.transport.get_extra_info("socket")
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return not poll.poll(0)


def _note(protocol: Any) -> None:
    """Count a use of a connection, and report it to `connection_noted`."""
    if isinstance(protocol, _Protocol):
        protocol.uses += 1
        protocol.has_received = False
        noted = _noted.get()
        if noted is not None:
            noted.append(protocol)


def may_go_again(protocol: Any, error: Exception) -> bool:
    """Return whether a request failed only because the server had closed an idle connection.

    That is so if the connection was used before and received no byte of the response. The request
    may then be sent on a new connection, as browsers and Go's `net/http` do.

    Args:
        protocol: The connection's protocol.
        error: The error of the request.
    """
    return (
        isinstance(protocol, _Protocol)
        and protocol.uses > 1
        and not protocol.has_received
        and isinstance(error, aiohttp.ClientConnectionError)
        and not isinstance(error, aiohttp.ServerTimeoutError)
    )


@contextlib.contextmanager
def new_connection() -> Iterator[None]:
    """Send the requests of the block on new connections only."""
    token = _needs_new.set(True)
    try:
        yield
    finally:
        _needs_new.reset(token)


@contextlib.contextmanager
def connection_noted() -> Iterator[list[Any]]:
    """Yield a list that receives the protocol of each connection that the block's requests use."""
    noted: list[Any] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)
