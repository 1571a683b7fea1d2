"""What mypy is to know of the public face; checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_type

import gptx_async
from gptx_async import AsyncBatchEngine, AsyncGPTXBatchEngine, errors
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault, RecordedRequest


def engines() -> None:
    """What the names of the package itself are."""
    assert_type(gptx_async.install(), AsyncBatchEngine)
    assert_type(gptx_async.install(api_key="sk-key", model="o3-mini", window=9), AsyncBatchEngine)
    assert_type(AsyncBatchEngine.from_config(window=10), AsyncBatchEngine)
    assert_type(AsyncGPTXBatchEngine.from_config(client_timeout=1.0), AsyncGPTXBatchEngine)
    dynamic = gptx_async.dynamic_engine("o3-mini", "sk-key", client_max_retries=1, deadline=60.0)
    assert_type(dynamic, gptx_async.AsyncDynamicEngine)
    with dynamic as within:
        assert_type(within, AsyncBatchEngine)
    engine = AsyncGPTXBatchEngine("sk-key", "gpt-4o-mini", client_timeout=1.0, window=10)
    assert_type(engine.id(), str)
    assert_type(engine.executor_callback, Callable[[Any], tuple[list[Any], dict[str, Any]]])
    limit = gptx_async.RateLimit(requests_per_minute=600, tokens_per_minute=1e6)
    gptx_async.install(rate_limit=limit, prices={"gpt-4o-mini": (0.15, 0.60)}, max_cost=1.0)
    assert_type(engine.stats(), gptx_async.Stats)
    assert_type(engine.stats().took, gptx_async.Percentiles)
    assert_type(engine.stats().table(), str)
    gptx_async.configure_logging(json=True, level="DEBUG")
    general: AsyncBatchEngine = engine
    assert_type(general.allows_batching, bool)
    assert_type(gptx_async.__version__, str)


def options(engine: AsyncBatchEngine) -> None:
    """Each option of an engine is a typed property."""
    assert_type(engine.window, int)
    assert_type(engine.deadline, float | None)
    assert_type(engine.timeout, float | None)
    assert_type(engine.max_concurrency, int)
    assert_type(engine.rate_limit, gptx_async.RateLimit | None)
    assert_type(engine.rate_limit_patience, float)
    assert_type(engine.max_response_bytes, int | None)
    assert_type(engine.fast_path, bool)
    assert_type(engine.retry_error_bodies, bool)
    assert_type(engine.idle_client_seconds, float)
    assert_type(engine.adaptive, bool)
    assert_type(engine.prices, Mapping[str, Sequence[float]] | None)
    assert_type(engine.max_cost, float | None)
    assert_type(engine.log_content, bool)
    assert_type(engine.pickle_key, bool)
    engine.prices = {"gpt-4o-mini": (0.15, 0.60)}
    engine.fast_path = None
    engine.window = "many"  # type: ignore[assignment]


def datasets() -> None:
    """What a run over a dataset gives, by how it was asked for."""
    assert_type(gptx_async.map(len, ["a"]), gptx_async.Results)
    assert_type(gptx_async.map(len, ["a"], on_error="return").failed, list[gptx_async.Failed])
    for pair in gptx_async.map(len, ["a"], on_error=lambda failed: 0, as_completed=True):
        assert_type(pair, tuple[int, Any])


async def datasets_on_a_loop() -> None:
    """The same in a coroutine."""
    assert_type(await gptx_async.acall(len, "a", deadline=1.0), int)
    assert_type(await gptx_async.amap(len, ["a"]), gptx_async.Results)
    async for pair in gptx_async.amap(len, ["a"], as_completed=True):
        assert_type(pair, tuple[int, Any])


def exceptions(error: errors.GPTXAsyncError) -> None:
    """Each is of the package's base class, and of the built-in one that it is a case of."""
    builtin: ValueError = errors.ConfigurationError()
    runtime: RuntimeError = errors.ServiceClosedError()
    base: errors.GPTXAsyncError = errors.VocabularyError()
    del builtin, runtime, base, error


def server() -> None:
    """What tests of users write."""
    with FakeOpenAI(reply=lambda request: "text", latency=0.1) as fake:
        assert_type(fake.base_url, str)
        fake.fail_next(HTTPFault(429, retry_after=1), times=2)
        assert_type(fake.requests[0], RecordedRequest)
    assert_type(BatchScheduler(num_workers=1, batch_size=1).forward(len, ["a"]), list[Any])
