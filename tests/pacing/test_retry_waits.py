"""How long retries wait and when they end, run by tenacity on a loop with virtual time.

The SDK raises the errors, from the responses of a real server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import openai
import pytest

from gptx_async.calls import retry
from gptx_async.calls.retry import Budget
from gptx_async.calls.retry_after import retry_after_seconds
from gptx_async.testing import FakeOpenAI, Fault, HTTPFault, Reset, Stall
from gptx_async.transport.original_error import copy_of
from support.virtual_time import clock, simulate


def retry_all(
    errors: Sequence[Exception],
    max_retries: int,
    patience: float = 300.0,
    prepare: Callable[[Budget], None] = lambda budget: None,
) -> tuple[object, list[float]]:
    """Fail with each error in turn, then answer; return the outcome and the waits."""
    waits: list[float] = []

    async def main() -> object:
        budget = Budget(max_retries, patience, clock=clock)
        prepare(budget)
        left = [*errors[1:]]

        async def attempt() -> str:
            if left:
                raise left.pop(0)
            return "answer"

        try:
            return await retry.run_retries(
                attempt, errors[0], budget, lambda _error, seconds: waits.append(seconds)
            )
        except Exception as error:
            return error

    return simulate(main()), waits


@pytest.fixture
def fail(fake_openai: FakeOpenAI) -> Iterator[Callable[[Fault], Exception]]:
    """Return the error that the SDK raises for a fault of the server."""
    with openai.OpenAI(base_url=fake_openai.base_url, api_key="sk-test", max_retries=0) as client:

        def fail(fault: Fault) -> Exception:
            fake_openai.fail_next(fault)
            with pytest.raises(openai.OpenAIError) as raised:
                client.chat.completions.create(
                    model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}], timeout=0.5
                )
            return raised.value

        yield fail


def test_waits_after_faults_double_up_to_eight_seconds(
    fail: Callable[[Fault], Exception],
) -> None:
    outcome, waits = retry_all([fail(HTTPFault(500))] * 7, max_retries=7)
    assert outcome == "answer"
    for wait, base in zip(waits, [0.5, 1, 2, 4, 8, 8, 8], strict=True):
        assert base <= wait <= 1.25 * base


def test_waits_after_429s_double_apart_from_those_after_faults(
    fail: Callable[[Fault], Exception],
) -> None:
    fault, busy = fail(HTTPFault(500)), fail(HTTPFault(429))
    _, waits = retry_all([fault, fault, busy, busy], max_retries=2)
    for wait, base in zip(waits, [0.5, 1, 0.5, 1], strict=True):
        assert base <= wait <= 1.25 * base


def test_patience_ends_though_each_429_is_followed_by_another(
    fail: Callable[[Fault], Exception],
) -> None:
    busy = fail(HTTPFault(429, retry_after=10))
    outcome, waits = retry_all([busy] * 50, max_retries=0, patience=60)
    assert outcome is busy
    assert 4 <= len(waits) <= 6
    assert sum(waits) <= 60


def test_waits_stay_bounded_however_many_there_were(fail: Callable[[Fault], Exception]) -> None:
    outcome, waits = retry_all([fail(HTTPFault(429))] * 1200, max_retries=0, patience=1e6)
    assert outcome == "answer"
    assert max(waits) <= 10.0


def test_an_attempt_that_is_free_costs_no_retry(fail: Callable[[Fault], Exception]) -> None:
    fault = fail(HTTPFault(500))

    def be_free(budget: Budget) -> None:
        budget.is_free = True

    assert retry_all([fault] * 5, max_retries=0, prepare=be_free)[0] == "answer"
    assert retry_all([fault] * 5, max_retries=4)[0] is fault
    assert retry_all([fault] * 5, max_retries=5)[0] == "answer"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (HTTPFault(500), False),
        (HTTPFault(502), True),
        (HTTPFault(503), True),
        (HTTPFault(504), True),
        (HTTPFault(529), True),
        (HTTPFault(429), False),
        (Reset(), True),
        (Stall(), False),
    ],
    ids=str,
)
def test_an_outage_is_recognized_by_its_failures(
    fail: Callable[[Fault], Exception], fault: Fault, expected: bool
) -> None:
    assert retry.is_of_outage(fail(fault)) is expected


def test_a_date_without_a_zone_is_in_utc(
    fail: Callable[[Fault], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        environment.setenv("TZ", "XYZ-9")  # nine hours ahead
        time.tzset()
        date = format_datetime((datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None))
        assert date.endswith("-0000")
        told = retry_after_seconds(fail(HTTPFault(429, retry_after=date)))
    time.tzset()
    assert told is not None
    assert 3000 < told <= 3600


def test_a_copy_has_the_cause_of_its_original(fail: Callable[[Fault], Exception]) -> None:
    error = fail(Reset())
    assert error.__cause__ is not None
    copy = copy_of(error)
    assert copy.__cause__ is error.__cause__
    assert copy.__suppress_context__ is error.__suppress_context__ is True
