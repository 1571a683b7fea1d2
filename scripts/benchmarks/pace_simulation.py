"""`scripts/bench pace --simulate`: the real `Governor` against simulated servers, in virtual time.

Callers want more than they get, as in a long run: each worker starts its next call when the last
has ended. What is simulated is the network, the server and the clock; admissions, holds and
everything learned are the governor's own, and the waits between two attempts follow the same rules
as `gptx_async/retry.py`. An hour takes seconds, and a seed repeats a run exactly.

Everything here runs on the calling thread, which must not have a running event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptx_async.pacing.governor import Governor
from gptx_async.pacing.queue import StarvedError
from gptx_async.pacing.settings import Pacing

__all__ = ["Behaviour", "Figures", "Load", "SimulatedServer", "VirtualLoop", "simulate"]

WAY = (0.002, 0.022)
"""The least and the most seconds of a request's way to the server: requests overtake each other."""

QUICK_REFUSAL = 0.04
"""Mean seconds until a refusal, unless refusals are as slow as answers."""

NEIGHBOUR_MINUTE = 60.0
"""Seconds for which the neighbour wants the same share of the limit."""

NEIGHBOUR_MOST = 0.8
"""The largest share of the limit that the neighbour takes."""

FIRST_WAIT, LONGEST_WAIT, JITTER = 0.5, 8.0, 0.25
"""The waits between two attempts, as in `gptx_async/calls/retry.py`."""

RETRIES = 2
"""Attempts of a call after failures other than 429: the engines' default."""


class _Timer:
    """A scheduled callback, with the part of `asyncio.TimerHandle` that the governor uses."""

    __slots__ = ("_when", "arguments", "callback")

    def __init__(self, when: float, callback: Callable[..., object] | None, arguments: Any) -> None:
        self._when = when
        self.callback = callback
        self.arguments = arguments

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.callback = None


class VirtualLoop:
    """An event loop without input and output, whose clock jumps to the next timer.

    It has only what tasks, futures, `asyncio.sleep` and the governor call, and so is several times
    as fast as one of asyncio's.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._error: BaseException | None = None
        self._itself: Any = self  # where an event loop is expected

    def time(self) -> float:
        """Return the time in seconds, from 0."""
        return self.now

    def call_soon(self, callback: Any, *arguments: Any, context: Any = None) -> None:  # noqa: ARG002
        """Call a callback before the clock advances."""
        self._ready.append((callback, arguments))

    def call_later(self, delay: float, callback: Any, *arguments: Any, context: Any = None) -> Any:
        """Call a callback after so many seconds."""
        return self.call_at(self.now + delay, callback, *arguments, context=context)

    def call_at(
        self,
        when: float,
        callback: Any,
        *arguments: Any,
        context: Any = None,  # noqa: ARG002
    ) -> Any:
        """Call a callback at a time."""
        timer = _Timer(when, callback, arguments)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self._itself)

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this loop."""
        return asyncio.Task(coroutine, loop=self._itself)

    def get_debug(self) -> bool:
        """Return False."""
        return False

    def is_running(self) -> bool:
        """Return True."""
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run with an error that no task has awaited."""
        self._error = context.get("exception") or RuntimeError(context["message"])

    def run(self, coroutine: Coroutine[Any, Any, Any], until: float = math.inf) -> None:
        """Run until the coroutine ends, or until a time on the loop's clock.

        Args:
            coroutine: What to run.
            until: The time at which to stop; whatever is unfinished then is dropped.

        Raises:
            RuntimeError: Something waits that nothing will ever wake.
        """
        asyncio.events._set_running_loop(self._itself)
        try:
            task = self.create_task(coroutine)
            while self._error is None and self.now < until:
                self._run_ready()
                if task.done():
                    break
                self._advance()
            if self._error is not None:
                raise self._error
            if task.done():
                task.result()
        finally:
            self._drop_all()
            asyncio.events._set_running_loop(None)

    def _run_ready(self) -> None:
        while self._ready:
            callback, arguments = self._ready.popleft()
            callback(*arguments)

    def _advance(self) -> None:
        if not self._timers:
            raise RuntimeError("Something waits that nothing will ever wake.")
        when, _, timer = heapq.heappop(self._timers)
        if timer.callback is not None:
            self.now = max(self.now, when)
            timer.callback(*timer.arguments)

    def _drop_all(self) -> None:
        """Cancel the remaining tasks without warnings."""
        self._timers.clear()
        self._ready.clear()
        for task in asyncio.all_tasks(self._itself):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.get_coro().close()


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of a simulated server during one phase.

    Attributes:
        latency: Mean seconds until an answer, spread evenly by half to either side.
        refused_at_random: The share of requests that is answered 429 whatever the pace.
        per_minute: What a bucket of requests allows; None for no limit.
        tokens_per_minute: What a bucket of tokens allows; None for no limit.
        burst_seconds: How many seconds of its rate a full bucket holds.
        neighbour: Whether somebody else takes up to 80 % of the bucket first, another share each
            minute.
        most_at_once: How many requests are accepted at once; None for no limit.
        overload_status: How more are answered.
        down: The status of every answer; 0 for no connection, None while the server is up.
        retry_after: What a refusal tells: 'exact', 'whole' seconds, a number of seconds, or None.
        slow_refusals: Whether refusals take as long as answers.
        headers: None for none, 'honest', or 'lying': ten times the limit and always something left.
        daily: How many requests are left for the day; None for no such limit.
    """

    latency: float = 0.5
    refused_at_random: float = 0.0
    per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_seconds: float = 1.0
    neighbour: bool = False
    most_at_once: int | None = None
    overload_status: int = 429
    down: int | None = None
    retry_after: str | float | None = "exact"
    slow_refusals: bool = False
    headers: str | None = None
    daily: int | None = None


