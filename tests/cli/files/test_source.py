"""Reading rows, and errors that name the file and the row."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gptx_async.cli.files.formats import ROW_GROUP
from gptx_async.cli.files.source import Source
from gptx_async.errors import DataFileError
from support.row_files import read_values


def test_json_lines_are_any_values_and_blank_lines_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\n"text"\n[1]\nnull')
    with Source(str(path), "jsonl") as source:
        rows = [*source.rows()]
        assert source.count() == 4
    assert [row.value for row in rows] == [{"a": "é"}, "text", [1], None]
    assert [row.place for row in rows] == ["line 1", "line 3", "line 4", "line 5"]


def test_numbers_that_a_float_holds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[0.0, -0.0, 0e500, 1e308, 5e-324, 12345678901234567890123]")
    assert read_values(path, "jsonl") == [[0.0, -0.0, 0.0, 1e308, 5e-324, 12345678901234567890123]]


def test_csv_has_a_byte_order_mark_quotes_and_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "x" * 300_000
    path.write_bytes(
        f'a,b\r\n"one, ""two""\nthree","é\r\n\r"\r\n\r\n,{long}\r\n'.encode("utf-8-sig")
    )
    with Source(str(path), "csv") as source:
        rows = [*source.rows()]
        assert (source.fields, source.count()) == (["a", "b"], 2)
    assert [row.value for row in rows] == [
        {"a": 'one, "two"\nthree', "b": "é\r\n\r"},
        {"a": "", "b": long},
    ]
    assert [row.place for row in rows] == ["line 5", "line 7"]


def test_another_encoding_is_read_if_it_is_said(tmp_path: Path) -> None:
    for encoding in ("cp1252", "utf-16"):
        path = tmp_path / f"{encoding}.jsonl"
        path.write_text('{"a": "é"}\n', encoding)
        assert read_values(path, "jsonl", encoding) == [{"a": "é"}]


@pytest.mark.parametrize(
    ("form", "content", "encoding", "message"),
    [
        ("jsonl", b'{"a": 1}\n{"a": \n', None, "line 2 is not JSON"),
        ("jsonl", b'{"a": 1}\n{"a": NaN}\n', None, "line 2 is not JSON .NaN is not JSON"),
        (
            "jsonl",
            b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n',
            None,
            "line 2 has the key 'a' twice",
        ),
        ("jsonl", b'[{"x": {"b": 1, "b": 1}}]\n', None, "line 1 has the key 'b' twice"),
        ("jsonl", b'{"a": [1e400]}\n', None, "line 1 has the number 1e400, which no float holds"),
        ("jsonl", b"-1E+999\n", None, "line 1 has the number -1E.999, which no float holds"),
        ("jsonl", b"1.5e-400\n", None, "line 1 has the number 1.5e-400, which no float holds"),
        ("jsonl", b"[" * 100_000 + b"\n", None, "line 1 is not JSON"),
        ("jsonl", b'[\n{"a": 1}\n]\n', None, "jq -c"),
        ("jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', None, "line 2: there are bytes that are not UTF-8"),
        ("jsonl", b'{"a": "\xe9"}\n', "ascii", "line 1: there are bytes that are not ascii"),
        ("jsonl", b'{"a": 1}\n', "klingon", "no encoding 'klingon'"),
        ("jsonl", b"x", "utf-16", "bytes that are not utf-16"),
        ("csv", b"", None, "has no header"),
        ("csv", b"a,b,a\n", None, "more than one column 'a'"),
        ("csv", b"a,b\n1,2\n1,2,3\n", None, "line 3 has 3 values, but the header names 2"),
        ("csv", b"a,b\n1\n", None, "line 2 has 1 values"),
        ("csv", b'a,b\n"1"x,2\n', None, "line 2 is not CSV"),
        ("csv", b"a\n1\n\xe9\n", None, "line 3: there are bytes that are not UTF-8"),
        ("parquet", b"a,b\n1,2\n", None, "not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_row(
    tmp_path: Path, form: str, content: bytes, encoding: str | None, message: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as caught:
        read_values(path, form, encoding)
    assert str(path) in str(caught.value) or encoding == "klingon"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataFileError, match=f"can't be read .{reason}"):
            read_values(path, "jsonl")


def test_parquet_that_is_damaged_in_its_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"a": [*range(3 * ROW_GROUP)]})
    parquet.write_table(table, path, row_group_size=ROW_GROUP, use_dictionary=False)
    begin = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[begin : begin + 100] = bytes(100)
    path.write_bytes(content)
    message = f"a.parquet can't be read after row {ROW_GROUP}"
    with Source(str(path), "parquet") as source:
        rows = source.rows()
        assert [next(rows).value["a"] for _ in range(ROW_GROUP)] == [*range(ROW_GROUP)]
        with pytest.raises(DataFileError, match=message):
            next(rows)
