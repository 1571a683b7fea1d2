"""One call with all its attempts over HTTP: turns, retries, refusals, costs, events and spans."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import openai
import pytest
import structlog
from openai.resources.chat import AsyncCompletions
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from symai import Symbol
from symai.core import Argument

import gptx_async
from gptx_async import AsyncGPTXBatchEngine, RateLimit
from gptx_async.errors import (
    ConfigurationError,
    CostLimitError,
    GPTXAsyncError,
    LoopThreadDiedError,
    RequestTooLargeError,
)
from gptx_async.loop.service import default_service
from gptx_async.pacing import patience
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault, RecordedRequest, Reset
from support.looking import destination_on

KEY, MODEL = "sk-of-the-tests", "gpt-4o-mini"
NOW = HTTPFault(429, retry_after_ms=1)
"""A 429 that allows the next attempt at once."""


@pytest.fixture
def build(fake_openai: FakeOpenAI) -> Callable[..., AsyncGPTXBatchEngine]:
    """Return a function that builds an engine for the test server."""

    def build(**options: Any) -> AsyncGPTXBatchEngine:
        return AsyncGPTXBatchEngine(KEY, MODEL, **options)

    return build


def argument(text: str = "text", **kwargs: Any) -> Any:
    argument = Argument((), kwargs, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


def arguments(count: int, **kwargs: Any) -> list[Any]:
    return [argument(f"text {number}", **kwargs) for number in range(count)]


def errors_of(answers: tuple[list[Any], list[dict[str, Any]]]) -> list[Any]:
    """Return the errors of a batch's items without the wrapper of `forward`; None for answers."""
    found = [metadata.get("exception") for metadata in answers[1]]
    return [
        error if error is None or isinstance(error, GPTXAsyncError) else error.__context__ or error
        for error in found
    ]


def retry_counts(server: FakeOpenAI) -> list[str]:
    return [request.headers["x-stainless-retry-count"] for request in server.requests]


def line_of(engine: AsyncGPTXBatchEngine) -> Any:
    """Return the destination that the loop keeps for an engine's model."""

    async def find(scope: Any) -> Any:
        return destination_on(scope, engine.client.settings, MODEL)

    return default_service().run(find)


