"""The connections shared by all clients of one environment: one pool, one TLS context.

Clients with different keys can share a pool, because the key is a header of each request. They
share a TLS context because it holds the trusted certificates, most of the memory of a client.
"""

from __future__ import annotations

from typing import Any

import openai

from .environment import Environment
from .httpx_package import httpx_of
from .openai_transport import build_transport

__all__ = ["Connections"]


class Connections:
    """The transports of one environment, shared by its clients. On the loop.

    Args:
        environment: Certificates and proxies.

    Raises:
        OSError: The certificates cannot be read.
        ImportError: There is a SOCKS proxy, but the package socksio is not installed.
    """

    def __init__(self, environment: Environment) -> None:
        self._httpx = httpx_of(openai)
        self._environment = environment
        self.tls_context = environment.tls_context(self._httpx)
        """The TLS context of all connections."""
        self._transports: list[Any] = []
        self._direct = self._transport(None)
        self._mounts = environment.mounts(self._httpx, self._transport)

    def http_client(self) -> Any:
        """Return a new httpx client for OpenAI's SDK. Closing it leaves the connections open."""
        return openai.DefaultAioHttpClient(
            transport=self._direct, mounts=self._mounts, trust_env=False
        )

    def httpx_options(self, sdk: Any) -> dict[str, Any]:
        """Return the arguments for another SDK's httpx client, which has a pool of its own.

        That pool has no limit.

        Args:
            sdk: The SDK's module, `cerebras.cloud.sdk`.
        """
        httpx = httpx_of(sdk)
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
        """Build a transport: aiohttp's, or httpx's for a SOCKS proxy, which aiohttp cannot use."""
        if proxy is not None and proxy.url.scheme.startswith("socks"):
            limits = self._httpx.Limits(max_connections=None)
            options = {"verify": self.tls_context, "trust_env": False, "limits": limits}
            transport = self._httpx.AsyncHTTPTransport(proxy=proxy, **options)
        else:
            transport = build_transport(self.tls_context, proxy)
        self._transports.append(transport)
        transport.aclose = _leave_open
        return transport


async def _leave_open() -> None:
    """Do nothing when a client closes its transport: other clients use it, too."""
