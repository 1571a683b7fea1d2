"""Single rules of the governor, each tested with a few tickets in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any

import pytest

from gptx_async.checks import LONGEST_SECONDS
from gptx_async.pacing.buckets import Bucket
from gptx_async.pacing.controller import LearnedPace
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.queue import Permit, StarvedError, Ticket
from gptx_async.pacing.rate_limit import RateLimit
from gptx_async.pacing.settings import Pacing
from gptx_async.telemetry.reservations import Reservations
from support.virtual_time import clock, error_with, settle_down, simulate

GONE = ConnectionError("no server")


async def send_and_fail(ticket: Ticket) -> None:
    permit = await ticket.admit(300)
    permit.failed(GONE, unreachable=True)


async def begin_outage(governor: Governor, pacing: Pacing) -> tuple[Ticket, Ticket]:
    """Answer one call, then fail two as unreachable, so that the governor holds all calls."""
    one, other = governor.ticket(pacing), governor.ticket(pacing)
    (await one.admit(300)).succeeded({}, None)
    for ticket in (one, other):
        await send_and_fail(ticket)
    return one, other


def test_a_call_that_is_alone_is_not_held_by_an_outage() -> None:
    async def main() -> float:
        governor, pacing = Governor(), Pacing()
        one, other = await begin_outage(governor, pacing)
        other.close()
        began = clock()
        await one.admit(300)
        return clock() - began

    assert simulate(main()) == 0.0


def test_calls_side_by_side_are_held_by_an_outage() -> None:
    async def main() -> float:
        governor, pacing = Governor(), Pacing()
        one, _other = await begin_outage(governor, pacing)
        began = clock()
        permit = await one.admit(300)
        assert permit.is_probe
        return clock() - began

    assert simulate(main()) >= 0.5


@pytest.mark.parametrize("patience", [0.1, 3600.0])
def test_an_outage_has_its_own_patience(patience: float) -> None:
    """The patience for rate limits does not apply; waiting calls end after the outage's."""

    async def main() -> float:
        governor, pacing = Governor(), Pacing()
        one, other = await begin_outage(governor, pacing)
        began = clock()
        waiting = asyncio.ensure_future(other.admit(patience))
        while not waiting.done():
            probing = asyncio.ensure_future(one.admit(3600))
            await asyncio.wait([waiting, probing], return_when=asyncio.FIRST_COMPLETED)
            for task in (waiting, probing):
                if task.done() and task.exception() is None:
                    task.result().failed(GONE, unreachable=True)
                    if task is waiting:
                        waiting = asyncio.ensure_future(other.admit(patience))
            probing.cancel()
            await settle_down()
        assert isinstance(waiting.exception(), StarvedError)
        return clock() - began

    assert 50.0 <= simulate(main()) <= 75.0


def test_a_call_that_was_never_sent_waits_for_two_seconds_at_least() -> None:
    """This holds for any patience, because only other calls were refused."""

    async def main() -> tuple[bool, bool]:
        governor, pacing = Governor(), Pacing(max_concurrency=3)
        permits = [await governor.ticket(pacing).admit(300) for _ in range(3)]
        # The first of these calls take each place that becomes free.
        *_, waiting = [
            asyncio.ensure_future(governor.ticket(pacing).admit(patience))
            for patience in (300, 300, 300, 300, 0.1)
        ]
        await settle_down()
        permits[0].refused(error_with(429), {}, None)
        await asyncio.sleep(1.2)
        permits[1].refused(error_with(429), {}, None)
        await settle_down()
        is_early = waiting.done()
        await asyncio.sleep(1.5)
        permits[2].refused(error_with(429), {}, None)
        await settle_down()
        return is_early, waiting.done() and isinstance(waiting.exception(), StarvedError)

    assert simulate(main()) == (False, True)


def test_pauses_are_of_different_lengths() -> None:
    """They vary by up to 10 %, because other processes got the same Retry-After."""

    async def pause(seed: int) -> float:
        seconds: list[Any] = []

        def note(event: str, fields: Mapping[str, object]) -> None:
            if event == "governor_paused":
                seconds.append(fields["seconds"])

        governor = Governor(notify=note, rng=random.Random(seed))
        (await governor.ticket(Pacing()).admit(300)).overloaded(error_with(503), {}, 5.0)
        return float(seconds[0])

    pauses = [simulate(pause(seed)) for seed in range(10)]
    assert len({*pauses}) == 10
    assert all(5.0 <= each <= 5.5 for each in pauses)


def test_the_pace_adapts_if_one_of_the_engines_adapts() -> None:
    async def main() -> tuple[int, int]:
        governor = Governor()
        fixed, adaptive = Pacing(adaptive=False), Pacing()
        tickets = [governor.ticket(fixed)] + [governor.ticket(adaptive) for _ in range(9)]
        permits = [await ticket.admit(300) for ticket in tickets]
        before = governor.limit
        for permit in permits:
            permit.overloaded(error_with(503), {}, None)
        return before, governor.limit

    before, after = simulate(main())
    assert after < before


def test_an_answer_that_was_overtaken_says_nothing_of_the_servers_bucket() -> None:
    async def main() -> float:
        governor, pacing = Governor(), Pacing()
        first, second = [await governor.ticket(pacing).admit(300) for _ in range(2)]
        second.succeeded(told(remaining=50), None)
        first.succeeded(told(remaining=0), None)
        began = clock()
        await governor.ticket(pacing).admit(300)
        return clock() - began

    def told(remaining: int) -> Mapping[str, str]:
        return {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": str(remaining),
            "x-ratelimit-reset-requests": "10s",
        }

    assert simulate(main()) == 0.0


