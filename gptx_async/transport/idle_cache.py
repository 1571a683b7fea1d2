"""A cache of shared resources, one per key, which are dropped some time after their last use."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["IdleCache", "Lease"]

T = TypeVar("T")

LOOKED_AT = 4
"""How many idle resources are examined to find one to drop, when the cache is over its limit."""


class Lease(Generic[T]):
    """A resource in use, to be given back to its cache.

    Attributes:
        resource: The resource.
    """

    __slots__ = ("_key", "_seconds", "_unused_since", "_users", "resource")

    def __init__(self, key: Hashable, resource: T) -> None:
        self.resource = resource
        self._key = key
        self._users = 0
        self._seconds = 0.0
        self._unused_since = 0.0


class IdleCache(Generic[T]):
    """Resources by key, kept while they are used and for some time after. Of one loop.

    A resource in use is never dropped.

    Args:
        most: The most resources to keep. Above it the longest unused one is dropped at once.
        close: Awaited on the loop for each resource that is dropped.
        may_drop: Returns whether an unused resource may be dropped.
    """

    def __init__(
        self,
        most: int,
        close: Callable[[T], Awaitable[None]],
        may_drop: Callable[[T], bool] = lambda _resource: True,
    ) -> None:
        self._most = most
        self._close = close
        self._may_drop = may_drop
        self._leases: dict[Hashable, Lease[T]] = {}
        self._idle: OrderedDict[Hashable, Lease[T]] = OrderedDict()  # longest unused first
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._leases)

    def take(self, key: Hashable, build: Callable[[], T], seconds: float) -> Lease[T]:
        """Return a lease of the resource for a key; end it with `give_back`.

        Args:
            key: The key.
            build: Builds the resource if the cache has none for the key.
            seconds: How long the resource may be unused before it is dropped. The latest call's
                value applies.
        """
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = Lease(key, build())
        else:
            self._idle.pop(key, None)
        lease._users += 1
        lease._seconds = seconds
        return lease

    def give_back(self, lease: Lease[T]) -> None:
        """End one use of a resource."""
        lease._users -= 1
        if lease._users or self._leases.get(lease._key) is not lease:
            return
        loop = asyncio.get_running_loop()
        lease._unused_since = loop.time()
        self._idle[lease._key] = lease
        if len(self._leases) > self._most:
            self._drop_longest_unused()
        due = lease._unused_since + lease._seconds
        if self._timer is not None and self._timer.when() > due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(due, self._sweep)

    async def close(self) -> None:
        """Close all resources, also those in use."""
        if self._timer is not None:
            self._timer.cancel()
        self._idle.clear()
        leases, self._leases = [*self._leases.values()], {}
        for lease in reversed(leases):
            self._drop(lease)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _drop_longest_unused(self) -> None:
        for lease in [*self._idle.values()][:LOOKED_AT]:
            if self._may_drop(lease.resource):
                self._drop(lease)
                return
            self._idle.move_to_end(lease._key)

    def _sweep(self) -> None:
        """Drop resources that were unused for long enough, and schedule the next sweep."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for lease in [*self._idle.values()]:
            if lease._unused_since + lease._seconds <= now:
                if self._may_drop(lease.resource):
                    self._drop(lease)
                else:
                    lease._unused_since = now
        if self._idle:
            due = min(lease._unused_since + lease._seconds for lease in self._idle.values())
            self._timer = loop.call_at(due, self._sweep)

    def _drop(self, lease: Lease[T]) -> None:
        self._idle.pop(lease._key, None)
        self._leases.pop(lease._key, None)
        closing = asyncio.ensure_future(self._close(lease.resource))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
