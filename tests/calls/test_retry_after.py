"""How long a server asks to wait, read from errors that the SDK raises for real responses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import openai
import pytest

from gptx_async.calls.retry_after import retry_after_seconds
from gptx_async.testing import FakeOpenAI, Fault, HTTPFault


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


def test_the_finer_header_takes_precedence(client: openai.OpenAI, fake_openai: FakeOpenAI) -> None:
    fault = HTTPFault(429, retry_after=1, retry_after_ms=40)
    assert retry_after_seconds(error_by(client, fake_openai, fault)) == pytest.approx(0.04)


def test_a_date_is_read(client: openai.OpenAI, fake_openai: FakeOpenAI) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    seconds = retry_after_seconds(error_by(client, fake_openai, HTTPFault(429, retry_after=date)))
    assert seconds is not None
    assert 3500 < seconds <= 3600


def test_only_resets_of_exhausted_limits_count(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m2s",
        "x-ratelimit-remaining-tokens": "7",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    error = error_by(client, fake_openai, HTTPFault(429, headers=headers))
    assert retry_after_seconds(error) == 62


@pytest.mark.parametrize("nonsense", ["", "soon", "-1", "inf", "nan"])
def test_nonsense_is_ignored(client: openai.OpenAI, fake_openai: FakeOpenAI, nonsense: str) -> None:
    assert (
        retry_after_seconds(error_by(client, fake_openai, HTTPFault(429, retry_after=nonsense)))
        is None
    )
