"""The governor against simulated servers, on an event loop with virtual time.

These failures were listed before the governor was written:

- Rate limit: after the first seconds, less than 97 % of the server's bucket is used; or 1 % of the
  requests are answered 429 with headers, 5 % without. This holds for small and large bursts, fast
  and slow answers, and for requests or tokens as the resource that runs out first.
- Configured limit: in any part of the first minute, more requests are sent than that part of the
  limit and one second's share; or a large request waits forever; or an impossible request waits.
- Overload: calls fail on a server that takes 20 concurrent requests; or the server is hardly used;
  or one burst of 503s cuts the limit more than once; or the limit never recovers.
- Outage of 30 s: a call in flight is lost although each call has two retries; or the server is
  flooded during the outage or right after it; or the end of the outage is noticed late.
- Only 429s: a call does not end soon after its patience; or a call ends that was merely slow.
- A Retry-After of an hour for one call: the other calls stop.
- Cancellation: a cancelled ticket keeps its permit, in any state. The last admission then never
  comes, and the virtual loop raises an error.
- Order: a retried call waits behind later calls.
- Cost: with 10,000 waiting calls, each call takes more time than with 100.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from gptx_async.errors import ConfigurationError, RequestTooLargeError
from gptx_async.pacing.buckets import parse_duration
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.queue import StarvedError, Ticket
from gptx_async.pacing.rate_limit import RateLimit
from gptx_async.pacing.settings import Pacing

T = TypeVar("T")


class VirtualSelector(selectors.DefaultSelector):
    """A selector that does not wait, but advances the clock to the next timer."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("Nothing will ever happen: a task waits, and nothing will wake it.")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.virtual_selector = VirtualSelector()
        super().__init__(self.virtual_selector)

    def time(self) -> float:
        return self.virtual_selector.now


