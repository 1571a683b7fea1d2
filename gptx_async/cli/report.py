"""The errors of rows in the output, and the summary that `gptx-async run` prints at its end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DatasetError, GPTXAsyncError

__all__ = ["RunReport", "error_fields", "error_to_report"]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run did.

    Attributes:
        written: How many rows the output has.
        kept: How many of them an earlier run had already processed.
        errors: How many rows failed, by the class of the error.
        seconds: How long the run took.
        output: The name of the output.
        is_output_unchanged: Whether the existing output was kept, because it has more rows.
        can_resume: Whether --resume would process missing or failed rows.
    """

    written: int
    kept: int
    errors: Counter[str]
    seconds: float
    output: str
    is_output_unchanged: bool
    can_resume: bool

    def print(self, stats: Any) -> None:
        """Print the summary to standard error.

        Args:
            stats: The `Stats` of the engine.
        """
        for name, text in self._lines(stats):
            print(f"{name:<9} {text}", file=sys.stderr)
        if self.can_resume:
            print(
                "Run the same command with --resume to process the missing rows"
                + (" and retry the failed ones." if self.errors else "."),
                file=sys.stderr,
            )

    def _lines(self, stats: Any) -> Sequence[tuple[str, str]]:
        failed = self.errors.total()
        kept = f" ({self.kept:,} by an earlier run)" if self.kept else ""
        counted = ", ".join(f"{name} {count:,}" for name, count in self.errors.most_common())
        unchanged = ", unchanged: it has more rows" if self.is_output_unchanged else ""
        return [
            ("rows", f"{self.written:,}: {self.written - failed:,} done{kept}, {failed:,} failed"),
            *([("errors", counted)] if counted else []),
            (
                "calls",
                f"{stats.calls:,}: {stats.retries:,} retries, {stats.rate_limited:,} times 429",
            ),
            ("tokens", f"{stats.tokens_in:,} in, {stats.tokens_out:,} out"),
            *([("cost", f"US$ {stats.cost:,.4f}")] if stats.cost is not None else []),
            ("took", f"{self.seconds:,.1f} s"),
            ("output", f"{self.output}{unchanged}"),
        ]


def error_fields(error: BaseException) -> dict[str, str]:
    """Return the error of a row as the output has it: its type and its message."""
    try:
        text = str(error)
    except Exception:  # raised by the `__str__` of a user's class
        text = "the error has no text: its __str__ raised an exception"
    return {"type": type(error).__name__, "message": text}


def error_to_report(error: BaseException) -> BaseException:
    """Return the error to raise: an error that names the row replaces the one that `map` raised."""
    if isinstance(error, DatasetError) and isinstance(error.__cause__, GPTXAsyncError):
        return error.__cause__
    return error
