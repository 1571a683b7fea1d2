"""The table of `scripts/bench pace --simulate`: which servers are simulated, and the targets.

Used is the share of the ideal: of what the limit, or the neighbour on it, leaves; of what so many
calls at once can get; or of the time that the same calls take with `adaptive=False`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .pace_simulation import WAY, Behaviour, Figures, Load, simulate

__all__ = ["CELLS", "SWITCHES", "Cell", "Outcome", "main", "recovery_times", "slowdown"]

SEEDS = (11, 12, 13)
"""The seeds of the table. The controller's numbers were chosen with 1 to 6."""

HOUR = 3600.0

RECOVERY_WINDOW = 30
"""Seconds over which throughput is compared with the ideal after a switch."""


@dataclass(frozen=True)
class Outcome:
    """The result of one simulation.

    Attributes:
        used: The share of the ideal throughput.
        refused: The share of the requests that was answered 429.
        longest_wait: The longest time from a call's beginning to its answer, in seconds.
        fairness: The answers of the process with the fewest, as a share of those with the most.
        lost: How many calls ended without an answer.
    """

    used: float
    refused: float
    longest_wait: float
    fairness: float
    lost: int


@dataclass(frozen=True)
class Cell:
    """A server, a load, and the targets for the governor.

    Attributes:
        name: What the table calls it.
        behaviour: What the server does.
        load: Who calls it.
        since: From which second on figures are taken.
        least_used: The target: so much of the ideal throughput at least.
        most_refused: The target: such a share of 429s at most.
    """

    name: str
    behaviour: Behaviour
    load: Load = field(default_factory=Load)
    since: int = 3
    least_used: float = 0.97
    most_refused: float = 0.04

    def run(self, seconds: float, seed: int) -> Outcome:
        """Simulate the cell for so many seconds."""
        figures = simulate(self.behaviour, self.load, seconds, seed)
        counted = figures.answered
        if self.behaviour.per_minute is None and self.behaviour.tokens_per_minute is not None:
            counted = figures.tokens
        used = figures.rate(self.since, seconds, counted) / ideal(
            self.behaviour, self.load, figures, self.since, seconds
        )
        answers = [figures.by_process[process] for process in range(self.load.processes)]
        return Outcome(
            used,
            figures.refused_share(self.since, seconds),
            figures.longest_wait,
            min(answers) / max(1, *answers),
            figures.lost,
        )


def ideal(behaviour: Behaviour, load: Load, figures: Figures, start: float, end: float) -> float:
    """Return the highest possible number of answers (or limited tokens) a second."""
    way = sum(WAY) / 2
    if behaviour.daily is not None:
        return behaviour.daily / (end - start)
    if behaviour.per_minute is not None:
        return behaviour.per_minute / 60 * figures.left_by_neighbour(start, end)
    if behaviour.tokens_per_minute is not None:
        return behaviour.tokens_per_minute / 60
    if behaviour.most_at_once is not None:
        return behaviour.most_at_once / (behaviour.latency + way)
    # On average a refused call waits 52 ms for its refusal, and then 1.125 times its Retry-After.
    share = behaviour.refused_at_random
    retry_after = behaviour.retry_after if isinstance(behaviour.retry_after, float) else 0.1
    again = share / (1 - share) * (1.125 * retry_after + 0.04 + way)
    return load.workers * load.processes / (behaviour.latency + way + again)


def slowdown(behaviour: Behaviour, load: Load, seconds: float, seed: int) -> float:
    """Return the time that calls take, as a multiple of that with `adaptive=False`.

    Args:
        behaviour: What the server does.
        load: Who calls it.
        seconds: For how long the calls keep it busy without any pacing.
        seed: Of everything that is random.
    """
    unpaced = replace(load, adaptive=False)
    items = max(1, simulate(behaviour, unpaced, seconds, seed).answered.total())
    plain = simulate(behaviour, replace(unpaced, items=items), seed=seed).ended_at
    paced = simulate(behaviour, replace(load, items=items), 20 * seconds, seed)
    return paced.ended_at / plain if paced.answered.total() == items else float("inf")


