"""`scripts/bench speed`: calls per second, CPU and memory of this engine and its rivals.

In each round every rival is measured once with every workload, in random order. Every answer of
every rival is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptx_async.cli.demo import Document, find_wrong

from . import report
from .child import Child, running_child
from .environment import environment
from .figures import ENGINE, SYNC, Book, Growth, Measured, spread
from .rivals import RIVALS, Home, Rival
from .server import answer_to, running_server
from .workloads import FULL, QUICK, Workload, items

__all__ = ["main"]

PEERS = ("async-batch-llm", "litellm")
"""The distributions that `--peers` installs."""

LONG_BATCH = 100_000
"""The number of items in the batch of `--long`."""

HELD = (ENGINE, "sdk-aiohttp", "aiohttp")
"""The rivals whose memory is measured while the server holds all answers back."""

HELD_CALLS = 1_000
"""How many calls the server then holds: the SDK opens this many connections by default."""

TOKENIZING = (ENGINE, SYNC)
"""The rivals whose token counting is compared."""

IMPORTS = 5
"""How often the import of `gptx_async` is timed, each time in a new process."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        The exit code: 1 if an answer was wrong or missing, or a measurement failed, else 0. A
        missed target is printed, and is not a failure.
    """
    options = _parser().parse_args(arguments)
    workloads = _chosen_workloads(options)
    book = Book()
    with contextlib.ExitStack() as stack:
        rivals = _chosen_rivals(options)
        homes = {"plain": Path(sys.executable), "symbolicai": Path(sys.executable)}
        if options.peers and (python := _install_peers()) is not None:
            homes["peers"] = python
        rivals = [rival for rival in rivals if rival.home in homes]
        base_url = stack.enter_context(running_server())
        children = {
            home: stack.enter_context(running_child(home, homes[home]))
            for home in dict.fromkeys(rival.home for rival in rivals)
        }
        for child in children.values():
            child.read()  # wait until it is ready
        run = _Run(book, children, base_url, options.seed)
        run.rounds(rivals, workloads, options.repeats or (1 if options.quick else 3), options)
        run.extras(rivals, options)
    print(report.render(book, workloads))
    if options.json:
        report.write_json(book, workloads, options.json)
    if options.plot_dir:
        for path in report.draw(book, workloads, options.plot_dir):
            print(f"drawn to {path}")
    return 1 if book.wrongs else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer workloads and calls, one round")
    parser.add_argument(
        "--repeats", type=int, help="the number of rounds (default: 3; 1 with --quick)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="start no new round after this time (default: %(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORKLOAD", help="only workloads with this in their name"
    )
    parser.add_argument(
        "--rivals", nargs="+", metavar="RIVAL", choices=RIVALS, help="only these rivals"
    )
    parser.add_argument("--calls", type=int, help="time at most this many calls per measurement")
    parser.add_argument(
        "--peers", action="store_true", help=f"also measure {' and '.join(PEERS)}, from .venv-peers"
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help=f"also run a batch of {LONG_BATCH:,} to see whether memory grows",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the order of the rivals")
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    parser.add_argument("--plot-dir", metavar="FOLDER", help="draw the two charts into a folder")
    return parser


def _chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    workloads = QUICK if options.quick else FULL
    chosen = [
        each
        for each in workloads
        if options.only is None or any(part in each.name for part in options.only)
    ]
    if not chosen:
        raise SystemExit(
            f"No workload matches --only. Choose from {[each.name for each in workloads]}."
        )
    most = options.calls
    return [replace(each, calls=min(each.calls, most or each.calls)) for each in chosen]


def _chosen_rivals(options: argparse.Namespace) -> list[Rival]:
    return [each for name, each in RIVALS.items() if name in (options.rivals or RIVALS)]


def _install_peers() -> Path | None:
    """Install the peers into a virtual environment next to this one; None if that fails."""
    folder = Path(sys.prefix).parent / ".venv-peers"
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        options = ["-qq", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *options, *PEERS], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"Without {' and '.join(PEERS)}, which could not be installed: {error}")
        return None
    return python


class _Run:
    """A run: sends the orders and collects the results."""

    def __init__(
        self, book: Book, children: Mapping[Home, Child], base_url: str, seed: int
    ) -> None:
        self._book = book
        self._children = children
        self._base_url = base_url
        self._source = random.Random(seed)

    def rounds(
        self,
        rivals: Sequence[Rival],
        workloads: Sequence[Workload],
        repeats: int,
        options: argparse.Namespace,
    ) -> None:
        """Measure every rival with every workload in rounds, until the time is over."""
        until = time.monotonic() + 60 * options.minutes
        plan = [
            (number, workload, rival)
            for number in range(repeats)
            for workload in workloads
            for rival in self._shuffled(each for each in rivals if each.takes(workload))
        ]
        with tqdm(plan, unit=" measurements", desc="speed") as bar:
            for number, workload, rival in bar:
                if number and time.monotonic() > until:
                    print(f"The time is over in round {number + 1} of {repeats}.")
                    return
                bar.set_postfix_str(f"{workload.name}, {rival.name}")
                self._measure(rival, workload, number)

    def _shuffled(self, rivals: Iterator[Rival]) -> list[Rival]:
        chosen = [*rivals]
        self._source.shuffle(chosen)
        return chosen

    def _measure(self, rival: Rival, workload: Workload, number: int) -> None:
        calls = rival.calls(workload)
        result, wrong = self._order("measure", rival, workload, calls, f"round-{number}")
        if result is not None:
            del result["answers"]
            self._book.measured.append(
                Measured(rival.name, workload.name, number, calls, **result, wrong=wrong)
            )

    def extras(self, rivals: Sequence[Rival], options: argparse.Namespace) -> None:
        """Measure memory, tokenizing and the import, and a long batch with `--long`."""
        chosen = {rival.name: rival for rival in rivals}
        held = Workload("held", HELD_CALLS, HELD_CALLS)
        long = Workload("long", 1, min(64, options.calls or 64), prompt="long")
        for name in [name for name in HELD if name in chosen]:
            result, _ = self._order("hold", chosen[name], held, HELD_CALLS, "held")
            if result is not None:
                self._book.bytes_per_item[name] = result["bytes_per_item"]
        for name in [name for name in TOKENIZING if name in chosen]:
            result, _ = self._order("tokenize", chosen[name], long, long.calls, "tokenized")
            if result is not None:
                figures = result["cpu_per_item"], result["times_per_item"]
                self._book.tokenizing[name] = figures
        if options.long and ENGINE in chosen:
            calls = options.calls or LONG_BATCH
            workload = Workload("growth", 512, calls)
            result, _ = self._order("grow", chosen[ENGINE], workload, calls, "grown", limit=1800.0)
            if result is not None:
                self._book.growth = Growth.of(result)
        self._book.import_seconds = spread(_import_seconds() for _ in range(IMPORTS))

    def _order(
        self, do: str, rival: Rival, workload: Workload, calls: int, seed: str, **more: Any
    ) -> tuple[dict[str, Any] | None, int]:
        """Send an order; return its result, or None, and the number of wrong answers."""
        seed = f"{do}.{seed}.{rival.name}"
        where = f"{rival.name}, {workload.name}: "
        result = self._children[rival.home].order(
            do, rival.name, workload, calls=calls, seed=seed, base_url=self._base_url, **more
        )
        if "failed" in result:
            self._book.wrongs.append(where + result["failed"])
            return None, 0
        documents = [Document(*item) for item in items(workload, calls, seed)]
        expected = {each.name: answer_to(each.name) for each in documents}
        wrong = find_wrong(documents, result["answers"], expected)
        self._book.wrongs += [where + sentence for sentence in wrong]
        return result, len(wrong)


def _import_seconds() -> float:
    program = (
        "import time; began = time.perf_counter(); import gptx_async; "
        "print(time.perf_counter() - began)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(told.stdout)
