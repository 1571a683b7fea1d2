"""The clients on the background loop: one for each distinct settings, closed when unused."""

from __future__ import annotations

import functools

import aiohttp

from .client import Client, build_client
from .connections import Connections
from .idle_cache import IdleCache, Lease
from .settings import CerebrasSettings, ClientSettings

__all__ = ["IDLE_CLIENT_SECONDS", "ClientCache"]

IDLE_CLIENT_SECONDS = 60.0
"""How long an unused client is kept. Building one takes a few milliseconds."""

MOST_CLIENTS = 128
"""How many clients are kept. There are more only while all of them are in use."""

MOST_ENVIRONMENTS = 4
"""How many pools are kept. There are more only while all of them have clients."""

CONNECTIONS_SECONDS = 600.0
"""How long a pool without clients is kept. Its connections close sooner, by themselves."""


class ClientCache:
    """Clients by their settings. On the loop."""

    def __init__(self) -> None:
        self._clients: IdleCache[Client] = IdleCache(MOST_CLIENTS, self._close)
        self._pools: IdleCache[Connections] = IdleCache(MOST_ENVIRONMENTS, Connections.close)
        self._pool_of: dict[Client, Lease[Connections]] = {}

    def take(self, settings: ClientSettings, seconds: float) -> Lease[Client]:
        """Return a lease of the client with these settings; end it with `give_back`.

        Args:
            settings: The settings; the client is built at their first use.
            seconds: How long the client may be unused before it is closed.
        """
        return self._clients.take(settings.key, functools.partial(self._build, settings), seconds)

    def give_back(self, lease: Lease[Client]) -> None:
        """End one use of a client."""
        self._clients.give_back(lease)

    async def close(self) -> None:
        """Close all clients and connections."""
        await self._clients.close()
        await self._pools.close()

    def _build(self, settings: ClientSettings) -> Client:
        # A tracer of aiohttp patches the constructor, and sees only sessions that are built later.
        key = settings.environment, aiohttp.ClientSession.__init__
        build = functools.partial(Connections, settings.environment)
        pool = self._pools.take(key, build, CONNECTIONS_SECONDS)
        try:
            client = _build_client(settings, pool.resource)
        except BaseException:
            self._pools.give_back(pool)
            raise
        self._pool_of[client] = pool
        return client

    async def _close(self, client: Client) -> None:
        try:
            await client.close()
        finally:
            self._pools.give_back(self._pool_of.pop(client))


def _build_client(settings: ClientSettings, connections: Connections) -> Client:
    if isinstance(settings, CerebrasSettings):
        from .cerebras import build_cerebras_client  # its SDK is optional

        return build_cerebras_client(settings, connections)
    return build_client(settings, connections)
