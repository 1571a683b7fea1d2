"""The report of a run: tables in Markdown, JSON, and two charts."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .figures import ENGINE, FLOOR, Book, Spread, cpu_parts, targets
from .rivals import RIVALS
from .workloads import Workload

__all__ = ["draw", "machine", "render", "write_json"]

TITLES = {name: rival.title for name, rival in RIVALS.items()} | {
    FLOOR: "the floor: symbolicai alone, then aiohttp"
}

COLOURS = {
    ENGINE: "#08306b",
    "engine-threads": "#2171b5",
    "engine-scheduler": "#6baed6",
    "gptx-loop": "#006d2c",
    "gptx-pool": "#74c476",
    "sdk": "#fb6a4a",
    "sdk-aiohttp": "#a50f15",
    "aiohttp-parsed": "#9e9ac8",
    "aiohttp": "#54278f",
    FLOOR: "#000000",
    "async-batch-llm": "#b8860b",
    "litellm": "#d4b106",
}
"""The colours of the curves. Related rivals have the same hue."""

OF_THE_STACK = (ENGINE, FLOOR, "sdk", "sdk-aiohttp", "sdk-aiohttp-small", "aiohttp-parsed")

STACKED_AT = "512 in flight"

SHOWN_WRONG = 20


def machine() -> dict[str, str]:
    """Return the hardware and versions that matter for the results."""
    versions = {
        name: importlib.metadata.version(name) for name in ("openai", "aiohttp", "symbolicai")
    }
    cores = len(os.sched_getaffinity(0))
    return {"cores": str(cores), "python": platform.python_version(), **versions}


def render(book: Book, workloads: Sequence[Workload]) -> str:
    """Return the report as text."""
    said = ", ".join(f"{name} {value}" for name, value in machine().items())
    blocks = [
        f"{said}. The server is a process of its own on the same cores. Medians of the rounds, "
        "with the least and the most."
    ]
    blocks += [_workload_block(book, workload) for workload in workloads]
    blocks += [_others_block(book, workloads), _targets_block(book)]
    blocks += [f"WRONG: {sentence}" for sentence in book.wrongs[:SHOWN_WRONG]]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _workload_block(book: Book, workload: Workload) -> str:
    rows = []
    for name, title in TITLES.items():
        found = book.rounds(name, workload.name)
        if not found:
            continue
        rate = book.spread(name, workload.name, lambda each: each.rate)
        cpu = book.spread(name, workload.name, lambda each: each.cpu_per_call)
        share = book.spread(name, workload.name, lambda each: each.server_share)
        ratio = book.ratio(ENGINE, name, workload.name, lambda each: each.rate)
        assert rate is not None
        assert cpu is not None
        assert share is not None
        rows.append(
            (
                title,
                f"{next(iter(found.values())).calls:,}",
                f"{rate.median:,.0f}",
                f"{rate.least:,.0f}-{rate.most:,.0f}",
                "" if ratio is None else f"{ratio.median:.2f}",
                f"{cpu.median:,.0f}",
                f"{100 * share.median:.0f} %",
                f"{max(each.peak_bytes for each in found.values()) / 2**20:.0f}",
                str(sum(each.wrong for each in found.values())),
            )
        )
    heads = (
        workload.name,
        "calls",
        "calls/s",
        "least-most",
        f"{ENGINE} / it",
        "CPU us/call",
        "server's core",
        "MiB more",
        "wrong",
    )
    return _table(heads, rows) if rows else ""


def _others_block(book: Book, workloads: Sequence[Workload]) -> str:
    rows = [
        ("the server's core, at most, but for bare sockets", workload.name, f"{share:.0%}")
        for workload in workloads
        if (share := _server_share(book, workload)) is not None
    ]
    rows += [
        ("resident memory per call in flight", name, f"{each / 1024:.1f} KiB")
        for name, each in book.bytes_per_item.items()
    ]
    for name, (seconds, times) in book.tokenizing.items():
        rows.append(
            (
                "8,000 tokens: CPU in the tokeniser per item",
                name,
                f"{1e3 * seconds:.2f} ms, {times:.1f} times",
            )
        )
    if book.growth is not None:
        said = (
            f"{book.growth.rising:.1f} blocks more per answer in the second half, "
            f"{book.growth.kept:.1f} kept with it, {book.growth.left:.2f} left when dropped"
        )
        rows.append(("growth over a long batch", ENGINE, said))
    return _table(("besides", "of", "figure"), rows) if rows else ""


def _server_share(book: Book, workload: Workload) -> float | None:
    """Return the highest share of a core that the server used, to show that it is not the limit.

    Bare sockets do not count: they measure the capacity of the server.
    """
    shares = (
        book.spread(name, workload.name, lambda each: each.server_share)
        for name in RIVALS
        if name != "sockets"
    )
    return max((share.median for share in shares if share is not None), default=None)


def _targets_block(book: Book) -> str:
    rows = []
    for target in targets(book):
        found = target.measured
        met = {True: "yes", False: "NO", None: "not measured"}[target.is_met]
        sign = "at most" if target.is_most else "at least"
        rows.append(
            (
                target.figure,
                f"{sign} {target.limit:g}{target.unit}",
                "" if found is None else f"{found.median:.2f}{target.unit}",
                "" if found is None else f"{found.least:.2f}-{found.most:.2f}",
                met,
            )
        )
    return _table(("figure", "target", "measured", "least-most", "met"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table. All columns but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def lay(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in others)])

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {lay(line)} |" for line in (heads, rule, *rows))


def write_json(book: Book, workloads: Sequence[Workload], path: str) -> None:
    """Write all results, raw and evaluated."""
    content: dict[str, Any] = {
        "machine": machine(),
        "workloads": [asdict(workload) for workload in workloads],
        **asdict(book),
        "targets": [asdict(each) | {"met": each.is_met} for each in targets(book)],
        "cpu_parts": cpu_parts(book, STACKED_AT, OF_THE_STACK),
    }
    Path(path).write_text(json.dumps(content, indent=1))


def draw(book: Book, workloads: Sequence[Workload], folder: str) -> list[Path]:
    """Draw the two charts, and return their paths."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    import matplotlib

    matplotlib.use("agg")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [
        _draw_curve(book, [each for each in workloads if each.is_plain], Path(folder)),
        _draw_stack(book, Path(folder)),
    ]


