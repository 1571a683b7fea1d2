"""The progress bar of a run, in a terminal or a notebook."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from .. import clock

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "is_terminal"]

FIGURES_SECONDS = 0.5
"""How often the figures after the bar are updated."""

STILL_SECONDS = 5.0
"""Seconds without a completed call after which the bar says what the run is waiting for."""


class Progress:
    """Shows how many items are done, and the registered engine's statistics for the run.

    There is a bar only in a terminal or a notebook; elsewhere the methods do nothing. Call them in
    the thread that takes the run's values.

    Args:
        total: The number of items, if it is known.
        is_wanted: Whether to show a bar.
    """

    def __init__(self, total: int | None, *, is_wanted: bool) -> None:
        self._bar: tqdm[Any] | None = None
        if is_wanted and (is_terminal(sys.stderr) or _is_in_notebook()):
            self._bar = _make_bar(total)
        self._failed = 0
        self._ended_calls, self._progressed_at = -1, clock.seconds()
        self._started_at = self._refreshed_at = clock.seconds()
        self._before = None if self._bar is None else _stats()

    def add(self, *, failed: bool) -> None:
        """Count an item that is done."""
        if self._bar is None:
            return
        self._failed += failed
        self._bar.update()
        self.refresh()

    def refresh(self) -> None:
        """Update the figures, if the last update is long enough ago."""
        if self._bar is not None and clock.seconds() - self._refreshed_at >= FIGURES_SECONDS:
            self._refreshed_at = clock.seconds()
            self._bar.set_postfix(self._figures())

    def close(self) -> None:
        """Show the final figures and finish the bar. A second call does nothing."""
        if self._bar is not None:
            self._bar.set_postfix(self._figures())
            self._bar.close()
            self._bar = None

    def _figures(self) -> dict[str, str]:
        figures = {"failed": f"{self._failed:,}"}
        now = _stats()
        if now is not None and (wait := self._wait(now)):
            figures["now"] = wait
        if self._before is None or now is None:
            return figures
        before = self._before
        seconds = max(clock.seconds() - self._started_at, 1e-3)
        tokens = now.tokens_in + now.tokens_out - before.tokens_in - before.tokens_out
        figures["retries"] = f"{now.retries - before.retries:,}"
        figures["calls/s"] = f"{(now.answered - before.answered) / seconds:,.1f}"
        figures["tokens"] = f"{tokens:,}"
        if now.cost is not None:
            figures["cost"] = f"US$ {now.cost - (before.cost or 0.0):,.4f}"
        return figures

    def _wait(self, now: Any) -> str:
        """Return a note if no call has ended for some time because of a rate limit."""
        present = clock.seconds()
        ended = now.answered + now.failed + now.cancelled
        if ended != self._ended_calls or now.in_flight:
            self._ended_calls, self._progressed_at = ended, present
        if present - self._progressed_at < STILL_SECONDS or now.next_call_in is None:
            return ""
        return f"waiting for the rate limit, next call in {now.next_call_in:.0f} s"


def is_terminal(file: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal. It is None if its descriptor is closed."""
    return file is not None and file.isatty()


def _make_bar(total: int | None) -> tqdm[Any]:
    from tqdm.auto import tqdm

    # No monitor thread, which tqdm starts to redraw an idle bar: `refresh` does that.
    kind = type("Bar", (tqdm,), {"monitor_interval": 0})
    bar: tqdm[Any] = kind(total=total, unit="item", dynamic_ncols=True)
    return bar


def _stats() -> Any:
    """Return the statistics of the registered engine, or None if it has none.

    This does not import symbolicai: without it no engine can be registered.
    """
    functional = sys.modules.get("symai.functional")
    if functional is None:
        return None
    stats = getattr(functional.EngineRepository.list().get("neurosymbolic"), "stats", None)
    return stats() if callable(stats) else None


def _is_in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
