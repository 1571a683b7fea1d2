"""Trace model calls as OpenTelemetry spans, by the semantic conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/

The package imports OpenTelemetry only after the application has. Before that there are neither
parent spans nor a provider. The import happens in the caller's thread, never first on the loop's
thread: the holder of the module's lock could be waiting for that loop.

A span never contains prompts or answers, whatever the environment variables say. Packages that
instrument `openai` can record them. Spans end on the loop's thread, so a span processor that
exports synchronously delays all calls. Use the SDK's BatchSpanProcessor.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from .usage import Usage

__all__ = ["CallSpan", "start_span"]

OPERATIONS = {
    ("chat", "completions"): "chat",
    ("responses",): "chat",
    ("completions",): "text_completion",
    ("embeddings",): "embeddings",
}
"""The operation names of the conventions, by the client's attributes."""

REQUEST_ATTRIBUTES = {
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
}


def start_span(
    path: Sequence[str],
    request: Mapping[str, Any],
    base_url: str | None = None,
    provider: TracerProvider | None = None,
) -> CallSpan | None:
    """Start the span of a call, in the caller's thread and context. Never raises.

    Args:
        path: The client's attributes that lead to the method, including the method.
        request: The method's keyword arguments.
        base_url: The server.
        provider: The provider; the application's global one if not given.

    Returns:
        The span. Without a provider, an object that only passes the caller's context on to the
        loop, or None if there is no context either.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    try:
        return _start_span(path, request, base_url, provider)
    except Exception:  # an application's processor or sampler must not fail the call
        return None


def _start_span(
    path: Sequence[str],
    request: Mapping[str, Any],
    base_url: str | None,
    provider: TracerProvider | None,
) -> CallSpan | None:
    context, trace = _api()
    caller = context.get_current()
    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider) or _is_switched_off(caller):
        return CallSpan(None, caller) if caller else None
    attributes = _attributes(path, request, base_url)
    span = _tracer(provider).start_span(
        " ".join(
            str(attributes[name])
            for name in ("gen_ai.operation.name", "gen_ai.request.model")
            if name in attributes
        ),
        kind=trace.SpanKind.CLIENT,
        attributes=attributes,
    )
    return CallSpan(span, trace.set_span_in_context(span, caller))


class CallSpan:
    """The span of one call, and the context for its attempts.

    All methods are allowed in any thread, and do not raise the errors of span processors.
    """

    __slots__ = ("_context", "_span")

    def __init__(self, span: Span | None, context: Context) -> None:
        self._span = span if span is not None and span.is_recording() else None
        self._context = context

    def attached(self) -> Attached:
        """Return a context manager for an attempt, in which the span is the current one."""
        return Attached(self._context)

    def retried(self, attempt: int, error_type: str, retry_in: float) -> None:
        """Add an event for a failed attempt that is retried.

        Args:
            attempt: The number of attempts so far.
            error_type: The name of the exception's class.
            retry_in: Seconds until the next attempt.
        """
        if self._span is not None:
            attributes: dict[str, str | int | float] = {
                "attempt": attempt,
                "error.type": error_type,
                "retry_in": retry_in,
            }
            with contextlib.suppress(Exception):
                self._span.add_event("attempt.retried", attributes)

    def answered(self, response: Any, usage: Usage | None) -> None:
        """Add the answer's attributes to the span, and end it.

        Args:
            response: The SDK's object.
            usage: The answer's tokens.
        """
        span, self._span = self._span, None
        if span is None:
            return
        with contextlib.suppress(Exception):  # for an answer of another shape, leave out the rest
            _set(span, "gen_ai.response.id", getattr(response, "id", None))
            _set(span, "gen_ai.response.model", getattr(response, "model", None))
            reasons = [choice.finish_reason for choice in getattr(response, "choices", None) or ()]
            if reasons and all(isinstance(reason, str) for reason in reasons):
                span.set_attribute("gen_ai.response.finish_reasons", reasons)
            if usage is not None:
                span.set_attribute("gen_ai.usage.input_tokens", usage[0])
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage[1])
                span.set_attribute("gen_ai.usage.output_tokens", usage[2])
        _end(span)

    def failed(self, error_type: str, status: int | None) -> None:
        """End the span of a call that failed or was cancelled.

        Args:
            error_type: The name of the exception's class.
            status: The last response's HTTP status, if there was a response.
        """
        span, self._span = self._span, None
        if span is None:
            return
        _, trace = _api()
        with contextlib.suppress(Exception):
            span.set_attribute("error.type", error_type)
            _set(span, "http.response.status_code", status)
            span.set_status(trace.StatusCode.ERROR)  # without the text, which may contain content
        _end(span)


class Attached:
    """Makes an OpenTelemetry context the current one for a block.

    It does not use `detach`: OpenTelemetry logs an error if that runs in another context than
    `attach`, as it does when an unfinished coroutine is closed.
    """

    __slots__ = ("_before", "_context")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._before: Context | None = None

    def __enter__(self) -> None:
        context, _ = _api()
        self._before = context.get_current()
        context.attach(self._context)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        context, _ = _api()
        if self._before is not None and context.get_current() is self._context:
            context.attach(self._before)


def _attributes(
    path: Sequence[str], request: Mapping[str, Any], base_url: str | None
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS.get(tuple(path[:-1]), ".".join(path)),
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",  # the attribute's name before version 1.37 of the conventions
    }
    attributes.update(_server(base_url or ""))
    if isinstance(model := request.get("model"), str):
        attributes["gen_ai.request.model"] = model
    for name, attribute in REQUEST_ATTRIBUTES.items():
        if isinstance(value := request.get(name), int | float):
            attributes[attribute] = value
    if isinstance(count := request.get("n"), int) and count != 1:
        attributes["gen_ai.request.choice.count"] = count
    return attributes


@functools.lru_cache(maxsize=16)
def _server(base_url: str) -> Mapping[str, Any]:
    """Return host and port of a URL, without the password that it may contain."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return {}
    if host is None:
        return {}
    return {"server.address": host, "server.port": port or (80 if parts.scheme == "http" else 443)}


@functools.cache
def _api() -> tuple[Any, Any]:
    from opentelemetry import context, trace

    return context, trace


@functools.lru_cache(maxsize=4)
def _tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("gptx_async")


def _is_switched_off(context: Context) -> bool:
    """Return whether spans are suppressed, in this context or for this package by its name."""
    names = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    return bool(
        context.get("suppress_instrumentation")
        or "gptx_async" in [name.strip() for name in names.split(",")]
    )


def _set(span: Span, name: str, value: Any) -> None:
    if isinstance(value, str | int):
        span.set_attribute(name, value)


def _end(span: Span) -> None:
    with contextlib.suppress(Exception):  # an application's processor may raise
        span.end()