class _Bucket:
    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self.level = self.burst
        self.at = now

    def fill(self, now: float) -> None:
        self.level = min(self.burst, self.level + self.rate * (now - self.at))
        self.at = now


class _Neighbour:
    """Another client of the same bucket, which is served first, up to a small debt."""

    def __init__(self, bucket: _Bucket, now: float, rng: random.Random) -> None:
        self._bucket = bucket
        self._rng = rng
        self._change_at = now
        self._next_at = math.inf
        self._share = 0.0
        self.shares: list[tuple[float, float]] = []

    def advance(self, now: float) -> None:
        bucket = self._bucket
        while min(self._change_at, self._next_at) <= now:
            at = min(self._change_at, self._next_at)
            if at == self._change_at:
                self._share = self._rng.uniform(0, NEIGHBOUR_MOST)
                self.shares.append((at, self._share))
                self._change_at += NEIGHBOUR_MINUTE
            else:
                bucket.fill(at)
                debt = -max(2.0, 0.1 * bucket.rate)
                bucket.level = max(bucket.level - 1, min(bucket.level, debt))
            self._next_at = at + self._rng.expovariate(max(1e-9, self._share * bucket.rate))

    def left(self, start: float, end: float) -> float:
        """Return the mean share of the bucket that the neighbour left."""
        ends = [at for at, _ in self.shares[1:]] + [math.inf]
        taken = sum(
            share * max(0.0, min(end, until) - max(start, at))
            for (at, share), until in zip(self.shares, ends, strict=True)
        )
        return 1 - taken / (end - start)


