"""What the background loop keeps, for tests to look at: clients and lines."""

from __future__ import annotations

from typing import Any

import pytest

from gptx_async.calls.request import _Line
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.transport.client import ClientSettings
from gptx_async.transport.client_cache import ClientCache

__all__ = ["client_on", "close_idle_connections", "line_on"]


def client_on(scope: LoopScope, settings: ClientSettings) -> Any:
    """Return the client that the loop keeps for these settings; on the loop."""
    clients: ClientCache = scope.get(ClientCache, pytest.fail, pytest.fail)
    return clients._clients._leases[settings.key].resource


def line_on(scope: LoopScope, settings: ClientSettings, model: str) -> Any:
    """Return what the loop keeps for the base URL and key of these settings; on the loop."""
    lines: Any = scope.get(_Line, pytest.fail, pytest.fail)
    return lines._leases[settings.account, model].resource


def close_idle_connections() -> None:
    """Close what the pools of the default service hold, so that the next requests open their own.

    A request that fails on a reused connection goes to a new one, which is no retry: the server
    sees one more than of the sync client.
    """

    async def close(scope: LoopScope) -> None:
        clients: Any = scope.get(ClientCache, ClientCache, ClientCache.close)
        for lease in clients._pools._leases.values():
            for transport in lease.resource._transports:
                connector = getattr(transport.client, "connector", None)
                if connector is not None:
                    for protocol, _ in [
                        each for pool in connector._conns.values() for each in pool
                    ]:
                        protocol.close()
                    connector._conns.clear()

    default_service().run(close)
