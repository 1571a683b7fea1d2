"""The waits of symbolicai's own retries: in a batch they hold up nobody, elsewhere they block."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from symai import Symbol, core_ext
from symai.core import Argument

import gptx_async
from gptx_async import errors
from gptx_async.batch.driver import Batch
from gptx_async.symbolicai.v1.retry_sleep import let_waits_give_way
from gptx_async.testing import FakeOpenAI, HTTPFault

KEY = "sk-of-the-tests"

MODELS = ["groq:openai/gpt-oss-20b", "openrouter:any/model"]


def argument(text: str, **kwargs: Any) -> Any:
    """An argument as symbolicai's decorators build it, not prepared."""
    argument = Argument((), kwargs, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


def install(server: FakeOpenAI, model: str, **options: Any) -> Any:
    engine = gptx_async.install(KEY, model, client_max_retries=0, rate_limit_patience=0, **options)
    engine.client.base_url = server.base_url
    return engine


class Waits:
    """Takes the place of both sleeps: of the one that blocks, and of the one on the loop.

    Attributes:
        events: 'begins' and 'ends' of each on the loop, 'blocks' of each other, in their order.
        together: How many have to wait on the loop before the first of them ends.
        on_begin: Called when one begins, on the loop.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.together = 1
        self.on_begin: Callable[[], None] = lambda: None
        self._gate: asyncio.Event | None = None

    async def wait(self, _seconds: float) -> None:
        self._gate = self._gate or asyncio.Event()
        self.events.append("begins")
        self.on_begin()
        if self.events.count("begins") >= self.together:
            self._gate.set()
        await self._gate.wait()
        self.events.append("ends")

    def block(self, _seconds: float) -> None:
        self.events.append("blocks")


@pytest.fixture
def waits(engine_repository: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    waits = Waits()
    monkeypatch.setattr(
        "gptx_async.symbolicai.v1.retry_sleep.asyncio", SimpleNamespace(sleep=waits.wait)
    )
    monkeypatch.setattr(core_ext, "time", SimpleNamespace(sleep=waits.block))
    yield waits
    gptx_async.uninstall()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", ["call", "forward", "aforward"])
def test_twenty_items_that_try_again_wait_together(
    fake_openai: FakeOpenAI, waits: Waits, model: str, way: str
) -> None:
    engine = install(fake_openai, model)
    waits.together = 20
    fake_openai.fail_next(HTTPFault(500), 20)
    arguments = [argument(f"text {number}") for number in range(20)]
    if way == "call":
        metadatas = [metadata for _, metadata in engine(arguments)]
    elif way == "forward":
        _, metadatas = engine.forward(arguments)
    else:
        _, metadatas = asyncio.run(engine.aforward(arguments))
    assert not any(metadata.get("error") for metadata in metadatas)
    assert len(fake_openai.requests) == 40
    assert waits.events == ["begins"] * 20 + ["ends"] * 20


def test_an_item_that_waits_holds_up_no_other(fake_openai: FakeOpenAI, waits: Waits) -> None:
    """Its wait ends only when another one has begun, after the others were answered."""
    engine = install(fake_openai, MODELS[0])
    waits.together = 2
    # The first request for "first" fails, also if the server sees it after others were answered.
    faults = {"first": HTTPFault(500)}
    fake_openai.reply = lambda request: faults.pop(request.user_text, "an answer")
    ended: list[str] = []

    def note(name: str) -> Any:
        def handle(_given: Any) -> None:
            ended.append(name)
            if len(ended) == 3:
                core_ext.time.sleep(0)  # the other wait: they end together

        return handle

    names = ["first", "second", "third", "fourth"]
    engine([argument(name, output_handler=note(name)) for name in names])
    assert waits.events == ["begins", "begins", "ends", "ends"]
    assert ended[-1] == "first"
    assert sorted(ended) == sorted(names)


def test_a_single_query_waits_in_its_thread_as_ever(fake_openai: FakeOpenAI, waits: Waits) -> None:
    install(fake_openai, MODELS[0])
    fake_openai.fail_next(HTTPFault(500), 2)
    Symbol("a").query("b")
    assert waits.events == ["blocks", "blocks"]


def test_the_waits_of_items_are_as_long_as_symbolicai_says(
    waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    async def note(seconds: float) -> None:
        asked.append(seconds)

    @core_ext.retry(tries=4, delay=0.5, backoff=1.5, max_delay=1)  # type: ignore[untyped-decorator]
    def fail(_item: int) -> None:
        raise LookupError

    monkeypatch.setattr("gptx_async.symbolicai.v1.retry_sleep.asyncio", SimpleNamespace(sleep=note))
    let_waits_give_way()
    [outcome] = Batch(fail, [0]).run()
    assert isinstance(outcome.error, LookupError)
    assert asked == [0.5, 0.75, 1]


@pytest.mark.slow
def test_a_batch_with_waiting_items_ends_at_its_deadline(
    fake_openai: FakeOpenAI, waits: Waits
) -> None:
    engine = install(fake_openai, MODELS[0])
    waits.together = 3
    fake_openai.reply = lambda request: HTTPFault(500) if request.user_text == "bad" else "good"
    outputs, metadatas = engine.forward([argument("bad"), argument("fine")], deadline=5.0)
    assert isinstance(metadatas[0]["exception"], errors.TimeoutError)
    assert outputs[1] == ["good"]
    assert waits.events == ["begins"]


def test_items_that_wait_are_cancelled_with_their_batch(
    fake_openai: FakeOpenAI, waits: Waits
) -> None:
    engine = install(fake_openai, MODELS[0])
    waits.together = 3
    fake_openai.reply = lambda _request: HTTPFault(500)

    async def main() -> None:
        loop, both_wait = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if len(waits.events) == 2:
                loop.call_soon_threadsafe(both_wait.set)

        waits.on_begin = tell
        running = asyncio.create_task(engine.aforward([argument("a"), argument("b")]))
        await both_wait.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert waits.events == ["begins", "begins"]


@pytest.mark.parametrize("as_batch", [True, False])
def test_what_was_not_sent_is_not_tried_again(
    fake_openai: FakeOpenAI, waits: Waits, as_batch: bool
) -> None:
    """A used-up `max_cost`, say, is so at the next try as well."""
    prices = {"openai/gpt-oss-20b": (1e6, 1e6)}
    engine = install(fake_openai, MODELS[0], prices=prices, max_cost=1e-3)
    engine.forward([argument("what uses it up")])
    if as_batch:
        _, [metadata] = engine.forward([argument("a")])
        assert isinstance(metadata["exception"], errors.CostLimitError)
    else:
        one = argument("a")
        engine.prepare(one)
        with pytest.raises(errors.CostLimitError):
            engine.forward(one)
    assert waits.events == []
    assert len(fake_openai.requests) == 1


def test_everything_else_of_the_module_is_as_ever(
    in_thread: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_ext, "time", time)
    let_waits_give_way()
    stand_in = core_ext.time
    let_waits_give_way()
    assert core_ext.time is stand_in, "no stand-in of a stand-in"
    assert core_ext.time.monotonic is time.monotonic
    waiting: Future[None] = in_thread(core_ext.time.sleep, 0.001)
    assert waiting.result(30) is None
