"""The format of a file, taken from its name or from an option."""

from __future__ import annotations

import pytest

from gptx_async.cli.files.formats import format_of
from gptx_async.errors import DataFileError


@pytest.mark.parametrize(
    ("name", "chosen", "form"),
    [
        ("a.jsonl", None, "jsonl"),
        ("a.NDJSON", None, "jsonl"),
        ("a.csv", None, "csv"),
        ("a.pq", None, "parquet"),
        ("a.csv", "jsonl", "jsonl"),
        ("-", None, "jsonl"),
        ("-", "csv", "csv"),
    ],
)
def test_the_name_says_the_format(name: str, chosen: str | None, form: str) -> None:
    assert format_of(name, chosen, "--input-format") == form


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("a.txt", None, "with --input-format"),
        ("-", "parquet", "read from or written to a pipe"),
    ],
)
def test_a_name_that_says_no_format_is_refused(name: str, chosen: str | None, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        format_of(name, chosen, "--input-format")
