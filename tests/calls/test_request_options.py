"""Effects of a call on other calls, over HTTP: permits, costs, refusals and cancellations."""

from __future__ import annotations

import asyncio
import functools
import operator
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from symai import Symbol
from symai.core import Argument

from gptx_async import AsyncGPTXBatchEngine, RateLimit
from gptx_async.calls.request import Request, RequestOptions
from gptx_async.errors import CostLimitError, GPTXAsyncError, RequestTooLargeError
from gptx_async.loop.call import Call
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.pacing import patience
from gptx_async.pacing.settings import Pacing
from gptx_async.telemetry.recorder import Recorder
from gptx_async.testing import FakeOpenAI, HTTPFault
from gptx_async.transport.settings import ClientSettings
from support.looking import destination_on

KEY, MODEL = "sk-of-the-tests", "gpt-4o-mini"
COSTLY: dict[str, Any] = {"prices": {MODEL: (1e6, 0.0)}, "max_cost": 1.0}
"""Options with which the first answer uses up the cost limit."""

Build = Callable[..., AsyncGPTXBatchEngine]


@pytest.fixture
def build(fake_openai: FakeOpenAI) -> Build:
    """Return a function that builds an engine for the test server."""

    def build(**options: Any) -> AsyncGPTXBatchEngine:
        return AsyncGPTXBatchEngine(KEY, MODEL, **options)

    return build


def arguments(*texts: str, **kwargs: Any) -> list[Any]:
    made = []
    for text in texts:
        argument = Argument((), kwargs, {"prompt": "Answer."})
        argument.prop.instance = Symbol(text)
        argument.prop.processed_input = text
        made.append(argument)
    return made


def errors_of(answers: tuple[list[Any], list[dict[str, Any]]]) -> list[Any]:
    """Return the errors of a batch's items without the wrapper of `forward`; None for answers."""
    found = [metadata.get("exception") for metadata in answers[1]]
    return [
        error if error is None or isinstance(error, GPTXAsyncError) else error.__context__ or error
        for error in found
    ]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 50
    while not holds():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


class TestCosts:
    @pytest.mark.slow
    def test_a_call_that_may_not_be_sent_again_gives_its_permit_back(
        self, build: Build, fake_openai: FakeOpenAI
    ) -> None:
        """The limit is set below the amount spent while the call waits for its second attempt."""
        engine = build(max_concurrency=1, adaptive=False, prices={MODEL: (1e6, 0.0)})
        engine.forward(arguments("first"))
        fake_openai.fail_next(HTTPFault(429, retry_after=2))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(engine.forward, arguments("second"))
            fake_openai.wait_for(lambda server: len(server.answers) == 2, 50)
            engine.max_cost = 0.01
            [error] = errors_of(asked.result(50))
        assert isinstance(error, CostLimitError)
        assert len(fake_openai.requests) == 2
        engine.max_cost = None
        after = engine.forward(arguments("third"), deadline=20)
        assert errors_of(after) == [None], "the one permit that there is was not given back"

    def test_one_engines_cost_limit_ends_no_call_of_another_engine(
        self, build: Build, fake_openai: FakeOpenAI
    ) -> None:
        limited, other = build(max_concurrency=1, **COSTLY), build(max_concurrency=1)
        fake_openai.hold()
        with ThreadPoolExecutor(2) as pool:
            ends = pool.submit(limited.forward, arguments("first", "second", "third"))
            fake_openai.wait_for(lambda server: server.in_flight == 1, 50)
            goes_on = pool.submit(other.forward, arguments("other 1", "other 2"))
            wait_until(lambda: limited.stats().calls == 3 and other.stats().waiting == 2)
            fake_openai.release()
            errors = errors_of(ends.result(50))
            assert errors[0] is None
            assert {type(error) for error in errors[1:]} == {CostLimitError}
            assert errors[1] is not errors[2], "one object raised twice would grow"
            assert errors_of(goes_on.result(50)) == [None, None]

    def test_calls_of_a_copied_client_have_the_engines_options(
        self, build: Build, fake_openai: FakeOpenAI
    ) -> None:
        """The call of a remedy through `with_options` is paced, counted and limited by cost."""
        engine = build(prices={MODEL: (1e6, 0.0)})

        def ask_again(sync_engine: Any, _error: Any, *_: Any) -> Any:
            copied = sync_engine.client.with_options(timeout=30).copy(max_retries=0)
            messages = [{"role": "user", "content": "again"}]
            return copied.chat.completions.create(model=MODEL, messages=messages)

        fake_openai.fail_next(HTTPFault(400))
        assert errors_of(engine.forward(arguments("first", except_remedy=ask_again))) == [None]
        stats = engine.stats()
        assert (stats.calls, stats.answered, stats.failed) == (2, 1, 1)
        assert stats.cost is not None
        assert stats.cost > 1.0, "the answer to the remedy counts"
        engine.max_cost = 1.0
        with pytest.raises(CostLimitError):
            ask_again(engine, None)
        assert len(fake_openai.requests) == 2


