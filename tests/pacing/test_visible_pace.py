"""How `stats()`, events and the progress bar show the pace."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import pytest

from gptx_async import RateLimit
from gptx_async.mapping import progress
from gptx_async.mapping.progress import Progress
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.settings import Pacing
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


def test_stats_show_the_limits_of_the_headers(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: HTTPFault(200, body=completion("yes"), headers=TOLD)
    engine = make_engine(rate_limit=RateLimit(requests_per_minute=60_000))
    assert errors_of(engine.forward(arguments(1))) == [None]
    assert (engine.stats().rate, engine.stats().rate_source) == (20.0, "told")


def test_stats_show_the_rate_of_tokens(fake_openai: FakeOpenAI) -> None:
    engine = make_engine(rate_limit=RateLimit(tokens_per_minute=600_000))
    assert engine.stats().token_rate is None
    assert errors_of(engine.forward(arguments(1))) == [None]
    stats = engine.stats()
    assert (stats.rate, stats.token_rate) == (None, 10_000.0)
    assert stats.token_rate_source == "configured"
    assert "10,000 tokens a second (configured)" in stats.table()

    told = {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": "50000"}
    fake_openai.reply = lambda _request: HTTPFault(200, body=completion("yes"), headers=told)
    assert errors_of(engine.forward(arguments(1))) == [None]
    assert (engine.stats().token_rate, engine.stats().token_rate_source) == (1_000.0, "told")


def test_stats_foresee_the_next_call_while_all_wait_for_their_own_retry_after(
    fake_openai: FakeOpenAI,
) -> None:
    fake_openai.fail_next(HTTPFault(429, retry_after_ms=100_000), times=2)
    engine = make_engine()

    async def main() -> float | None:
        calls = asyncio.create_task(engine.aforward(arguments(2)))
        await asyncio.to_thread(wait_for_refusals)
        foreseen = engine.stats().next_call_in
        calls.cancel()
        await asyncio.gather(calls, return_exceptions=True)
        return foreseen

    def wait_for_refusals() -> None:
        ends_at = monotonic() + 60.0
        while engine.stats().rate_limited < 2:
            assert monotonic() < ends_at
            sleep(0.01)

    foreseen = asyncio.run(main())
    assert foreseen is not None
    assert 0 < foreseen <= 125, "up to a quarter is added to the server's Retry-After"


def test_the_end_of_a_calls_own_wait_is_foreseen() -> None:
    async def main() -> list[float | None]:
        governor, pacing = Governor(), Pacing()
        first, second = governor.ticket(pacing), governor.ticket(pacing)
        foreseen = []
        for ticket, seconds in ((first, 30.0), (second, 12.0)):
            (await ticket.admit(60.0)).refused(error_with(429), {}, seconds)
            ticket.sleep(seconds)
            foreseen.append(governor.pace.next_call_in)
        await asyncio.sleep(2.0)
        foreseen.append(governor.pace.next_call_in)
        permit = await second.admit(60.0)
        foreseen.append(governor.pace.next_call_in)  # a request is in flight
        permit.succeeded({}, None)
        foreseen.append(governor.pace.next_call_in)
        second.close()
        first.close()
        foreseen.append(governor.pace.next_call_in)
        return foreseen

    assert simulate(main()) == pytest.approx([30.0, 12.0, 10.0, None, 28.0, None])


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


def test_a_cut_that_an_answer_completes_is_an_event() -> None:
    told: list[tuple[float | None, float | None]] = []

    async def main() -> None:
        def note(_event: str, fields: Mapping[str, Any]) -> None:
            told.append((fields["rate_before"], fields["rate"]))

        governor, pacing = Governor("model", note), Pacing()
        (await governor.ticket(pacing).admit(60.0)).succeeded({}, None)
        permits = []
        for _ in range(60):
            permits.append(await governor.ticket(pacing).admit(60.0))
            await asyncio.sleep(0.02)
        for permit in permits[1::2]:
            permit.refused(error_with(429), {}, None)
        assert told == [], "refusals count only after the requests sent before them are answered"
        for permit in permits[0::2]:
            permit.succeeded({}, None)
        assert governor.rate is not None

    simulate(main())
    assert len(told) == 1
    assert told[0][0] is None
    assert told[0][1] is not None


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


def test_the_bar_shows_what_a_stalled_run_waits_for(
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
    assert "now" not in bar._figures(), "it is running again"
    now += 6.0
    stats["in_flight"] = 1
    assert "now" not in bar._figures(), "it is waiting for an answer"
