"""A response with status 200 but no completion raises the sync engine's exception with a note."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from symai import Expression, Symbol
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

import gptx_async
from gptx_async import AsyncGPTXBatchEngine, errors
from gptx_async.testing import HTML, BatchScheduler, FakeOpenAI, Fault, HTTPFault, NoChoices
from support.hostile import completion, make_argument

ACCOUNT = ("sk-of-the-tests", "gpt-4o-mini")


def error_body(code: Any, status: int = 200) -> HTTPFault:
    return HTTPFault(status, body={"error": {"code": code, "message": "too much\nto do"}})


def choice_error(code: int) -> HTTPFault:
    body = completion("")
    body["choices"][0] |= {"finish_reason": "error", "error": {"code": code, "message": "gone"}}
    return HTTPFault(200, body=body)


ODD: dict[str, tuple[Fault, str]] = {
    "a login page": (HTML(), "HTTP 200 without a completion: <!doctype html><title>Welcome"),
    "an error": (error_body(402), 'HTTP 200 without a completion: {"error":{"code":402,'),
    "no choices": (NoChoices(), "HTTP 200 without a completion: {"),
    "a list": (HTTPFault(200, body=["text"]), 'HTTP 200 without a completion: ["text"]'),
    "status 201": (error_body(402, 201), "HTTP 201 without a completion: "),
    "much text": (
        HTTPFault(200, body="word " * 1000, content_type="text/plain"),
        "word word...",
    ),
}


@pytest.fixture
def sync_engine(fake_openai: FakeOpenAI) -> Iterator[Any]:
    engine = GPTXChatEngine(*ACCOUNT)
    yield engine
    engine.client.close()


class Ask(Expression):  # type: ignore[misc] # symbolicai ships no types
    def forward(self, input: str, **_kwargs: Any) -> str:  # noqa: A002 - the scheduler's name
        return str(Symbol(input).query("Which colour?"))


def raised_by(ask: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - compared by the caller
        ask()
    return caught.value


def ask(engine: Any) -> Any:
    argument = make_argument("text")
    engine.prepare(argument)
    return engine(argument)


@pytest.mark.parametrize("odd", ODD)
def test_the_exception_is_the_sync_engines_with_a_note(
    fake_openai: FakeOpenAI, sync_engine: Any, odd: str
) -> None:
    fault, note = ODD[odd]
    fake_openai.faults = lambda _request: fault
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    theirs = raised_by(lambda: ask(sync_engine))
    for ours in (
        raised_by(lambda: ask(engine)),
        engine([make_argument("text")])[0][1]["exception"],
        asyncio.run(engine.aforward([make_argument("text")]))[1][0]["exception"],
    ):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        [told] = ours.__notes__
        assert note in told
        assert len(told) < 300
    assert len(fake_openai.requests) == 4


def test_each_note_belongs_to_one_call(fake_openai: FakeOpenAI) -> None:
    odd = HTML()
    fake_openai.faults = lambda request: odd if "odd" in str(request.body) else None
    engine = AsyncGPTXBatchEngine(*ACCOUNT)

    def fail(_given: Any) -> None:
        raise LookupError("of the handler")

    pairs = engine(
        [
            make_argument("odd 1"),
            make_argument("good", output_handler=fail),
            make_argument("odd 2"),
            make_argument("good"),
        ]
    )
    notes = [
        len(getattr(metadata.get("exception"), "__notes__", ())) for _outputs, metadata in pairs
    ]
    assert notes == [1, 0, 1, 0]


def test_the_note_comes_through_a_scheduler(fake_openai: FakeOpenAI) -> None:
    gptx_async.install(*ACCOUNT)
    fake_openai.fail_next(HTML())
    try:
        [failed] = BatchScheduler(num_workers=1, batch_size=1).forward(Ask, ["text"])
    finally:
        gptx_async.uninstall()
    assert "HTTP 200 without a completion" in str(failed.__notes__)


RETRIED: dict[str, Fault] = {
    "429": error_body(429),
    "429 in text": error_body("429"),
    "502": error_body(502),
    "of a choice": choice_error(503),
}


@pytest.mark.parametrize("reported", RETRIED)
@pytest.mark.slow
def test_an_error_body_is_retried_where_that_is_asked_for(
    fake_openai: FakeOpenAI, reported: str
) -> None:
    fake_openai.reply = lambda _request: "an answer"
    engine = AsyncGPTXBatchEngine(*ACCOUNT, retry_error_bodies=True)
    fake_openai.fail_next(RETRIED[reported])
    assert ask(engine)[0] == ["an answer"]
    assert len(fake_openai.requests) == 2
    assert engine.stats().retries == 1
    assert engine.stats().rate_limited == ("429" in reported)


def test_it_is_not_retried_by_default_nor_where_a_retry_is_of_no_use(
    fake_openai: FakeOpenAI,
) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    assert engine.retry_error_bodies is False
    fake_openai.fail_next(error_body(429))
    raised_by(lambda: ask(engine))
    engine.retry_error_bodies = True
    for fault in (error_body(402), HTML()):
        fake_openai.fail_next(fault)
        raised_by(lambda: ask(engine))
    assert len(fake_openai.requests) == 3


@pytest.mark.parametrize("code", [429, 500])
def test_after_the_last_retry_it_is_the_sync_engines_exception(
    fake_openai: FakeOpenAI, sync_engine: Any, code: int
) -> None:
    fake_openai.faults = lambda _request: error_body(code)
    theirs = raised_by(lambda: ask(sync_engine))
    engine = AsyncGPTXBatchEngine(
        *ACCOUNT, client_max_retries=1, rate_limit_patience=1, retry_error_bodies=True
    )
    ours = raised_by(lambda: ask(engine))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))
    assert "too much" in str(ours.__notes__)
    assert engine.stats().retries >= 1


def test_it_is_a_switch(fake_openai: FakeOpenAI) -> None:
    with pytest.raises(errors.ConfigurationError, match="retry_error_bodies"):
        AsyncGPTXBatchEngine(*ACCOUNT, retry_error_bodies="yes")  # type: ignore[arg-type]
