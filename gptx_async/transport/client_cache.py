"""The clients on the background loop: one per settings, as long as they are used."""

from __future__ import annotations

import functools

import aiohttp

from .client import Client, ClientSettings, send_by_aiohttp
from .connections import Connections
from .idle_cache import IdleCache, Lease

__all__ = ["IDLE_CLIENT_SECONDS", "ClientCache"]

IDLE_CLIENT_SECONDS = 60.0
"""For how long a client is kept unused: building one anew takes a few milliseconds."""

MOST_CLIENTS = 128
"""How many clients are kept, in use or not; more only while they are all in use."""

MOST_ENVIRONMENTS = 4

CONNECTIONS_SECONDS = 600.0
"""For how long a pool without clients is kept; its connections close by themselves, sooner."""


class ClientCache:
    """Clients by their settings. On the loop."""

    def __init__(self) -> None:
        self._clients: IdleCache[Client] = IdleCache(MOST_CLIENTS, self._close)
        self._pools: IdleCache[Connections] = IdleCache(MOST_ENVIRONMENTS, Connections.close)
        self._pool_of: dict[Client, Lease[Connections]] = {}

    def take(self, settings: ClientSettings, seconds: float) -> Lease[Client]:
        """Return the client with these settings, to be given back after its use.

        Args:
            settings: Which client; it is built at the first use.
            seconds: How long it may be unused before it is closed.
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
        # A package that traces aiohttp patches the constructor: a pool from before is not traced.
        key = settings.environment, aiohttp.ClientSession.__init__
        build = functools.partial(Connections, settings.environment, send_by_aiohttp)
        pool = self._pools.take(key, build, CONNECTIONS_SECONDS)
        try:
            client = settings.build_async(pool.resource)
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
