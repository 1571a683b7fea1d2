"""The stand-in client when what stands behind it changes, and for answers that are streamed."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest

from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI
from support.client_calls import CallsOnLoop

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "text"}],
}


@pytest.fixture
def client(fake_openai: FakeOpenAI) -> openai.OpenAI:
    return openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)


@pytest.fixture
def stand_in(client: openai.OpenAI) -> StandInClient:
    return StandInClient(client, CallsOnLoop())


def test_a_resource_that_is_replaced_counts_from_the_next_call_on(
    stand_in: StandInClient, fake_openai: FakeOpenAI
) -> None:
    stand_in.chat.completions.create(**CHAT)
    with openai.OpenAI(api_key="sk-other", base_url=fake_openai.base_url) as other:
        stand_in.chat = other.chat
        with stand_in.chat.completions.with_streaming_response.create(**CHAT) as response:
            assert response.parse().choices
    assert [request.api_key for request in fake_openai.requests] == ["sk-key", "sk-other"]


def test_a_streamed_response_is_opened_by_the_sync_client_in_this_thread(
    stand_in: StandInClient, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    send = client._client.send

    def note(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        return send(*args, **kwargs)

    monkeypatch.setattr(client._client, "send", note)
    with stand_in.chat.completions.with_streaming_response.create(**CHAT) as response:
        assert response.parse().choices
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("name", ["request", "post"])
def test_a_method_that_a_test_sets_on_the_client_gets_the_calls(
    stand_in: StandInClient, client: openai.OpenAI, fake_openai: FakeOpenAI, name: str
) -> None:
    setattr(client, name, lambda *_args, **_options: "double")
    assert stand_in.chat.completions.create(**CHAT) == "double"
    assert fake_openai.requests == []