class SimulatedServer:
    """A server that follows its phases one by one.

    Attributes:
        behaviour: What it does now.
        busy: How many requests it works on; lowered by its caller when one is answered.
        neighbours: From when, until when, and who shares its bucket of requests.

    Args:
        phases: What it does, each with the second from which on.
        seed: Of everything that is random.
    """

    def __init__(self, phases: Sequence[tuple[float, Behaviour]], seed: int) -> None:
        self._rng = random.Random(seed)
        self._phases = deque(phases)
        self.busy = 0
        self.neighbours: list[tuple[float, float, _Neighbour]] = []
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        while self._phases and self._phases[0][0] <= now:
            at, self.behaviour = self._phases.popleft()
            does = self.behaviour
            self._requests = self._tokens = self._neighbour = None
            self._left_today = math.inf if does.daily is None else does.daily
            if does.per_minute is not None:
                rate = does.per_minute / 60
                self._requests = _Bucket(rate, rate * does.burst_seconds, at)
                if does.neighbour:
                    self._neighbour = _Neighbour(self._requests, at, self._rng)
                    until = self._phases[0][0] if self._phases else math.inf
                    self.neighbours.append((at, until, self._neighbour))
            if does.tokens_per_minute is not None:
                rate = does.tokens_per_minute / 60
                self._tokens = _Bucket(rate, rate * does.burst_seconds, at)

    _requests: _Bucket | None
    _tokens: _Bucket | None
    _neighbour: _Neighbour | None

    def take(self, tokens: float, now: float) -> tuple[int, float | None, dict[str, str], float]:
        """Return a request's status, Retry-After, headers, and seconds until its answer."""
        self._begin(now)
        does = self.behaviour
        latency = does.latency * self._rng.uniform(0.5, 1.5)
        status, missing = self._decide(tokens, now)
        headers = self._headers()
        if status == 200:
            self.busy += 1
            return status, None, headers, latency
        if not does.slow_refusals:
            latency = min(does.latency, QUICK_REFUSAL) * self._rng.uniform(0.5, 1.5)
        retry_after: float | None = None
        if isinstance(does.retry_after, (int, float)):
            retry_after = float(does.retry_after)
        elif does.retry_after == "exact":
            retry_after = missing
        elif does.retry_after == "whole":
            retry_after = float(max(1, math.ceil(missing)))
        return status, retry_after, headers, latency

    def _decide(self, tokens: float, now: float) -> tuple[int, float]:
        """Return the status, and the seconds until the bucket has room."""
        does = self.behaviour
        if self._neighbour is not None:
            self._neighbour.advance(now)
        if does.down is not None:
            return does.down, 1.0
        if does.refused_at_random and self._rng.random() < does.refused_at_random:
            return 429, 0.1
        if does.most_at_once is not None and self.busy >= does.most_at_once:
            return does.overload_status, 0.1
        if self._left_today < 1:
            return 429, 3600.0
        costs = [(self._requests, 1.0), (self._tokens, tokens)]
        missing = 0.0
        for bucket, cost in costs:
            if bucket is not None:
                bucket.fill(now)
                missing = max(missing, (cost - bucket.level) / bucket.rate)
        if missing > 1e-9:
            return 429, missing
        for bucket, cost in costs:
            if bucket is not None:
                bucket.level -= cost
        self._left_today -= 1
        return 200, 0.0

    def _headers(self) -> dict[str, str]:
        does = self.behaviour
        if does.headers is None:
            return {}
        headers = {}
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                limit, left = bucket.rate * 60, math.floor(max(0.0, bucket.level))
                reset = (bucket.burst - bucket.level) / bucket.rate
                if does.headers == "lying":
                    limit, left, reset = 10 * limit, math.floor(5 * limit), 1.0
                headers[f"x-ratelimit-limit-{kind}"] = f"{limit:.0f}"
                headers[f"x-ratelimit-remaining-{kind}"] = f"{left}"
                headers[f"x-ratelimit-reset-{kind}"] = f"{reset:.3f}s"
        return headers


@dataclass(frozen=True)
class Load:
    """The callers of the server.

    Attributes:
        workers: How many calls there are at once, in each process.
        processes: How many processes, each with a governor of its own.
        adaptive: The engines' option: without it, nothing is learned.
        items: How many calls in all; None for as many as the time allows.
        tokens: Between which numbers the tokens of a call lie.
        patience: The engines' `rate_limit_patience`, in seconds.
    """

    workers: int = 100
    processes: int = 1
    adaptive: bool = True
    items: int | None = None
    tokens: tuple[int, int] = (0, 0)
    patience: float = 300.0


@dataclass
class Figures:
    """The outcome of a simulation, by the second.

    Attributes:
        sent: How many requests were sent, by the second of their sending.
        refused: How many of those were answered 429.
        answered: How many answers arrived, by the second of their arrival.
        by_process: How many answers each process got.
        tokens: The tokens of the accepted requests, by the second of the answer.
        longest_wait: The longest time from a call's beginning to its answer, in seconds.
        lost: How many calls ended without an answer.
        latest_end: The longest that a call without an answer took, in seconds.
        ended_at: When the last answer arrived.
    """

    sent: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    by_process: Counter[int] = field(default_factory=Counter)
    longest_wait: float = 0.0
    lost: int = 0
    latest_end: float = 0.0
    ended_at: float = 0.0
    neighbours: list[tuple[float, float, _Neighbour]] = field(default_factory=list)

    def rate(self, start: float, end: float, what: Counter[int] | None = None) -> float:
        """Return the mean number of answers (or other counted things) a second."""
        return _within(self.answered if what is None else what, start, end) / (end - start)

    def refused_share(self, start: float, end: float) -> float:
        """Return the share of the requests sent in this time that was answered 429."""
        return _within(self.refused, start, end) / max(1, _within(self.sent, start, end))

    def left_by_neighbour(self, start: float, end: float) -> float:
        """Return the mean share of the bucket that the neighbour left."""
        for begins, ends, neighbour in self.neighbours:
            if begins <= start < ends:
                return neighbour.left(start, end)
        return 1.0


