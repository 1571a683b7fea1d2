"""A user's test that patches the SDK's sync client gets every call.

Each way of mocking is tried on symbolicai's own engine and on the package's; neither may send a
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock, create_autospec, patch

import cerebras.cloud.sdk
import httpcore2
import httpx
import httpx2
import openai
import pytest
import respx
from openai._base_client import SyncAPIClient
from openai.resources.chat.completions import AsyncCompletions, Completions
from openai.types.chat import ChatCompletion
from symai.backend.engines.neurosymbolic.engine_cerebras import CerebrasEngine
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

from gptx_async import AsyncBatchEngine, AsyncGPTXBatchEngine
from gptx_async.symbolicai.v1 import stand_in_client as bridge
from gptx_async.testing import FakeOpenAI
from support import TESTS
from support.child import run_child
from support.hostile import completion, make_argument

ACCOUNT = ("sk-of-the-tests", "gpt-4o-mini")
MOCKED = "mocked"

Mocking = contextlib.AbstractContextManager[Any]
ENGINES: tuple[Callable[..., Any], ...] = (GPTXChatEngine, AsyncGPTXBatchEngine)


def response() -> ChatCompletion:
    return ChatCompletion.model_validate(completion(MOCKED))


def by_httpx(*_: Any, **__: Any) -> httpx2.Response:
    request = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    return httpx2.Response(200, json=completion(MOCKED), request=request)


async def by_httpx_async(*_: Any, **__: Any) -> httpx2.Response:
    return by_httpx()


def by_httpcore(*_: Any, **__: Any) -> httpcore2.Response:
    content = by_httpx().content
    return httpcore2.Response(
        200, headers=[(b"content-type", b"application/json")], content=content
    )


def client_of_mocks(client: Any) -> Any:
    client.chat.completions.create.return_value = response()
    return client


@contextlib.contextmanager
def both_transports(_engine: Any) -> Iterator[None]:
    """Patch both transports, as pytest-httpx does."""
    with (
        patch.object(httpx2.HTTPTransport, "handle_request", by_httpx),
        patch.object(httpx2.AsyncHTTPTransport, "handle_async_request", by_httpx_async),
    ):
        yield


WAYS: dict[str, Callable[[Any], Mocking]] = {
    "create": lambda _engine: patch(
        "openai.resources.chat.completions.Completions.create", return_value=response()
    ),
    "create with its signature": lambda _engine: patch.object(
        Completions, "create", autospec=True, return_value=response()
    ),
    "create by a function": lambda _engine: patch.object(
        Completions, "create", lambda *_, **__: response()
    ),
    "OpenAI.post": lambda _engine: patch("openai.OpenAI.post", return_value=response()),
    "OpenAI.request": lambda _engine: patch("openai.OpenAI.request", return_value=response()),
    "SyncAPIClient.request": lambda _engine: patch.object(
        SyncAPIClient, "request", return_value=response()
    ),
    "SyncAPIClient.post": lambda _engine: patch.object(
        SyncAPIClient, "post", lambda *_, **__: response()
    ),
    "httpx.Client.send": lambda _engine: patch.object(httpx2.Client, "send", by_httpx),
    "httpx.HTTPTransport": lambda _engine: patch.object(
        httpx2.HTTPTransport, "handle_request", by_httpx
    ),
    "both transports of httpx": both_transports,
    "httpcore": lambda _engine: patch.object(
        httpcore2.ConnectionPool, "handle_request", by_httpcore
    ),
    "a client's own httpx client": lambda engine: patch.object(
        engine.client._client, "send", by_httpx
    ),
    "a client's own transport": lambda engine: patch.object(
        engine.client._client, "_transport", httpx2.MockTransport(by_httpx)
    ),
    "a client's own post": lambda engine: patch.object(
        engine.client, "post", MagicMock(return_value=response())
    ),
    "a client's own method": lambda engine: patch.object(
        engine.client.chat.completions, "create", MagicMock(return_value=response())
    ),
    "the client": lambda engine: patch.object(engine, "client", client_of_mocks(MagicMock())),
    "the client with its signature": lambda engine: patch.object(
        engine, "client", client_of_mocks(create_autospec(openai.OpenAI(api_key="sk-test")))
    ),
}


def ask(engine: Any, text: str = "text") -> str:
    argument = make_argument(text)
    engine.prepare(argument)
    [answer], _ = engine(argument)
    return str(answer)


@pytest.mark.parametrize("build", ENGINES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_mock_on_the_sync_side_gets_the_call(
    fake_openai: FakeOpenAI, way: str, build: Callable[..., Any]
) -> None:
    engine = build(*ACCOUNT)
    with WAYS[way](engine):
        assert ask(engine) == MOCKED
        if build is AsyncGPTXBatchEngine:
            pairs = engine([make_argument("one"), make_argument("two")])
            assert [outputs for outputs, _ in pairs] == [[MOCKED]] * 2
            [outputs], _ = asyncio.run(engine.aforward([make_argument("three")]))
            assert outputs == [MOCKED]
    assert fake_openai.requests == []
    # A resource keeps the `post` that its client had when it was first used.
    assert (ask(engine) == MOCKED) == ("post" in way)


def new_resources(engine: Any) -> None:
    """Make the client rebuild its resources, which keep the `post` they were built with."""
    vars(engine.client._behind).pop("chat", None)


def test_the_calls_are_asynchronous_again_after_the_mock(fake_openai: FakeOpenAI) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    for way in WAYS.values():
        new_resources(engine)
        with way(engine):
            ask(engine)
        new_resources(engine)
        answered = engine.stats().answered
        ask(engine)
        assert engine.stats().answered == answered + 1
    assert len(fake_openai.requests) == len(WAYS)


def test_it_is_logged_once(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bridge, "_has_warned", False)
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    ask(engine)
    assert not caplog.records
    with caplog.at_level(logging.WARNING), patch.object(Completions, "create", create_of_a_test):
        ask(engine)
        ask(engine)
    told = [record.getMessage() for record in caplog.records if "sync side" in record.getMessage()]
    assert len(told) == 1
    assert len(fake_openai.requests) == 1


def create_of_a_test(*_: Any, **__: Any) -> ChatCompletion:
    return response()


def test_the_errors_of_a_mock_equal_the_sync_engines(fake_openai: FakeOpenAI) -> None:
    request = httpx2.Request("POST", fake_openai.base_url)
    error = openai.RateLimitError(
        "too many", response=httpx2.Response(429, request=request), body=None
    )
    raised = []
    for build in ENGINES:
        engine = build(*ACCOUNT)
        with (
            patch.object(Completions, "create", side_effect=error) as create,
            pytest.raises(ValueError, match="too many") as caught,
        ):
            ask(engine)
        raised.append((type(caught.value), str(caught.value), caught.value.__context__))
        assert create.call_count == 1
    assert raised[0] == raised[1]


def test_a_tracer_of_both_sides_sees_concurrent_calls(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def traced(kind: type, name: str) -> None:
        original = getattr(kind, name)

        @functools.wraps(original)
        def note(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(threading.current_thread().name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, note)

    for kinds, name in {
        (Completions, AsyncCompletions): "create",
        (httpx2.Client, httpx2.AsyncClient): "send",
    }.items():
        for kind in kinds:
            traced(kind, name)
    engine = AsyncGPTXBatchEngine("sk-traced", "gpt-4o-mini")
    fake_openai.hold()
    running = threading.Thread(target=engine, args=([make_argument(str(i)) for i in range(8)],))
    running.start()
    fake_openai.wait_for(lambda server: server.in_flight == 8)
    fake_openai.release()
    running.join(30)
    assert seen == ["gptx_async-loop"] * 16


def test_a_mock_counts_beside_a_tracer(fake_openai: FakeOpenAI) -> None:
    """Both clients are patched, but only the sync client by the user's test."""
    traced = functools.wraps(AsyncCompletions.create)(lambda *args, **kwargs: None)
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    with (
        patch.object(AsyncCompletions, "create", traced),
        patch.object(Completions, "create", return_value=response()),
    ):
        assert ask(engine) == MOCKED
    assert fake_openai.requests == []


