"""The connections that all clients of one environment share: one pool, one context for TLS.

A key is a header of each request, so a pool is none's own; and a context for TLS, with the
certificates that it trusts, takes most of the memory of a client.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import aiohttp
import openai

from ..private_names import are_there
from .connector import Connector
from .environment import Environment
from .exchange import MAX_HEADER_BYTES
from .private_names import POOL

__all__ = ["Connections", "Handle", "httpx_of"]

Handle = Callable[[Any, Any], Awaitable[Any]]
"""Sends a request of httpx, the second argument, by an aiohttp transport, the first."""


def httpx_of(package: Any) -> ModuleType:
    """Return the httpx that an SDK stands on: httpx2 for openai 3, else httpx.

    Args:
        package: `openai`, or `cerebras.cloud.sdk`.
    """
    return sys.modules[type(package.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0]]


class Connections:
    """What the clients of one environment send by. On the loop.

    Args:
        environment: Certificates and proxies.
        handle: Sends a request of httpx by one of the SDK's aiohttp transports.

    Raises:
        OSError: The certificates cannot be read.
        ImportError: There is a SOCKS proxy, but not the package socksio.
    """

    def __init__(self, environment: Environment, handle: Handle) -> None:
        self._httpx = httpx_of(openai)
        self._environment = environment
        self._handle = handle
        self.tls_context = environment.tls_context(self._httpx)
        """The context for TLS."""
        self._transports: list[Any] = []
        self._direct = self._transport(None)
        self._mounts = environment.mounts(self._httpx, self._transport)

    def http_client(self) -> Any:
        """Return a new httpx client for the SDK; closing it leaves the connections open."""
        return openai.DefaultAioHttpClient(
            transport=self._direct, mounts=self._mounts, trust_env=False
        )

    def limitless(self, package: Any) -> dict[str, Any]:
        """Return the arguments for httpx's own client of another SDK, with a pool of its own.

        Args:
            package: The SDK: `cerebras.cloud.sdk`.
        """
        httpx = httpx_of(package)
        options = {"limits": httpx.Limits(max_connections=None), "verify": self.tls_context}
        mounts = self._environment.mounts(
            httpx, lambda proxy: httpx.AsyncHTTPTransport(proxy=proxy, trust_env=False, **options)
        )
        return {**options, "mounts": mounts, "trust_env": False}

    async def close(self) -> None:
        """Close all connections."""
        for transport in self._transports:
            await type(transport).aclose(transport)

    def _transport(self, proxy: Any) -> Any:
        """Build a transport: aiohttp's, or httpx's own for a SOCKS proxy, which aiohttp lacks."""
        if proxy is not None and proxy.url.scheme.startswith("socks"):
            limits = self._httpx.Limits(max_connections=None)
            options = {"verify": self.tls_context, "trust_env": False, "limits": limits}
            transport = self._httpx.AsyncHTTPTransport(proxy=proxy, **options)
        else:
            limits = openai.DEFAULT_CONNECTION_LIMITS
            proxy = proxy and _with_auth_as_header(self._httpx, proxy)
            transport = _aiohttp_transport()(verify=self.tls_context, limits=limits, proxy=proxy)
            transport.client = functools.partial(_build_session, transport)
            transport.handle_async_request = functools.partial(self._handle, transport)
        self._transports.append(transport)
        transport.aclose = _leave_open
        return transport


def _with_auth_as_header(httpx: ModuleType, proxy: Any) -> Any:
    """Return a proxy of httpx whose user and password are a header, as httpx sends them.

    The SDK's transport makes an `aiohttp.BasicAuth` of them, which aiohttp warns of.
    """
    if proxy.auth is None:
        return proxy
    request = httpx.Request("GET", proxy.url)
    next(httpx.BasicAuth(*proxy.auth).sync_auth_flow(request))
    headers = {"Proxy-Authorization": request.headers["authorization"], **proxy.headers}
    return httpx.Proxy(proxy.url, headers=headers, ssl_context=proxy.ssl_context)


async def _leave_open() -> None:
    """Do nothing: a client is closed, and others send by its transport."""


@functools.cache
def _aiohttp_transport() -> type[Any]:
    """Return the class of the SDK's aiohttp transport, which has no public name."""
    return type(openai.DefaultAioHttpClient(verify=False, trust_env=False)._transport)


def _build_session(transport: Any) -> aiohttp.ClientSession:
    """Build aiohttp's session as the transport does, but for its pool, headers and cookies.

    How many requests are out is for others to say: those that wait inside a pool run down their own
    timeouts (openai/openai-python#821). An answer's headers may be as long and as many as the sync
    client takes; the cookies are kept by the SDK's own client, and not a second time.
    """
    connector: aiohttp.TCPConnector
    if are_there(POOL):
        keepalive = transport.limits.keepalive_expiry
        connector = Connector(limit=0, keepalive_timeout=keepalive, ssl=transport.ssl_context)
    else:  # a pool of which nobody sees what came unasked
        connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=transport.ssl_context)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADER_BYTES,
    )
