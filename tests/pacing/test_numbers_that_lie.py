"""False headers and usage from broken or hostile servers lose no answer and no permit.

The tests fail if an exception hides the server's own error, if a paid answer is not returned, if a
permit is not given back (later calls then wait forever), or if a call waits for years.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gptx_async import RateLimit, checks
from gptx_async.calls import retry
from gptx_async.calls.retry_after import retry_after_seconds
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.limits import Limits
from gptx_async.pacing.settings import Pacing
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.hostile import completion
from support.pacing_engines import arguments, errors_of, governor_of, make_engine
from support.virtual_time import clock, error_with, simulate

DATES_OUT_OF_RANGE = [
    "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
    "Wed, 21 Oct 9999999999 07:28:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 0001 00:00:00 +2359",
]

NUMBERS = [
    *("0", "-0", "1", "20", "59.95", "1200", "5e-324", "1e-300", "2.2250738585072014e-308"),
    *(
        "1e300",
        "1e400",
        "-1",
        "nan",
        "inf",
        "-inf",
        "9" * 400,
        "0x10",
        "1_000",
        "١٢",
        "",
        " ",
        "1, 2",
    ),
    *("1764282000", "1764282000000", "8.64e4", "1e15"),
]
DURATIONS = [*NUMBERS, "1s", "6m0s", "120ms", "23h59m0s", "1.2.3s", "9" * 400 + "d", "0s", "1d"]
DATES = [*DATES_OUT_OF_RANGE, "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00", "soon"]

texts = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
numbers = st.sampled_from(NUMBERS) | st.floats().map(repr) | st.integers().map(str) | texts
durations = st.sampled_from(DURATIONS) | numbers
dates = st.sampled_from(DATES) | st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %T GMT"))
header_sets = st.fixed_dictionaries(
    {},
    optional={
        **{f"x-ratelimit-limit-{kind}": numbers for kind in ("requests", "tokens")},
        **{f"x-ratelimit-remaining-{kind}": numbers for kind in ("requests", "tokens")},
        **{f"x-ratelimit-reset-{kind}": durations for kind in ("requests", "tokens")},
        "retry-after": numbers | dates,
        "retry-after-ms": numbers,
        "date": dates,
    },
)
usages = st.none() | st.integers() | st.integers(2**20, 2**70)
statuses = st.sampled_from([200, 200, 200, 408, 409, 429, 429, 500, 502, 503, 529])


@given(
    answers=st.lists(st.tuples(statuses, header_sets, usages), max_size=12),
    limit=st.sampled_from([None, RateLimit(600, 60_000)]),
)
@example([(200, {"x-ratelimit-limit-requests": "5e-324"}, 1)], None)
@example([(200, {}, 8_999_999_999_999_999)] * 3, RateLimit(tokens_per_minute=60_000))
@settings(max_examples=300, deadline=None)
@pytest.mark.slow
def test_no_header_raises_or_keeps_a_permit(
    answers: list[tuple[int, dict[str, str], int | None]], limit: RateLimit | None
) -> None:
    async def main() -> None:
        governor, pacing = Governor(), Pacing(4, limit)
        for status, headers, tokens in answers:
            ticket = governor.ticket(pacing, 10)
            permit = await ticket.admit(300.0)
            error = error_with(status, headers)
            if status == 200:
                permit.succeeded(error.response.headers, checks.token_count(tokens))
            else:
                seconds = retry_after_seconds(error)
                assert seconds is None or seconds > 0
                retry.settle(permit, error)
            ticket.close()
            assert governor.in_flight == 0
        began = clock()
        for _ in range(4):
            (await governor.ticket(pacing, 10).admit(300.0)).succeeded({}, 10)
        assert clock() - began < 4 * 60 + 60

    simulate(main())


def test_a_configured_limit_that_is_nearly_zero_divides_by_nothing() -> None:
    async def main() -> float:
        governor, pacing = Governor(), Pacing(4, RateLimit(5e-324))
        began = clock()
        for _ in range(2):
            (await governor.ticket(pacing).admit(300.0)).succeeded({}, None)
        return clock() - began

    assert simulate(main()) <= checks.LONGEST_SECONDS + 1


@given(text=durations | dates | texts)
@settings(max_examples=300, deadline=None)
def test_a_servers_wait_is_positive_and_at_most_a_month(text: str) -> None:
    for name in ("retry-after", "retry-after-ms", "x-ratelimit-reset-requests"):
        for date in (None, *DATES_OUT_OF_RANGE, text):
            headers = {name: text} | ({} if date is None else {"date": date})
            told = retry_after_seconds(error_with(429, headers))
            assert told is None or 0 < told <= checks.LONGEST_SECONDS


@pytest.mark.parametrize("date", DATES_OUT_OF_RANGE)
@pytest.mark.slow
def test_a_date_out_of_range_is_not_a_date(fake_openai: FakeOpenAI, date: str) -> None:
    """Each refusal used to keep its permit, so the fifth call waited forever."""
    engine = make_engine(max_concurrency=4, client_max_retries=1, rate_limit_patience=60.0)
    fake_openai.fail_next(HTTPFault(409, retry_after=date), times=6)

    errors = errors_of(engine.forward(arguments(12)))

    assert {type(error) for error in errors} <= {type(None), openai.ConflictError}
    assert governor_of(engine).in_flight == 0
    assert errors_of(engine.forward(arguments(12))) == [None] * 12


@pytest.mark.parametrize("limit", ["5e-324", "1e-300", "0.001"])
def test_a_limit_that_is_nearly_zero_costs_no_answer(fake_openai: FakeOpenAI, limit: str) -> None:
    headers = {"x-ratelimit-limit-requests": limit, "x-ratelimit-limit-tokens": limit}
    fake_openai.reply = lambda _request: HTTPFault(200, body=completion("yes"), headers=headers)
    engine = make_engine(max_concurrency=4)

    assert errors_of(engine.forward(arguments(20))) == [None] * 20
    assert (governor_of(engine).in_flight, governor_of(engine).waiting) == (0, 0)


def with_usage(tokens: int) -> HTTPFault:
    usage = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens}
    return HTTPFault(200, body=completion("yes") | {"usage": usage})


def test_a_usage_that_lies_uses_up_no_cost(fake_openai: FakeOpenAI) -> None:
    engine = make_engine(max_concurrency=1, prices={"gpt-4o-mini": (0.15, 0.6)}, max_cost=20.0)
    fake_openai.fail_next(with_usage(8_999_999_999_999_999))

    assert errors_of(engine.forward(arguments(5))) == [None] * 5
    stats = engine.stats()
    assert stats.cost is not None
    assert stats.cost < 1.0
    assert stats.unpriced_calls == 1


@pytest.mark.parametrize("tokens", [8_999_999_999_999_999, checks.MOST_TOKENS])
def test_a_usage_that_lies_holds_up_a_token_limit_for_a_minute_at_most(tokens: int) -> None:
    async def main() -> float:
        governor, pacing = Governor(), Pacing(64, RateLimit(tokens_per_minute=60_000))
        permits = [await governor.ticket(pacing, 10).admit(300.0) for _ in range(3)]
        for permit in permits:
            permit.succeeded({}, checks.token_count(tokens))
        began = clock()
        for _ in range(20):
            (await governor.ticket(pacing, 10).admit(300.0)).succeeded({}, 20)
        return clock() - began

    assert simulate(main()) < 70


def test_a_bug_while_settling_costs_neither_the_answer_nor_the_permit(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any) -> None:
        raise ZeroDivisionError

    engine = make_engine(max_concurrency=2)
    monkeypatch.setattr(Limits, "hear", fail)

    assert errors_of(engine.forward(arguments(10))) == [None] * 10
    assert governor_of(engine).in_flight == 0
    assert "could not learn from a response" in caplog.text


def test_a_bug_while_settling_an_error_leaves_the_servers_own(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any) -> None:
        raise ZeroDivisionError

    engine = make_engine(max_concurrency=2, client_max_retries=0)
    monkeypatch.setattr(retry, "_settle", fail)
    fake_openai.faults = lambda _request: HTTPFault(500)

    errors = errors_of(engine.forward(arguments(10)))

    assert {type(error) for error in errors} == {openai.InternalServerError}
    assert governor_of(engine).in_flight == 0
    assert "could not learn from a response" in caplog.text


@given(answers=st.lists(st.tuples(statuses, header_sets, st.integers(0, 2**60)), max_size=4))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.slow
def test_a_call_over_http_ends_whatever_came_before(
    fake_openai: FakeOpenAI, answers: list[tuple[int, dict[str, str], int]]
) -> None:
    """`adaptive` is off to save time; the tests in virtual time above turn it on."""
    engine = make_engine(
        max_concurrency=1, adaptive=False, client_max_retries=0, rate_limit_patience=0.0
    )
    for status, headers, tokens in answers:
        plain = {
            name: value
            for name, value in headers.items()
            if value.isascii() and value.isprintable() and name != "date"
        }
        body = with_usage(tokens).body if status == 200 else None
        fake_openai.fail_next(HTTPFault(status, headers=plain, body=body))

    errors = errors_of(engine.forward(arguments(len(answers))))

    assert [error is None for error in errors] == [status == 200 for status, _, _ in answers]
    assert all(error is None or isinstance(error, openai.APIStatusError) for error in errors)
    assert errors_of(engine.forward(arguments(1))) == [None]
    assert governor_of(engine).in_flight == 0