class TestReservations:
    def test_each_of_several_answers_is_reserved(self, build: Build) -> None:
        engine = build(rate_limit=RateLimit(tokens_per_minute=100))
        [error] = errors_of(engine.forward(arguments("x", max_tokens=45, n=2)))
        assert isinstance(error, RequestTooLargeError)
        assert errors_of(engine.forward(arguments("x", max_tokens=45))) == [None]

    def test_a_request_of_exactly_the_minutes_tokens_is_sent(
        self, build: Build, fake_openai: FakeOpenAI
    ) -> None:
        engine = build(rate_limit=RateLimit(tokens_per_minute=1000))
        engine.forward(arguments("x", max_tokens=1))
        engine.rate_limit = None
        [request] = fake_openai.requests
        tokens = engine.compute_required_tokens(request.body["messages"])
        engine.rate_limit = RateLimit(tokens_per_minute=tokens + 600)
        exact, above = arguments("x", max_tokens=600) + arguments("x", max_tokens=601)
        [error] = errors_of(engine.forward([above]))
        assert isinstance(error, RequestTooLargeError)
        [error] = errors_of(engine.forward([exact], deadline=1.0))
        assert not isinstance(error, RequestTooLargeError)

    def test_an_absurd_limit_of_the_answer_is_sent_to_the_server(
        self, build: Build, fake_openai: FakeOpenAI
    ) -> None:
        engine = build()
        messages = [{"role": "user", "content": "x"}]
        answer = engine.client.chat.completions.create(
            model=MODEL, messages=messages, max_completion_tokens=10**400
        )
        assert answer.choices
        assert fake_openai.requests[0].body["max_completion_tokens"] == 10**400


class TestErrors:
    def test_each_call_of_a_refused_batch_has_an_error_of_its_own(
        self, build: Build, fake_openai: FakeOpenAI
    ) -> None:
        engine = build(max_concurrency=1, window=5)
        fake_openai.faults = lambda _request: HTTPFault(401)
        texts = [f"text {number}" for number in range(30)]
        errors = errors_of(engine.forward(arguments(*texts)))
        assert {type(error) for error in errors} == {openai.AuthenticationError}
        assert len(set(map(id, errors))) == len(errors), "one object raised twice would grow"
        assert len(fake_openai.requests) < 5

    @pytest.mark.slow
    def test_a_starved_call_that_was_refused_itself_says_so(
        self, build: Build, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(patience, "UNSENT_PATIENCE", 1.0)
        engine = build(rate_limit_patience=2.0, max_concurrency=8)
        fake_openai.faults = lambda request: HTTPFault(
            429, message=f"Too many: {request.user_text}"
        )
        texts = [f"text {number:02}." for number in range(40)]
        errors = errors_of(engine.forward(arguments(*texts)))
        sent = {request.user_text for request in fake_openai.requests}
        told = {
            text
            for text, error in zip(texts, errors, strict=True)
            if any(text in asked for asked in sent) and text not in str(error)
        }
        assert told == set()

    def test_a_call_that_its_caller_cancels_while_it_is_refused_is_cancelled(
        self, fake_openai: FakeOpenAI
    ) -> None:
        client = openai.OpenAI(api_key=KEY, base_url=fake_openai.base_url, max_retries=0)
        settings = ClientSettings.of(client)
        recorder, pacing = Recorder(), Pacing(max_concurrency=1)

        def call() -> tuple[Request, Call[Any]]:
            request = Request(
                settings,
                ("chat", "completions", "create"),
                (),
                {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
                RequestOptions(pacing=pacing, recorder=recorder),
            )
            return request, Call(request)

        fake_openai.hold()
        _, sent = call()
        waiting, cancelled = call()

        async def refuse_while_it_is_cancelled(scope: LoopScope) -> None:
            line = destination_on(scope, settings, MODEL)
            cancelled.cancel()
            is_meant = functools.partial(operator.is_, waiting)
            asyncio.get_running_loop().call_soon(line.end_unsent, is_meant, ValueError("refused"))

        sent.start(lambda: None)
        fake_openai.wait_for(lambda server: server.in_flight == 1, 50)
        cancelled.start(lambda: None)
        wait_until(lambda: recorder.stats().waiting == 1)
        default_service().run(refuse_while_it_is_cancelled)
        wait_until(lambda: cancelled.outcome is not None)
        assert cancelled.outcome is not None
        assert isinstance(cancelled.outcome.error, asyncio.CancelledError)
        assert recorder.stats().cancelled == 1
        fake_openai.release()
        wait_until(lambda: sent.outcome is not None)