def simulate(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def clock() -> float:
    return asyncio.get_running_loop().time()


class ServerError(Exception):
    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.retry_after = retry_after


@dataclass
class Account:
    """A token bucket on the server, with a limit per minute and a burst size."""

    per_minute: float
    burst: float
    level: float = field(init=False)
    at: float = field(default=-math.inf, init=False)

    def refill(self) -> None:
        now = clock()
        if self.at == -math.inf:
            self.level, self.at = self.burst, now
        self.level = min(self.burst, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def headers(self, kind: str) -> dict[str, str]:
        missing = self.burst - self.level
        return {
            f"x-ratelimit-limit-{kind}": f"{self.per_minute:.0f}",
            f"x-ratelimit-remaining-{kind}": f"{math.floor(max(0.0, self.level))}",
            f"x-ratelimit-reset-{kind}": f"{missing * 60 / self.per_minute:.3f}s",
        }


@dataclass
class Server:
    """A simulated server, reduced to what a governor can observe.

    A request takes up to `way` seconds to arrive. The server then accepts or refuses it, and
    answers accepted requests after their latency; refusals are quick.
    """

    requests: Account | None = None
    tokens: Account | None = None
    shows_headers: bool = True
    latency: tuple[float, float] = (0.05, 0.5)
    way: float = 0.01
    concurrency: float = math.inf
    status: Callable[[float], int | None] = lambda at: None  # the status of a fault, by time
    retry_after: float | None = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.busy = 0
        self.arrived: list[float] = []
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.failed: list[float] = []
        self.tokens_used: list[tuple[float, float]] = []

    async def answer(self, tokens: float = 0) -> Mapping[str, str]:
        """Return the headers, or raise a ServerError with them as `.headers`."""
        latency = self.rng.uniform(*self.latency)
        await asyncio.sleep(self.rng.uniform(0.0, self.way))
        self.arrived.append(clock())
        status = self._status(tokens)
        headers = self._headers()
        if status is not None:
            if status == 429:
                self.refused.append(clock())
            else:
                self.failed.append(clock())
            if status:
                await asyncio.sleep(0.05)
            error = ServerError(status, self.retry_after if status in (429, 503) else None)
            error.__dict__["headers"] = headers
            raise error
        self.accepted.append(clock())
        self.tokens_used.append((clock(), tokens))
        self.busy += 1
        try:
            await asyncio.sleep(latency)
        finally:
            self.busy -= 1
        return headers

    def _status(self, tokens: float) -> int | None:
        status = self.status(clock())
        if status is not None:
            return status
        if self.busy >= self.concurrency:
            return 503
        accounts = [(a, c) for a, c in ((self.requests, 1.0), (self.tokens, tokens)) if a]
        for account, _ in accounts:
            account.refill()
        if any(account.level < cost for account, cost in accounts):
            return 429
        for account, cost in accounts:
            account.level -= cost
        return None

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self.shows_headers:
            if self.requests:
                self.requests.refill()
                headers |= self.requests.headers("requests")
            if self.tokens:
                self.tokens.refill()
                headers |= self.tokens.headers("tokens")
        return headers

    def use(self, since: float, until: float) -> float:
        """Return the accepted requests of a period as a fraction of those allowed in it."""
        assert self.requests is not None
        accepted = sum(since <= at < until for at in self.accepted)
        return accepted / (self.requests.per_minute / 60 * (until - since))

    def refused_share(self, since: float, until: float) -> float:
        refused = sum(since <= at < until for at in self.refused)
        return refused / max(1, sum(since <= at < until for at in self.arrived))


async def call(
    governor: Governor,
    pacing: Pacing,
    server: Server,
    rng: random.Random,
    *,
    tokens: int = 0,
    answer_tokens: int | None = 0,
    patience: float = 300.0,
    max_retries: int = 2,
    probes_are_free: bool = False,
) -> str:
    """Make one call as the retry layer does, and return its outcome."""
    ticket = governor.ticket(pacing, tokens, answer_tokens)
    try:
        return await make_attempts(
            ticket,
            server,
            rng,
            tokens + (answer_tokens or 0),
            patience,
            max_retries,
            probes_are_free,
        )
    finally:
        ticket.close()


async def make_attempts(
    ticket: Ticket,
    server: Server,
    rng: random.Random,
    tokens: int,
    patience: float,
    retries: int,
    probes_are_free: bool,
) -> str:
    for attempt in itertools.count():
        try:
            permit = await ticket.admit(patience)
        except StarvedError:
            return "starved"
        try:
            headers = await server.answer(tokens)
        except ServerError as error:
            if error.status == 429:
                permit.refused(error, error.__dict__["headers"], error.retry_after)
            else:
                if error.status in (503, 529):
                    permit.overloaded(error, {}, error.retry_after)
                else:
                    permit.failed(error, unreachable=error.status in (0, 502, 504))
                if not (probes_are_free and permit.is_probe):
                    retries -= 1
                if retries < 0:
                    return "failed"
            wait = error.retry_after or min(0.5 * 2 ** min(attempt, 5), 8.0)
            await asyncio.sleep(wait * (1 + 0.25 * rng.random()))
        else:
            permit.succeeded(headers, tokens)
            return "answered"
        finally:
            permit.release()
    raise AssertionError


async def run_items(
    items: int, workers: int, call_one: Callable[[int], Awaitable[str]]
) -> tuple[dict[str, int], float]:
    """Process the items with several workers; return the outcomes and the last item's start."""
    todo = iter(range(items))
    outcomes: dict[str, int] = {}
    last = clock()

    async def work() -> None:
        nonlocal last
        for item in todo:
            last = clock()
            outcome = await call_one(item)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    await asyncio.gather(*(work() for _ in range(workers)))
    return outcomes, last


@dataclass
class Run:
    governor: Governor
    server: Server
    outcomes: dict[str, int]
    began: float
    last: float  # when the last item was begun; until then no worker was idle
    ended: float
    events: list[tuple[str, Mapping[str, object]]]

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def run(
    server: Server,
    *,
    items: int = 400,
    workers: int = 100,
    pacing: Pacing | None = None,
    seed: int = 1,
    sizes: tuple[int, int] = (0, 0),
    **options: Any,
) -> Run:
    """Call the server for each item from several workers, as the retry layer does."""

    async def main() -> Run:
        rng = random.Random(seed)
        events: list[tuple[str, Mapping[str, object]]] = []
        governor = Governor("test", lambda name, fields: events.append((name, fields)), rng)
        shared = pacing or Pacing()
        began = clock()

        async def one(_item: int) -> str:
            return await call(governor, shared, server, rng, tokens=rng.randint(*sizes), **options)

        outcomes, last = await run_items(items, workers, one)
        return Run(governor, server, outcomes, began, last, clock(), events)

    return simulate(main())


def between(start: float, end: float, status: int) -> Callable[[float], int | None]:
    """Make a fault that lasts from `start` to `end`, in seconds since the loop started.

    Status 0 means that no connection can be made.
    """
    return lambda at: status if start <= at - VirtualSelector.now < end else None


def most_in(times: list[float], seconds: float) -> int:
    """Return the largest number of times within any period of the given length."""
    first, most = 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


async def refuse_everything(governor: Governor, pacing: Pacing) -> None:
    """Let requests be refused one after another, until the governor holds all calls back."""
    while governor._hold is None:
        (await governor.ticket(pacing).admit(60.0)).refused(ServerError(429), {}, None)
        await asyncio.sleep(0.1)


async def settle_down() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class TestRateLimitOfTheServer:
    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize("burst", [2, 5, 20])
    @pytest.mark.parametrize("latency", [(0.05, 0.5), (2.0, 20.0)])
    @pytest.mark.slow
    def test_uses_the_whole_rate_of_the_headers_with_few_429s(
        self, seed: int, burst: int, latency: tuple[float, float]
    ) -> None:
        server = Server(Account(1200, burst), seed=seed, latency=latency)

        done = run(server, seed=seed, items=1000, workers=500, pacing=Pacing(500))

        since = done.began + 2.0
        assert done.outcomes == {"answered": 1000}
        assert server.use(since, done.last) > (0.98 if burst > 2 else 0.8)
        # With a bucket of two and slow answers, the pace is learned before any headers arrive.
        assert server.refused_share(since, done.ended) < (0.006 if burst > 2 else 0.03)

    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize("retry_after", [None, 1.0])
    @pytest.mark.parametrize("burst", [5, 20])
    def test_learns_the_rate_without_headers(
        self, seed: int, burst: int, retry_after: float | None
    ) -> None:
        server = Server(
            Account(1200, burst), shows_headers=False, retry_after=retry_after, seed=seed
        )

        done = run(server, seed=seed, items=1200)

        since = done.began + 3.0
        assert done.outcomes == {"answered": 1200}
        assert server.use(since, done.last) > 0.97
        assert server.refused_share(since, done.ended) < (0.05 if retry_after is None else 0.04)

    def test_keeps_the_learned_rate_over_minutes(self) -> None:
        server = Server(Account(1200, 20), shows_headers=False)

        done = run(server, items=4000)

        since = done.began + 5.0
        assert server.use(since, done.last) > 0.98
        assert server.refused_share(since, done.ended) < 0.03

    def test_learns_the_rate_from_slow_answers(self) -> None:
        server = Server(Account(600, 10), shows_headers=False, latency=(2.0, 20.0))

        done = run(server, items=1000, workers=400)

        since = done.began + 8.0
        assert server.use(since, done.last) > 0.97
        assert server.refused_share(since, done.ended) < 0.03

    @pytest.mark.parametrize("shows_headers", [True, False])
    def test_slows_down_after_a_burst_of_a_whole_minute(self, shows_headers: bool) -> None:
        server = Server(Account(1200, 1200), shows_headers=shows_headers)

        done = run(server, items=3000)

        since = done.began + 10.0
        assert len(server.refused) < (30 if shows_headers else 200)
        assert most_in(server.accepted, 10.0) > 1200  # the whole burst is used
        assert server.use(since, done.last) > 0.97
        assert server.refused_share(since, done.ended) < (0.005 if shows_headers else 0.03)

    def test_finds_more_when_the_server_gives_more(self) -> None:
        account = Account(600, 10)
        server = Server(account, shows_headers=False)

        def raise_after_a_minute(at: float) -> None:
            if at > VirtualSelector.now + 60:
                account.per_minute = 2400

        server.status = raise_after_a_minute

        done = run(server, items=6000)

        assert server.use(done.began + 100.0, done.last) > 0.95

    def test_keeps_the_token_limit_of_the_headers(self) -> None:
        server = Server(tokens=Account(120_000, 10_000))

        done = run(server, items=400, sizes=(100, 1500))

        used = sum(n for at, n in server.tokens_used if done.began + 5 <= at < done.last)
        assert done.outcomes == {"answered": 400}
        assert used / (2000 * (done.last - done.began - 5)) > 0.97
        assert server.refused_share(done.began + 2.0, done.ended) < 0.01

    def test_sends_everything_while_nothing_is_refused(self) -> None:
        server = Server(way=0.0)

        done = run(server, items=100)

        assert server.arrived[:8] == [done.began] * 8
        assert most_in(server.arrived, 0.001) == 92

    def test_holds_the_first_burst_for_a_quarter_of_a_second_at_most(self) -> None:
        server = Server(way=0.0, latency=(5.0, 5.0))

        done = run(server, items=150)

        assert server.arrived[:8] == [done.began] * 8
        assert server.arrived[8:100] == pytest.approx([done.began + 0.25] * 92, abs=0.001)
        assert server.arrived[100:] == pytest.approx([done.began + 5.0] * 50, abs=0.3)

    def test_does_not_delay_a_few_calls(self) -> None:
        async def main() -> float:
            governor, pacing = Governor(), Pacing()
            began = clock()
            for _ in range(8):
                await governor.ticket(pacing).admit(1.0)
            return clock() - began

        assert simulate(main()) == 0.0

    def test_holds_no_first_burst_when_not_adaptive(self) -> None:
        done = run(Server(way=0.0, latency=(5.0, 5.0)), items=100, pacing=Pacing(adaptive=False))

        assert done.server.arrived == [done.began] * 100

    def test_little_of_the_first_burst_is_refused_with_headers(self) -> None:
        server = Server(Account(1200, 20), latency=(0.05, 0.2))

        run(server, items=400)

        assert len(server.refused) < 0.02 * 400

    def test_recovers_soon_after_a_period_of_refusals(self) -> None:
        server = Server(
            Account(1200, 20), shows_headers=False, status=between(20, 50, 429), retry_after=None
        )

        done = run(server, items=1500)

        assert done.outcomes == {"answered": 1500}
        assert server.use(done.began + 62, done.last) > 0.97

    def test_does_not_treat_a_reset_as_a_retry_after(self) -> None:
        told = {
            "x-ratelimit-limit-requests": "1200",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "59.95s",
        }

        async def main() -> float:
            governor, pacing = Governor(), Pacing()
            (await governor.ticket(pacing).admit(60.0)).succeeded(told, None)
            (await governor.ticket(pacing).admit(60.0)).refused(ServerError(429), told, 59.95)
            began = clock()
            await governor.ticket(pacing).admit(60.0)
            return clock() - began

        assert simulate(main()) < 0.2

    def test_ignores_headers_that_are_nonsense(self) -> None:
        nonsense = {
            "x-ratelimit-limit-requests": "0",
            "x-ratelimit-remaining-requests": "nan",
            "x-ratelimit-limit-tokens": "lots",
            "x-ratelimit-remaining-tokens": "-1",
            "x-ratelimit-reset-tokens": "soon",
        }

        async def main() -> tuple[float, float | None]:
            governor, pacing = Governor(), Pacing()
            began = clock()
            for _ in range(100):
                (await governor.ticket(pacing, 10).admit(1.0)).succeeded(nonsense, None)
            return clock() - began, governor.rate

        assert simulate(main()) == (0.0, None)

    def test_tries_once_a_minute_whatever_the_headers_say(self) -> None:
        headers = {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "24h0m0s",
        }

        async def main() -> float:
            governor, pacing = Governor(), Pacing()
            began = clock()
            for _ in range(4):
                (await governor.ticket(pacing).admit(1.0)).succeeded(headers, None)
            return clock() - began

        assert simulate(main()) == pytest.approx(180.0, abs=0.1)

    def test_recognizes_a_daily_limit(self) -> None:
        headers = {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
        }

        async def main() -> tuple[float, float | None]:
            governor, pacing = Governor(), Pacing()
            began = clock()
            for _ in range(100):
                (await governor.ticket(pacing).admit(1.0)).succeeded(headers, None)
            return clock() - began, governor.rate

        waited, rate = simulate(main())
        assert waited == 0.0  # there are 14,370 left
        assert rate == pytest.approx(1 / 6, rel=0.01)

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("1s", 1.0),
            ("6m0s", 360.0),
            ("120ms", 0.12),
            ("59.5s", 59.5),
            ("1h2m3s", 3723.0),
            ("2d", 172_800.0),
            ("7", 7.0),
            ("", None),
            ("soon", None),
            ("1.2.3s", None),
            ("-1", None),
            ("inf", None),
        ],
    )
    def test_reads_a_duration(self, text: str, seconds: float | None) -> None:
        assert parse_duration(text) == seconds


