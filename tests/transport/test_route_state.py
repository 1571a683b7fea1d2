"""A route follows changes of its client: closing, a new session, changed cookies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from gptx_async.calls.request import RequestOptions
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI, HTTPFault
from gptx_async.transport.openai_transport import session_of
from gptx_async.transport.settings import ClientSettings
from gptx_async.transport.target import target_of
from support.client_calls import CallsOnLoop
from support.hostile import completion
from support.looking import client_on

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "text"}],
}


@pytest.fixture
def client(fake_openai: FakeOpenAI) -> openai.OpenAI:
    return openai.OpenAI(api_key="sk-route", base_url=fake_openai.base_url, max_retries=0)


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[[], Any]:
    stand_in = StandInClient(client, CallsOnLoop(RequestOptions(patience=0)))
    return functools.partial(stand_in.chat.completions.create, **CHAT)


def test_a_closed_client_sends_nothing(
    ask: Callable[[], Any], client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    async def close(scope: LoopScope) -> None:
        await client_on(scope, ClientSettings.of(client)).sdk.close()

    ask()
    default_service().run(close)
    with pytest.raises(RuntimeError, match="the client has been closed"):
        ask()
    assert len(fake_openai.requests) == 1


def test_a_new_session_of_the_transport_is_used(
    ask: Callable[[], Any], client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    async def renew(scope: LoopScope) -> None:
        http_client = client_on(scope, ClientSettings.of(client))._http_client
        transport = http_client._transport_for_url(http_client.base_url)
        old: aiohttp.ClientSession = session_of(transport)
        transport.client = transport.client.__class__(connector=aiohttp.TCPConnector())
        assert session_of(transport) is not old
        await old.close()

    ask()
    default_service().run(renew)
    ask()
    assert len(fake_openai.requests) == 2


def test_a_client_that_is_closed_leaves_the_calls_of_others_alone(
    ask: Callable[[], Any],
    client: openai.OpenAI,
    fake_openai: FakeOpenAI,
    in_thread: Callable[..., Future[Any]],
) -> None:
    """All clients of one environment share connections."""
    other = client.with_options(api_key="sk-other")

    async def close(scope: LoopScope) -> None:
        await client_on(scope, ClientSettings.of(other)).sdk.close()

    stand_in = StandInClient(other, CallsOnLoop())
    stand_in.chat.completions.create(**CHAT)
    fake_openai.hold()
    asked = in_thread(ask)
    fake_openai.wait_for(lambda server: server.in_flight == 1, 20)
    default_service().run(close)
    fake_openai.release()
    assert asked.result(20).choices
    assert len(fake_openai.requests) == 2


@pytest.mark.parametrize("path", ["/v1/x?", "/v1/x", "/v1/x?a=%2F", "/v1/%3A?"])
def test_a_target_has_the_bytes_of_the_url(path: str) -> None:
    assert target_of(httpx2.URL(f"http://127.0.0.1:9{path}")).raw_path_qs == path


def test_a_cookie_that_is_set_again_has_its_new_value(
    ask: Callable[[], Any], fake_openai: FakeOpenAI
) -> None:
    for value in ("one", "two"):
        answer = HTTPFault(200, body=completion("x"), headers={"set-cookie": f"a={value}; Path=/"})
        fake_openai.fail_next(answer)
        ask()
        ask()
    cookies = [request.headers.get("cookie") for request in fake_openai.requests]
    assert cookies == [None, "a=one", "a=one", "a=two"]
