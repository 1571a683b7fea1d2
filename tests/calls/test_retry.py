"""Which failures are retried and when, with errors that the SDK raises for real responses.

The tests fail if an error outside the list is retried (above all a cancellation), if a wait is
shorter than the server asks for, or if a call makes more retries than its budget allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import openai
import pytest

from gptx_async.calls import retry
from gptx_async.calls.retry import Budget, Cause, cause_of
from gptx_async.testing import FakeOpenAI, Fault, HTTPFault, Reset, Stall
from gptx_async.transport.original_error import copy_of

T = TypeVar("T")


@pytest.fixture
def client(fake_openai: FakeOpenAI) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fake_openai.base_url, api_key="sk-test", max_retries=0) as each:
        yield each


def error_by(client: openai.OpenAI, server: FakeOpenAI, fault: Fault) -> Exception:
    server.fail_next(fault)
    with pytest.raises(openai.OpenAIError) as raised:
        client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}], timeout=0.5
        )
    return raised.value


CAUSES = [
    (HTTPFault(400), Cause.FINAL),
    (HTTPFault(401), Cause.REFUSAL),
    (HTTPFault(403), Cause.REJECTION),
    (HTTPFault(403, code="invalid_api_key"), Cause.REFUSAL),
    (HTTPFault(400, code="invalid_api_key"), Cause.REFUSAL),
    (HTTPFault(404), Cause.FINAL),
    (HTTPFault(408), Cause.FAULT),
    (HTTPFault(409), Cause.FAULT),
    (HTTPFault(422), Cause.FINAL),
    (HTTPFault(429), Cause.RATE_LIMIT),
    (HTTPFault(429, retry_after=3600), Cause.RATE_LIMIT),
    (HTTPFault(429, code="insufficient_quota"), Cause.REFUSAL),
    (HTTPFault(500), Cause.FAULT),
    (HTTPFault(500, headers={"x-should-retry": "false"}), Cause.FINAL),
    (HTTPFault(400, headers={"x-should-retry": "true"}), Cause.FAULT),
    (HTTPFault(503, retry_after=3600), Cause.FINAL),
    (HTTPFault(529), Cause.FAULT),
    (Reset(), Cause.FAULT),
    (Stall(), Cause.FAULT),
]


@pytest.mark.parametrize(("fault", "cause"), CAUSES, ids=str)
def test_the_cause_of_each_failure_of_a_request(
    client: openai.OpenAI, fake_openai: FakeOpenAI, fault: Fault, cause: Cause
) -> None:
    assert cause_of(error_by(client, fake_openai, fault)) is cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (asyncio.CancelledError(), Cause.FINAL),
        (KeyboardInterrupt(), Cause.FINAL),
        (RuntimeError("Event loop is closed"), Cause.FAULT),
        (RuntimeError("something else"), Cause.FINAL),
        (ValueError("closed"), Cause.FINAL),
    ],
    ids=repr,
)
def test_the_cause_of_errors_that_no_server_sent(error: BaseException, cause: Cause) -> None:
    assert cause_of(error) is cause


async def run_all(
    attempt: Callable[[], Awaitable[T]],
    budget: Budget,
    on_retry: Callable[[Exception, float], None],
) -> T:
    """Make the first attempt and its retries, as a request does."""
    try:
        return await attempt()
    except Exception as error:
        if not retry.is_retryable(error):
            raise
        first = error
    return await retry.run_retries(attempt, first, budget, on_retry)


def run_with(errors: list[Exception], budget: Budget) -> tuple[object, list[float]]:
    """Run attempts that raise these errors in turn; return the result and the waits."""
    left, waits = [*errors], []

    async def attempt() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    async def run() -> object:
        try:
            return await run_all(attempt, budget, lambda _, seconds: waits.append(seconds))
        except Exception as error:
            return error

    return asyncio.run(run()), waits


def test_faults_are_retried_within_the_budget(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    fault = error_by(client, fake_openai, HTTPFault(500, retry_after_ms=1))
    assert run_with([fault] * 2, Budget(2, 0))[0] == "answer"
    assert run_with([fault] * 3, Budget(2, 0))[0] is fault
    assert run_with([fault], Budget(0, 0)) == (fault, [])


def test_429s_do_not_count_as_retries(client: openai.OpenAI, fake_openai: FakeOpenAI) -> None:
    busy = error_by(client, fake_openai, HTTPFault(429, retry_after_ms=1))
    assert run_with([busy] * 20, Budget(0, 60))[0] == "answer"


def test_a_wait_longer_than_the_patience_is_not_started(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    busy = error_by(client, fake_openai, HTTPFault(429, retry_after=3600))
    assert run_with([busy], Budget(2, 300)) == (busy, [])


def test_a_wait_is_at_least_as_long_as_the_server_asks(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    busy = error_by(client, fake_openai, HTTPFault(429, retry_after_ms=10))
    _, waits = run_with([busy] * 20, Budget(0, 60))
    assert min(waits) >= 0.01
    assert len({*waits}) > 10, "all would wake at once"


def test_a_cancellation_ends_the_attempt_and_the_wait(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    busy = error_by(client, fake_openai, HTTPFault(429, retry_after=60))

    async def cancel(*, in_the_wait: bool) -> int:
        begun, attempts = asyncio.Event(), 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            if in_the_wait:
                raise busy
            begun.set()
            await asyncio.sleep(60)

        task = asyncio.ensure_future(
            run_all(attempt, Budget(2, 300), lambda _error, _seconds: begun.set())
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return attempts

    assert asyncio.run(cancel(in_the_wait=False)) == 1
    assert asyncio.run(cancel(in_the_wait=True)) == 1


def test_patience_runs_from_the_first_429(client: openai.OpenAI, fake_openai: FakeOpenAI) -> None:
    now = time.monotonic()
    budget = Budget(0, 30, clock=lambda: now)
    assert budget.patience_left == 30
    busy = error_by(client, fake_openai, HTTPFault(429, retry_after_ms=1))
    run_with([busy], budget)
    now += 20
    assert budget.patience_left == pytest.approx(10)


def test_a_copied_error_is_equal_but_another_object(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    error = error_by(client, fake_openai, HTTPFault(401))
    copy = copy_of(error)
    assert copy is not error
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert copy.__traceback__ is None
