"""The formats of row files: JSON Lines, CSV and Parquet.

pyarrow is imported only for Parquet. It is an optional dependency (the extra `parquet`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ...errors import DataFileError, MissingPackageError

__all__ = ["FORMATS", "PIPE", "ROW_GROUP", "first_line", "format_of", "import_pyarrow"]

FORMATS = ("jsonl", "csv", "parquet")

PIPE = "-"
"""The file name that means standard input or standard output."""

ROW_GROUP = 1024
"""The number of rows that are read from a Parquet file, or written to it, at a time."""

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def format_of(name: str, chosen: str | None, option: str) -> str:
    """Return the format of a file: the chosen one, or the one that the file name indicates.

    Args:
        name: The file name. '-' is a pipe, whose default format is JSON Lines.
        chosen: The format that the user chose, or None.
        option: The command-line option that chooses the format, for messages.

    Raises:
        DataFileError: The suffix of the name is unknown, or the format of a pipe is Parquet.
    """
    form = chosen or ("jsonl" if name == PIPE else _SUFFIXES.get(Path(name).suffix.lower()))
    if form is None:
        raise DataFileError(
            f"The name {name!r} does not indicate the format of the file. Use one of the suffixes "
            f"{', '.join(_SUFFIXES)}, or choose the format with {option}."
        )
    if name == PIPE and form == "parquet":
        raise DataFileError(
            "Parquet can't be read from or written to a pipe: its index is at the end of the file. "
            f"Give a file name, or choose another format with {option}."
        )
    return form


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its module for Parquet.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingPackageError(
            "Parquet needs pyarrow, which is not installed. Install it (pip install "
            "'gptx_async[parquet]'), or use JSON Lines or CSV."
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message. pyarrow's messages have many."""
    return str(error).split("\n", 1)[0].rstrip(".")
