"""Clients and governors are shared by key while they are used, and dropped afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from gptx_async import AsyncGPTXBatchEngine, errors
from gptx_async.calls.request import RequestOptions, _Destination
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.patience import MEMORY_OF_FAILURES
from gptx_async.pacing.rate_limit import RateLimit
from gptx_async.pacing.settings import Pacing
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI
from gptx_async.transport.client import Client
from gptx_async.transport.client_cache import MOST_CLIENTS, ClientCache
from gptx_async.transport.idle_cache import IdleCache
from support.call_paths import CHAT
from support.client_calls import CODE as CLIENT_CALLS
from support.client_calls import CallsOnLoop
from support.looking import client_on


def ask(fake_openai: FakeOpenAI, key: str, idle_seconds: float = 60.0) -> StandInClient:
    """Make a call with a key; return its stand-in client."""
    client = openai.OpenAI(api_key=key, base_url=fake_openai.base_url, max_retries=0)
    terms = RequestOptions(patience=0, idle_client_seconds=idle_seconds)
    stand_in = StandInClient(client, CallsOnLoop(terms))
    stand_in.chat.completions.create(**CHAT)
    return stand_in


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """Return the keys whose clients are closed."""
    closed: dict[str, threading.Event] = {"sk-idle": threading.Event()}
    original = Client.close

    async def close(client: Client) -> None:
        await original(client)
        closed.setdefault(client.sdk.api_key, threading.Event()).set()

    monkeypatch.setattr(Client, "close", close)
    return closed


def test_an_unused_client_is_closed_and_its_key_is_forgotten(
    fake_openai: FakeOpenAI, closed: dict[str, threading.Event]
) -> None:
    ask(fake_openai, "sk-idle", idle_seconds=0.05)
    assert closed["sk-idle"].wait(60)
    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) is openai.AsyncOpenAI]
    assert "sk-idle" not in {each.api_key for each in alive}
    ask(fake_openai, "sk-idle")


def test_no_key_of_the_caches_is_an_api_key(fake_openai: FakeOpenAI) -> None:
    settings = ask(fake_openai, "sk-hashed").settings

    async def keys(scope: LoopScope) -> str:
        assert client_on(scope, settings)
        clients: Any = scope.get(ClientCache, pytest.fail, pytest.fail)
        lines: Any = scope.get(_Destination, pytest.fail, pytest.fail)
        return repr([*clients._clients._leases, *lines._leases])

    assert "sk-" not in default_service().run(keys)


@pytest.mark.slow
def test_the_number_of_clients_is_bounded_and_none_in_flight_is_closed(
    fake_openai: FakeOpenAI, closed: dict[str, threading.Event]
) -> None:
    with FakeOpenAI() as slow, ThreadPoolExecutor(1) as pool:
        slow.hold()
        held = pool.submit(ask, slow, "sk-held", 0.0)
        slow.wait_for(lambda server: server.in_flight == 1)
        for number in range(MOST_CLIENTS + 20):
            ask(fake_openai, f"sk-{number}")
        assert "sk-held" not in closed
        assert "sk-0" in closed  # longest unused

        async def count(scope: LoopScope) -> int:
            clients: Any = scope.get(ClientCache, pytest.fail, pytest.fail)
            return len(clients._clients)

        assert default_service().run(count) == MOST_CLIENTS
        slow.release()
        held.result(60)


@pytest.mark.parametrize("value", [-1, "60", None, float("nan")])
def test_idle_client_seconds_is_a_number(value: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"idle_client_seconds is .*a number"):
        AsyncGPTXBatchEngine("sk-1", "gpt-4o-mini", idle_client_seconds=value)


def test_idle_client_seconds_can_be_changed(
    fake_openai: FakeOpenAI, closed: dict[str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", fake_openai.base_url)
    engine = AsyncGPTXBatchEngine("sk-idle", "gpt-4o-mini")
    assert engine.idle_client_seconds == 60
    engine.idle_client_seconds = 0
    engine.client.chat.completions.create(**CHAT)
    assert closed["sk-idle"].wait(60)


class Resources:
    """Builds and closes numbers as the resources of a cache."""

    def __init__(self, most: int = 2, **options: Any) -> None:
        self.closed: list[int] = []
        self.changed = asyncio.Event()
        self.cache: IdleCache[int] = IdleCache(most, self.close, **options)

    async def close(self, number: int) -> None:
        self.closed.append(number)
        self.changed.set()

    def take(self, number: int, seconds: float = 60.0) -> Any:
        return self.cache.take(number, lambda: number, seconds)


def test_used_resources_are_kept_and_the_longest_unused_is_dropped_first() -> None:
    async def main() -> None:
        resources = Resources()
        leases = [resources.take(number) for number in range(5)]
        assert len(resources.cache) == 5  # all in use
        for lease in leases[:4]:
            resources.cache.give_back(lease)
        await asyncio.sleep(0)
        assert resources.closed == [0, 1, 2]
        assert len(resources.cache) == 2
        await resources.cache.close()
        assert sorted(resources.closed) == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_a_resource_taken_twice_is_dropped_after_both_uses() -> None:
    async def main() -> None:
        resources = Resources()
        first, second = resources.take(1, 0.0), resources.take(1, 0.0)
        assert first is second
        resources.cache.give_back(first)
        await asyncio.sleep(0.01)
        assert resources.closed == []
        resources.cache.give_back(second)
        await asyncio.wait_for(resources.changed.wait(), 60)
        assert resources.closed == [1]

    asyncio.run(main())


def test_a_resource_that_may_not_be_dropped_is_kept_above_the_bound() -> None:
    async def main() -> None:
        resources = Resources(may_drop=lambda number: number > 2)
        for number in range(6):
            resources.cache.give_back(resources.take(number, 0.01))
        while resources.closed != [3, 4, 5]:
            await asyncio.wait_for(resources.changed.wait(), 60)
            resources.changed.clear()
        assert len(resources.cache) == 3
        await resources.cache.close()

    asyncio.run(main())


def test_a_governor_with_limits_in_use_or_bad_news_is_not_at_rest() -> None:
    async def main() -> None:
        governor = Governor()
        assert governor.is_at_rest()
        pacing = Pacing(rate_limit=RateLimit(requests_per_minute=60))
        ticket = governor.ticket(pacing)
        assert not governor.is_at_rest()
        permit = await ticket.admit(0)
        permit.succeeded({}, None)
        ticket.close()
        assert not governor.is_at_rest()  # a request of this second is in the bucket

        failing = Governor()
        ticket = failing.ticket(Pacing())
        (await ticket.admit(0)).failed(OSError(), unreachable=True)
        ticket.close()
        assert not failing.is_at_rest()
        failing._failures.failed_at -= MEMORY_OF_FAILURES
        assert failing.is_at_rest()

    asyncio.run(main())


GROWTH = (
    CLIENT_CALLS
    + """
import gc, json, sys, openai
from gptx_async.symbolicai.v1.stand_in_client import StandInClient

def private_mib():
    with open("/proc/self/smaps_rollup") as lines:
        [kib] = [int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")]
    return kib / 1024

base_url, count = sys.argv[1], int(sys.argv[2])
client = openai.OpenAI(api_key="sk-x", base_url=base_url, max_retries=0)
stand_in = StandInClient(client, CallsOnLoop())
message = {"role": "user", "content": "Which colour?"}

def ask(first, last):
    for number in range(first, last):
        stand_in.api_key = f"sk-{number}"
        stand_in.chat.completions.create(model="gpt-4o-mini", messages=[message])

ask(0, 200)
before = private_mib()
ask(200, 200 + count)
print(json.dumps(private_mib() - before))
"""
)


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("count", "most_mib"), [(1000, 20), pytest.param(10_000, 50, marks=pytest.mark.long)]
)
def test_many_keys_in_turn_take_little_memory(
    fake_openai: FakeOpenAI, count: int, most_mib: float
) -> None:
    """Before clients were dropped, each key took about 1 MiB."""
    command = [sys.executable, "-c", GROWTH, fake_openai.base_url, str(count)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert json.loads(printed.stdout) < most_mib