class TestConfiguredRateLimit:
    def test_gives_no_burst_in_the_first_minute(self) -> None:
        pacing = Pacing(rate_limit=RateLimit(requests_per_minute=1200))

        done = run(Server(way=0.0), items=2000, pacing=pacing)

        assert most_in(done.server.arrived, 60.0) <= 1200 + 21
        assert most_in(done.server.arrived, 1.0) <= 41
        assert len(done.server.arrived) / (done.ended - done.began) > 0.97 * 20

    def test_counts_tokens_as_they_were_used(self) -> None:
        # Calls use a quarter of the tokens that they reserve, so four times as many are sent.
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=60_000))

        async def main() -> float:
            governor = Governor()
            began = clock()

            async def one(_item: int) -> str:
                permit = await governor.ticket(pacing, 100, 300).admit(1.0)
                await asyncio.sleep(0.1)
                permit.succeeded({}, 100)
                return "answered"

            await run_items(600, 50, one)
            return clock() - began

        assert 55 < simulate(main()) < 66  # 600 x 100 tokens at 1000 a second

    def test_learns_how_long_answers_are(self) -> None:
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=60_000))

        async def main() -> list[float]:
            governor = Governor()
            sent = []

            async def one(_item: int) -> str:
                permit = await governor.ticket(pacing, 100).admit(1.0)
                sent.append(clock())
                await asyncio.sleep(10.0)
                permit.succeeded({}, 1000)
                return "answered"

            await run_items(100, 50, one)
            return sent

        sent = simulate(main())
        assert 90 < sent[-1] - sent[0] < 130  # 100 x 1000 tokens at 1000 a second
        assert most_in([at for at in sent if at > sent[0] + 60], 10.0) <= 12

    def test_gives_tokens_back_that_were_refused(self) -> None:
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=6000), adaptive=False)

        async def main() -> float:
            governor = Governor()
            began = clock()
            for _ in range(5):
                permit = await governor.ticket(pacing, 3000, 0).admit(1.0)
                permit.refused(ServerError(429), {}, None)
            return clock() - began

        assert simulate(main()) < 1.0

    def test_admits_a_request_larger_than_a_seconds_share(self) -> None:
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=6000))

        async def main() -> list[float]:
            governor = Governor()
            began = clock()
            sent = []
            for _ in range(3):
                permit = await governor.ticket(pacing, 2000, 1000).admit(1.0)
                permit.succeeded({}, 3000)
                sent.append(clock() - began)
            return sent

        assert simulate(main()) == pytest.approx([0.0, 30.0, 60.0], abs=0.1)

    def test_refuses_a_request_larger_than_the_minute(self) -> None:
        pacing = Pacing(rate_limit=RateLimit(tokens_per_minute=6000))

        async def main() -> None:
            await Governor().ticket(pacing, 5000, 1001).admit(1.0)

        with pytest.raises(RequestTooLargeError, match=r"6001 tokens .* tokens_per_minute of 6000"):
            simulate(main())

    def test_uses_the_lower_of_the_configured_and_the_servers_limit(self) -> None:
        told = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "10"}

        async def main(per_minute: float) -> float | None:
            governor, pacing = Governor(), Pacing(rate_limit=RateLimit(per_minute))
            (await governor.ticket(pacing).admit(1.0)).succeeded(told, None)
            return governor.rate

        assert simulate(main(1200)) == 10.0
        assert simulate(main(300)) == 5.0

    @pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "60"])
    def test_rejects_an_invalid_limit(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match="requests_per_minute"):
            RateLimit(requests_per_minute=value)
        with pytest.raises(ConfigurationError, match="tokens_per_minute"):
            RateLimit(tokens_per_minute=value)

    @pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
    def test_rejects_an_invalid_concurrency(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match="max_concurrency"):
            Pacing(max_concurrency=value)


