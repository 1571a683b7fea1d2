"""Rate limits of the fake server: the buckets with a simulated clock, and over HTTP."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import openai
import pytest

from gptx_async.pacing.buckets import Told, parse_duration, read_told
from gptx_async.testing import FakeOpenAI, FakeRateLimits, Fault, HTTPFault, Reset, serve
from gptx_async.testing.limits import (
    Limiter,
    Limiters,
    TokenBucket,
    charged_tokens,
    go_duration,
)

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "x" * 400}],
}

TOLD = [
    f"x-ratelimit-{what}-{kind}"
    for kind in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
]


def admit(limiter: Limiter, now: float, tokens: int = 0) -> int | None:
    """Return the status of a refused request, or None if the request is admitted."""
    fault = limiter.admit("gpt-4o-mini", tokens, now).fault
    return None if fault is None else fault.status


class TestBuckets:
    def test_a_full_bucket_admits_a_burst_and_then_its_rate(self) -> None:
        limiter = Limiter(FakeRateLimits(60, burst_seconds=3), now=100.0)
        assert [admit(limiter, 100.0) for _ in range(5)] == [None, None, None, 429, 429]
        assert [admit(limiter, 101.0) for _ in range(2)] == [None, 429]
        assert [admit(limiter, 101.5), admit(limiter, 102.0)] == [429, None]

    def test_it_never_holds_more_than_its_burst(self) -> None:
        limiter = Limiter(FakeRateLimits(60, burst_seconds=2), now=0.0)
        assert Counter(admit(limiter, 1e6) for _ in range(9)) == {None: 2, 429: 7}

    def test_a_minute_admits_the_burst_and_a_minutes_rate_at_most(self) -> None:
        limiter = Limiter(FakeRateLimits(1200, burst_seconds=1), now=0.0)
        admitted = sum(admit(limiter, second / 100) is None for second in range(6000))
        assert 1200 <= admitted <= 1220

    def test_tokens_are_charged_and_refused_requests_cost_nothing(self) -> None:
        limiter = Limiter(FakeRateLimits(tokens_per_minute=6000, burst_seconds=1), now=0.0)
        assert [admit(limiter, 0.0, size) for size in (60, 60, 40, 1)] == [None, 429, None, 429]

    def test_refused_requests_are_charged_if_it_says_so(self) -> None:
        limiter = Limiter(FakeRateLimits(60, burst_seconds=1, count_refused=True), now=0.0)
        assert [admit(limiter, now / 2) for now in range(6)] == [None, *[429] * 5]

    def test_a_request_above_the_bucket_is_refused_for_its_size(self) -> None:
        limiter = Limiter(FakeRateLimits(tokens_per_minute=30_000), now=0.0)
        fault = limiter.admit("gpt-4o", 45_000, 0.0).fault
        assert fault is not None
        assert fault.message is not None
        assert "Request too large for gpt-4o" in fault.message
        assert "Limit 30000, Requested 45000. The input or output tokens" in fault.message
        assert (fault.type, fault.code) == ("tokens", "rate_limit_exceeded")
        assert "retry-after" not in fault.headers, "waiting does not help"

    def test_answers_report_limit_remaining_and_reset(self) -> None:
        limiter = Limiter(FakeRateLimits(60, 6000), now=0.0)
        assert limiter.admit("m", 90, 0.0).headers == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "5910",
            "x-ratelimit-reset-tokens": "900ms",
        }

    def test_a_refusal_says_when_to_try_again(self) -> None:
        limiter = Limiter(FakeRateLimits(60, burst_seconds=1), now=0.0)
        admit(limiter, 0.0)
        fault = limiter.admit("m", 0, 0.25).fault
        assert fault is not None
        assert fault.headers == {"retry-after": "1", "retry-after-ms": "750"}
        assert "Limit 60, Used 1, Requested 1. Please try again in 750ms." in str(fault.message)

    def test_it_may_be_silent(self) -> None:
        limits = FakeRateLimits(60, burst_seconds=1, send_headers=False, send_retry_after=False)
        limiter = Limiter(limits, now=0.0)
        admit(limiter, 0.0)
        decision = limiter.admit("m", 0, 0.0)
        assert decision.fault is not None
        assert (decision.headers, decision.fault.headers) == ({}, {})

    @pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "burst_seconds"])
    @pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "60", True])
    def test_impossible_figures_are_refused(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"{name} is .*above 0"):
            FakeRateLimits(**{name: value})

    def test_a_bucket_without_a_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match="burst_seconds is None"):
            FakeRateLimits(60, burst_seconds=None)  # type: ignore[arg-type]

    def test_the_longer_of_two_waits_is_reported(self) -> None:
        limiter = Limiter(FakeRateLimits(60, 600, burst_seconds=60), now=0.0)
        limiter.admit("m", 590, 0.0)
        for tokens, kind, wait in ((20, "tokens", "1s"), (601, "tokens", None)):
            fault = limiter.admit("m", tokens, 0.0).fault
            assert fault is not None
            assert (fault.type, fault.headers.get("retry-after-ms")) == (kind, wait and "1000")
        for _ in range(59):
            limiter.admit("m", 0, 0.0)
        refused = {tokens: limiter.admit("m", tokens, 0.0).fault for tokens in (15, 25, 601)}
        assert {tokens: fault and fault.type for tokens, fault in refused.items()} == {
            15: "requests",  # one second for a request, half a second for the tokens
            25: "tokens",
            601: "tokens",
        }

    def test_the_engines_own_reader_understands_the_headers(self) -> None:
        limiter = Limiter(FakeRateLimits(1200, 600_000, burst_seconds=60), now=0.0)
        headers = limiter.admit("m", 100, 0.0).headers
        assert read_told(headers, "requests") == Told(20.0, 1199.0)
        assert read_told(headers, "tokens") == Told(10_000.0, 599_900.0)

    def test_waiting_for_more_than_it_holds_is_for_ever(self) -> None:
        assert TokenBucket(60, 5, 0.0).wait(6) == math.inf


class TestLimiters:
    """Which keys and models share buckets, with a simulated clock."""

    def status(self, limiters: Limiters, key: str, model: str, now: float) -> int:
        fault = limiters.admit(key, model, 1, now).fault
        return 200 if fault is None else fault.status

    def test_each_key_and_model_has_buckets_of_its_own(self) -> None:
        limiters = Limiters(FakeRateLimits(60, burst_seconds=1))
        pairs = [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")]
        assert [self.status(limiters, *pair, 5.0) for pair in pairs] == [200] * 4
        assert [self.status(limiters, *pair, 5.5) for pair in pairs] == [429] * 4
        assert self.status(limiters, "b", "y", 6.0) == 200

    def test_each_model_has_the_limits_that_it_is_named_with(self) -> None:
        limiters = Limiters({"x": FakeRateLimits(1), "y": FakeRateLimits(2)})
        asked = {
            model: [self.status(limiters, "k", model, 0.0) for _ in range(3)] for model in "xyz"
        }
        assert asked == {"x": [200, 429, 429], "y": [200, 200, 429], "z": [200, 200, 200]}

    def test_buckets_are_full_when_the_first_request_comes(self) -> None:
        limiters = Limiters(FakeRateLimits(60, burst_seconds=2))
        assert [self.status(limiters, "k", "x", 1e6) for _ in range(3)] == [200, 200, 429]

    @pytest.mark.parametrize("limits", [60, "60", {"x": 60}, [FakeRateLimits(60)]])
    def test_limits_of_another_type_are_refused(self, limits: Any) -> None:
        with pytest.raises(TypeError, match=r"Give FakeRateLimits\(\.\.\.\), or a mapping"):
            FakeOpenAI(rate_limits=limits)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 400}]}, 100),
        ({"messages": [{"role": "user", "content": "x" * 401}]}, 101),
        ({"messages": [{"content": [{"type": "text", "text": "x" * 8}, {"image_url": "y"}]}]}, 2),
        ({"messages": [{"content": None}]}, 0),
        ({"messages": [], "max_tokens": 7}, 7),
        ({"messages": [], "max_tokens": 7, "n": 3}, 21),
        ({"messages": [], "max_tokens": 7, "best_of": 4, "n": 2}, 28),
        ({"messages": [], "max_completion_tokens": 5, "max_tokens": 7}, 5),
        ({"messages": [], "max_completion_tokens": None, "max_tokens": 7}, 7),
        ({"messages": [], "max_tokens": -7, "n": 0}, 0),
        ({"messages": [], "max_tokens": 7, "n": -1}, 7),
        ({"messages": [], "max_tokens": True, "n": "2"}, 0),
        ({"input": "x" * 8, "instructions": "y" * 8, "max_output_tokens": 10}, 14),
        ({"input": [{"role": "user", "content": "x" * 8}]}, 2),
        ({"input": ["x" * 8, "y" * 8]}, 4),
        ({"input": [[1, 2, 3], [4]]}, 4),
        ({"input": [1, 2, 3]}, 3),
    ],
)
def test_a_request_is_charged_its_prompt_and_its_answers_limits(
    body: dict[str, Any], tokens: int
) -> None:
    assert charged_tokens(body) == tokens


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (59.9999, "1m0s"),
        (62.5, "1m2.5s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (7204.25, "2h0m4.25s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
    assert parse_duration(text) == pytest.approx(seconds, abs=0.001)


def connect(server: FakeOpenAI, key: str = "sk-one") -> openai.OpenAI:
    return openai.OpenAI(api_key=key, base_url=server.base_url, max_retries=0)


@pytest.fixture
def client(fake_openai: FakeOpenAI) -> Iterator[openai.OpenAI]:
    with connect(fake_openai) as client:
        yield client


@pytest.fixture
def ask(fake_openai: FakeOpenAI) -> Callable[..., Any]:
    """Send one request without retries; return the answer's headers or the error."""

    def ask(key: str = "sk-one", **changes: Any) -> Any:
        with connect(fake_openai, key) as client:
            try:
                raw = client.chat.completions.with_raw_response.create(**{**CHAT, **changes})
            except openai.APIError as error:
                return error
            return raw.headers

    return ask


