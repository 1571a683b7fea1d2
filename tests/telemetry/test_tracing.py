"""OpenTelemetry spans of calls that are made in one thread and sent in another, over real HTTP."""

from __future__ import annotations

import contextvars
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import LoopService
from gptx_async.telemetry import tracing
from gptx_async.telemetry.call_record import CallRecord
from gptx_async.telemetry.recorder import Recorder
from gptx_async.testing import FakeOpenAI
from support.child import run_child

MODEL = "gpt-4o-mini"
REQUEST: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "the prompt"}],
    "temperature": 0.5,
    "max_completion_tokens": 100,
    "n": 2,
    "stop": None,
}
URL = "http://user:word@localhost:8123/v1/"


class Traced:
    """An application's tracer provider, and the spans that it exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")
        self.recorder = Recorder(tracer_provider=self.provider)

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.provider.shutdown()


@pytest.fixture
def service() -> Iterator[LoopService]:
    service = LoopService("test_tracing")
    yield service
    service.close()


def response() -> SimpleNamespace:
    usage = SimpleNamespace(
        prompt_tokens=10,
        completion_tokens=5,
        prompt_tokens_details=SimpleNamespace(cached_tokens=4),
    )
    choices = [SimpleNamespace(finish_reason="stop"), SimpleNamespace(finish_reason="length")]
    return SimpleNamespace(id="chatcmpl-1", model=f"{MODEL}-x", usage=usage, choices=choices)


def test_makes_a_span_of_each_answered_call(traced: Traced) -> None:
    call = traced.recorder.call(REQUEST, base_url=URL)
    call.sending()
    call.answered(response())
    (span,) = traced.exporter.get_finished_spans()
    assert (span.name, span.kind) == (f"chat {MODEL}", SpanKind.CLIENT)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",
        "server.address": "localhost",
        "server.port": 8123,
        "gen_ai.request.model": MODEL,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": f"{MODEL}-x",
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.output_tokens": 5,
    }


def test_ends_the_span_of_a_failed_call_with_its_error_and_no_text(traced: Traced) -> None:
    class RateLimitError(Exception):
        status_code = 429

    call = traced.recorder.call(REQUEST)
    call.sending()
    call.retried(RateLimitError("secret"), 2.0)
    call.sending()
    call.failed(RateLimitError("secret"))
    (span,) = traced.exporter.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.attributes is not None
    assert span.attributes["error.type"] == "RateLimitError"
    assert span.attributes["http.response.status_code"] == 429
    (event,) = span.events
    assert (event.name, dict(event.attributes or {})) == (
        "attempt.retried",
        {"attempt": 1, "error.type": "RateLimitError", "retry_in": 2.0},
    )


def test_ends_the_span_of_a_cancelled_call_once(traced: Traced) -> None:
    call = traced.recorder.call(REQUEST)
    call.failed(KeyboardInterrupt())
    call.answered(response())
    (span,) = traced.exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "cancelled"


@pytest.mark.parametrize("mode", ["true", "span_and_event", "SPAN_ONLY"])
def test_records_no_content_whatever_the_environment_says(
    mode: str, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", mode)
    call = traced.recorder.call(REQUEST)
    call.sending()
    call.answered(response())
    (span,) = traced.exporter.get_finished_spans()
    assert "the prompt" not in span.to_json()
    assert "word" not in span.to_json()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("responses", "create"), "chat"),
        (("embeddings", "create"), "embeddings"),
        (("chat", "completions", "parse"), "chat"),
        (("models", "list"), "models.list"),
    ],
)
def test_names_the_operation_by_the_conventions(
    path: tuple[str, ...], name: str, traced: Traced
) -> None:
    traced.recorder.call({}, path).answered()
    assert [*traced.spans()] == [name]


def test_is_the_parent_on_the_loop_and_a_child_of_the_caller(
    traced: Traced, service: LoopService
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def send(call: CallRecord) -> tuple[str, object]:
        with call.attached():
            call.sending()
            with traced.tracer.start_as_current_span("attempt"):
                seen = (variable.get(), baggage.get_baggage("who"))
        assert not context.get_current()  # unchanged
        call.answered()
        return seen

    variable.set("the caller's")
    token = context.attach(baggage.set_baggage("who", "caller"))
    try:
        with traced.tracer.start_as_current_span("caller"):
            call = traced.recorder.call(REQUEST)
            seen = service.run(lambda _scope: send(call))
    finally:
        context.detach(token)
    assert seen == ("none", "caller")
    spans = traced.spans()
    assert spans["attempt"].parent == spans[f"chat {MODEL}"].context
    assert spans[f"chat {MODEL}"].parent == spans["caller"].context


def test_lets_instrumented_openai_see_the_caller(
    traced: Traced, service: LoopService, fake_openai: FakeOpenAI
) -> None:
    instrumentor = OpenAIInstrumentor()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=traced.provider)

    async def send(call: CallRecord, _scope: LoopScope) -> Any:
        async with openai.AsyncOpenAI(max_retries=0) as client:
            with call.attached():
                call.sending()
                answer = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "hi"}]
                )
        call.answered(answer)
        return answer

    try:
        with traced.tracer.start_as_current_span("caller"):
            call = traced.recorder.call(REQUEST, base_url=fake_openai.base_url)
            answer = service.run(lambda scope: send(call, scope))
    finally:
        instrumentor.uninstrument()
    by_id = {span.context.span_id: span for span in traced.exporter.get_finished_spans()}
    caller = traced.spans()["caller"]
    (ours,) = [span for span in by_id.values() if span.parent and span.parent == caller.context]
    (theirs,) = [span for span in by_id.values() if span.parent and span.parent == ours.context]
    assert len(by_id) == 3
    for span in (ours, theirs):
        assert span.attributes is not None
        assert span.attributes["gen_ai.response.id"] == answer.id
        assert span.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens


def test_brings_the_context_when_no_provider_is_set() -> None:
    token = context.attach(baggage.set_baggage("who", "caller"))
    try:
        call = Recorder().call(REQUEST)
    finally:
        context.detach(token)
    with call.attached():
        assert baggage.get_baggage("who") == "caller"
    assert baggage.get_baggage("who") is None
    call.answered()


def test_starts_no_span_when_it_is_switched_off(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = context.attach(context.set_value("suppress_instrumentation", True))
    try:
        traced.recorder.call(REQUEST).answered()
    finally:
        context.detach(token)
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "redis, gptx_async")
    traced.recorder.call(REQUEST).answered()
    assert traced.spans() == {}


def test_leaves_another_context_alone_when_it_is_closed_there(traced: Traced) -> None:
    async def abandoned() -> None:
        with traced.recorder.call(REQUEST).attached():
            await _Never()

    coroutine = abandoned()
    contextvars.copy_context().run(coroutine.send, None)
    with traced.tracer.start_as_current_span("application") as span:
        coroutine.close()
        assert trace.get_current_span() is span


class _Never:
    """Waits forever, without a loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize("hook", ["on_start", "on_end"])