class TestOverload:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_finds_how_many_the_server_takes(self, seed: int) -> None:
        server = Server(concurrency=20, seed=seed)

        done = run(server, items=2000, seed=seed)

        assert done.outcomes == {"answered": 2000}
        assert len([at for at in server.failed if at < done.began + 1]) < 90
        late = [at for at in server.failed if at > done.began + 1]
        assert len(late) <= 17  # about 1 %, each of which costs its call a retry
        served = [at for at in server.accepted if done.began + 5 < at < done.last]
        assert len(served) / (done.last - done.began - 5) > 0.8 * 20 / 0.275

    def test_cuts_once_per_burst_and_grows_back(self) -> None:
        async def main() -> tuple[list[int], list[str]]:
            names: list[str] = []
            governor = Governor(notify=lambda name, fields: names.append(name))
            pacing = Pacing(100)
            tickets = [governor.ticket(pacing) for _ in range(100)]
            permits = [await ticket.admit(60.0) for ticket in tickets]
            limits = []
            for permit in permits[:30]:
                permit.overloaded(ServerError(503), {}, None)
            limits.append(governor.limit)
            for permit in permits[30:]:
                permit.succeeded({}, None)
            rng, server = random.Random(1), Server(latency=(0.1, 0.1))
            await run_items(10_000, 100, lambda _: call(governor, pacing, server, rng))
            limits.append(governor.limit)
            return limits, names

        limits, names = simulate(main())
        assert limits == [70, 100]
        assert names.count("governor_cut") == 1
        assert "governor_grew" in names

    def test_does_not_raise_a_limit_that_is_not_reached(self) -> None:
        async def main() -> int:
            governor, pacing = Governor(), Pacing(100)
            permits = [await governor.ticket(pacing).admit(60.0) for _ in range(10)]
            permits[0].overloaded(ServerError(503), {}, None)
            for permit in permits[1:]:
                permit.succeeded({}, None)
            for _ in range(1000):
                (await governor.ticket(pacing).admit(60.0)).succeeded({}, None)
            return governor.limit

        assert simulate(main()) == 7

    def test_does_not_stall_at_the_floor(self) -> None:
        server = Server(status=between(0, 20, 503), retry_after=None)

        done = run(server, items=4000, workers=100, max_retries=1000)

        assert done.outcomes == {"answered": 4000}
        assert done.ended - done.began < 60


