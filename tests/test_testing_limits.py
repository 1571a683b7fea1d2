"""The rate limits of the fake server: the buckets on a clock of their own, and over HTTP."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from gptx_async.testing import FakeOpenAI, HTTPFault, RateLimits, Reset
from gptx_async.testing.limits import Limiter, TokenBucket, go_duration

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * 400}]}


def admit(limiter: Limiter, now: float, tokens: int = 0) -> int | None:
    """Return the status that a request is refused with, or None."""
    fault = limiter.admit("gpt-4o-mini", tokens, now).fault
    return None if fault is None else fault.status


class TestBuckets:
    def test_a_full_bucket_admits_a_burst_and_then_its_rate(self) -> None:
        limiter = Limiter(RateLimits(60, burst_seconds=3), now=100.0)
        assert [admit(limiter, 100.0) for _ in range(5)] == [None, None, None, 429, 429]
        assert [admit(limiter, 101.0) for _ in range(2)] == [None, 429]
        assert [admit(limiter, 101.5), admit(limiter, 102.0)] == [429, None]

    def test_it_never_holds_more_than_its_burst(self) -> None:
        limiter = Limiter(RateLimits(60, burst_seconds=2), now=0.0)
        assert Counter(admit(limiter, 1e6) for _ in range(9)) == {None: 2, 429: 7}

    def test_a_minute_admits_the_burst_and_a_minutes_rate_at_most(self) -> None:
        limiter = Limiter(RateLimits(1200, burst_seconds=1), now=0.0)
        admitted = sum(admit(limiter, second / 100) is None for second in range(6000))
        assert 1200 <= admitted <= 1220

    def test_tokens_are_charged_and_refused_requests_cost_nothing(self) -> None:
        limiter = Limiter(RateLimits(tokens_per_minute=6000, burst_seconds=1), now=0.0)
        assert [admit(limiter, 0.0, size) for size in (60, 60, 40, 1)] == [None, 429, None, 429]

    def test_refused_requests_are_charged_if_it_says_so(self) -> None:
        limiter = Limiter(RateLimits(60, burst_seconds=1, charge_refused=True), now=0.0)
        assert [admit(limiter, now / 2) for now in range(6)] == [None, *[429] * 5]

    def test_a_request_above_the_bucket_is_refused_for_its_size(self) -> None:
        limiter = Limiter(RateLimits(tokens_per_minute=30_000), now=0.0)
        fault = limiter.admit("gpt-4o", 45_000, 0.0).fault
        assert fault is not None
        assert fault.message is not None
        assert "Request too large for gpt-4o" in fault.message
        assert "Limit 30000, Requested 45000. The input or output tokens" in fault.message
        assert (fault.type, fault.code) == ("tokens", "rate_limit_exceeded")
        assert "retry-after" not in fault.headers, "no waiting helps"

    def test_answers_tell_limit_remaining_and_when_all_is_back(self) -> None:
        limiter = Limiter(RateLimits(60, 6000), now=0.0)
        assert limiter.admit("m", 90, 0.0).headers == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "5910",
            "x-ratelimit-reset-tokens": "900ms",
        }

    def test_a_refusal_says_when_to_come_again(self) -> None:
        limiter = Limiter(RateLimits(60, burst_seconds=1), now=0.0)
        admit(limiter, 0.0)
        fault = limiter.admit("m", 0, 0.25).fault
        assert fault is not None
        assert fault.headers == {"retry-after": "1", "retry-after-ms": "750"}
        assert "Limit 60, Used 1, Requested 1. Please try again in 750ms." in str(fault.message)

    def test_it_may_be_silent(self) -> None:
        limits = RateLimits(60, burst_seconds=1, send_headers=False, send_retry_after=False)
        limiter = Limiter(limits, now=0.0)
        admit(limiter, 0.0)
        decision = limiter.admit("m", 0, 0.0)
        assert decision.fault is not None
        assert (decision.headers, decision.fault.headers) == ({}, {})

    @pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "burst_seconds"])
    @pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
    def test_figures_that_cannot_be_are_refused(self, name: str, value: float) -> None:
        with pytest.raises(ValueError, match=f"{name} is .*above 0"):
            RateLimits(**{name: value})  # type: ignore[arg-type]

    def test_waiting_for_more_than_it_holds_is_for_ever(self) -> None:
        assert TokenBucket(60, 5, 0.0).wait(6) == math.inf


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (62.5, "1m2.5s"),
        (360, "6m0s"),
        (7204.25, "2h0m4.25s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


@pytest.fixture
def ask(fake_openai: FakeOpenAI) -> Callable[..., Any]:
    """Ask once, without retries; return the answer's headers, or the error."""

    def ask(key: str = "sk-one", **changes: Any) -> Any:
        client = openai.OpenAI(api_key=key, base_url=fake_openai.base_url, max_retries=0)
        with client:
            try:
                raw = client.chat.completions.with_raw_response.create(**{**CHAT, **changes})
            except openai.APIStatusError as error:
                return error
            return raw.headers

    return ask


