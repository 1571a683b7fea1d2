"""What the background loop keeps, for tests to look at: clients and lines."""

from __future__ import annotations

from typing import Any

import pytest

from gptx_async.client import ClientSettings
from gptx_async.request import _Line
from gptx_async.service import LoopScope
from gptx_async.transport.client_cache import ClientCache

__all__ = ["client_on", "line_on"]


def client_on(scope: LoopScope, settings: ClientSettings) -> Any:
    """Return the client that the loop keeps for these settings; on the loop."""
    clients: ClientCache = scope.get(ClientCache, pytest.fail, pytest.fail)
    return clients._clients._leases[settings.key].resource


def line_on(scope: LoopScope, settings: ClientSettings, model: str) -> Any:
    """Return what the loop keeps for the base URL and key of these settings; on the loop."""
    lines: Any = scope.get(_Line, pytest.fail, pytest.fail)
    return lines._leases[settings.account, model].resource
