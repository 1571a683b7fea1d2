"""Events: their names and fields, bursts, and where they are logged."""

from __future__ import annotations

import collections
import io
import json
import logging
import logging.config
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gptx_async.telemetry.events import (
    EVENTS,
    QUIET_SECONDS,
    configure_logging,
    emit,
    governor_changed,
    service_closed,
    service_restarted,
    service_started,
)
from gptx_async.telemetry.recorder import Recorder
from support.child import run_child
from support.records import MODEL, REQUEST, Clock, StatusError, response, sent


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def captured() -> Iterator[list[dict[str, Any]]]:
    """Configure structlog as an application does, and collect the events it receives."""
    entries: list[dict[str, Any]] = []

    def capture(_logger: Any, method: str, event: Any) -> Any:
        entries.append({"level": method, **event})
        raise structlog.DropEvent

    structlog.configure(processors=[capture])
    yield entries
    structlog.reset_defaults()


@pytest.fixture
def own_logger() -> Iterator[logging.Logger]:
    """Return the package's logger, and restore its settings after the test."""
    logger = logging.getLogger("gptx_async")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def emit_all(recorder: Recorder, clock: Clock) -> None:
    """Cause every event of a recorder, and emit all others."""
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
    governor_fields: dict[str, Any] = {"governor": MODEL, "limit": 32, "rate": 9.5, "in_flight": 1}
    governor_fields |= {"waiting": 0, "error": StatusError(429)}
    governor_changed("governor_cut", governor_fields | {"before": 64, "rate_before": 10.0})
    governor_changed("governor_grew", governor_fields | {"before": 32, "rate_before": 9.0})
    governor_changed("governor_paused", governor_fields | {"seconds": 20.0})
    service_started("loop")
    service_closed("loop", 2)
    service_restarted("loop", MemoryError("text"))


def test_events_have_these_names_and_fields(captured: list[dict[str, Any]], clock: Clock) -> None:
    recorder = Recorder(clock=clock)
    emit_all(recorder, clock)
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


def test_no_field_has_the_name_of_an_attribute_of_a_log_record() -> None:
    taken = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "event"}
    assert not {field for _, fields in EVENTS.values() for field in fields} & taken


@pytest.mark.parametrize("log_content", [False, True])
def test_events_contain_content_only_if_log_content_is_set(
    log_content: bool, captured: list[dict[str, Any]], clock: Clock
) -> None:
    recorder = Recorder(log_content=log_content, clock=clock)
    call = sent(recorder)
    call.retried(StatusError(401, text="said back: " + "sk-" + "abc123 and the prompt"), 1.0)
    call.sending()
    call.answered(response())
    governor_fields = repr(captured)
    assert ("the prompt" in governor_fields) is log_content
    assert ("the answer" in governor_fields) is log_content
    assert "abc123" not in governor_fields
    if log_content:
        assert captured[0]["prompt"] == REQUEST["messages"]
        assert captured[0]["error"] == "said back: sk-... and the prompt"
        assert captured[1]["answer"] == ["the answer"]


def test_warns_once_for_a_burst_and_logs_how_many_it_suppressed(
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
    emit_all(Recorder(clock=clock), clock)
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
        service_restarted("loop", "fork")
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
        """A wrapper class that does not catch the errors of its processors."""

        dropped = 0

        def __init__(self, *_arguments: Any, **_options: Any) -> None:
            pass

        def bind(self, **_values: Any) -> Bare:
            return self

        def warning(self, _event: str, **_fields: Any) -> None:
            Bare.dropped += 1
            raise structlog.DropEvent

    structlog.configure(wrapper_class=Bare)  # type: ignore[arg-type] # it catches nothing
    try:
        service_restarted("loop", None)
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
    service_started("loop")
    fields = {"governor": MODEL, "limit": 2, "rate": None, "before": 1}
    governor_changed("governor_grew", fields)  # DEBUG
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    if as_json:
        governor_fields = json.loads(line)
        assert governor_fields.pop("timestamp").endswith("+00:00")
        assert governor_fields == {
            "level": "info",
            "logger": "gptx_async.service",
            "event": "service.started",
            "loop_thread": "loop",
        }
    else:
        assert line.endswith("INFO    service.started loop_thread=loop")
    assert (root.handlers, root.level) == before
    assert caplog.records == []  # the root logger's handlers would show each a second time


def test_rejects_an_unknown_level(own_logger: logging.Logger) -> None:
    before = own_logger.handlers[:]
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging(level="loud")
    assert own_logger.handlers == before
