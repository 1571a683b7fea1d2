"""What users see of the pace: in `stats()`, in events, and in the progress bar."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gptx_async import RateLimit
from gptx_async.mapping import progress
from gptx_async.mapping.progress import Progress
from gptx_async.pacing.governor import Governor, Pacing
from gptx_async.telemetry.recorder import Recorder
from gptx_async.telemetry.stats import Stats
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.hostile import completion
from support.pacing_engines import arguments, errors_of, make_engine
from support.virtual_time import clock, error_with, simulate

TOLD = {"x-ratelimit-limit-requests": "1200", "x-ratelimit-remaining-requests": "900"}


def test_stats_show_a_configured_limit(fake_openai: FakeOpenAI) -> None:
    engine = make_engine(max_concurrency=7, rate_limit=RateLimit(requests_per_minute=600))
    assert errors_of(engine.forward(arguments(1))) == [None]
    stats = engine.stats()
    assert (stats.rate, stats.rate_source) == (10.0, "configured")
    assert (stats.limit, stats.limit_source, stats.last_cut) == (7, "configured", None)
    assert "10.00 requests a second (configured), 7 at once (configured)" in stats.table()


def test_stats_show_what_the_server_told(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: HTTPFault(200, body=completion("yes"), headers=TOLD)
    engine = make_engine(rate_limit=RateLimit(requests_per_minute=60_000))
    assert errors_of(engine.forward(arguments(1))) == [None]
    assert (engine.stats().rate, engine.stats().rate_source) == (20.0, "told")


def test_stats_show_the_reason_of_the_last_cut(fake_openai: FakeOpenAI) -> None:
    engine = make_engine()
    assert engine.stats().last_cut is None
    assert errors_of(engine.forward(arguments(4))) == [None] * 4
    fake_openai.fail_next(HTTPFault(503, retry_after_ms=1))
    assert errors_of(engine.forward(arguments(4))) == [None] * 4
    stats = engine.stats()
    assert stats.last_cut == "status_503"
    assert "last cut by status_503" in stats.table()


def test_each_cut_and_pause_is_an_event() -> None:
    told: list[str] = []

    async def main() -> Governor:
        governor, pacing = Governor("model", lambda event, _fields: told.append(event)), Pacing()
        (await governor.ticket(pacing).admit(60.0)).succeeded({}, None)
        (await governor.ticket(pacing).admit(60.0)).overloaded(error_with(503), {}, None)
        return governor

    governor = simulate(main())
    assert told == ["governor_cut"]
    assert governor.pace.limit_source == "learned"
    assert str(governor.pace.last_cut) == "status 503"


def test_the_next_call_is_foreseen() -> None:
    async def main() -> float | None:
        governor = Governor()
        pacing = Pacing(rate_limit=RateLimit(requests_per_minute=5))
        (await governor.ticket(pacing).admit(60.0)).succeeded({}, None)
        waiting = asyncio.create_task(governor.ticket(pacing).admit(60.0))
        began = clock()
        await asyncio.sleep(2.0)
        foreseen = governor.pace.next_call_in
        await waiting
        assert foreseen == pytest.approx(clock() - began - 2.0)
        return governor.pace.next_call_in

    assert simulate(main()) is None


def test_the_bar_says_what_a_run_that_stands_still_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    stats: dict[str, Any] = {"next_call_in": 12.2}

    def snapshot() -> Stats:
        return replace(Recorder().stats(), **stats)

    monkeypatch.setattr(progress, "_stats", snapshot)
    monkeypatch.setattr("gptx_async.mapping.progress.clock.seconds", lambda: now)
    bar = Progress(10, is_wanted=False)
    bar._before = snapshot()
    assert "now" not in bar._figures()
    now += 4.0
    assert "now" not in bar._figures(), "it has not stood still for five seconds"
    now += 2.0
    assert bar._figures()["now"] == "waiting for the rate limit, next call in 12 s"
    stats["answered"] = 1
    assert "now" not in bar._figures(), "it goes on"
    now += 6.0
    stats["in_flight"] = 1
    assert "now" not in bar._figures(), "it waits for an answer"