class TestRetries:
    def test_a_fault_is_retried_max_retries_times_by_one_layer_only(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(client_max_retries=2)
        fake_openai.faults = lambda _request: HTTPFault(500, retry_after_ms=1)
        [error] = errors_of(engine.forward([argument()]))
        assert isinstance(error, openai.InternalServerError)
        assert retry_counts(fake_openai) == ["0", "1", "2"]

    @pytest.mark.parametrize("fault", [HTTPFault(503, retry_after_ms=1), Reset("before")])
    @pytest.mark.slow
    def test_a_call_alone_fails_after_its_retries_also_when_the_server_has_answered_before(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI, fault: Any
    ) -> None:
        """An outage pauses concurrent calls. A single call is retried as the SDK does."""
        engine = build(client_max_retries=1)
        engine.forward(arguments(3))
        fake_openai.clear()
        fake_openai.faults = lambda _request: fault
        for _ in range(6):
            with pytest.raises(ValueError, match="Error during generation"):
                engine.forward(prepared(engine, argument()))
        counts = retry_counts(fake_openai)
        if isinstance(fault, Reset):  # it is sent again on a new connection, without a retry
            counts = [count for count, _ in itertools.groupby(counts)]
        assert counts == ["0", "1"] * 6

    def test_a_429_has_a_budget_of_its_own(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(client_max_retries=0, adaptive=False)
        fake_openai.fail_next(NOW, times=5)
        assert errors_of(engine.forward([argument()])) == [None]
        assert retry_counts(fake_openai) == [*"012345"]

    @pytest.mark.parametrize(
        "headers",
        [
            lambda: {"retry-after-ms": "700"},
            lambda: {"retry-after": "0.7"},
            lambda: {"retry-after": formatdate(time.time() + 1.9, usegmt=True)},
            lambda: {"x-ratelimit-reset-requests": "700ms", "x-ratelimit-remaining-requests": "0"},
        ],
        ids=["milliseconds", "seconds", "date", "reset"],
    )
    @pytest.mark.slow
    def test_a_429_waits_at_least_as_long_as_the_server_asks(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        headers: Callable[[], dict[str, str]],
    ) -> None:
        engine = build(adaptive=False)
        told = headers()
        fake_openai.fail_next(HTTPFault(429, headers=told))
        began = time.time()
        engine.forward([argument()])
        assert time.time() - began >= 0.7, "a date has whole seconds: it told of 0.9 s or more"

    def test_the_permit_is_free_for_others_while_a_429_waits(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(max_concurrency=1, adaptive=False)
        fake_openai.fail_next(HTTPFault(429, retry_after=1))
        engine.forward(arguments(3))
        assert retry_counts(fake_openai) == ["0", "0", "0", "1"]

    @pytest.mark.slow
    def test_nothing_but_429s_ends_with_the_error_after_the_patience(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(patience, "UNSENT_PATIENCE", 1.0)
        engine = build(rate_limit_patience=2.0)
        fake_openai.faults = lambda _request: HTTPFault(429)
        errors = errors_of(engine.forward(arguments(300)))
        assert {type(error) for error in errors} == {openai.RateLimitError}
        assert len(set(map(id, errors))) == 300, "one object raised twice would grow"
        assert len(fake_openai.requests) < 600, "they pause together"

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
    def test_permanent_failures_are_not_retried(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI, status: int
    ) -> None:
        engine = build(client_max_retries=2)
        fake_openai.faults = lambda _request: HTTPFault(status, retry_after_ms=1)
        [error] = errors_of(engine.forward([argument()]))
        assert error.status_code == status
        assert retry_counts(fake_openai) == ["0"]

    def test_it_can_be_cancelled_in_each_state(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        """One call is in its attempt, one waits for its second, and one waits for its turn."""
        engine = build(max_concurrency=2, adaptive=False)
        fake_openai.faults = lambda request: (
            HTTPFault(429, retry_after=200) if "text 0" in request.user_text else None
        )
        fake_openai.latency = lambda request: 0.0 if "text 0" in request.user_text else 300.0

        async def main() -> None:
            asking = asyncio.create_task(engine.aforward(arguments(4)))
            await asyncio.to_thread(fake_openai.wait_for, lambda server: len(server.requests) == 3)
            line = line_of(engine)
            assert (line.governor.in_flight, line.governor.waiting) == (2, 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        asyncio.run(main())
        fake_openai.wait_for(lambda server: server.disconnected == 2)
        line = line_of(engine)
        assert (line.governor.in_flight, line.governor.waiting, line.unsent) == (0, 0, {})
        stats = engine.stats()
        assert (stats.calls, stats.cancelled, stats.in_flight, stats.waiting) == (4, 4, 0, 0)
        fake_openai.faults, fake_openai.latency = None, 0.0
        assert errors_of(engine.forward(arguments(4))) == [None] * 4


def prepared(engine: AsyncGPTXBatchEngine, argument: Any) -> Any:
    engine.prepare(argument)
    return argument


class TestRefusals:
    @pytest.mark.parametrize(
        "fault",
        [
            HTTPFault(401),
            HTTPFault(403, code="account_deactivated"),
            HTTPFault(429, code="insufficient_quota"),
        ],
        ids=["401", "403", "quota"],
    )
    def test_what_a_refused_batch_has_not_sent_fails_at_once_and_unsent(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI, fault: HTTPFault
    ) -> None:
        engine = build(max_concurrency=2, window=20)
        fake_openai.faults = lambda _request: fault
        fake_openai.hold()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(engine.forward, arguments(50))
            fake_openai.wait_for(lambda server: server.in_flight == 2)
            fake_openai.release()
            errors = errors_of(running.result(30))
        assert {error.status_code for error in errors} == {fault.status}
        assert len(fake_openai.requests) <= 3, "the second may have made room for a third"
        fake_openai.faults = None
        assert errors_of(engine.forward(arguments(3))) == [None] * 3, "another batch is sent"

    def test_a_refused_key_does_not_end_calls_with_another_key_in_the_batch(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(max_concurrency=1)
        fake_openai.api_keys = {"sk-another"}

        def with_another_key(_error: Any, payload: Any, *_: Any, **__: Any) -> Any:
            other = engine.client.with_options(api_key="sk-another")
            return other.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "text"}]
            )

        errors = errors_of(engine.forward(arguments(5, except_remedy=with_another_key)))
        assert errors == [None] * 5
        keys = Counter(request.api_key for request in fake_openai.requests)
        assert keys["sk-another"] == 5
        assert keys[KEY] <= 2

    def test_a_query_of_another_batch_is_not_ended(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(max_concurrency=1)
        fake_openai.fail_next(HTTPFault(401))
        fake_openai.hold()
        with ThreadPoolExecutor(2) as pool:
            refused = pool.submit(engine.forward, arguments(3))
            fake_openai.wait_for(lambda server: server.in_flight == 1)
            other = pool.submit(engine.forward, arguments(3))
            wait_until(lambda: engine.stats().calls == 6)
            fake_openai.release()
            assert all(errors_of(refused.result(30)))
            assert errors_of(other.result(30)) == [None] * 3


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


class TestPacing:
    def test_no_more_are_out_than_allowed_by_the_lowest_of_the_engines(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.latency = 0.02
        engines = [build(max_concurrency=most) for most in (100, 5)]
        for engine in engines:
            engine.forward([argument()])
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(engine.forward, arguments(40)) for engine in engines]
            assert all(errors_of(each.result(30)) == [None] * 40 for each in running)
        assert fake_openai.max_in_flight == 5

    def test_a_limit_may_be_changed_at_any_time(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.latency = 0.02
        engine = build(max_concurrency=2)
        engine.forward(arguments(10))
        assert (engine.max_concurrency, fake_openai.max_in_flight) == (2, 2)
        engine.max_concurrency = 4
        engine.forward(arguments(10))
        assert (engine.stats().limit, fake_openai.max_in_flight) == (4, 4)

    @pytest.mark.slow
    def test_a_configured_rate_is_kept(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        """With 600 per minute and a burst of 10, the last of 30 cannot be sent before 2 s."""
        engine = build(rate_limit=RateLimit(requests_per_minute=600))
        began = time.monotonic()
        engine.forward(arguments(30))
        assert time.monotonic() - began > 1.8

    @pytest.mark.slow
    def test_a_configured_rate_of_tokens_is_kept_by_the_engines_own_count(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(rate_limit=RateLimit(tokens_per_minute=60 * 200))
        asked = [argument("word " * 150) for _ in range(6)]
        for each in asked:
            engine.prepare(each)
        tokens = [engine.compute_required_tokens(each.prop.prepared_input) for each in asked]
        assert tokens[0] > 150
        began = time.monotonic()
        engine.forward(asked)
        least = (sum(tokens[:-1]) - 200) / 200
        assert time.monotonic() - began > 0.9 * least

    def test_a_request_above_the_minutes_tokens_fails_with_an_error_that_says_so(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(rate_limit=RateLimit(tokens_per_minute=100))
        with pytest.raises(RequestTooLargeError, match="tokens_per_minute of 100"):
            engine.forward(prepared(engine, argument(max_tokens=200)))
        assert fake_openai.requests == []

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_concurrency", 0),
            ("max_concurrency", None),
            ("max_concurrency", 2.5),
            ("rate_limit_patience", -1),
            ("rate_limit_patience", None),
            ("rate_limit", 600),
            ("max_cost", 1.0),
            ("max_cost", -1.0),
            ("prices", {MODEL: 0.15}),
        ],
    )
    def test_an_option_that_cannot_be_is_refused_wherever_it_is_given(
        self, build: Callable[..., AsyncGPTXBatchEngine], option: str, value: Any
    ) -> None:
        with pytest.raises(ConfigurationError, match=option):
            build(**{option: value})
        engine = build()
        with pytest.raises(ConfigurationError, match=option):
            setattr(engine, option, value)
        assert errors_of(engine.forward([argument()])) == [None]

    def test_options_survive_a_pickle(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        limit = RateLimit(requests_per_minute=10)
        engine = build(rate_limit=limit, prices={MODEL: (1, 2)}, max_cost=3.0, adaptive=False)
        again = pickle.loads(pickle.dumps(engine))
        assert (again.rate_limit, again.adaptive, again.max_cost) == (limit, False, 3.0)
        assert again.prices == {MODEL: (1, 2, 1)}


class TestCosts:
    def test_nothing_more_is_sent_when_the_cost_is_reached(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(max_concurrency=1, prices={MODEL: (1e6, 0.0)}, max_cost=1.0)
        answers = engine.forward(arguments(20))
        errors = errors_of(answers)
        assert errors[0] is None
        assert {type(error) for error in errors[1:]} == {CostLimitError}
        assert len(fake_openai.requests) == 1
        cost = engine.stats().cost
        assert cost == engine.stats().tokens_in > 1.0
        with pytest.raises(CostLimitError, match="Raise max_cost"):
            engine.forward(prepared(engine, argument()))
        engine.max_cost = None
        assert errors_of(engine.forward(arguments(3))) == [None] * 3

    def test_what_waits_for_a_slow_rate_is_ended_at_once_when_the_cost_is_reached(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        """At one per minute the last call would have its turn after twenty minutes."""
        limit = RateLimit(requests_per_minute=1)
        engine = build(rate_limit=limit, prices={MODEL: (1e6, 0.0)}, max_cost=1.0)
        errors = errors_of(engine.forward(arguments(20)))
        assert errors[0] is None
        assert {type(error) for error in errors[1:]} == {CostLimitError}
        errors = errors_of(engine.forward(arguments(20)))
        assert {type(error) for error in errors} == {CostLimitError}

    def test_a_model_without_a_price_is_not_sent_under_a_limit(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(prices={MODEL: (1, 1)}, max_cost=1.0)
        [error] = errors_of(engine.forward([argument(model="gpt-4o")]))
        assert isinstance(error, ConfigurationError)
        assert fake_openai.requests == []


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """Events, as an application's structlog receives them."""
    told: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
        told.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.processors.add_log_level, keep])
    yield told
    structlog.reset_defaults()


class TestSeeing:
    def test_stats_add_up_over_a_mixed_batch(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(client_max_retries=1)
        fake_openai.fail_next(HTTPFault(500, retry_after_ms=1), times=2)
        fake_openai.reply = lambda request: (
            HTTPFault(400) if "text 7" in request.user_text else "answer"
        )
        engine.forward(arguments(10))
        stats = engine.stats()
        assert (stats.calls, stats.answered, stats.failed, stats.attempts) == (10, 9, 1, 12)
        assert (stats.retries, stats.failures) == (2, {"status_500": 2, "bad_request": 1})
        assert stats.tokens_in > 0
        assert stats.tokens_out > 0
        assert (stats.in_flight, stats.waiting, stats.limit) == (0, 0, 256)
        assert stats.took.p50 is not None
        assert "10: 9 answered, 1 failed" in stats.table()
        engine.reset_stats()
        assert engine.stats().calls == 0

    def test_stats_show_what_is_in_flight_and_waiting(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        engine = build(max_concurrency=3)
        fake_openai.hold()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(engine.forward, arguments(10))
            fake_openai.wait_for(lambda server: server.in_flight == 3)
            wait_until(lambda: engine.stats().calls == 10)
            assert (engine.stats().in_flight, engine.stats().waiting) == (3, 7)
            fake_openai.release()
            running.result(30)

    def test_the_events_of_a_batch_and_its_calls_have_one_id(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        events: list[dict[str, Any]],
    ) -> None:
        engine = build(client_max_retries=1)
        fake_openai.fail_next(HTTPFault(500, retry_after_ms=1))
        engine.forward(arguments(3))
        told = [event for event in events if not event["event"].startswith("service")]
        names = Counter(event["event"] for event in told)
        assert names == {
            "batch.started": 1,
            "attempt.retried": 1,
            "call.answered": 3,
            "batch.ended": 1,
        }
        assert len({event["batch"] for event in told}) == 1
        answered = [event for event in told if event["event"] == "call.answered"]
        assert sorted(event["index"] for event in answered) == [0, 1, 2]
        assert all(event["request_id"].startswith("req_") for event in answered)
        assert told[0] | {"items": 3, "model": MODEL, "level": "info"} == told[0]
        assert told[-1] | {"answered": 3, "failed": 0, "cancelled": 0} == told[-1]
        assert not any("prompt" in event or "answer" in event for event in told)

    def test_the_events_of_a_scheduled_query_name_the_batch_that_sent_it(
        self, fake_openai: FakeOpenAI, events: list[dict[str, Any]]
    ) -> None:
        gptx_async.install(KEY, MODEL)
        try:
            scheduler = BatchScheduler(num_workers=4, batch_size=4)
            scheduler.forward(lambda text: Symbol(text).query("Answer."), ["a", "b", "c", "d"])
        finally:
            gptx_async.uninstall()
        batches = {event["batch"] for event in events if event["event"] == "batch.started"}
        calls = [event for event in events if event["event"] == "call.answered"]
        assert len(calls) == 4
        assert {event["batch"] for event in calls} <= batches

    def test_events_contain_content_if_log_content_is_set(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        events: list[dict[str, Any]],
    ) -> None:
        engine = build(log_content=True)
        fake_openai.reply = lambda _request: "the model's answer"
        engine.forward([argument("the prompt's text")])
        [event] = [event for event in events if event["event"] == "call.answered"]
        assert event["answer"] == ["the model's answer"]
        assert "the prompt's text" in str(event["prompt"])

    def test_the_service_logs_its_start_and_end(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        events: list[dict[str, Any]],
    ) -> None:
        engine = build()
        default_service().close()
        engine.forward([argument()])
        default_service().close()
        names = [event["event"] for event in events if event["event"].startswith("service")]
        assert names[-2:] == ["service.started", "service.closed"]

    def test_the_next_call_logs_the_restart_of_a_service_that_died(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        events: list[dict[str, Any]],
    ) -> None:
        engine = build()
        engine.forward([argument()])

        async def kill_the_loop(_scope: Any) -> None:
            asyncio.get_running_loop().call_soon(sys.exit, 7)
            await asyncio.Event().wait()

        with pytest.raises(LoopThreadDiedError):
            default_service().run(kill_the_loop)
        engine.forward([argument()])
        [event] = [event for event in events if event["event"] == "service.restarted"]
        assert (event["level"], event["cause"]) == ("warning", "SystemExit")

    @pytest.mark.slow
    def test_a_pause_is_logged_once_for_a_burst_of_refusals(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        events: list[dict[str, Any]],
    ) -> None:
        engine = build()
        # The first burst proves nothing. When its calls are retried, all are refused again.
        fake_openai.fail_next(HTTPFault(429), times=30)
        engine.forward(arguments(20))
        names = Counter((event["event"], event["level"]) for event in events)
        assert names["governor.paused", "info"] == 1
        assert names["attempt.retried", "warning"] == 1
        assert names["attempt.retried", "debug"] == 29

    def test_each_call_is_a_span_under_the_callers_own(
        self, build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
    ) -> None:
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        engine = build()
        engine._recorder._tracer_provider = provider
        with provider.get_tracer("test").start_as_current_span("caller") as caller:
            engine.forward(arguments(3))
        calls = [span for span in exporter.get_finished_spans() if span.name != "caller"]
        assert [span.name for span in calls] == [f"chat {MODEL}"] * 3
        assert {span.parent and span.parent.span_id for span in calls} == {
            caller.get_span_context().span_id
        }

    def test_a_patched_method_of_the_sdk_sees_each_call(
        self,
        build: Callable[..., AsyncGPTXBatchEngine],
        fake_openai: FakeOpenAI,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        original = AsyncCompletions.create
        seen: list[str] = []

        async def create(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(threading.current_thread().name)
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(AsyncCompletions, "create", create)
        build().forward(arguments(3))
        assert len(seen) == 3


def test_requests_are_recorded_as_the_sdk_sends_them(
    build: Callable[..., AsyncGPTXBatchEngine], fake_openai: FakeOpenAI
) -> None:
    """Check that the requests contain what the tests above read."""
    build().forward([argument()])
    [request] = fake_openai.requests
    assert isinstance(request, RecordedRequest)
    assert (request.api_key, request.headers["x-stainless-retry-count"]) == (KEY, "0")
