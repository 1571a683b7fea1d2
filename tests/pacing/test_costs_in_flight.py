"""`max_cost` with many concurrent calls: the estimated cost of calls in flight counts."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gptx_async.errors import CostLimitError
from gptx_async.telemetry.reservations import Reservations
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.hostile import completion, make_argument
from support.pacing_engines import MODEL, arguments, errors_of, make_engine
from support.virtual_time import settle_down, simulate

MILLION = 1_000_000


def answer_with(prompt_tokens: int, answer_tokens: int) -> HTTPFault:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }
    return HTTPFault(200, body=completion("yes") | {"usage": usage})


def ask_in_threads(engine: Any, threads: int) -> list[BaseException | None]:
    def ask(number: int) -> BaseException | None:
        argument = make_argument(f"text {number}")
        engine.prepare(argument)
        try:
            engine.forward(argument)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, range(threads)))


@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(MILLION, 0), (0, MILLION), (10, MILLION)])
def test_a_hundred_threads_keep_the_limit(
    fake_openai: FakeOpenAI, tokens_in: int, tokens_out: int
) -> None:
    """Each call costs 2 dollars; with a limit of about 20, 200 dollars used to be spent."""
    fake_openai.latency = 0.05
    fake_openai.reply = lambda _request: answer_with(tokens_in, tokens_out)
    engine = make_engine(prices={MODEL: (2.0, 2.0)}, max_cost=20.5)

    errors = ask_in_threads(engine, 100)

    assert sum(error is None for error in errors) == len(fake_openai.requests) == 10
    assert {type(error) for error in errors if error} == {CostLimitError}
    assert engine.stats().cost == pytest.approx(20.0, abs=0.1)


def test_calls_wait_for_calls_in_flight_before_they_fail(
    fake_openai: FakeOpenAI, in_thread: Any
) -> None:
    engine = make_engine(prices={MODEL: (2.0, 2.0)}, max_cost=2.5)
    fake_openai.reply = lambda _request: answer_with(MILLION, 0)
    fake_openai.hold()
    running = in_thread(engine.forward, arguments(2))
    fake_openai.wait_for(lambda server: server.in_flight == 1)
    assert not running.done()
    fake_openai.release()
    errors = errors_of(running.result(30))
    assert [type(error) for error in errors] == [type(None), CostLimitError]


def test_a_limit_that_is_far_away_serializes_nothing(
    fake_openai: FakeOpenAI, in_thread: Any
) -> None:
    engine = make_engine(prices={MODEL: (0.15, 0.6)}, max_cost=100.0)
    assert errors_of(engine.forward(arguments(1))) == [None]
    fake_openai.hold()
    running = in_thread(engine.forward, arguments(40))
    fake_openai.wait_for(lambda server: server.in_flight >= 20)
    fake_openai.release()
    assert errors_of(running.result(30)) == [None] * 40


def test_an_answers_limit_is_known_before_the_first_answer(
    fake_openai: FakeOpenAI, in_thread: Any
) -> None:
    engine = make_engine(prices={MODEL: (0.0, 1.0)}, max_cost=1.0)
    fake_openai.hold()
    running = in_thread(engine.forward, arguments(8, max_completion_tokens=10_000))
    fake_openai.wait_for(lambda server: server.in_flight == 8)
    fake_openai.release()
    assert errors_of(running.result(30)) == [None] * 8


def test_a_waiting_call_that_is_cancelled_passes_on_its_turn() -> None:
    async def main() -> list[str]:
        reservations, entered, order = Reservations(), asyncio.Event(), []

        async def call(name: str, amount: float) -> None:
            async with reservations.hold(lambda: amount, lambda: 10.0, lambda _: ValueError(name)):
                order.append(name)
                await entered.wait()

        tasks = [asyncio.create_task(call(name, 6.0)) for name in "abc"]
        await settle_down()
        assert order == ["a"]
        tasks[1].cancel()
        await settle_down()
        entered.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order

    assert simulate(main()) == ["a", "c"]


def test_a_call_over_the_limit_is_rejected_when_nothing_is_in_flight() -> None:
    async def main() -> list[Any]:
        reservations = Reservations()

        async def call(amount: float | None) -> str:
            async with reservations.hold(lambda: amount, lambda: 10.0, lambda _: ValueError()):
                await asyncio.sleep(1.0)
            return "sent"

        amounts = [4.0, 4.0, 11.0, 4.0, None]
        return await asyncio.gather(*map(call, amounts), return_exceptions=True)

    outcomes = simulate(main())
    assert [isinstance(each, ValueError) for each in outcomes] == [False, False, True, False, False]


def test_an_answer_without_usage_is_charged_with_its_estimate(fake_openai: FakeOpenAI) -> None:
    body = {key: value for key, value in completion("yes").items() if key != "usage"}
    fake_openai.reply = lambda _request: HTTPFault(200, body=body)
    # A dollar a call: without a token limit or an earlier answer, 256 tokens are assumed.
    engine = make_engine(prices={MODEL: (0.0, MILLION / 256)}, max_cost=3.5)

    errors = ask_in_threads(engine, 10)

    assert {type(error) for error in errors if error} == {CostLimitError}
    assert sum(error is None for error in errors) == len(fake_openai.requests) == 3
    assert (engine.stats().cost, engine.stats().unpriced_calls) == (0.0, 3)
