"""The engine under a scheduler with fifty workers: nested Expressions, failures, repeated runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from symai import Expression, Symbol
from symai.components import MetadataTracker

import gptx_async
from gptx_async import AsyncGPTXBatchEngine
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault, RecordedRequest

InThread = Callable[..., Future[Any]]

MODEL = "gpt-4o-mini"
SECONDS = 40.0
WORKERS = 50


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    fake_openai.reply = reply
    yield gptx_async.install("sk-first", MODEL, client_max_retries=0)
    gptx_async.uninstall()


def asked(request: RecordedRequest) -> str:
    """Return the text of a `Symbol.query`, without the text that symbolicai adds."""
    found = re.fullmatch(r"Data:\n(.*)\nContext: .*", request.user_text, re.DOTALL)
    assert found, request.user_text
    return found.group(1)


def reply(request: RecordedRequest) -> str | HTTPFault:
    """Return the text in brackets, but refuse some texts that are already in two pairs."""
    text = asked(request)
    return HTTPFault(400, message=f"no to {text}") if text.endswith("7))") else f"({text})"


def items(count: int) -> list[str]:
    return [f"item {number}" for number in range(count)]


def ask(text: str) -> str:
    """Query with a handler that symbolicai calls before the model; it raises for some texts."""

    def handle(_given: Any) -> None:
        if text.endswith("9)"):
            raise InterruptedError(f"no query of {text}")

    return str(Symbol(text).query("Answer.", input_handler=handle))


class Facts(Expression):  # type: ignore[misc] # symbolicai ships no types
    """The innermost of three expressions: raises for some items, and queries for the others."""

    def forward(self, text: str) -> str:
        if text.endswith("3"):
            raise LookupError(f"no facts of {text}")
        return ask(text)


class Outline(Expression):  # type: ignore[misc]
    """The middle expression: queries about the facts."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = Facts()

    def forward(self, text: str) -> str:
        return ask(self.facts(text))


class Report(Expression):  # type: ignore[misc]
    """The outermost expression, which the scheduler calls: queries about the outline."""

    def __init__(self, **_kwargs: Any) -> None:
        super().__init__()
        self.outline = Outline()

    def forward(self, input: str, **_kwargs: Any) -> str:  # noqa: A002 - the scheduler's name
        if input.endswith("5"):
            raise KeyError(f"no report of {input}")
        return ask(self.outline(input))


@pytest.mark.slow
def test_each_of_many_items_in_three_nested_expressions_is_answered_or_failed(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, in_thread: InThread
) -> None:
    """Each failed item has its own error, raised at the start, in the middle, or at the model."""
    texts = items(300)
    fake_openai.hold()
    running = in_thread(BatchScheduler(WORKERS, 30).forward, Report, texts)
    fake_openai.wait_for(lambda server: server.in_flight == 30, SECONDS)
    fake_openai.release()
    results = running.result(SECONDS)

    wanted: Counter[str] = Counter()
    for text, result in zip(texts, results, strict=True):
        kind, message, queries = fate(text)
        wanted.update("(" * depth + text + ")" * depth for depth in range(queries))
        if kind is str:
            assert result == message
        else:
            assert type(result) is kind
            assert str(result).endswith(message)
    assert len({id(result) for result in results}) == 300, "no two items share an error"
    assert Counter(asked(request) for request in fake_openai.requests) == wanted
    assert fake_openai.max_in_flight == 30, "the queries are sent in batches"


def fate(text: str) -> tuple[type, str, int]:
    """Return the type and text of an item's result, and the number of its model queries."""
    match text[-1]:
        case "3":
            return LookupError, f"no facts of {text}", 0
        case "5":
            return KeyError, f"no report of {text}'", 0
        case "7":
            return ValueError, f"no to (({text}))", 3
        case "9":
            return InterruptedError, f"no query of ({text})", 1
        case _:
            return str, f"((({text})))", 3


