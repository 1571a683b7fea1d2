"""Look at the clients and destinations that the background loop keeps."""

from __future__ import annotations

from typing import Any

import pytest

from gptx_async.calls.request import _Destination
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.transport.client_cache import ClientCache
from gptx_async.transport.settings import ClientSettings

__all__ = ["client_on", "close_idle_connections", "destination_on"]


def client_on(scope: LoopScope, settings: ClientSettings) -> Any:
    """Return the client that the loop keeps for these settings. Only on the loop."""
    clients: ClientCache = scope.get(ClientCache, pytest.fail, pytest.fail)
    return clients._clients._leases[settings.key].resource


def destination_on(scope: LoopScope, settings: ClientSettings, model: str) -> Any:
    """Return the destination that the loop keeps for these settings. Only on the loop."""
    destinations: Any = scope.get(_Destination, pytest.fail, pytest.fail)
    return destinations._leases[settings.account, model].resource


def close_idle_connections() -> None:
    """Close the pooled connections of the default service, so that the next requests open new ones.

    A request that fails on a reused connection is sent again on a new one, which does not count as
    a retry. The server would see one request more than from the sync client.
    """

    async def close(scope: LoopScope) -> None:
        clients: Any = scope.get(ClientCache, ClientCache, ClientCache.close)
        for lease in clients._pools._leases.values():
            for transport in lease.resource._transports:
                # The transport for a SOCKS proxy is httpx's, and has no client.
                connector = getattr(getattr(transport, "client", None), "connector", None)
                if connector is not None:
                    for protocol, _ in [
                        each for pool in connector._conns.values() for each in pool
                    ]:
                        protocol.close()
                    connector._conns.clear()

    default_service().run(close)
