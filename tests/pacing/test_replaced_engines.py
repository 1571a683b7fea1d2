"""The limits of an engine end when `install` or `uninstall` replaces the engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

import gptx_async
from gptx_async import AsyncBatchEngine, RateLimit
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.settings import Pacing
from gptx_async.testing import FakeOpenAI
from support.pacing_engines import KEY, MODEL, arguments, errors_of, governor_of, make_engine
from support.virtual_time import settle_down, simulate

SLOW = RateLimit(requests_per_minute=1)


@pytest.fixture
def no_collection(engine_repository: Any) -> Iterator[None]:
    """Keep the garbage collector from freeing the replaced engine, as `gc.freeze()` does."""
    gc.disable()
    gc.freeze()
    yield
    gptx_async.uninstall()
    gc.unfreeze()
    gc.enable()


def limits_of(engine: AsyncBatchEngine) -> tuple[int, float | None]:
    errors = errors_of(engine.forward(arguments(1)))
    assert errors == [None]
    governor = governor_of(engine)
    return governor.limit, governor.rate


@pytest.mark.usefixtures("fake_openai", "no_collection")
class TestReplaced:
    def test_by_install(self) -> None:
        before = gptx_async.install(KEY, MODEL, max_concurrency=1, rate_limit=SLOW)
        assert limits_of(before) == (1, 1 / 60)
        engine = gptx_async.install(KEY, MODEL, max_concurrency=200)
        assert limits_of(engine) == (200, None)

    def test_by_uninstall(self) -> None:
        other = make_engine(max_concurrency=100)
        before = gptx_async.install(KEY, MODEL, max_concurrency=1, rate_limit=SLOW)
        assert limits_of(before) == (1, 1 / 60)
        gptx_async.uninstall()
        assert limits_of(other) == (100, None)

    def test_its_limits_return_with_its_next_call(self) -> None:
        before = gptx_async.install(KEY, MODEL, max_concurrency=3)
        limits_of(before)
        engine = gptx_async.install(KEY, MODEL, max_concurrency=200)
        assert limits_of(engine) == (200, None)
        assert limits_of(before) == (3, None)

    def test_by_the_end_of_a_dynamic_engine(self) -> None:
        with gptx_async.dynamic_engine(MODEL, KEY, max_concurrency=2) as dynamic:
            assert limits_of(dynamic) == (2, None)
        assert limits_of(make_engine(max_concurrency=100)) == (100, None)

    def test_a_call_that_is_on_its_way_has_the_changed_limit(self) -> None:
        async def main() -> float | None:
            governor, old, new = Governor(), Pacing(rate_limit=SLOW), Pacing()
            governor.ticket(old)
            old.retire(new)
            await settle_down()
            governor.ticket(old)
            return governor.rate

        assert simulate(main()) is None

    def test_calls_that_wait_for_the_old_limit_continue(
        self, fake_openai: FakeOpenAI, in_thread: Any
    ) -> None:
        before = gptx_async.install(KEY, MODEL, rate_limit=SLOW)
        waiting = in_thread(before.forward, arguments(30))
        fake_openai.wait_for(lambda server: len(server.requests) == 1)
        before.rate_limit = None
        assert errors_of(waiting.result(30)) == [None] * 30
