"""Read and write whole files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptx_async.cli.files.sink import Sink
from gptx_async.cli.files.source import Source


def read_values(path: Path, form: str, encoding: str | None = None) -> list[Any]:
    """Return the values of all rows of a file."""
    with Source(str(path), form, encoding) as source:
        return [row.value for row in source.rows()]


def write_fields(path: Path, form: str, rows: list[dict[str, Any]], schema: Any = None) -> None:
    """Write rows with the output 'out', and leave nothing behind if one can't be written."""
    sink = Sink(str(path), form, [*rows[0]], schema, "output", "error")
    try:
        for row in rows:
            sink.write(row | {"output": "out"})
        sink.close()
    finally:
        sink.abandon()