class TestOutage:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    @pytest.mark.parametrize("status", [0, 502, 503])
    @pytest.mark.parametrize("workers", [30, 300])
    @pytest.mark.slow
    def test_loses_no_call_to_half_a_minute(self, seed: int, status: int, workers: int) -> None:
        # The calls in flight all fail, which may cost each a retry; then single probes are sent.
        server = Server(status=between(5, 35, status), seed=seed)

        done = run(server, items=workers * 40, workers=workers, seed=seed)

        assert done.outcomes == {"answered": workers * 40}
        held = [at for at in server.failed if done.began + 7 < at < done.began + 35]
        assert 2 <= len(held) <= 8
        assert min(at for at in server.accepted if at > done.began + 35) < done.began + 46

    def test_resumes_spread_out(self) -> None:
        server = Server(status=between(5, 35, 0), way=0.0)

        done = run(server, items=8000, workers=256)

        after = [at for at in server.accepted if at > done.began + 35]
        assert most_in([at for at in after if at < after[0] + 1], 0.1) < 60
        assert len([at for at in after if after[0] + 5 < at < after[0] + 6]) > 400

    def test_probes_with_few_calls_when_probes_cost_no_retry(self) -> None:
        done = run(Server(status=between(5, 35, 0)), items=200, workers=2, probes_are_free=True)

        assert done.outcomes == {"answered": 200}

    def test_holds_no_calls_if_the_server_has_never_answered(self) -> None:
        done = run(Server(status=between(0, 1e9, 0)), items=400)

        assert done.outcomes == {"failed": 400}
        assert done.ended - done.began < 10
        assert done.names() == []

    def test_sends_all_when_the_probe_gets_another_error(self) -> None:
        async def main() -> int:
            governor, pacing = Governor(), Pacing()
            (await governor.ticket(pacing).admit(60.0)).succeeded({}, None)
            permits = [await governor.ticket(pacing).admit(60.0) for _ in range(8)]
            for permit in permits:
                permit.failed(ServerError(0), unreachable=True)
            waiting = [asyncio.create_task(governor.ticket(pacing).admit(60.0)) for _ in range(20)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            probe = next(iter(done)).result()
            assert probe.is_probe
            probe.failed(ServerError(400), unreachable=False)
            began = clock()
            await asyncio.gather(*waiting)
            assert clock() - began < 1.0
            return governor.in_flight

        assert simulate(main()) == 19


class TestPatience:
    def test_ends_every_call_when_all_are_refused_for_ever(self) -> None:
        ends: list[float] = []

        async def main() -> list[str]:
            governor, pacing, rng = Governor(), Pacing(), random.Random(1)
            server = Server(status=between(0, 1e9, 429))
            began = clock()

            async def one() -> str:
                outcome = await call(governor, pacing, server, rng, patience=60.0)
                ends.append(clock() - began)
                return outcome

            outcomes = await asyncio.gather(*(one() for _ in range(100)))
            assert len(server.arrived) < 100 + 40
            return outcomes

        assert simulate(main()) == ["starved"] * 100
        assert min(ends) >= 60
        assert max(ends) < 75

    def test_reports_the_last_error_of_the_server(self) -> None:
        async def main() -> Exception:
            governor, pacing = Governor(), Pacing()
            ticket = governor.ticket(pacing)
            for name in ("first", "last"):
                (await ticket.admit(5.0)).refused(ValueError(name), {}, None)
                await asyncio.sleep(10)
            with pytest.raises(StarvedError) as caught:
                await ticket.admit(5.0)
            return caught.value.error

        assert str(simulate(main())) == "last"

    def test_restarts_with_each_success(self) -> None:
        async def main() -> None:
            governor, pacing = Governor(), Pacing()
            ticket = governor.ticket(pacing)
            for _ in range(5):
                (await ticket.admit(5.0)).refused(ServerError(429), {}, None)
                await asyncio.sleep(10)
                (await governor.ticket(pacing).admit(5.0)).succeeded({}, None)
            (await ticket.admit(5.0)).release()

        simulate(main())

    def test_continues_when_a_probe_is_neither_refused_nor_answered(self) -> None:
        async def main() -> float:
            governor, pacing = Governor(), Pacing()
            await refuse_everything(governor, pacing)
            began = clock()
            await asyncio.gather(*(governor.ticket(pacing).admit(60.0) for _ in range(50)))
            return clock() - began

        assert 1.5 < simulate(main()) < 3.0  # a pause of 0.5 s, 1 s for the probe, and a ramp

    def test_does_not_end_by_a_slow_limit_that_is_kept(self) -> None:
        done = run(
            Server(),
            items=100,
            pacing=Pacing(rate_limit=RateLimit(requests_per_minute=6)),
            patience=5.0,
        )

        assert done.outcomes == {"answered": 100}

    def test_does_not_end_by_slow_answers_after_one_refusal(self) -> None:
        async def main() -> list[str]:
            governor, pacing, rng = Governor(), Pacing(10), random.Random(1)
            server = Server(latency=(100.0, 200.0))
            began = clock()
            server.status = lambda at: 429 if len(server.arrived) == 3 else None
            outcomes = await asyncio.gather(
                *(call(governor, pacing, server, rng, patience=20.0) for _ in range(50))
            )
            assert clock() - began > 500
            return outcomes

        assert simulate(main()) == ["answered"] * 50

    @pytest.mark.parametrize("share", [0.0, 0.3])
    def test_one_retry_after_of_an_hour_stops_no_other_call(self, share: float) -> None:
        # The first call gets a Retry-After of an hour, and so do others now and then.
        server = Server(retry_after=3600.0)
        rng = random.Random(2)
        server.status = lambda at: (
            429 if len(server.arrived) == 1 or (rng.random() < share and at < 1060.0) else None
        )

        async def main() -> float:
            governor, pacing = Governor(), Pacing()
            began = clock()
            for _ in range(3):
                task = asyncio.create_task(call(governor, pacing, server, rng, patience=1e9))
                await asyncio.sleep(0.5)
                task.cancel()
            others = [call(governor, pacing, Server(), rng) for _ in range(50)]
            assert set(await asyncio.gather(*others)) == {"answered"}
            return clock() - began

        assert simulate(main()) < 15

    def test_pauses_all_together_and_resumes_spread_out(self) -> None:
        server = Server(status=between(3, 8, 429), retry_after=5.0, way=0.0)

        done = run(server, items=6000, seed=3)

        start = done.began
        assert len([at for at in server.arrived if start + 4 < at < start + 8]) <= 1
        after = [at for at in server.accepted if at > start + 8]
        assert after[0] < start + 9.5
        assert most_in([at for at in after if at < after[0] + 1], 0.1) < 0.3 * 100 / 0.275


class TestQueue:
    def test_is_first_come_first_served_except_for_retries(self) -> None:
        async def main() -> list[str]:
            governor, pacing = Governor(), Pacing(1)
            first = governor.ticket(pacing)
            permit = await first.admit(60.0)
            order: list[str] = []

            async def wait(name: str, ticket: Ticket) -> None:
                permit = await ticket.admit(60.0)
                order.append(name)
                permit.succeeded({}, None)

            tasks = [
                asyncio.create_task(wait(str(number), governor.ticket(pacing)))
                for number in range(3)
            ]
            await settle_down()
            again = asyncio.create_task(wait("again", first))
            await settle_down()
            permit.failed(ServerError(500), unreachable=False)
            await asyncio.gather(again, *tasks)
            return order

        assert simulate(main()) == ["again", "0", "1", "2"]

    @pytest.mark.parametrize("state", ["waiting", "granted", "held", "rate"])
    def test_loses_no_permit_to_a_cancelled_ticket(self, state: str) -> None:
        async def main() -> None:
            limit = RateLimit(requests_per_minute=60) if state == "rate" else None
            governor, pacing = Governor(), Pacing(1, limit)
            permit = await governor.ticket(pacing).admit(60.0)
            if state == "held":
                permit.release()
                await refuse_everything(governor, pacing)
            elif state == "rate":
                permit.release()
            victims = [asyncio.create_task(governor.ticket(pacing).admit(60.0)) for _ in range(3)]
            heir = asyncio.create_task(governor.ticket(pacing).admit(60.0))
            await settle_down()
            assert governor.waiting == 4
            if state == "granted":
                permit.release()  # the first victim has a permit, but has not run yet
            for victim in victims:
                victim.cancel()
            await asyncio.gather(*victims, return_exceptions=True)
            assert all(victim.cancelled() for victim in victims)
            if state == "waiting":
                assert (governor.waiting, governor.in_flight) == (1, 1)
                permit.release()
            (await heir).release()
            assert (governor.waiting, governor.in_flight) == (0, 0)

        simulate(main())

    def test_probes_with_another_when_the_probe_is_cancelled(self) -> None:
        async def main() -> float:
            governor, pacing = Governor(), Pacing()
            await refuse_everything(governor, pacing)
            tasks = [asyncio.create_task(governor.ticket(pacing).admit(60.0)) for _ in range(2)]
            probe = await tasks[0]
            assert governor.waiting == 1
            assert not probe.is_probe, "only an outage makes probes, not refusals"
            began = clock()
            probe.release()
            await tasks[1]
            return clock() - began

        assert simulate(main()) < 0.01

    def test_raises_when_a_permit_is_given_back_twice(self) -> None:
        async def main() -> Governor:
            governor = Governor()
            permit = await governor.ticket(Pacing()).admit(60.0)
            permit.succeeded({}, None)
            permit.release()
            with pytest.raises(RuntimeError, match="given back twice"):
                permit.failed(ServerError(500), unreachable=False)
            return governor

        assert simulate(main()).in_flight == 0

    def test_counts_the_seconds_waited(self) -> None:
        async def main() -> float:
            governor, pacing = Governor(), Pacing(1)
            permit = await governor.ticket(pacing).admit(60.0)
            ticket = governor.ticket(pacing)
            task = asyncio.create_task(ticket.admit(60.0))
            await asyncio.sleep(7)
            permit.release()
            (await task).release()
            return ticket.waited

        assert simulate(main()) == pytest.approx(7.0)

    @pytest.mark.serial
    def test_costs_as_much_per_call_with_10_000_waiting_as_with_100(self) -> None:
        async def seconds_per_call(waiting: int) -> float:
            governor, pacing = Governor(), Pacing(64)
            held = [await governor.ticket(pacing).admit(60.0) for _ in range(64)]
            queue = [
                asyncio.create_task(governor.ticket(pacing).admit(60.0)) for _ in range(waiting)
            ]
            await settle_down()
            began = time.thread_time()
            rounds = 30
            for _ in range(rounds):
                for permit in held:
                    permit.succeeded({}, None)
                await settle_down()
                held, queue = [task.result() for task in queue[:64]], queue[64:]
                queue += [
                    asyncio.create_task(governor.ticket(pacing).admit(60.0)) for _ in range(64)
                ]
                await settle_down()
            seconds = time.thread_time() - began
            for task in queue:
                task.cancel()
            await asyncio.gather(*queue, return_exceptions=True)
            assert (governor.waiting, governor.in_flight) == (0, 64)
            return seconds / (rounds * 64)

        few = many = math.inf
        for _ in range(10):  # compare minima, which other load on the machine hardly changes
            few = min(few, simulate(seconds_per_call(100)))
            many = min(many, simulate(seconds_per_call(10_000)))
            if many < 2 * few:
                break
        assert many < 4 * few


class TestPacings:
    def test_uses_the_lowest_limits_of_the_live_pacings(self) -> None:
        async def main() -> None:
            governor = Governor()
            wide, narrow = Pacing(100), Pacing(10, RateLimit(60), adaptive=False)
            governor.ticket(wide)
            assert (governor.limit, governor.rate) == (100, None)
            governor.ticket(narrow)
            assert (governor.limit, governor.rate) == (10, 1.0)
            del narrow
            gc.collect()
            (await governor.ticket(wide).admit(1.0)).release()
            assert (governor.limit, governor.rate) == (100, None)

        simulate(main())

    def test_learns_nothing_when_not_adaptive(self) -> None:
        async def main() -> None:
            governor, pacing = Governor(), Pacing(10, adaptive=False)
            headers = {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"}
            for _ in range(50):
                (await governor.ticket(pacing).admit(1e9)).refused(ServerError(429), headers, 9.0)
                (await governor.ticket(pacing).admit(1e9)).overloaded(ServerError(503), {}, 9.0)
            assert (governor.limit, governor.rate) == (10, None)
            assert clock() == VirtualSelector.now

        simulate(main())

    def test_keeps_each_limit_of_two_models_and_two_engines(self) -> None:
        async def main() -> None:
            rng = random.Random(1)
            servers = [Server(Account(1200, 20), seed=1), Server(Account(300, 5), seed=2)]
            governors = [Governor("large"), Governor("small")]
            engines = [Pacing(), Pacing()]
            began = clock()
            done = await asyncio.gather(
                *(
                    run_items(
                        items,
                        50,
                        lambda _, g=g, e=e, s=s: call(g, e, s, rng),  # type: ignore[misc]
                    )
                    for g, s, items in zip(governors, servers, [300, 75], strict=True)
                    for e in engines
                )
            )
            assert [outcomes for outcomes, _ in done] == [
                {"answered": 300},
                {"answered": 300},
                {"answered": 75},
                {"answered": 75},
            ]
            for server in servers:
                assert server.use(began + 3, began + 20) > 0.97
                assert server.refused_share(began + 3, clock()) < 0.01

        simulate(main())