class TestServer:
    def test_each_key_and_model_has_buckets_of_its_own(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = RateLimits(1, burst_seconds=60)
        asked = [ask(), ask("sk-two"), ask(model="gpt-4o"), ask()]
        assert [isinstance(each, openai.RateLimitError) for each in asked] == [0, 0, 0, 1]
        assert fake_openai.statuses == {200: 3, 429: 1}
        assert [(each.model, each.status) for each in fake_openai.answers] == [
            ("gpt-4o-mini", 200),
            ("gpt-4o-mini", 200),
            ("gpt-4o", 200),
            ("gpt-4o-mini", 429),
        ]

    def test_models_that_are_not_named_have_no_limits(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = {"gpt-4o": RateLimits(1)}
        assert "x-ratelimit-limit-requests" not in ask()
        assert ask(model="gpt-4o")["x-ratelimit-limit-requests"] == "1"

    def test_a_prompt_is_charged_by_its_characters_and_its_answers_limit(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = RateLimits(tokens_per_minute=100_000)
        assert ask(max_tokens=200, n=2)["x-ratelimit-remaining-tokens"] == "99500"

    def test_the_sdk_reads_the_refusal(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = RateLimits(1)
        ask()
        error = ask()
        assert (error.status_code, error.code, error.type) == (
            429,
            "rate_limit_exceeded",
            "requests",
        )
        assert "Rate limit reached for gpt-4o-mini" in str(error)
        assert 58 <= float(error.response.headers["retry-after"]) <= 60
        assert error.response.headers["x-ratelimit-remaining-requests"] == "0"

    def test_bad_requests_and_bad_keys_are_not_charged(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = RateLimits(2)
        fake_openai.api_keys = {"sk-one"}
        assert ask(stream=True).status_code == 400
        assert ask("sk-two").status_code == 401
        assert ask()["x-ratelimit-remaining-requests"] == "1"

    def test_http_admits_what_the_arithmetic_admits(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        """The same arrivals, simulated, are answered as they were for real."""
        limits = RateLimits(600, burst_seconds=1)
        fake_openai.rate_limits = limits
        with ThreadPoolExecutor(8) as pool:
            [*pool.map(lambda _: ask(), range(60))]
        assert fake_openai.statuses.keys() == {200, 429}
        arrivals = [request.arrived for request in fake_openai.requests]
        simulated = Limiter(limits, arrivals[0])
        expected = Counter(admit(simulated, now) or 200 for now in arrivals)
        assert fake_openai.statuses == expected

    def test_those_above_a_concurrency_are_answered_503(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.max_concurrent = 2
        fake_openai.hold()
        with ThreadPoolExecutor(3) as pool:
            held = [pool.submit(ask) for _ in range(3)]
            fake_openai.wait_for(lambda server: server.in_flight == 3)
            fake_openai.release()
            errors = [each.result(30) for each in held]
        assert fake_openai.statuses == {200: 2, 503: 1}
        [error] = [each for each in errors if isinstance(each, openai.InternalServerError)]
        assert "overloaded" in str(error)
        fake_openai.max_concurrent = None
        assert "x-request-id" in ask()

    @pytest.mark.parametrize("fault", [HTTPFault(503), Reset()])
    def test_an_outage_lasts_until_it_is_ended(
        self, fake_openai: FakeOpenAI, fault: HTTPFault | Reset
    ) -> None:
        client = openai.OpenAI(api_key="sk-one", base_url=fake_openai.base_url, max_retries=0)
        with client, fake_openai.outage(fault):
            for _ in range(3):
                with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
                    client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        fresh = openai.OpenAI(api_key="sk-one", base_url=fake_openai.base_url, max_retries=0)
        with fresh:
            fresh.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert fake_openai.statuses[200] == 1

    def test_the_book_wakes_those_who_wait_for_it_and_is_cleared(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        asking = threading.Thread(target=ask)
        asking.start()
        fake_openai.wait_for(lambda server: server.statuses[200] == 1)
        asking.join(10)
        fake_openai.clear()
        assert (fake_openai.statuses, fake_openai.answers) == ({}, [])
