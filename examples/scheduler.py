"""Run two steps for each of many documents, under an unmodified scheduler.

    python examples/scheduler.py report.txt notes.txt letter.txt

Any scheduler works that sets `engine.executor_callback` and returns the arguments in batches. This
one follows the protocol of symbatcher (https://github.com/AynurAda/symbatcher). The key and the
model come from symbolicai's configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from symai import Expression, Symbol

import gptx_async
from gptx_async.testing import BatchScheduler

WORKERS = 50


class Keywords(Expression):
    """Summarise a text, then name keywords for the summary."""

    def forward(self, input: str, **_: Any) -> str:  # noqa: A002 - the scheduler passes it by this name
        """Return the keywords.

        Args:
            input: The text.
        """
        summary = Symbol(input).query("Summarise in two sentences.")
        return str(Symbol(summary).query("Name three keywords."))


def main(paths: Sequence[str]) -> None:
    """Print the keywords of each file."""
    engine = gptx_async.install()  # before the scheduler is made
    scheduler = BatchScheduler(num_workers=WORKERS, batch_size=WORKERS)
    texts = [Path(path).read_text() for path in paths]
    for path, keywords in zip(paths, scheduler.forward(Keywords, texts), strict=True):
        print(f"{path}: {keywords}")
    print(engine.stats().table(), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
