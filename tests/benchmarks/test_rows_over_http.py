"""Rows of the simulated table over real HTTP: the simulation and the controller have one author.

The server behaves as a simulated one does, but answers over loopback and in real time; three cells
of a row run side by side. What would show a failure: a controller that meets its targets only where
the network, the clock and the retries are simulated.

The bounds are below the table's targets. On a busy machine three cells used 73 to 78 % where the
simulation uses 93 % and more; a controller that takes one kind of server for another uses far less.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from benchmarks.pace_simulation import Behaviour, SimulatedServer
from gptx_async import clock
from gptx_async.testing import FakeOpenAI, HTTPFault
from gptx_async.testing.replies import RecordedRequest
from support.pacing_engines import arguments, errors_of, make_engine

pytestmark = [pytest.mark.long, pytest.mark.serial]

CELLS = 3
SEEDS = (41, 42, 43)


class RealTime:
    """A simulated server as the `latency` and the `faults` of a `FakeOpenAI`, on whose loop it is.

    Args:
        phases: What the server does, each with the second from which on.
        seed: Of everything that is random.
    """

    def __init__(self, phases: Sequence[tuple[float, Behaviour]], seed: int) -> None:
        self.server = SimulatedServer(phases, seed)
        self.began: float | None = None
        self._ends: list[float] = []
        self._fault: HTTPFault | None = None

    def latency(self, request: RecordedRequest) -> float:
        """Decide on a request; `FakeOpenAI` asks for its fault next, before any other request."""
        if self.began is None:
            self.began = request.arrived
        now = request.arrived - self.began
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        self.server.busy = len(self._ends)
        status, retry_after, headers, seconds = self.server.take(1.0, now)
        milliseconds = None if retry_after is None else 1000 * retry_after
        self._fault = HTTPFault(status, retry_after_ms=milliseconds, headers=headers)
        if status == 200:
            self._fault = None
            heapq.heappush(self._ends, now + seconds)
        return seconds

    def faults(self, _request: RecordedRequest) -> HTTPFault | None:
        return self._fault


def run(
    phases: Sequence[tuple[float, Behaviour]], workers: int, calls: int, seed: int
) -> tuple[FakeOpenAI, RealTime]:
    """Make so many calls, so many at once, and check that each is answered."""
    server = RealTime(phases, seed)
    with FakeOpenAI(latency=server.latency, faults=server.faults) as fake:
        engine = make_engine(window=workers, max_concurrency=workers)
        engine.client.base_url = fake.base_url
        assert errors_of(engine.forward(arguments(calls))) == [None] * calls
    return fake, server


def shares(fake: FakeOpenAI, server: RealTime, since: float, until: float) -> tuple[float, float]:
    """Return the answers per second, and the share of requests refused, between two seconds."""
    assert server.began is not None
    start, end = server.began + since, server.began + until
    assert clock.seconds() > end, "the calls have to last for longer than is measured"
    counted = [each.status for each in fake.answers if start <= each.at < end]
    answered = sum(status == 200 for status in counted)
    return answered / (until - since), counted.count(429) / len(counted)


def cells(
    behaviours: Sequence[Behaviour], workers: int, calls: int, since: float, until: float
) -> list[tuple[float, float]]:
    """Run three cells side by side; return answers per second and refused share of each."""
    assert len(behaviours) == CELLS

    def cell(behaviour: Behaviour, seed: int) -> tuple[float, float]:
        fake, server = run([(0.0, behaviour)], workers, calls, seed)
        return shares(fake, server, since, until)

    with ThreadPoolExecutor(CELLS) as pool:
        return list(pool.map(cell, behaviours, SEEDS))


HONEST = Behaviour(0.3, per_minute=1200)


@pytest.mark.parametrize(
    ("behaviours", "workers", "calls", "since", "least_used", "most_refused"),
    [
        (
            [HONEST, replace(HONEST, retry_after="whole"), replace(HONEST, retry_after=None)],
            *(50, 900, 3.0, 0.92, 0.07),
        ),
        ([Behaviour(2.0, per_minute=1200, slow_refusals=True)] * 3, 150, 1300, 20.0, 0.65, 0.15),
    ],
    ids=["honest bucket", "refusals as slow as answers"],
)
def test_a_limit_is_used_and_seldom_exceeded(
    behaviours: Sequence[Behaviour],
    workers: int,
    calls: int,
    since: float,
    least_used: float,
    most_refused: float,
) -> None:
    # The last calls leave the server idle: it is looked at until just before.
    until = 0.9 * calls / 20
    for behaviour, (rate, refused) in zip(
        behaviours, cells(behaviours, workers, calls, since, until), strict=True
    ):
        assert rate > least_used * 20, behaviour
        assert refused < most_refused, behaviour


def test_a_limited_concurrency_is_found() -> None:
    crowded = Behaviour(1.0, most_at_once=20)
    behaviours = [replace(crowded, retry_after=each) for each in ("whole", 0.5, 1.0)]
    for behaviour, (rate, refused) in zip(
        behaviours, cells(behaviours, 100, 1000, 20.0, 45.0), strict=True
    ):
        assert rate > 0.65 * 20, behaviour
        assert refused < 0.09, behaviour


def test_a_neighbour_on_the_same_limit_is_left_its_share() -> None:
    neighbour = Behaviour(0.5, per_minute=1200, neighbour=True)

    def cell(seed: int) -> tuple[float, float]:
        fake, server = run([(0.0, neighbour)], 50, 1000, seed)
        assert server.began is not None
        until = 0.9 * (fake.answers[-1].at - server.began)
        rate, refused = shares(fake, server, 3.0, until)
        [(_, _, simulated)] = server.server.neighbours
        return rate / (20 * simulated.left(3.0, until)), refused

    with ThreadPoolExecutor(CELLS) as pool:
        for used, refused in pool.map(cell, SEEDS):
            assert used > 0.82
            assert refused < 0.1


def test_the_pace_follows_a_server_that_turns_into_another() -> None:
    """From random refusals to a bucket, and from a bucket or a limited concurrency to random."""
    random = Behaviour(0.5, refused_at_random=0.2, retry_after=0.5)
    crowded = Behaviour(1.0, most_at_once=20, retry_after="whole")
    turns = [(random, HONEST, 20.0), (HONEST, random, 60.0), (crowded, random, 60.0)]
    at, recovered, end = 30.0, 90.0, 110.0

    def cell(turn: tuple[Behaviour, Behaviour, float], seed: int) -> float:
        first, second, ideal = turn
        calls = int(80 * at + ideal * 1.3 * (end - at))
        fake, server = run([(0.0, first), (at, second)], 50, calls, seed)
        return shares(fake, server, recovered, end)[0] / ideal

    with ThreadPoolExecutor(CELLS) as pool:
        for turn, used in zip(turns, pool.map(cell, turns, SEEDS), strict=True):
            assert used > 0.65, turn
