"""What is counted, what it costs, and what is told of it and where."""

from __future__ import annotations

import collections
import io
import json
import logging
import logging.config
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from gptx_async.errors import ConfigurationError, CostLimitError, LoopThreadDiedError
from gptx_async.pacing.governor import Pace
from gptx_async.telemetry import events as telemetry
from gptx_async.telemetry.call_record import CallRecord
from gptx_async.telemetry.events import EVENTS, QUIET_SECONDS, configure_logging, emit
from gptx_async.telemetry.failures import failure_kind
from gptx_async.telemetry.recorder import Recorder
from gptx_async.telemetry.stats import RELATIVE_ERROR, Histogram, Stats
from support import TESTS
from support.child import run_child

InThread = Callable[..., Future[Any]]

MODEL = "gpt-4o-mini"
REQUEST = {"model": MODEL, "messages": [{"role": "user", "content": "the prompt"}]}
PRICES = {MODEL: (0.15, 0.60), "gpt-4o": (2.5, 10.0)}


UNBOUND = Pace(None, None, "configured", None, None)


@dataclass
class Pacer:
    """Stands for a governor."""

    limit: int
    pace: Pace = UNBOUND


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class StatusError(Exception):
    """An error as the SDK's: a status, a code, a request id."""

    def __init__(self, status: int, code: str | None = None, text: str = "its text") -> None:
        super().__init__(text)
        self.status_code = status
        self.code = code
        self.request_id = "req_7"


class APIConnectionError(Exception):
    """Named as the SDK's."""


class APITimeoutError(APIConnectionError):
    """Named as the SDK's."""


def response(
    tokens_in: Any = 10, tokens_out: Any = 5, cached: int = 0, model: str = MODEL
) -> SimpleNamespace:
    usage = SimpleNamespace(
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        prompt_tokens_details=SimpleNamespace(cached_tokens=cached),
    )
    choices = [SimpleNamespace(message=SimpleNamespace(content="the answer"))]
    return SimpleNamespace(model=model, usage=usage, choices=choices, _request_id="req_9")


def sent(recorder: Recorder, request: dict[str, Any] = REQUEST) -> CallRecord:
    call = recorder.call(request)
    call.sending()
    return call


def adds_up(stats: Stats) -> bool:
    ended = stats.answered + stats.failed + stats.cancelled
    return stats.calls == ended + stats.in_flight + stats.waiting


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def captured() -> Iterator[list[dict[str, Any]]]:
    """Configure structlog as an application does, and collect what reaches its processors."""
    entries: list[dict[str, Any]] = []

    def capture(_logger: Any, method: str, event: Any) -> Any:
        entries.append({"level": method, **event})
        raise structlog.DropEvent

    structlog.configure(processors=[capture])
    yield entries
    structlog.reset_defaults()


@pytest.fixture
def own_logger() -> Iterator[logging.Logger]:
    """Put back afterwards what the package's logger was."""
    logger = logging.getLogger("gptx_async")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


# Counting


def test_counts_a_call_through_its_states() -> None:
    recorder = Recorder()
    call = recorder.call(REQUEST)
    assert (recorder.stats().waiting, recorder.stats().in_flight) == (1, 0)
    call.sending()
    assert (recorder.stats().waiting, recorder.stats().in_flight) == (0, 1)
    call.retried(StatusError(429), 1.0, response(3, 2))
    assert (recorder.stats().waiting, recorder.stats().in_flight) == (1, 0)
    call.sending()
    call.answered(response())
    recorder.limit_of = Pacer(256)
    stats = recorder.stats()
    assert (stats.calls, stats.answered, stats.attempts, stats.retries) == (1, 1, 2, 1)
    assert (stats.waiting, stats.in_flight, stats.limit) == (0, 0, 256)
    assert (stats.failures, stats.rate_limited) == ({"rate_limit": 1}, 1)
    assert (stats.tokens_in, stats.tokens_out) == (13, 7)
    assert (stats.failed_tokens_in, stats.failed_tokens_out) == (3, 2)


