"""Which way a query goes from the engine, and what it leaves behind, over HTTP."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from symai.components import DynamicEngine
from symai.context import CURRENT_ENGINE_VAR

import gptx_async
from gptx_async import AsyncGPTXBatchEngine
from gptx_async.errors import LoopThreadError
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.symbolicai.v1.engine_lookup import entered_dynamic_engine
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.hostile import make_argument

KEY, MODEL = "sk-of-the-tests", "gpt-4o-mini"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "on its own"}]}


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> AsyncGPTXBatchEngine:
    return AsyncGPTXBatchEngine(KEY, MODEL, client_max_retries=0)


class Callback:
    """A scheduler's callback that answers by itself, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, argument: Any) -> Any:
        self.asked.append(argument)
        return ["by the scheduler"], {}


def prepared(engine: Any, text: str, **kwargs: Any) -> Any:
    argument = make_argument(text, **kwargs)
    engine.prepare(argument)
    return argument


def texts(server: FakeOpenAI) -> list[str]:
    return [request.user_text for request in server.requests]


def test_a_batch_within_an_item_has_the_deadline_of_the_outer_call(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    engine.deadline = 0.3
    fake_openai.latency = lambda request: 1.0 if "inner" in request.user_text else 0.0
    fake_openai.reply = lambda request: HTTPFault(400) if "outer" in request.user_text else "answer"
    inner: list[Any] = []

    def ask_a_batch(sync_engine: Any, *_: Any) -> Any:
        inner.append(engine.forward([make_argument("inner")]))
        return sync_engine.client.chat.completions.create(**CHAT)

    outputs, _ = engine.forward([make_argument("outer", except_remedy=ask_a_batch)], deadline=60)
    assert outputs == [["answer"]]
    assert inner[0][0] == [["answer"]]


def test_a_query_goes_to_the_scheduler_though_the_engine_has_a_deadline(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """The deadline holds for the scheduler's batch, not for the wait until that is full."""
    engine.executor_callback = callback = Callback()
    engine.deadline = 60
    argument = prepared(engine, "text")
    assert engine(argument)[0] == ["by the scheduler"]
    assert callback.asked == [argument]
    assert fake_openai.requests == []


def test_an_argument_that_a_scheduler_has_answered_is_sent_as_it_is_then(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    engine.executor_callback = Callback()
    argument = prepared(engine, "before")
    engine.forward(argument)
    engine.executor_callback = None
    argument.prop.prepared_input = prepared(engine, "after").prop.prepared_input
    engine.forward([argument])
    [text] = texts(fake_openai)
    assert "after" in text


def test_a_batch_leaves_no_query_for_the_scheduler(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """Items that overlap: a call of the client afterwards is nobody's query."""
    engine.executor_callback = callback = Callback()
    engine.forward([make_argument(f"text {number}") for number in range(3)])
    assert engine.client.chat.completions.create(**CHAT).choices
    assert callback.asked == []
    assert len(fake_openai.requests) == 4


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_a_query_that_fails_before_its_call_leaves_none_for_the_scheduler(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    def tools() -> Iterator[Any]:
        raise LookupError("while the payload is read")
        yield TOOL

    engine.executor_callback = callback = Callback()
    with pytest.raises(ValueError, match="while the payload is read"):
        engine.forward(prepared(engine, "text", tools=tools()))
    assert engine.client.chat.completions.create(**CHAT).choices
    assert callback.asked == []
    [text] = texts(fake_openai)
    assert "on its own" in text


def test_a_query_within_a_query_leaves_the_outer_one_to_the_scheduler(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """The inner one is asked while the outer one's payload is read."""
    engine.executor_callback = callback = Callback()
    inner = prepared(engine, "inner")

    def tools() -> Iterator[Any]:
        engine.forward(inner)
        yield TOOL

    outer = prepared(engine, "outer", tools=tools())
    assert engine.forward(outer)[0] == ["by the scheduler"]
    assert callback.asked == [inner, outer]
    assert fake_openai.requests == []


def test_a_call_that_never_came_to_the_loop_is_counted_as_failed(
    engine: AsyncGPTXBatchEngine,
) -> None:
    async def call(_scope: LoopScope) -> Any:
        return engine.client.chat.completions.create(**CHAT)

    with pytest.raises(LoopThreadError):
        default_service().run(call)
    stats = engine.stats()
    assert (stats.calls, stats.failed, stats.waiting, stats.in_flight) == (1, 1, 0, 0)


def test_an_unpickled_engine_sets_the_key_that_its_forward_looks_for(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error the sync engine's forward reads `openai.api_key`, its constructor sets it."""
    pickled = pickle.dumps(AsyncGPTXBatchEngine(KEY, MODEL, pickle_key=True))
    monkeypatch.setattr(openai, "api_key", None)
    pickle.loads(pickled)
    assert openai.api_key == KEY
    monkeypatch.setattr(openai, "api_key", "sk-of-the-application")
    pickle.loads(pickled)
    assert openai.api_key == "sk-of-the-application"


def test_a_block_that_was_left_is_not_found(fake_openai: FakeOpenAI) -> None:
    block = DynamicEngine("gpt-4o", KEY)
    with block:
        assert entered_dynamic_engine() is block
    assert entered_dynamic_engine() is None


def test_a_block_that_was_entered_stays_in_place(fake_openai: FakeOpenAI) -> None:
    engine = gptx_async.install(KEY, MODEL)
    try:
        with DynamicEngine("gpt-4o", KEY):
            entered = CURRENT_ENGINE_VAR.get()
            assert entered is not None
            engine.forward(prepared(engine, "text"))
            assert CURRENT_ENGINE_VAR.get() is entered
    finally:
        gptx_async.uninstall()