def _random(share: float, latency: float, retry_after: float = 0.1) -> Behaviour:
    return Behaviour(latency, refused_at_random=share, retry_after=retry_after)


RANDOM_SHARES = (0.01, 0.03, 0.1, 0.2)
RANDOM_LOADS = ((1, 0.05), (32, 0.05), (32, 2.0), (256, 2.0))
"""The number of concurrent calls, and the seconds of an answer."""

CELLS = (
    *(
        Cell(f"{share:.0%} refused at random", _random(share, 0.5), Load(32), 3, 0.8, 1.0)
        for share in RANDOM_SHARES
    ),
    Cell("500 a minute", Behaviour(1.0, per_minute=500)),
    Cell("1,200 a minute", Behaviour(0.3, per_minute=1200)),
    Cell(
        "1,200 a minute, no Retry-After",
        Behaviour(0.3, per_minute=1200, retry_after=None),
        most_refused=0.05,
    ),
    Cell("10,000 a minute", Behaviour(0.3, per_minute=10_000), Load(256)),
    Cell(
        "a minute of 1,200 at once",
        Behaviour(0.3, per_minute=1200, burst_seconds=60.0),
        since=90,
    ),
    Cell(
        "1,000 a day, 1,200 a minute",  # later calls end without an answer
        Behaviour(0.3, per_minute=1200, daily=1000),
        since=0,
        most_refused=0.5,
    ),
    Cell(
        "600,000 tokens a minute",
        Behaviour(0.3, tokens_per_minute=600_000),
        Load(100, tokens=(100, 900)),
    ),
    Cell(
        "requests and tokens",
        Behaviour(0.3, per_minute=1200, tokens_per_minute=900_000),
        Load(100, tokens=(100, 900)),
    ),
    Cell(
        "1,200 a minute, headers",
        Behaviour(0.3, per_minute=1200, headers="honest"),
        most_refused=0.01,
    ),
    Cell("1,200 a minute, lying headers", Behaviour(0.3, per_minute=1200, headers="lying")),
    Cell(
        "1,200 a minute, refused after 2 s",
        Behaviour(2.0, per_minute=1200, slow_refusals=True),
        Load(256),
        20,
        0.85,
        0.1,
    ),
    Cell(
        "neighbour, 500 a minute",
        Behaviour(0.5, per_minute=500, neighbour=True),
        least_used=0.8,
        most_refused=0.09,
    ),
    Cell(
        "neighbour, 1,200 a minute",
        Behaviour(0.5, per_minute=1200, neighbour=True),
        least_used=0.9,
        most_refused=0.06,
    ),
    Cell(
        "neighbour, 10,000 a minute",
        Behaviour(0.5, per_minute=10_000, neighbour=True),
        Load(256),
        least_used=0.9,
        most_refused=0.06,
    ),
    Cell(
        "20 at once, 429 above",
        Behaviour(1.0, most_at_once=20, retry_after="whole"),
        Load(100),
        20,
        0.85,
        0.05,
    ),
    Cell(
        "20 at once, 503 above",
        Behaviour(1.0, most_at_once=20, overload_status=503, retry_after="whole"),
        Load(100),
        20,
        0.85,
        0.05,
    ),
    Cell("two processes, 1,200 a minute", Behaviour(0.3, per_minute=1200), Load(50, 2), 10),
    Cell(
        "two processes, headers",
        Behaviour(0.3, per_minute=1200, headers="honest"),
        Load(50, 2),
        10,
    ),
    Cell("four processes, 1,200 a minute", Behaviour(0.3, per_minute=1200), Load(25, 4), 10),
    Cell(
        "four processes, headers",
        Behaviour(0.3, per_minute=1200, headers="honest"),
        Load(25, 4),
        10,
    ),
)

