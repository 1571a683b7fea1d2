"""Resources that live exactly as long as one event loop, such as clients and their connections."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

__all__ = ["LoopScope"]

T = TypeVar("T")


class LoopScope:
    """Builds each resource once per key, on the loop, and closes all of them when the loop ends.

    Every coroutine that runs on the service receives the scope of its loop. Only the loop's thread
    may use it.
    """

    def __init__(self) -> None:
        self._resources: dict[Hashable, Any] = {}
        self._exits = contextlib.AsyncExitStack()

    def get(
        self, key: Hashable, build: Callable[[], T], close: Callable[[T], Awaitable[None]]
    ) -> T:
        """Return the resource for a key, and build it on the first request.

        Args:
            key: Identifies the resource.
            build: Called on the loop's thread if the scope has no resource for the key yet.
            close: Awaited on the loop when the loop ends.
        """
        if key not in self._resources:
            resource = build()
            self._exits.push_async_callback(close, resource)
            self._resources[key] = resource
        return cast(T, self._resources[key])

    async def aclose(self) -> None:
        """Close all resources in reverse order."""
        self._resources.clear()
        await self._exits.aclose()