def test_measures_waiting_and_the_call_by_its_clock(clock: Clock) -> None:
    recorder = Recorder(clock=clock)
    call = recorder.call(REQUEST)
    clock.now += 2
    call.sending()
    clock.now += 3
    call.retried(StatusError(500), 4.0)
    clock.now += 4
    call.sending()
    clock.now += 1
    call.answered()
    stats = recorder.stats()
    assert stats.waited.p50 == pytest.approx(6, rel=RELATIVE_ERROR)
    assert stats.took.p99 == pytest.approx(10, rel=RELATIVE_ERROR)


@pytest.mark.parametrize(
    ("end", "field"),
    [
        (lambda call: call.answered(), "answered"),
        (lambda call: call.failed(ValueError()), "failed"),
        (lambda call: call.failed(KeyboardInterrupt()), "cancelled"),
        (lambda call: call.cancelled(), "cancelled"),
    ],
)
def test_counts_the_first_end_when_two_are_told(
    end: Callable[[CallRecord], None], field: str
) -> None:
    for is_sent in (True, False):
        recorder = Recorder()
        call = sent(recorder) if is_sent else recorder.call(REQUEST)
        end(call)
        before = recorder.stats()
        call.answered(response())
        call.failed(ValueError())
        call.retried(ValueError(), 1.0)
        call.sending()
        call.cancelled()
        assert recorder.stats() == before
        assert getattr(before, field) == 1
        assert adds_up(before)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StatusError(429), "rate_limit"),
        (StatusError(429, "insufficient_quota"), "insufficient_quota"),
        (StatusError(401), "authentication"),
        (StatusError(503), "status_503"),
        (APITimeoutError(), "timeout"),
        (APIConnectionError(), "connection"),
        (TimeoutError(), "timeout"),
        (CostLimitError(), "cost_limit"),
        (LoopThreadDiedError(), "service"),
        (ConfigurationError(), "configuration"),
        (ValueError("the text"), "ValueError"),
    ],
)
def test_names_the_kind_of_a_failure(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind
    recorder = Recorder()
    sent(recorder).failed(error)
    assert recorder.stats().failures == {kind: 1}


@pytest.mark.parametrize("count", ["many", None, -1, 10**400, 1.5, True, object()])
def test_answers_when_the_usage_is_no_count(count: Any) -> None:
    recorder = Recorder(PRICES)
    sent(recorder).answered(response(count))
    stats = recorder.stats()
    assert stats.answered == 1
    assert (stats.tokens_in, stats.unpriced_calls) == ((1, 0) if count is True else (0, 1))


def test_reads_the_usage_of_responses() -> None:
    recorder = Recorder()
    usage = SimpleNamespace(input_tokens=7, output_tokens=2, input_tokens_details=None)
    sent(recorder).answered(SimpleNamespace(model=MODEL, usage=usage))
    assert (recorder.stats().tokens_in, recorder.stats().tokens_out) == (7, 2)


def test_carries_calls_in_progress_over_a_reset() -> None:
    recorder = Recorder(PRICES)
    sent(recorder).answered(response())
    waiting, flying = recorder.call(REQUEST), sent(recorder)
    spent = recorder.spent
    recorder.reset()
    stats = recorder.stats()
    assert (stats.calls, stats.answered, stats.attempts, stats.cost) == (2, 0, 1, 0.0)
    assert recorder.spent == spent > 0  # or a reset would lift the limit
    waiting.cancelled()
    flying.answered()
    assert adds_up(recorder.stats())


def test_adds_up_when_read_and_reset_while_threads_count(in_thread: InThread) -> None:
    recorder = Recorder(PRICES)
    ends: list[Callable[[CallRecord], None]] = [
        CallRecord.answered,
        CallRecord.cancelled,
        lambda call: call.failed(StatusError(500)),
    ]

    def count(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(1500):
            call = recorder.call(REQUEST)
            if choose.random() < 0.9:
                call.sending()
            choose.choice(ends)(call)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [in_thread(count, seed) for seed in range(3)]
        seen = 0
        while not all(thread.done() for thread in threads):
            assert adds_up(recorder.stats())
            seen += 1
            if seen % 20 == 0:
                recorder.reset()
        for thread in threads:
            thread.result(10)
    finally:
        sys.setswitchinterval(interval)
    stats = recorder.stats()
    assert seen > 5
    assert adds_up(stats)
    assert (stats.in_flight, stats.waiting) == (0, 0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_estimates_percentiles_within_the_error(sigma: float) -> None:
    choose = random.Random(7)
    values = sorted(choose.lognormvariate(0, sigma) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.percentiles()
    for part, estimate in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = values[int(part * (len(values) - 1))]
        assert estimate == pytest.approx(exact, rel=RELATIVE_ERROR)


def test_keeps_constant_memory_for_any_duration() -> None:
    histogram = Histogram()
    choose = random.Random(1)
    for exponent in range(-400, 400):
        histogram.add(10.0 ** (exponent / 2 if abs(exponent) < 600 else 0))
    for _ in range(20_000):
        histogram.add(choose.lognormvariate(0, 8))
    histogram.add(0.0)
    histogram.add(-1.0)
    assert len(histogram._buckets) <= 1500


def test_shows_nothing_yet_before_the_first_call() -> None:
    stats = Recorder().stats()
    assert (stats.took.p50, stats.waited.p99, stats.cost) == (None, None, None)
    assert "nothing yet" in stats.table()


def test_shows_a_table_for_people() -> None:
    recorder = Recorder(PRICES)
    sent(recorder).answered(response(1_000_000, 1_000_000))
    sent(recorder).failed(StatusError(429))
    sent(recorder, {"model": "another"}).answered(response(model="another"))
    recorder.limit_of = Pacer(64)
    table = recorder.stats().table()
    assert "3: 2 answered, 1 failed, 0 cancelled" in table
    assert "at most 64 at once" in table
    assert "rate_limit 1" in table
    assert "US$ 0.7500, without 1 unpriced calls" in table


def test_counts_anew_in_the_child_when_forked_while_counting() -> None:
    child = run_child("""
        import os
        from gptx_async.telemetry.recorder import Recorder
        recorder = Recorder()
        call = recorder.call({"model": "m"})
        import threading
        held, go = threading.Event(), threading.Event()
        def hold():
            with recorder._counts.lock:
                held.set(); go.wait(20)
        thread = threading.Thread(target=hold); thread.start(); held.wait(20)
        if (pid := os.fork()) == 0:
            call.model                       # the parent's: it harms nothing
            assert recorder.stats().calls == 0
            recorder.call({"model": "m"}).cancelled()
            os._exit(recorder.stats().cancelled + 10)
        go.set(); thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), recorder.stats().waiting)
        """)
    assert child.stdout.split() == ["11", "1"], child.stderr


def test_pickles_with_its_settings_and_counts_anew() -> None:
    recorder = Recorder(PRICES, 5.0, True)
    sent(recorder).answered(response())
    copy = pickle.loads(pickle.dumps(recorder))
    assert (copy.max_cost, copy.log_content, copy.stats().calls) == (5.0, True, 0)
    sent(copy).answered(response(1_000_000, 0))
    assert copy.stats().cost == pytest.approx(0.15)


COST = """
import json, sys, time, timeit
sys.path[:0] = sys.argv[1:3]
from test_telemetry import REQUEST, response
from gptx_async.telemetry.recorder import Recorder

recorder, answer = Recorder(), response()

def count():
    call = recorder.call(REQUEST, batch="0123456789ab", index=7)
    call.sending()
    call.answered(answer)

reference = {f"key{number}": number * 1.5 for number in range(20)}

def seconds(function):
    return timeit.timeit(function, number=500, timer=time.process_time)

counting = dump = float("inf")
for _ in range(200):  # the least of each, which a busy machine does not change
    counting = min(counting, seconds(count))
    dump = min(dump, seconds(lambda: json.dumps(reference)))
    if _ > 10 and counting < dump:
        break
print(counting / dump)
"""


@pytest.mark.serial
def test_costs_less_than_a_small_json_dump_for_a_call() -> None:
    """In a process of its own, where no coverage is measured. Counting takes 0.8 of a dump."""
    done = run_child(COST, TESTS, str(Path(__file__).parent), strict=False)
    assert float(done.stdout) < 1.2, done.stderr


# Costs


@pytest.mark.parametrize(
    ("asked", "answering", "prices", "cost"),
    [
        (MODEL, MODEL, PRICES, 0.15 + 0.30),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18", PRICES, 0.45),
        ("my-deployment", "gpt-4o-mini-2024-07-18", PRICES, 0.45),
        (MODEL, "gpt-4o-2024-08-06", PRICES, 0.45),
        (MODEL, MODEL, {MODEL: (0.15, 0.60, 0.075)}, 0.12 + 0.30),
        ("gpt-4o-2024-08-06", "x", {**PRICES, "gpt-4o-2024-08-06": (1, 1)}, 1.5),
    ],
)
def test_prices_a_call_by_its_model(
    asked: str, answering: str, prices: dict[str, tuple[float, ...]], cost: float
) -> None:
    recorder = Recorder(prices)
    sent(recorder, {"model": asked}).answered(response(1_000_000, 500_000, 400_000, answering))
    stats = recorder.stats()
    assert stats.cost == pytest.approx(cost)
    assert stats.unpriced_calls == 0


@pytest.mark.parametrize("model", ["gpt-4o-audio", "gpt-4o-mini-search", "ft:gpt-4o-mini:org::1"])
def test_leaves_a_call_unpriced_when_the_model_is_another(model: str) -> None:
    recorder = Recorder(PRICES)
    sent(recorder, {"model": model}).answered(response(model=model))
    assert (recorder.stats().cost, recorder.stats().unpriced_calls) == (0.0, 1)


def test_sends_nothing_more_when_the_limit_is_reached() -> None:
    recorder = Recorder(PRICES, max_cost=0.45)
    sent(recorder).answered(response(1_000_000, 0))
    failing = sent(recorder)
    failing.retried(StatusError(500), 1.0, response(0, 500_000))  # 0.15 + 0.30: it counts as well
    unsent = recorder.call(REQUEST)
    for call in (failing, unsent):
        with pytest.raises(CostLimitError, match=r"0\.4500 were spent.*Raise max_cost") as caught:
            call.sending()
        call.failed(caught.value)
    stats = recorder.stats()
    assert (stats.attempts, stats.failed) == (2, 2)
    assert stats.failures == {"status_500": 1, "cost_limit": 2}
    recorder.max_cost = 1.0
    sent(recorder).answered()
    assert adds_up(recorder.stats())


def test_refuses_an_unpriced_model_when_there_is_a_limit() -> None:
    recorder = Recorder(PRICES, max_cost=1)
    with pytest.raises(ConfigurationError, match="no price for the model 'another'"):
        sent(recorder, {"model": "another"})
    assert recorder.stats().attempts == 0


@pytest.mark.parametrize(
    ("prices", "max_cost"),
    [
        (None, 1.0),
        (PRICES, -1),
        (PRICES, float("nan")),
        (PRICES, True),
        ({MODEL: (1,)}, None),
        ({MODEL: (1, "2")}, None),
        ({MODEL: "12"}, None),
        ({MODEL: (1, float("inf"))}, None),
    ],
)
def test_refuses_prices_and_limits_that_are_none(prices: Any, max_cost: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"[Pp]rice|max_cost"):
        Recorder(prices, max_cost)


# Events


def tell_all(recorder: Recorder, clock: Clock) -> None:
    """Bring about each event of a recorder, and tell of the others."""
    batch = recorder.batch(3, window=2, model=MODEL)
    call = recorder.call(REQUEST, batch=batch.id, index=1)
    clock.now += 1
    call.sending()
    clock.now += 2
    call.retried(StatusError(429), 4.0, response(3, 2))
    clock.now += 4
    call.sending()
    call.retried(StatusError(500), 0.5)
    call.sending()
    clock.now += QUIET_SECONDS
    call.answered(response())
    sent(recorder).failed(StatusError(401))
    batch.ended(answered=1, failed=1, cancelled=1)
    batch.ended(answered=1, failed=1, cancelled=1)  # once
    told: dict[str, Any] = {"governor": MODEL, "limit": 32, "rate": 9.5, "in_flight": 1}
    told |= {"waiting": 0, "error": StatusError(429)}
    telemetry.governor_changed("governor_cut", told | {"before": 64, "rate_before": 10.0})
    telemetry.governor_changed("governor_grew", told | {"before": 32, "rate_before": 9.0})
    telemetry.governor_changed("governor_paused", told | {"seconds": 20.0})
    telemetry.service_started("loop")
    telemetry.service_closed("loop", 2)
    telemetry.service_restarted("loop", MemoryError("text"))


def test_tells_events_with_these_names_and_fields(
    captured: list[dict[str, Any]], clock: Clock
) -> None:
    recorder = Recorder(clock=clock)
    tell_all(recorder, clock)
    batch = captured[0]["batch"]
    item = {"batch": batch, "index": 1, "model": MODEL}
    retry = {**item, "request_id": "req_7", "took": 2.0, "waited": 1.0, "retry_in": 4.0}
    pace = {"limit": 32, "rate": 9.5}
    expected = [
        {"event": "batch.started", "level": "info", "items": 3, "window": 2},
        {"event": "attempt.retried", "level": "warning", **retry, "attempt": 1, "status": 429}
        | {"kind": "rate_limit", "tokens_in": 3, "tokens_out": 2},
        {"event": "attempt.retried", "level": "debug", **retry, "attempt": 2, "status": 500}
        | {"kind": "status_500", "took": 0.0, "waited": 4.0, "retry_in": 0.5},
        {"event": "burst.ended", "level": "info", "of": "attempt.retried"}
        | {"suppressed": 1, "took": 4.0},
        {"event": "call.answered", "level": "debug", **item, "attempt": 3, "waited": 0.0}
        | {"took": 30.0, "tokens_in": 10, "tokens_out": 5, "request_id": "req_9"},
        {"event": "attempt.failed", "level": "warning", "attempt": 1, "status": 401, "took": 0.0}
        | {"model": MODEL, "kind": "authentication", "waited": 0.0, "request_id": "req_7"},
        {"event": "batch.ended", "level": "info", "items": 3, "answered": 1, "failed": 1}
        | {"cancelled": 1, "took": 37.0},
        {"event": "governor.cut", "level": "info", **pace, "before": 64, "rate_before": 10.0}
        | {"status": 429, "request_id": "req_7"},
        {"event": "governor.grew", "level": "debug", **pace, "before": 32, "rate_before": 9.0},
        {"event": "governor.paused", "level": "info", **pace, "seconds": 20.0}
        | {"status": 429, "request_id": "req_7"},
        {"event": "service.started", "level": "info", "loop_thread": "loop"},
        {"event": "service.closed", "level": "info", "loop_thread": "loop", "in_flight": 2},
        {"event": "service.restarted", "level": "warning", "loop_thread": "loop"}
        | {"cause": "MemoryError"},
    ]
    for fields in expected:
        if str(fields["event"]).startswith("batch."):
            fields |= {"batch": batch, "model": MODEL}
        if str(fields["event"]).startswith("governor."):
            fields["model"] = MODEL
    assert captured == expected
    assert {entry["event"] for entry in captured} == set(EVENTS)
    for entry in captured:
        assert set(entry) - {"event", "level"} <= set(EVENTS[entry["event"]][1])


def test_names_no_field_as_logging_does() -> None:
    taken = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "event"}
    assert not {field for _, fields in EVENTS.values() for field in fields} & taken


@pytest.mark.parametrize("log_content", [False, True])
def test_holds_content_only_when_asked_to(
    log_content: bool, captured: list[dict[str, Any]], clock: Clock
) -> None:
    recorder = Recorder(log_content=log_content, clock=clock)
    call = sent(recorder)
    call.retried(StatusError(401, text="said back: " + "sk-" + "abc123 and the prompt"), 1.0)
    call.sending()
    call.answered(response())
    told = repr(captured)
    assert ("the prompt" in told) is log_content
    assert ("the answer" in told) is log_content
    assert "abc123" not in told
    if log_content:
        assert captured[0]["prompt"] == REQUEST["messages"]
        assert captured[0]["error"] == "said back: sk-... and the prompt"
        assert captured[1]["answer"] == ["the answer"]


def test_warns_once_for_a_burst_and_tells_how_many_it_hid(
    captured: list[dict[str, Any]], clock: Clock
) -> None:
    recorder = Recorder(clock=clock)
    for _ in range(2):
        for _ in range(50):
            sent(recorder).retried(StatusError(429), 1.0)
            clock.now += QUIET_SECONDS / 2
        clock.now += QUIET_SECONDS
    levels = collections.Counter(entry["level"] for entry in captured)
    assert levels == {"warning": 2, "debug": 98, "info": 1}
    assert [entry["suppressed"] for entry in captured if entry["event"] == "burst.ended"] == [49]


def test_goes_to_logging_and_not_to_stdout_when_nothing_is_configured() -> None:
    child = run_child("""
        import sys
        import structlog
        from gptx_async.telemetry.events import service_started
        from gptx_async.telemetry.recorder import Recorder
        call = Recorder().call({"model": "m\\nfeigned event=x", "messages": "secret"})
        call.sending()
        service_started("loop")
        call.retried(ValueError("secret"), 2.5)
        call.answered()
        """)
    assert (child.returncode, child.stdout) == (0, "")
    (line,) = child.stderr.splitlines()
    assert line.startswith(r"attempt.retried model='m\nfeigned event=x' attempt=1 ")
    assert line.endswith("kind=ValueError retry_in=2.5")


def test_imports_neither_structlog_nor_opentelemetry_by_itself() -> None:
    child = run_child("""
        import sys
        from gptx_async.telemetry.events import configure_logging
        from gptx_async.telemetry.recorder import Recorder
        configure_logging(json=True, level="DEBUG")
        call = Recorder({"m": (1, 1)}).call({"model": "m"})
        with call.attached():
            call.sending()
        call.failed(ValueError())
        print(sorted({name.partition(".")[0] for name in sys.modules}
            & {"structlog", "opentelemetry", "openai", "symai", "aiohttp"}))
        """)
    assert child.stdout == "[]\n", child.stderr


def test_goes_where_logging_is_configured_to_with_fields_as_attributes(
    own_logger: logging.Logger, clock: Clock
) -> None:
    records: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "incremental": False,
            "handlers": {"collect": {"()": Collect}},
            "loggers": {"gptx_async": {"handlers": ["collect"], "level": "INFO"}},
        }
    )
    tell_all(Recorder(clock=clock), clock)
    first = records[0]
    assert first.name == "gptx_async.batch"
    assert (first.event, first.items, first.window) == ("batch.started", 3, 2)  # type: ignore[attr-defined]
    assert first.getMessage().startswith("batch.started batch=")
    names = [record.event for record in records]  # type: ignore[attr-defined]
    assert names.count("attempt.retried") == 1
    assert "call.answered" not in names
    assert "governor.grew" not in names


def test_goes_to_structlog_when_it_is_configured_late(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    sent(recorder).failed(ValueError())
    assert [record.name for record in caplog.records] == ["gptx_async.attempt"]
    output = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(output),
    )
    try:
        telemetry.service_restarted("loop", "fork")
    finally:
        structlog.reset_defaults()
    assert json.loads(output.getvalue()) == {
        "event": "service.restarted",
        "level": "warning",
        "loop_thread": "loop",
        "cause": "fork",
    }
    assert len(caplog.records) == 1


def test_harms_no_call_when_a_processor_raises(capfd: pytest.CaptureFixture[str]) -> None:
    class OfThisTestError(Exception):
        pass

    def broken(_logger: Any, _method: str, _event: Any) -> Any:
        raise OfThisTestError("secret")

    structlog.configure(processors=[broken])
    try:
        recorder = Recorder()
        for _ in range(2):
            call = sent(recorder)
            call.retried(StatusError(429), 1.0)
            call.sending()
            call.answered(response())
    finally:
        structlog.reset_defaults()
    assert recorder.stats().answered == 2
    said = capfd.readouterr().err
    assert said.count("OfThisTestError") == 1
    assert "secret" not in said


def test_harms_no_call_when_an_event_is_dropped_by_a_bare_logger() -> None:
    class Bare:
        """A wrapper class that does not catch what its processors raise."""

        dropped = 0

        def __init__(self, *_arguments: Any, **_options: Any) -> None:
            pass

        def bind(self, **_values: Any) -> Bare:
            return self

        def warning(self, _event: str, **_fields: Any) -> None:
            Bare.dropped += 1
            raise structlog.DropEvent

    structlog.configure(wrapper_class=Bare)  # type: ignore[arg-type] # as bare as can be
    try:
        telemetry.service_restarted("loop", None)
    finally:
        structlog.reset_defaults()
    assert Bare.dropped == 1


def test_harms_no_call_when_a_handler_or_filter_raises(own_logger: logging.Logger) -> None:
    class Broken(logging.Handler):
        calls = 0

        def emit(self, _record: logging.LogRecord) -> None:
            Broken.calls += 1
            raise OSError

    own_logger.addHandler(Broken())
    recorder = Recorder()
    sent(recorder).failed(ValueError())
    assert (Broken.calls, recorder.stats().failed) == (1, 1)


def test_lets_an_interrupt_through_that_arrives_in_a_handler(own_logger: logging.Logger) -> None:
    class Interrupted(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    own_logger.addHandler(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        emit("service.restarted", {"loop_thread": "loop"})


@pytest.mark.parametrize("as_json", [False, True])
def test_configures_logging_for_scripts(
    as_json: bool,
    own_logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    configure_logging(json=not as_json, level="ERROR")
    configure_logging(json=as_json, level="info")
    telemetry.service_started("loop")
    fields = {"governor": MODEL, "limit": 2, "rate": None, "before": 1}
    telemetry.governor_changed("governor_grew", fields)  # DEBUG
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    if as_json:
        told = json.loads(line)
        assert told.pop("timestamp").endswith("+00:00")
        assert told == {
            "level": "info",
            "logger": "gptx_async.service",
            "event": "service.started",
            "loop_thread": "loop",
        }
    else:
        assert line.endswith("INFO    service.started loop_thread=loop")
    assert (root.handlers, root.level) == before
    assert caplog.records == []  # the root logger's handlers would show each a second time


def test_refuses_a_level_that_is_none(own_logger: logging.Logger) -> None:
    before = own_logger.handlers[:]
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging(level="loud")
    assert own_logger.handlers == before
