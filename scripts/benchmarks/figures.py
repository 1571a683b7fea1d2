"""Evaluate the measurements of a run: medians, ranges, ratios, shares and targets.

Rivals are compared within a round. A round measures each rival once within about a minute, so that
other load on the machine slows both sides of a ratio. The report has the median, minimum and
maximum of the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Book", "Growth", "Measured", "Spread", "Target", "cpu_parts", "spread", "targets"]

ENGINE, SYNC, FLOOR = "engine-batch", "gptx-loop", "floor"

EASED = "symbolicai-eased"
"""symbolicai's work with this engine's token cache and engine look-up."""

FLOOR_PARTS = ("symbolicai", "aiohttp")
"""The rivals whose sum is the floor: symbolicai's own work, and HTTP."""


class Spread(NamedTuple):
    """The median, minimum and maximum of a value over the rounds."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float]) -> Spread | None:
    """Return the median, minimum and maximum; None if there are no values."""
    known = [*values]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


@dataclass(frozen=True)
class Measured:
    """The measurement of a rival with a workload in a round.

    Attributes:
        rival: The name of the rival.
        workload: The name of the workload.
        round: The number of the round, from 0.
        calls: How many calls were timed.
        seconds: How long they took.
        cpu: CPU seconds of the rival's process.
        caller_cpu: CPU seconds of the calling thread in that process.
        server_cpu: CPU seconds of the server.
        peak_bytes: The highest increase of the process's resident memory.
        wrong: How many answers were wrong or missing.
    """

    rival: str
    workload: str
    round: int
    calls: int
    seconds: float
    cpu: float
    caller_cpu: float
    server_cpu: float
    peak_bytes: int
    wrong: int

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds

    @property
    def cpu_per_call(self) -> float:
        """CPU microseconds of the rival's process per call."""
        return 1e6 * self.cpu / self.calls

    @property
    def server_share(self) -> float:
        """The share of one core that the server used."""
        return self.server_cpu / self.seconds


@dataclass(frozen=True)
class Growth:
    """The blocks of Python's allocator that a long batch allocates per answer.

    Attributes:
        rising: The increase per answer in the second half of the batch.
        kept: The blocks per answer at the end, while arguments and answers are kept.
        left: The blocks per answer that remain when these are deleted.
    """

    rising: float
    kept: float
    left: float

    @property
    def beyond_answers(self) -> float:
        """The share of the increase that exceeds the memory of the answers."""
        return self.rising / self.kept - 1

    @classmethod
    def of(cls, result: dict[str, Any]) -> Growth:
        """Compute it from the result of `child.grow`. With too few samples the increase is 0."""
        samples = [(answered, blocks) for answered, blocks, _ in result["samples"]]
        half = samples[len(samples) // 2 :]
        answered = half[-1][0] - half[0][0] if half else 0
        rising = (half[-1][1] - half[0][1]) / answered if answered else 0.0
        return cls(rising, result["blocks_kept"], result["blocks_left"])


@dataclass
class Book:
    """The results of a run.

    Attributes:
        measured: The measurements.
        wrongs: One sentence for each wrong answer or failed measurement.
        bytes_per_item: Resident bytes per call in flight, by rival.
        tokenizing: CPU seconds and number of tokenizer calls per item, by rival.
        import_seconds: How long `import gptx_async` takes.
        growth: The growth in a long batch, if one ran.
    """

    measured: list[Measured] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)
    bytes_per_item: dict[str, float] = field(default_factory=dict)
    tokenizing: dict[str, tuple[float, float]] = field(default_factory=dict)
    import_seconds: Spread | None = None
    growth: Growth | None = None

    def rounds(self, rival: str, workload: str) -> dict[int, Measured]:
        """Return the measurements of a rival with a workload, by round."""
        if rival == FLOOR:
            return self._floor(workload)
        return {
            each.round: each
            for each in self.measured
            if each.rival == rival and each.workload == workload
        }

    def _floor(self, workload: str) -> dict[int, Measured]:
        own, http = (self.rounds(rival, workload) for rival in FLOOR_PARTS)
        return {
            number: Measured(
                FLOOR,
                workload,
                number,
                own[number].calls,
                own[number].seconds + http[number].seconds,
                own[number].cpu + http[number].cpu,
                own[number].caller_cpu + http[number].caller_cpu,
                http[number].server_cpu,
                max(own[number].peak_bytes, http[number].peak_bytes),
                own[number].wrong + http[number].wrong,
            )
            for number in own.keys() & http.keys()
        }

    def spread(
        self, rival: str, workload: str, figure: Callable[[Measured], float]
    ) -> Spread | None:
        """Return the spread of a value of a rival with a workload over the rounds."""
        return spread(map(figure, self.rounds(rival, workload).values()))

    def ratio(
        self, rival: str, other: str, workload: str, figure: Callable[[Measured], float]
    ) -> Spread | None:
        """Return the spread of the ratio of two rivals' values, computed in each round."""
        mine, others = self.rounds(rival, workload), self.rounds(other, workload)
        return spread(figure(mine[i]) / figure(others[i]) for i in mine.keys() & others.keys())