def _within(counts: Counter[int], start: float, end: float) -> int:
    return sum(counts[second] for second in range(int(start), int(end)))


class _Simulation:
    def __init__(self, phases: Sequence[tuple[float, Behaviour]], load: Load, seed: int) -> None:
        self.loop = VirtualLoop()
        self.server = SimulatedServer(phases, seed)
        self.load = load
        self.figures = Figures(neighbours=self.server.neighbours)
        self.governors: list[Governor] = []
        self._rng = random.Random(seed + 1)
        self._seed = seed
        self._items: Iterator[int] = iter(
            itertools.count() if load.items is None else range(load.items)
        )

    async def run(self) -> None:
        tasks = []
        for process in range(self.load.processes):
            governor = Governor(rng=random.Random(self._seed + 2 + process))
            self.governors.append(governor)
            pacing = Pacing(max(256, self.load.workers), adaptive=self.load.adaptive)
            tasks += [
                self.loop.create_task(self._work(process, governor, pacing))
                for _ in range(self.load.workers)
            ]
        for task in tasks:
            await task

    async def _work(self, process: int, governor: Governor, pacing: Pacing) -> None:
        figures, loop = self.figures, self.loop
        for _ in self._items:
            tokens = self._rng.randint(*self.load.tokens)
            began = loop.now
            ticket = governor.ticket(pacing, tokens, 0)
            try:
                answered = await self._call(ticket, tokens)
            finally:
                ticket.close()
            took = loop.now - began
            if answered:
                figures.answered[int(loop.now)] += 1
                figures.tokens[int(loop.now)] += tokens
                figures.by_process[process] += 1
                figures.longest_wait = max(figures.longest_wait, took)
                figures.ended_at = loop.now
            else:
                figures.lost += 1
                figures.latest_end = max(figures.latest_end, took)

    async def _call(self, ticket: Any, tokens: float) -> bool:
        """Make a call with all its attempts; return whether it was answered."""
        figures, loop, rng = self.figures, self.loop, self._rng
        retries, refusals, first_refusal = RETRIES, 0, math.inf
        while True:
            left = self.load.patience - max(0.0, loop.now - first_refusal)
            try:
                permit = await ticket.admit(max(0.0, left))
            except StarvedError:
                return False
            sent = int(loop.now)
            figures.sent[sent] += 1
            await asyncio.sleep(rng.uniform(*WAY))
            status, retry_after, headers, latency = self.server.take(tokens, loop.now)
            await asyncio.sleep(latency)
            if status == 200:
                self.server.busy -= 1
                permit.succeeded(headers, tokens)
                return True
            error = ConnectionError(status)
            if status == 429:
                figures.refused[sent] += 1
                first_refusal = min(first_refusal, loop.now)
                permit.refused(error, headers, retry_after)
            else:
                if status in (503, 529):
                    permit.overloaded(error, headers, retry_after)
                else:
                    permit.failed(error, unreachable=True)
                retries -= not permit.is_probe
            refusals += 1
            wait = retry_after
            if wait is None:
                wait = min(FIRST_WAIT * 2 ** min(refusals - 1, 16), LONGEST_WAIT)
            wait *= 1 + JITTER * rng.random()
            if retries < 0 or wait > self.load.patience - (loop.now - first_refusal):
                return False
            await asyncio.sleep(wait)


def simulate(
    phases: Behaviour | Sequence[tuple[float, Behaviour]],
    load: Load,
    seconds: float = math.inf,
    seed: int = 1,
) -> Figures:
    """Run a load against a server in virtual time.

    Args:
        phases: What the server does; or from which second on it does what, from 0.
        load: Who calls it.
        seconds: How long; by default until all items are answered.
        seed: Of everything that is random; the governors' jitter included.
    """
    if isinstance(phases, Behaviour):
        phases = [(0.0, phases)]
    simulation = _Simulation(phases, load, seed)
    simulation.loop.run(simulation.run(), seconds)
    return simulation.figures
