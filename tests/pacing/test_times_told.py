"""The wait that a server asks for: which clock a date refers to, and which values are invalid."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gptx_async.calls.retry_after import retry_after_seconds
from gptx_async.pacing.buckets import parse_duration
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.pacing_engines import arguments, errors_of, make_engine
from support.virtual_time import error_with

EPOCHS = ["1764282000", "1764282000000", "1764282000s", "1764282000000ms"]


def told(headers: Mapping[str, str]) -> float | None:
    return retry_after_seconds(error_with(429, headers))


def date(**after: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(**after), usegmt=True)


@pytest.mark.parametrize("minutes", [-10, 0, 10])
def test_a_date_counts_by_the_clock_of_the_server(minutes: int) -> None:
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    headers = {
        "date": format_datetime(now, usegmt=True),
        "retry-after": format_datetime(now + timedelta(seconds=7), usegmt=True),
    }
    assert told(headers) == 7.0


@pytest.mark.parametrize("server_date", [{}, {"date": "today"}, {"date": ""}])
def test_a_date_counts_by_our_clock_where_the_server_shows_none(
    server_date: dict[str, str],
) -> None:
    seconds = told({"retry-after": date(hours=1)} | server_date)
    assert seconds is not None
    assert 3500 < seconds <= 3600


def test_a_past_date_is_not_a_wait() -> None:
    assert told({"retry-after": date(hours=-1)}) is None


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("name", ["x-ratelimit-reset-requests", "retry-after"])
def test_an_epoch_is_not_a_duration(name: str, epoch: str) -> None:
    assert parse_duration(epoch) is None
    assert told({name: epoch, "x-ratelimit-remaining-requests": "0"}) is None


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.slow
def test_a_429_whose_reset_is_an_epoch_is_tried_again(fake_openai: FakeOpenAI, epoch: str) -> None:
    """It used to fail immediately, because the wait was longer than any patience."""
    fake_openai.fail_next(HTTPFault(429, headers={"x-ratelimit-reset-requests": epoch}))
    assert errors_of(make_engine().forward(arguments(1))) == [None]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.slow
def test_a_server_whose_clock_is_ahead_is_tried_again(fake_openai: FakeOpenAI, status: int) -> None:
    headers = {"date": date(minutes=10), "retry-after": date(minutes=10, seconds=1)}
    fake_openai.fail_next(HTTPFault(status, headers=headers))
    engine = make_engine(rate_limit_patience=60.0)
    assert errors_of(engine.forward(arguments(1))) == [None]