_RANDOM_20, _RANDOM_3 = _random(0.2, 0.5, 1.0), _random(0.03, 0.5, 1.0)
_BUCKET, _NEIGHBOUR = Behaviour(per_minute=1200), Behaviour(per_minute=1200, neighbour=True)
_FAST_BUCKET = Behaviour(per_minute=10_000, retry_after="whole")
_CROWDED = Behaviour(1.0, most_at_once=20, retry_after="whole")

SWITCHES = (
    ("20% at random", _RANDOM_20),
    ("1,200 a minute", _BUCKET),
    ("20 at once", _CROWDED),
    ("3% at random", _RANDOM_3),
    ("neighbour", _NEIGHBOUR),
    ("20% at random", _RANDOM_20),
    ("20 at once", _CROWDED),
    ("10,000 a minute", _FAST_BUCKET),
    ("1,200 a minute", _BUCKET),
    ("everything refused", Behaviour(down=429, retry_after=None)),
    ("1,200 a minute", _BUCKET),
    ("no connection", Behaviour(down=0)),
    ("20 at once", _CROWDED),
    ("20% at random", _RANDOM_20),
)
"""Named servers that turn into each other."""

SWITCH_SECONDS = 200
OUTAGE_SECONDS = 30


def recovery_times(
    switches: Sequence[tuple[str, Behaviour]] = SWITCHES, seed: int = SEEDS[0]
) -> list[tuple[str, float]]:
    """Return the seconds until each switch is within 10 % of the ideal; inf for never."""
    load, phases, now = Load(100), [], 0.0
    for _, behaviour in switches:
        phases.append((now, behaviour))
        now += SWITCH_SECONDS if behaviour.down is None else OUTAGE_SECONDS
    figures = simulate(phases, load, now, seed)
    times = []
    for (name, behaviour), (start, _) in zip(switches, phases, strict=True):
        if behaviour.down is None:
            times.append((name, _recovery(behaviour, load, figures, int(start))))
    return times


def _recovery(behaviour: Behaviour, load: Load, figures: Figures, start: int) -> float:
    for late in range(0, SWITCH_SECONDS - RECOVERY_WINDOW, 5):
        since = start + late
        until = since + RECOVERY_WINDOW
        if figures.rate(since, until) >= 0.9 * ideal(behaviour, load, figures, since, until):
            return late
    return float("inf")


def main(say: Callable[[str], None] = print, seconds: float = HOUR) -> int:
    """Simulate every cell and print the table; return 0.

    Args:
        say: Prints a line.
        seconds: How long each cell is simulated.
    """
    say("| server | used | worst | 429 | worst | longest wait | fairness | lost | target |")
    say("|---" * 9 + "|")
    for cell in CELLS:
        runs = [cell.run(seconds, seed) for seed in SEEDS]
        used, refused = [run.used for run in runs], [run.refused for run in runs]
        say(
            f"| {cell.name} | {_mean(used):.1%} | {min(used):.1%} "
            f"| {_mean(refused):.1%} | {max(refused):.1%} "
            f"| {max(run.longest_wait for run in runs):.0f} s "
            f"| {min(run.fairness for run in runs):.2f} | {sum(run.lost for run in runs)} "
            f"| {cell.least_used:.0%}, {cell.most_refused:.0%} |"
        )
    say("\n| refused at random | a minute takes, at most | 3 s take, at most | target |")
    say("|---|---|---|---|")
    for share in RANDOM_SHARES:
        worst = [
            max(
                slowdown(_random(share, latency, wait), Load(workers), span, seed)
                for workers, latency in RANDOM_LOADS
                for wait in (0.1, 1.0)
                for seed in SEEDS
            )
            for span in (60.0, 3.0)
        ]
        say(f"| {share:.0%} | {worst[0]:.2f} times | {worst[1]:.2f} times | 1.25, 1.6 |")
    say("\n| server turns into | back within 10 % of the ideal after |")
    say("|---|---|")
    by_seed = [recovery_times(seed=seed) for seed in SEEDS]
    for same in zip(*by_seed, strict=True):
        say(f"| {same[0][0]} | {', '.join(f'{late:.0f}' for _, late in same)} s |")
    return 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