@dataclass(frozen=True)
class Target:
    """A row of the table of targets.

    Attributes:
        figure: What is measured.
        limit: The target value.
        measured: The measured value; None if this run did not measure it.
        is_most: Whether the limit is a maximum and not a minimum.
        unit: The unit of both values.
    """

    figure: str
    limit: float
    measured: Spread | None
    is_most: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the target; None if it was not measured."""
        if self.measured is None:
            return None
        median = self.measured.median
        return median <= self.limit if self.is_most else median >= self.limit


def _rate(measured: Measured) -> float:
    return measured.rate


def _seconds_per_call(measured: Measured) -> float:
    return 1 / measured.rate


def targets(book: Book) -> list[Target]:
    """Return the targets with the results of this run."""
    at_512 = "512 in flight"
    return [
        Target(
            "calls/s at 512, against AsyncOpenAI(DefaultAioHttpClient())",
            2.0,
            book.ratio(ENGINE, "sdk-aiohttp", at_512, _rate),
        ),
        Target("the same, against AsyncOpenAI()", 3.5, book.ratio(ENGINE, "sdk", at_512, _rate)),
        Target("the same, against the floor", 0.7, book.ratio(ENGINE, FLOOR, at_512, _rate)),
        Target("CPU per call at 2,048 against 64", 1.25, _cpu_growth(book), is_most=True),
        Target(
            "2,000 calls of 200 ms at 512: time against the ideal", 1.3, _waste(book), is_most=True
        ),
        Target(
            "one call at a time: time against GPTXChatEngine",
            1.0,
            book.ratio("engine-threads", SYNC, "1 in flight", _seconds_per_call),
            is_most=True,
        ),
        Target(
            "8,000 tokens: tokenising against GPTXChatEngine", 0.4, _tokenizing(book), is_most=True
        ),
        Target(
            "resident memory per call in flight", 40.0, _memory(book), is_most=True, unit=" KiB"
        ),
        Target("growth in a batch beyond its answers", 0.05, _growth(book), is_most=True),
        Target("import gptx_async", 0.1, book.import_seconds, is_most=True, unit=" s"),
    ]


def _cpu_growth(book: Book) -> Spread | None:
    few, many = (book.rounds(ENGINE, name) for name in ("64 in flight", "2048 in flight"))
    return spread(many[i].cpu_per_call / few[i].cpu_per_call for i in few.keys() & many.keys())


IDEAL_WAVE, IDEAL_DELAY = 512, 0.2


def _waste(book: Book) -> Spread | None:
    """Compare with the ideal time: waves of 512 calls that take exactly 200 ms each."""
    measured = book.rounds(ENGINE, "200 ms, 512 in flight").values()
    return spread(each.seconds / (-(-each.calls // IDEAL_WAVE) * IDEAL_DELAY) for each in measured)


def _tokenizing(book: Book) -> Spread | None:
    if ENGINE not in book.tokenizing or SYNC not in book.tokenizing:
        return None
    return spread([book.tokenizing[ENGINE][0] / book.tokenizing[SYNC][0]])


def _memory(book: Book) -> Spread | None:
    return spread(each / 1024 for name, each in book.bytes_per_item.items() if name == ENGINE)


def _growth(book: Book) -> Spread | None:
    return None if book.growth is None else spread([book.growth.beyond_answers])


def cpu_parts(book: Book, workload: str, rivals: Sequence[str]) -> dict[str, dict[str, float]]:
    """Split each rival's CPU microseconds per call into parts.

    The parts are measured as separate rivals, without a profiler. `symbolicai` (for this engine
    `symbolicai-eased`) is arguments, prompts and `forward`. `aiohttp` is HTTP, and the difference
    to `aiohttp-parsed` is the SDK's model of the answer. The rest of the calling thread is this
    engine's batch and hand-over. The rest of a loop is the SDK, and for this engine retries, pacing
    and counters. HTTP is limited to the total time of the loop.
    """
    cpu = {
        name: found.median
        for name in {*rivals, *FLOOR_PARTS, EASED, "aiohttp-parsed"}
        if (found := book.spread(name, workload, lambda each: each.cpu_per_call)) is not None
    }
    if not {*FLOOR_PARTS, EASED, "aiohttp-parsed"} <= cpu.keys():
        return {}
    http, model = cpu["aiohttp"], max(0.0, cpu["aiohttp-parsed"] - cpu["aiohttp"])
    caller = book.spread(ENGINE, workload, lambda each: 1e6 * each.caller_cpu / each.calls)
    parts: dict[str, dict[str, float]] = {}
    for name in rivals:
        if name not in cpu:
            continue
        own = cpu["symbolicai"] if name == FLOOR else 0.0
        asking = 0.0  # the calling thread's time, if it is not the loop's thread
        if name == ENGINE and caller is not None:
            asking, own = caller.median, min(cpu[EASED], caller.median)
        made = 0.0 if name in FLOOR_PARTS or name == FLOOR else model
        on_loop = cpu[name] - (asking or own)
        known = {
            "symbolicai": own,
            "batch and hand-over": max(0.0, asking - own),
            "HTTP": max(0.0, min(http, on_loop - made)),
            "the answer's model": made,
        }
        parts[name] = known | {"SDK, retries, pacing": max(0.0, cpu[name] - sum(known.values()))}
    return parts