@pytest.mark.timeout(150)
@pytest.mark.slow
def test_a_mock_that_was_there_before_the_package_gets_the_call(fake_openai: FakeOpenAI) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from unittest.mock import patch
from support.hostile import completion, make_argument
from openai.types.chat import ChatCompletion
import openai.resources.chat.completions
response = ChatCompletion.model_validate(completion("mocked"))
def ask():
    print(engine([make_argument("text")])[0][0][0] == "mocked", flush=True)
for target in ("openai.OpenAI.request", "openai.resources.chat.completions.Completions.create"):
    with patch(target, return_value=response):
        from gptx_async import AsyncGPTXBatchEngine
        engine = AsyncGPTXBatchEngine("sk-test", "gpt-4o-mini")
        ask()
    ask()
"""
    tests = TESTS
    completed = run_child(program, tests, strict=False, seconds=120)
    assert completed.stdout.split()[-4:] == ["True", "False"] * 2, completed.stderr
    assert len(fake_openai.requests) == 2


CEREBRAS_WAYS: dict[str, Callable[[], Mocking]] = {
    "create": lambda: patch(
        "cerebras.cloud.sdk.resources.chat.completions.CompletionsResource.create",
        return_value=response(),
    ),
    "Cerebras.post": lambda: patch.object(
        cerebras.cloud.sdk.Cerebras, "post", return_value=response()
    ),
    "httpx.Client.send": lambda: patch.object(
        httpx.Client,
        "send",
        lambda _client, request, **_: httpx.Response(200, json=completion(MOCKED), request=request),
    ),
}


def cerebras_engine() -> Any:
    return CerebrasEngine("csk-test", "cerebras:gpt-oss-120b")


@pytest.mark.parametrize("way", CEREBRAS_WAYS)
def test_a_mock_of_cerebras_gets_the_call(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("CEREBRAS_BASE_URL", fake_openai.base_url)
    sync_engine = cerebras_engine()
    engine = AsyncBatchEngine(cerebras_engine())
    fake_openai.clear()
    with CEREBRAS_WAYS[way]():
        assert ask(sync_engine) == ask(engine) == MOCKED
    assert fake_openai.requests == []


def test_respx_gets_the_calls_of_cerebras_on_either_side(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEREBRAS_BASE_URL", fake_openai.base_url)
    engine = AsyncBatchEngine(cerebras_engine())
    fake_openai.clear()
    with respx.mock(assert_all_called=True) as router:
        route = router.route(method="POST").respond(200, json=completion(MOCKED))
        assert ask(engine) == MOCKED
        assert route.called
    assert fake_openai.requests == []