def test_harms_no_call_when_a_span_processor_raises(hook: str) -> None:
    class Broken(SpanProcessor):
        calls = 0

    def fail(self: Broken, *_arguments: Any, **_options: Any) -> None:
        Broken.calls += 1
        raise ValueError

    setattr(Broken, hook, fail)
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    recorder = Recorder(tracer_provider=provider)
    call = recorder.call(REQUEST)
    with call.attached():
        call.sending()
    call.answered(response())
    assert (Broken.calls, recorder.stats().answered) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        SimpleNamespace(id=[], model=None, choices=7),
        SimpleNamespace(choices=[SimpleNamespace()]),
        SimpleNamespace(choices=[SimpleNamespace(finish_reason=["x"])]),
        "text",
    ],
)
def test_ends_the_span_when_the_answer_has_another_shape(answer: Any, traced: Traced) -> None:
    traced.recorder.call(REQUEST).answered(answer)
    assert len(traced.exporter.get_finished_spans()) == 1


@pytest.mark.parametrize("url", ["", "no url", "http://[bad", "http://host:port/"])
def test_leaves_the_server_out_when_its_url_is_invalid(url: str) -> None:
    assert tracing._server(url) == {}


def test_takes_the_provider_that_the_application_sets_late() -> None:
    child = run_child("""
        from gptx_async.telemetry.recorder import Recorder
        recorder = Recorder()
        recorder.call({"model": "m"}).answered()
        from opentelemetry import trace
        recorder.call({"model": "m"}).answered()
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        exporter = InMemorySpanExporter()
        trace.set_tracer_provider(TracerProvider())
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
        recorder.call({"model": "m"}).answered()
        print([span.name for span in exporter.get_finished_spans()])
        """)
    assert child.stdout == "['chat m']\n", child.stderr


def test_works_when_opentelemetry_is_not_installed() -> None:
    child = run_child("""
        import sys
        sys.modules["opentelemetry"] = None   # as an import of what is not there
        from gptx_async.telemetry.recorder import Recorder
        recorder = Recorder()
        call = recorder.call({"model": "m"})
        with call.attached():
            call.sending()
        call.answered()
        print(recorder.stats().answered, call._report._span)
        """)
    assert child.stdout == "1 None\n", child.stderr
