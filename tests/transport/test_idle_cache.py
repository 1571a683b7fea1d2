"""Clients, connection pools and governors are kept for a while after their last use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from gptx_async.calls import request as request_module
from gptx_async.calls.request import RequestOptions
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI
from gptx_async.transport.idle_cache import IdleCache, Lease
from gptx_async.transport.settings import ClientSettings
from support.client_calls import CallsOnLoop
from support.looking import client_on, destination_on

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "text"}],
}


class Closing:
    """Builds resources, and records which ones are closed."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.closed: list[str] = []
        self._changed = asyncio.Condition()

    async def close(self, name: str) -> None:
        async with self._changed:
            self.closed.append(name)
            self._changed.notify_all()

    async def wait_for(self, *names: str) -> None:
        async with self._changed, asyncio.timeout(20):
            await self._changed.wait_for(lambda: {*names} <= {*self.closed})

    def take(self, cache: IdleCache[str], name: str, seconds: float) -> Lease[str]:
        def build() -> str:
            self.built.append(name)
            return name

        return cache.take(name, build, seconds)


def test_it_is_built_once_and_closed_after_its_last_use() -> None:
    async def main() -> None:
        closing = Closing()
        cache = IdleCache(9, closing.close)
        leases = [closing.take(cache, "a", 0.01) for _ in range(2)]
        assert leases[0].resource == "a"
        cache.give_back(leases[0])
        cache.give_back(closing.take(cache, "b", 0.01))
        await closing.wait_for("b")
        assert closing.closed == ["b"], "one use of the first has not ended"
        cache.give_back(leases[1])
        await closing.wait_for("a")
        assert closing.built == ["a", "b"]
        assert len(cache) == 0

    asyncio.run(main())


def test_it_is_not_closed_while_it_is_used_again() -> None:
    async def main() -> None:
        closing = Closing()
        cache = IdleCache(9, closing.close)
        cache.give_back(closing.take(cache, "a", 0.01))
        again = closing.take(cache, "a", 0.01)
        cache.give_back(closing.take(cache, "b", 0.05))
        await closing.wait_for("b")
        assert closing.closed == ["b"]
        cache.give_back(again)
        await closing.wait_for("a")

    asyncio.run(main())


def test_a_short_time_is_kept_beside_a_long_one() -> None:
    async def main() -> None:
        closing = Closing()
        cache = IdleCache(9, closing.close)
        for name, seconds in (("long", 600), ("short", 0.01)):
            cache.give_back(closing.take(cache, name, seconds))
        await closing.wait_for("short")
        assert closing.closed == ["short"]
        await cache.close()

    asyncio.run(main())


def test_above_the_bound_the_longest_unused_is_closed() -> None:
    async def main() -> None:
        closing = Closing()
        cache = IdleCache(2, closing.close)
        in_use = closing.take(cache, "in use", 600)
        for name in ("a", "b", "c"):
            cache.give_back(closing.take(cache, name, 600))
        await closing.wait_for("a", "b")
        assert sorted(closing.closed) == ["a", "b"]
        cache.give_back(in_use)
        await cache.close()
        assert sorted(closing.closed) == ["a", "b", "c", "in use"]

    asyncio.run(main())


def test_a_resource_that_may_not_be_dropped_stays() -> None:
    async def main() -> None:
        closing = Closing()
        cache = IdleCache(1, closing.close, lambda name: name != "has news")
        cache.give_back(closing.take(cache, "has news", 0.01))
        for name in ("a", "b"):
            cache.give_back(closing.take(cache, name, 600))
        cache.give_back(closing.take(cache, "c", 0.05))
        await closing.wait_for("a", "b", "c")
        assert "has news" not in closing.closed

    asyncio.run(main())


def wait_until_gone(find: Callable[[LoopScope], Any]) -> None:
    async def look(scope: LoopScope) -> bool:
        try:
            find(scope)
        except KeyError:
            return False
        return True

    until = time.monotonic() + 20
    while default_service().run(look):
        assert time.monotonic() < until, "it is still kept"


def test_an_unused_client_and_governor_are_dropped(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "IDLE_DESTINATION_SECONDS", 0.01)
    client = openai.OpenAI(api_key="sk-idle", base_url=fake_openai.base_url, max_retries=0)
    settings = ClientSettings.of(client)
    stand_in = StandInClient(client, CallsOnLoop(RequestOptions(idle_client_seconds=0.01)))
    for _ in range(2):
        stand_in.chat.completions.create(**CHAT)
        wait_until_gone(lambda scope: client_on(scope, settings))
        wait_until_gone(lambda scope: destination_on(scope, settings, CHAT["model"]))
    assert len(fake_openai.requests) == 2