class TestServer:
    def test_each_key_and_model_has_buckets_of_its_own(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = FakeRateLimits(1, burst_seconds=60)
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
        fake_openai.rate_limits = {"gpt-4o": FakeRateLimits(1)}
        assert "x-ratelimit-limit-requests" not in ask()
        assert ask(model="gpt-4o")["x-ratelimit-limit-requests"] == "1"

    def test_a_prompt_is_charged_by_its_characters_and_its_answers_limit(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = FakeRateLimits(tokens_per_minute=100_000)
        assert ask(max_tokens=200, n=2)["x-ratelimit-remaining-tokens"] == "99500"

    def test_the_sdk_reads_the_refusal(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = FakeRateLimits(1)
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
        fake_openai.rate_limits = FakeRateLimits(2)
        fake_openai.api_keys = {"sk-one"}
        assert ask(stream=True).status_code == 400
        assert ask("sk-two").status_code == 401
        assert ask()["x-ratelimit-remaining-requests"] == "1"

    def test_every_endpoint_of_a_model_shares_its_buckets(
        self, client: openai.OpenAI, fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = FakeRateLimits(3)
        client.chat.completions.create(**CHAT)
        client.responses.create(model=CHAT["model"], input="Hello")
        client.embeddings.create(model=CHAT["model"], input="Hello")
        for create in (client.responses.create, client.embeddings.create):
            with pytest.raises(openai.RateLimitError):
                create(model=CHAT["model"], input="Hello")
        raw = client.models.with_raw_response.list()
        assert "x-ratelimit-limit-requests" not in raw.headers

    def test_faults_and_overload_are_not_charged(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = FakeRateLimits(2)
        fake_openai.fail_next(HTTPFault(500))
        assert ask().status_code == 500
        fake_openai.max_concurrent = 0
        assert ask().status_code == 503
        fake_openai.max_concurrent = None
        assert ask()["x-ratelimit-remaining-requests"] == "1"

    def test_new_limits_begin_with_full_buckets(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.rate_limits = limits = FakeRateLimits(1)
        ask()
        assert ask().status_code == 429
        fake_openai.rate_limits = limits
        assert fake_openai.rate_limits is limits
        assert ask()["x-ratelimit-remaining-requests"] == "0"

    @pytest.mark.parametrize("told", [True, False])
    def test_disabled_headers_are_not_sent(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI, told: bool
    ) -> None:
        fake_openai.rate_limits = FakeRateLimits(1, 1000, send_headers=told, send_retry_after=told)
        accepted, refused = ask(), ask().response.headers
        for headers in (accepted, refused):
            assert [name for name in headers if name.startswith("x-ratelimit-")] == (
                TOLD if told else []
            )
        assert {"retry-after", "retry-after-ms"} & refused.keys() == (
            {"retry-after", "retry-after-ms"} if told else set()
        )

    @pytest.mark.slow
    def test_http_admits_what_the_arithmetic_admits(self, fake_openai: FakeOpenAI) -> None:
        """Each of 400 requests, for two keys and two models, gets the status of a simulation."""
        limits = FakeRateLimits(1200, 300_000, burst_seconds=1)
        fake_openai.rate_limits = limits
        statuses: dict[str, int] = {}

        def offer(client: openai.OpenAI, number: int) -> None:
            text = f"{number} " + "x" * (number % 7 * 400)
            messages: Any = [{"role": "user", "content": text}]
            try:
                client.chat.completions.create(model=f"m{number % 2}", messages=messages)
            except openai.RateLimitError as error:
                statuses[text] = error.status_code
            else:
                statuses[text] = 200

        with (
            connect(fake_openai, "a") as a,
            connect(fake_openai, "b") as b,
            ThreadPoolExecutor(8) as pool,
        ):
            done = [pool.submit(offer, (a, b)[i % 3 == 0], i) for i in range(400)]
            [each.result() for each in done]
        simulated, expected = Limiters(limits), {}
        for request in fake_openai.requests:
            model, tokens = request.body["model"], charged_tokens(request.body)
            fault = simulated.admit(request.api_key, model, tokens, request.arrived).fault
            expected[request.user_text] = 200 if fault is None else fault.status
        assert statuses == expected
        assert set(statuses.values()) == {200, 429}
        arrivals = [request.arrived for request in fake_openai.requests]
        most = 4 * 20 * (1 + arrivals[-1] - arrivals[0])  # key and model: burst and rate
        assert fake_openai.statuses[200] <= most

    def test_requests_above_the_concurrency_limit_get_503(
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
        assert error.type == "server_error"
        fake_openai.max_concurrent = None
        assert "x-request-id" in ask()

    @pytest.mark.parametrize("status", [429, 503])
    def test_refusals_are_immediate_and_take_no_capacity(
        self,
        ask: Callable[..., Any],
        fake_openai: FakeOpenAI,
        in_thread: Callable[..., Future[Any]],
        status: int,
    ) -> None:
        """An answer takes an hour here, so a refusal that takes as long times out."""
        fake_openai.latency = lambda request: 0.0 if request.user_text == "fast" else 3600.0
        if status == 429:
            fake_openai.rate_limits = {CHAT["model"]: FakeRateLimits(1)}
        fake_openai.max_concurrent = 1 if status == 503 else None
        asking = in_thread(ask)
        fake_openai.wait_for(lambda server: server.in_flight == 1)
        assert [ask(timeout=10).status_code for _ in range(3)] == [status] * 3
        assert (fake_openai.in_flight, fake_openai.statuses) == (1, {status: 3})
        if status == 503:
            fake_openai.max_concurrent = 2
            fast = [{"role": "user", "content": "fast"}]
            assert "x-request-id" in ask(messages=fast, timeout=10)
        fake_openai.close()
        assert isinstance(asking.result(10), openai.APIConnectionError)

    @pytest.mark.parametrize(
        ("fault", "statuses"), [(None, {503: 4}), (HTTPFault(529), {529: 4}), (Reset(), {})]
    )
    def test_an_outage_fails_every_request_until_it_ends(
        self, fake_openai: FakeOpenAI, fault: Fault | None, statuses: dict[int, int]
    ) -> None:
        fake_openai.api_keys = {"sk-one"}
        expected = (openai.InternalServerError, openai.APIConnectionError)
        with connect(fake_openai) as client, connect(fake_openai, "sk-wrong") as stranger:
            with fake_openai.outage(fault) if fault else fake_openai.outage():
                for who in (client, stranger):
                    with pytest.raises(expected):
                        who.chat.completions.create(**CHAT)
                    with pytest.raises(expected):
                        who.models.list()
            assert fake_openai.statuses == statuses
            assert Counter(each.status for each in fake_openai.answers) == statuses
            client.chat.completions.create(**CHAT)
        assert fake_openai.statuses == statuses | {200: 1}

    def test_an_outage_takes_the_place_of_another(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.outage_for(3600)
        assert ask().status_code == 503
        fake_openai.begin_outage(HTTPFault(500))
        assert ask().status_code == 500
        fake_openai.outage_for(0)
        assert "x-request-id" in ask()
        fake_openai.outage_for(3600)
        fake_openai.end_outage()
        fake_openai.end_outage()
        assert "x-request-id" in ask()

    def test_an_outage_for_a_time_ends_by_itself(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        seconds = 0.4
        before = time.monotonic()
        fake_openai.outage_for(seconds)
        after = time.monotonic()
        while not fake_openai.statuses[200]:
            ask()
            assert time.monotonic() < after + 30, "the outage never ended"
        *failed, answered = zip(fake_openai.requests, fake_openai.answers, strict=True)
        assert {answer.status for _, answer in failed} <= {503}
        assert all(request.arrived < after + seconds for request, _ in failed)
        assert answered[0].arrived >= before + seconds

    def test_answers_kept_are_bounded_and_counts_are_not(self) -> None:
        with FakeOpenAI(keep_requests=2) as server, connect(server) as client:
            for name in ("first", "second", "third"):
                client.chat.completions.create(**{**CHAT, "model": name})
            assert [each.model for each in server.answers] == ["second", "third"]
            assert server.answers[0].at <= server.answers[1].at
            assert server.statuses == {200: 3}

    def test_an_answer_wakes_wait_for_and_clear_forgets_it(
        self, ask: Callable[..., Any], fake_openai: FakeOpenAI
    ) -> None:
        asking = threading.Thread(target=ask)
        asking.start()
        fake_openai.wait_for(lambda server: server.statuses[200] == 1)
        asking.join(10)
        fake_openai.clear()
        assert (fake_openai.statuses, fake_openai.answers) == ({}, [])


def test_serve_keeps_the_limits_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask_instead_of_waiting(_signals: object) -> None:
        base_url = capsys.readouterr().out.strip()
        with openai.OpenAI(api_key="k", base_url=base_url, max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(**CHAT)
        limits = [raw.headers[f"x-ratelimit-limit-{kind}"] for kind in ("requests", "tokens")]
        assert limits == ["30", "4000"]
        asked.append(base_url)

    asked: list[str] = []
    monkeypatch.setattr(signal, "sigwait", ask_instead_of_waiting)
    serve(requests_per_minute=30, tokens_per_minute=4000)
    assert asked
    with pytest.raises(ValueError, match="requests_per_minute"):
        serve(requests_per_minute=0)