@pytest.mark.slow
def test_no_run_of_many_leaves_anything_to_the_next_or_to_a_plain_query(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, in_thread: InThread
) -> None:
    """Some runs send no query, or fail for all items, at the model or before it."""
    every = [text for text in items(200) if fate(text)[0] is str]
    runs: list[tuple[Callable[..., Any], list[str]]] = [
        (Report, every),
        (lambda text: text.upper(), every),
        (Report, [f"item {number}3" for number in range(100)]),
        (Report, []),
        (Report, [f"item {number}7" for number in range(100)]),
        (Report, every),
    ]
    for number, (expression, texts) in enumerate(runs):
        results = in_thread(BatchScheduler(WORKERS, 20).forward, expression, texts).result(SECONDS)
        assert len(results) == len(texts)
        if expression is Report:
            assert [type(result) for result in results] == [fate(text)[0] for text in texts]
        fake_openai.clear()
        plain = in_thread(ask, f"plain {number}")
        assert plain.result(SECONDS) == f"(plain {number})"
        assert [asked(request) for request in fake_openai.requests] == [f"plain {number}"]


@pytest.mark.slow
def test_a_scheduler_runs_again_and_again_while_others_are_made(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, in_thread: InThread
) -> None:
    """The newest scheduler batches the queries; those of older ones bypass it and still succeed."""
    texts = ["a", "b", "c"] * 20
    schedulers = [BatchScheduler(WORKERS, 10 + number) for number in range(3)]
    for scheduler in [*schedulers, *reversed(schedulers)]:
        results = in_thread(scheduler.forward, Report, texts).result(SECONDS)
        assert results == [f"((({text})))" for text in texts]
    assert len(fake_openai.requests) == 6 * 60 * 3


class Tracked(Report):
    """Returns the calls that a metadata tracker sees."""

    def forward(self, input: str, **kwargs: Any) -> Any:  # noqa: A002 - the scheduler's name
        with MetadataTracker() as tracker:
            super().forward(input, **kwargs)
        answers = [
            metadata["raw_output"].choices[0].message.content
            for metadata in tracker.metadata.values()
        ]
        return answers, tracker.usage["GPTXChatEngine", MODEL]["usage"]["total_calls"]


@pytest.mark.slow
def test_a_metadata_tracker_in_an_expression_sees_the_calls_of_its_item_and_no_others(
    engine: AsyncGPTXBatchEngine, in_thread: InThread
) -> None:
    texts = [text for text in items(250) if fate(text)[0] is str]
    results = in_thread(BatchScheduler(WORKERS, WORKERS).forward, Tracked, texts).result(SECONDS)
    assert results == [([f"({text})", f"(({text}))", f"((({text})))"], 3) for text in texts]


@pytest.mark.slow
def test_each_run_uses_the_engine_that_is_registered_then(
    engine: AsyncGPTXBatchEngine,
    engine_repository: Any,
    fake_openai: FakeOpenAI,
    in_thread: InThread,
) -> None:
    """This includes runs of a scheduler that was made for the previous engine."""
    engines = {
        "sk-first": engine,
        "sk-second": AsyncGPTXBatchEngine("sk-second", MODEL, client_max_retries=0),
    }
    texts = ["a", "b", "c"] * 20
    scheduler: BatchScheduler | None = None
    for key in ["sk-first", "sk-second"] * 2:
        engine_repository.register("neurosymbolic", engines[key], allow_engine_override=True)
        for runner in [scheduler, scheduler := BatchScheduler(WORKERS, 30)]:
            if runner is None:
                continue
            fake_openai.clear()
            results = in_thread(runner.forward, Report, texts).result(SECONDS)
            assert results == [f"((({text})))" for text in texts]
            assert in_thread(ask, "plain").result(SECONDS) == "(plain)"
            keys = Counter(request.api_key for request in fake_openai.requests)
            assert keys == {key: len(texts) * 3 + 1}
