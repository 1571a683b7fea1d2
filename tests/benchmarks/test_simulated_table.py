"""The governor keeps its targets against simulated servers: what `bench pace --simulate` prints.

Minutes in place of hours, and seeds that the controller's numbers were not chosen with.
"""

from __future__ import annotations

from statistics import mean

import pytest

from benchmarks.pace_simulation import Behaviour, Load, simulate
from benchmarks.pace_table import (
    CELLS,
    RANDOM_LOADS,
    RANDOM_SHARES,
    Cell,
    main,
    recovery_times,
    slowdown,
)

SEED = 21

SECONDS = 150.0

SHARED = ("two processes", "four processes")
"""Cells whose governors share a limit and miss the target of 4 % 429s: see docs/pacing.md."""


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
@pytest.mark.slow
def test_a_server_is_used_and_little_is_refused(cell: Cell) -> None:
    seeds = range(SEED, SEED + 3) if cell.behaviour.neighbour else (SEED,)
    outcomes = [cell.run(SECONDS, seed) for seed in seeds]

    assert mean(outcome.used for outcome in outcomes) > cell.least_used - 0.03
    most = 0.45 if cell.name.startswith(SHARED) else 1.25 * cell.most_refused
    assert mean(outcome.refused for outcome in outcomes) < most
    is_daily = cell.behaviour.daily is not None
    assert any(outcome.lost for outcome in outcomes) == is_daily


@pytest.mark.parametrize("share", RANDOM_SHARES)
@pytest.mark.parametrize(("workers", "latency"), RANDOM_LOADS)
@pytest.mark.slow
def test_random_refusals_slow_nothing_down(share: float, workers: int, latency: float) -> None:
    behaviour = Behaviour(latency, refused_at_random=share, retry_after=0.1)
    seconds = 60.0 if workers / latency < 200 else 15.0

    assert slowdown(behaviour, Load(workers), seconds, SEED) < 1.25
    # One run of three seconds in fifty takes twice as long.
    short = [slowdown(behaviour, Load(workers), 3.0, seed) for seed in range(SEED, SEED + 4)]
    assert mean(short) < 1.6


@pytest.mark.slow
def test_a_server_that_turns_into_another_is_soon_used_again() -> None:
    late = {
        name: seconds
        for name, seconds in recovery_times(seed=SEED)
        if seconds > (120 if name.startswith("3%") else 90)
    }

    assert late == {}


def test_headers_that_others_drain_are_used_in_full() -> None:
    behaviour = Behaviour(0.3, per_minute=1200, headers="honest")

    run = simulate(behaviour, Load(25, 4), SECONDS, SEED)

    assert run.rate(10, SECONDS) > 0.95 * 20
    assert run.refused_share(10, SECONDS) < 0.39  # as it was when headers alone were followed


def test_a_simulation_is_repeated_exactly() -> None:
    runs = [simulate(Behaviour(per_minute=1200), Load(20), 30.0, 5) for _ in range(2)]

    assert runs[0].answered == runs[1].answered
    assert runs[0].sent == runs[1].sent


def test_pacing_is_what_keeps_the_limit() -> None:
    plain = simulate(Behaviour(0.05, per_minute=1200), Load(50, adaptive=False), 30.0, SEED)

    assert plain.refused_share(3, 30) > 0.5


def test_the_table_has_a_line_for_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.pace_table.CELLS", CELLS[4:6])
    monkeypatch.setattr("benchmarks.pace_table.RANDOM_SHARES", (0.1,))
    monkeypatch.setattr("benchmarks.pace_table.RANDOM_LOADS", ((1, 2.0),))
    monkeypatch.setattr("benchmarks.pace_table.SEEDS", (1,))
    monkeypatch.setattr("benchmarks.pace_table.recovery_times", lambda **_: [("it", 5.0)])
    lines: list[str] = []

    assert main(lines.append, 20.0) == 0

    assert [line.split("|")[1].strip() for line in lines if "a minute |" in line] == [
        cell.name for cell in CELLS[4:6]
    ]