def test_a_bug_while_learning_leaves_no_call_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> Permit:
        governor, pacing = Governor(), Pacing(max_concurrency=1)
        permit = await governor.ticket(pacing).admit(300)
        waiting = asyncio.ensure_future(governor.ticket(pacing).admit(300))
        await settle_down()
        monkeypatch.setattr(governor._limits, "hear", fail)
        with pytest.raises(ZeroDivisionError):
            permit.succeeded({}, None)
        return await waiting

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    assert isinstance(simulate(main()), Permit)


def test_a_usage_that_lies_hardly_moves_the_mean_of_the_answers() -> None:
    """With a mean of 16 million tokens, each later request would reserve the whole limit."""

    async def main() -> float:
        governor = Governor()
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=1e9))
        for tokens in (100, 2**24, 100):
            (await governor.ticket(pacing).admit(300)).succeeded({}, tokens)
        return governor._limits.reserve(governor.ticket(pacing))

    assert simulate(main()) < 1000


def test_requests_are_never_free_though_answers_have_no_tokens() -> None:
    async def main() -> float:
        governor = Governor()
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=1e6))
        for _ in range(50):
            (await governor.ticket(pacing).admit(300)).succeeded({}, 0)
        return governor._limits.reserve(governor.ticket(pacing))

    assert simulate(main()) >= 1.0


def test_a_rate_of_nearly_zero_has_finite_waits() -> None:
    """This holds for a new bucket and for one whose rate changes."""
    made, changed = Bucket(1e-320, 1.0, 0.0), Bucket(1.0, 1.0, 0.0)
    changed.change(1e-320, 1.0, 0.0)
    for bucket in (made, changed):
        bucket.take(1)
        assert 0 < bucket.delay(1, 0.0) <= LONGEST_SECONDS


def test_a_call_that_waits_for_the_users_own_limit_is_not_ended() -> None:
    """It is not ended even if the request before it was refused and its patience is short."""

    async def main() -> float:
        governor = Governor()
        pacing = Pacing(rate_limit=RateLimit(requests_per_minute=1))
        (await governor.ticket(pacing).admit(5)).refused(error_with(429), {}, None)
        began = clock()
        await governor.ticket(pacing).admit(5)
        return clock() - began

    assert 30 < simulate(main()) <= 61


def test_tests_in_flight_keep_waiting_calls_alive() -> None:
    """The headers report a used-up daily limit; one call after another tests whether it is."""
    used_up = {
        "x-ratelimit-limit-requests": "50",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "23h59m0s",
    }

    async def main() -> list[float]:
        governor, pacing = Governor(), Pacing()
        (await governor.ticket(pacing).admit(3)).refused(error_with(429, used_up), used_up, None)
        began = clock()

        async def admitted() -> float:
            await governor.ticket(pacing).admit(3)
            return clock() - began

        return await asyncio.gather(*(admitted() for _ in range(3)))

    first, second, third = simulate(main())
    assert first < second < third < 6


def test_exactly_the_reserved_tokens_are_given_back() -> None:
    """For an answer without a token limit, more tokens are estimated than a minute allows."""

    async def main() -> float:
        governor = Governor()
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=1000))
        (await governor.ticket(pacing, prompt_tokens=900).admit(300)).succeeded({}, 910)
        began = clock()
        await governor.ticket(pacing, answer_tokens=10).admit(300)
        return clock() - began

    assert 53 <= simulate(main()) <= 60


def test_a_burst_that_is_mostly_refused_blocks_nothing() -> None:
    """Only consecutive refusals over some time mean that the server refuses everything."""
    pace = LearnedPace()
    for number in range(100):
        pace.send(number, number, 0.0)
    for number in range(5):
        pace.accept(number, 0.05)
    for number in range(5, 100):
        pace.refuse(number, 0.0, 0.06)
    assert not pace.is_blocked


def test_a_turn_that_came_just_before_a_cancellation_is_passed_on() -> None:
    """Calls wait for their turn when the rest of `max_cost` is reserved."""

    async def main() -> bool:
        reservations = Reservations()

        def hold() -> contextlib.AbstractAsyncContextManager[None]:
            return reservations.hold(lambda: 6.0, lambda: 10.0, ValueError)

        async def call() -> bool:
            async with hold():
                return True

        async with hold():
            cancelled, next_one = asyncio.create_task(call()), asyncio.create_task(call())
            await settle_down()
        cancelled.cancel()
        await settle_down()
        assert cancelled.cancelled()
        return await next_one

    assert simulate(main())


class TestAtRest:
    """A governor at rest can be replaced with a new one."""

    def test_it_is_when_nothing_has_happened_lately(self) -> None:
        async def main() -> list[bool]:
            governor = Governor()
            pacing = Pacing(rate_limit=RateLimit(requests_per_minute=60))
            seen = [governor.is_at_rest()]
            ticket = governor.ticket(pacing)
            permit = await ticket.admit(300)
            seen.append(governor.is_at_rest())
            permit.succeeded({}, None)
            ticket.close()
            seen.append(governor.is_at_rest())  # a second's share is used up
            await asyncio.sleep(2)
            seen.append(governor.is_at_rest())
            return seen

        assert simulate(main()) == [True, False, False, True]

    def test_it_is_not_when_it_knows_of_bad_news(self) -> None:
        async def main() -> list[bool]:
            governor = Governor()
            ticket = governor.ticket(Pacing())
            (await ticket.admit(300)).refused(error_with(429), {}, None)
            ticket.close()
            seen = []
            for seconds in (60, 500, 100):
                await asyncio.sleep(seconds)
                seen.append(governor.is_at_rest())
            return seen

        assert simulate(main()) == [False, False, True]