def _draw_curve(book: Book, workloads: Sequence[Workload], folder: Path) -> Path:
    """Draw calls per second over calls in flight. The bars show minimum and maximum."""
    from matplotlib import pyplot, ticker

    figure, axis = pyplot.subplots(figsize=(9, 6))
    for name, colour in COLOURS.items():
        points: list[tuple[int, Spread]] = [
            (workload.in_flight, found)
            for workload in workloads
            if (found := book.spread(name, workload.name, lambda each: each.rate)) is not None
        ]
        if not points:
            continue
        rates = [rate for _, rate in points]
        axis.errorbar(
            [x for x, _ in points],
            [rate.median for rate in rates],
            yerr=[
                [rate.median - rate.least for rate in rates],
                [rate.most - rate.median for rate in rates],
            ],
            marker="o",
            capsize=3,
            color=colour,
            linewidth=3 if name == ENGINE else 1.2,
            linestyle="--" if name == FLOOR else "-",
            label=TITLES[name],
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = [workload.in_flight for workload in workloads]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axis.yaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel("calls in flight; answers without delay")
    axis.set_ylabel("calls a second")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    path = folder / "calls_per_second.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _draw_stack(book: Book, folder: Path) -> Path:
    """Draw the CPU time of a call, stacked by part."""
    from matplotlib import pyplot

    parts = cpu_parts(book, STACKED_AT, OF_THE_STACK)
    figure, axis = pyplot.subplots(figsize=(9, 0.6 * max(2, len(parts)) + 1.4))
    names = [*reversed(parts)]
    left = [0.0] * len(names)
    for part in next(iter(parts.values()), {}):
        widths = [parts[name][part] for name in names]
        axis.barh([TITLES[name] for name in names], widths, left=left, label=part)
        left = [at + width for at, width in zip(left, widths, strict=True)]
    axis.set_xlabel(f"CPU microseconds a call, {STACKED_AT}, answers without delay")
    axis.grid(alpha=0.3, axis="x")
    if parts:
        axis.legend(fontsize="small", ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path = folder / "cpu_per_call.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
