"""A call ends within its own patience, and a suspected limit is soon tested again.

The tests fail if a call ends later than its patience although the server refuses everything, if a
call ends while it waits for a configured limit or slow answers, or if a call still waits long after
the server accepts requests again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import openai
import pytest

from gptx_async import RateLimit
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.settings import Pacing
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.pacing_engines import arguments, errors_of, make_engine
from support.virtual_time import call, clock, error_with, simulate

DAY_IS_USED_UP = {
    "x-ratelimit-limit-requests": "50",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "23h59m0s",
}


class Server:
    """Answers after a delay, or refuses.

    Attributes:
        refusal: The headers of its 429s; None for answers.
        seconds: How long an answer takes.
        sent: When the requests arrived, by the virtual clock.
    """

    def __init__(self, refusal: Mapping[str, str] | None = None, seconds: float = 0.05) -> None:
        self.refusal = refusal
        self.seconds = seconds
        self.sent: list[float] = []

    async def send(self) -> Mapping[str, str]:
        self.sent.append(clock())
        refusal = self.refusal
        await asyncio.sleep(self.seconds)
        if refusal is not None:
            raise error_with(429, refusal)
        return {}


async def timed(
    governor: Governor, pacing: Pacing, server: Server, patience: float
) -> tuple[str, float]:
    began = clock()
    outcome = await call(governor, pacing, server.send, patience=patience)
    return outcome, clock() - began


@pytest.mark.parametrize("limit", ["10", "50", "1000"])
@pytest.mark.parametrize("more", [{}, {"retry-after": "86340"}], ids=["resets", "retry-after"])
@pytest.mark.parametrize("patience", [5.0, 300.0])
def test_a_day_that_is_used_up_ends_each_call_in_time(
    limit: str, more: Mapping[str, str], patience: float
) -> None:
    """The second call used to take a minute, and the third half an hour."""
    server = Server({**DAY_IS_USED_UP, "x-ratelimit-limit-requests": limit, **more})

    async def main() -> list[tuple[str, float]]:
        governor, pacing = Governor(), Pacing()
        return [await timed(governor, pacing, server, patience) for _ in range(6)]

    for outcome, seconds in simulate(main()):
        assert outcome in ("failed", "starved")
        assert seconds <= min(patience, 60.0) + 2


@pytest.mark.parametrize("refusal", [{}, DAY_IS_USED_UP, {"retry-after": "8"}], ids=str)
def test_a_batch_that_is_refused_ends_in_time(refusal: Mapping[str, str]) -> None:
    async def main() -> list[tuple[str, float]]:
        governor, pacing, server = Governor(), Pacing(8), Server(refusal)
        return await asyncio.gather(*(timed(governor, pacing, server, 5.0) for _ in range(200)))

    outcomes = simulate(main())
    assert {outcome for outcome, _ in outcomes} <= {"failed", "starved"}
    assert max(seconds for _, seconds in outcomes) <= 5.0 + 2


def test_calls_go_on_soon_after_the_day_has_begun_again() -> None:
    server = Server(DAY_IS_USED_UP)

    async def main() -> tuple[list[str], float]:
        governor, pacing = Governor(), Pacing()
        for _ in range(4):
            await timed(governor, pacing, server, 5.0)
        server.refusal = None
        began = clock()
        outcomes = [await call(governor, pacing, server.send, patience=5.0) for _ in range(20)]
        return outcomes, clock() - began

    outcomes, seconds = simulate(main())
    assert outcomes == ["answered"] * 20
    assert seconds < 60


@pytest.mark.slow
def test_a_call_is_tried_again_for_its_whole_patience(fake_openai: FakeOpenAI) -> None:
    """It used to end after half of it: the rest was counted from the first attempt."""
    engine = make_engine(rate_limit_patience=4.0)
    fake_openai.faults = lambda _request: HTTPFault(429, retry_after_ms=50)
    began = time.monotonic()

    [error] = errors_of(engine.forward(arguments(1)))

    assert isinstance(error, openai.RateLimitError)
    assert time.monotonic() - began > 3.0


@pytest.mark.parametrize("refused", [None, 0, 100])
def test_a_healthy_queue_ends_no_call(refused: int | None) -> None:
    """512 calls wait for a configured limit for eight minutes, with a patience of 5 s."""
    server = Server()

    async def send() -> Mapping[str, str]:
        if len(server.sent) == refused:
            server.sent.append(clock())
            raise error_with(429)
        return await server.send()

    async def main() -> list[str]:
        governor = Governor()
        pacing = Pacing(rate_limit=RateLimit(requests_per_minute=60))
        calls = (call(governor, pacing, send, patience=5.0) for _ in range(512))
        return await asyncio.gather(*calls)

    assert simulate(main()) == ["answered"] * 512


def test_slow_answers_end_no_call() -> None:
    server = Server(seconds=60.0)

    async def send() -> Mapping[str, str]:
        if len(server.sent) == 2:
            server.sent.append(clock())
            raise error_with(429)
        return await server.send()

    async def main() -> list[str]:
        governor, pacing = Governor(), Pacing(4)
        calls = (call(governor, pacing, send, patience=10.0) for _ in range(40))
        return await asyncio.gather(*calls)

    assert simulate(main()) == ["answered"] * 40


def test_a_retry_after_for_one_call_fails_no_other() -> None:
    """The pause is longer than the patience; a request within the patience finds it over."""
    server = Server()

    async def send() -> Mapping[str, str]:
        if not server.sent:
            server.sent.append(clock())
            raise error_with(429, {"retry-after": "8"})
        return await server.send()

    async def main() -> list[str]:
        governor, pacing = Governor(), Pacing(1)
        return await asyncio.gather(
            *(call(governor, pacing, send, patience=5.0) for _ in range(100))
        )

    outcomes = simulate(main())
    assert outcomes.count("answered") == 99


def test_each_engine_has_its_own_patience_in_a_shared_queue() -> None:
    """The calls of the impatient engine queue behind those of the patient engine."""
    server = Server({"retry-after": "3600"}, seconds=30.0)

    async def main() -> tuple[float, float]:
        governor, pacing = Governor(), Pacing(1)
        await timed(governor, pacing, server, 5.0)
        patient = asyncio.create_task(timed(governor, pacing, server, 1e6))
        await asyncio.sleep(0)
        hurried = [asyncio.create_task(timed(governor, pacing, server, 5.0)) for _ in range(10)]
        times = [seconds for _, seconds in await asyncio.gather(*hurried)]
        patient.cancel()
        return min(times), max(times)

    assert simulate(main())[1] <= 5.0 + 30.0 + 2, "at most one slow answer longer than the patience"


@pytest.mark.slow
def test_a_used_up_day_ends_each_call_over_http(fake_openai: FakeOpenAI) -> None:
    engine = make_engine(rate_limit_patience=2.0)
    fake_openai.faults = lambda _request: HTTPFault(429, headers=DAY_IS_USED_UP)

    errors = [errors_of(engine.forward(arguments(1)))[0] for _ in range(3)]

    assert {type(error) for error in errors} == {openai.RateLimitError}
    fake_openai.faults = None
    assert errors_of(engine.forward(arguments(3))) == [None] * 3


@pytest.mark.slow
def test_a_healthy_queue_ends_no_call_over_http(fake_openai: FakeOpenAI) -> None:
    engine = make_engine(
        rate_limit=RateLimit(requests_per_minute=600), rate_limit_patience=0.0, window=64
    )
    assert errors_of(engine.forward(arguments(40))) == [None] * 40
