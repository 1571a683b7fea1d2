from __future__ import annotations

import csv
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from gptx_async.cli.files.datafiles import ROW_GROUP, Sink, Source, format_of
from gptx_async.errors import DataFileError, GPTXAsyncError

SAID = {"type": "ValueError", "message": "no"}


def read(path: Path, form: str, encoding: str | None = None) -> list[Any]:
    with Source(str(path), form, encoding) as source:
        return [row.value for row in source.rows()]


def write(path: Path, form: str, rows: list[dict[str, Any]], schema: Any = None) -> None:
    sink = Sink(str(path), form, [*rows[0]], schema, "output", "error")
    try:
        for row in rows:
            sink.write(row | {"output": "out"})
        sink.close()
    finally:
        sink.abandon()


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
    [("a.txt", None, "by --input-format"), ("-", "parquet", "can't go through a pipe")],
)
def test_a_name_that_says_no_format_is_refused(name: str, chosen: str | None, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        format_of(name, chosen, "--input-format")


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
    assert read(path, "jsonl") == [[0.0, -0.0, 0.0, 1e308, 5e-324, 12345678901234567890123]]


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
        assert read(path, "jsonl", encoding) == [{"a": "é"}]


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
        ("parquet", b"a,b\n1,2\n", None, "no Parquet file"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_row(
    tmp_path: Path, form: str, content: bytes, encoding: str | None, message: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as caught:
        read(path, form, encoding)
    assert str(path) in str(caught.value) or encoding == "klingon"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataFileError, match=f"can't be read .{reason}"):
            read(path, "jsonl")


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


def test_json_lines_hold_what_parquet_has_beyond_json(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "when": [datetime.datetime(2026, 1, 2, 3, 4, 5)],
            "day": [datetime.date(2026, 1, 2)],
            "price": [decimal.Decimal("1.50")],
            "bytes": [b"\x00\xff"],
            "nan": [float("nan")],
            "list": [[1.0, float("inf")]],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", "jsonl", read(tmp_path / "a.parquet", "parquet"))
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {
        "when": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "price": "1.50",
        "bytes": "AP8=",
        "nan": None,
        "list": [1.0, None],
        "output": "out",
    }


def test_json_lines_are_readable_text_and_keep_half_a_surrogate_pair(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": "é\u2028x"}, {"a": "\ud83d"}]
    write(tmp_path / "a.jsonl", "jsonl", rows)
    assert "é".encode() in (tmp_path / "a.jsonl").read_bytes()
    assert [row["a"] for row in read(tmp_path / "a.jsonl", "jsonl")] == ["é\u2028x", "\ud83d"]


def test_csv_has_json_for_what_is_no_text(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "a.csv"), "csv", ["a", "b"], None, "output", "error")
    sink.write({"a": "x,\ny\r", "b": None, "output": {"n": [1]}})
    sink.write({"a": 1, "b": True, "error": SAID})
    sink.write({"a": "x\ry"})
    sink.close()
    with open(tmp_path / "a.csv", newline="") as file:
        assert [*csv.reader(file)] == [
            ["a", "b", "output", "error"],
            ["x,\ny\r", "", '{"n": [1]}', ""],
            ["1", "true", "", "ValueError: no"],
            ["x\ry", "", "", ""],
        ]


def test_parquet_keeps_the_types_of_parquet(tmp_path: Path) -> None:
    schema = pyarrow.schema(
        [
            ("id", pyarrow.int16()),
            ("when", pyarrow.timestamp("ns", "UTC")),
            ("kind", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
            ("tags", pyarrow.map_(pyarrow.string(), pyarrow.float32())),
        ]
    )
    rows = [
        {"id": n, "when": n * 10**15 + 1, "kind": "ab"[n % 2], "tags": [("x", n)]}
        for n in range(ROW_GROUP + 5)
    ]
    table = pyarrow.Table.from_pylist(rows, schema)
    parquet.write_table(table, tmp_path / "a.parquet")
    with Source(str(tmp_path / "a.parquet"), "parquet") as source:
        assert source.count() == len(rows)
        sink = Sink(
            str(tmp_path / "b.parquet"), "parquet", source.fields, source.schema, "output", "error"
        )
        for row in source.rows():
            sink.write(row.value | ({"error": SAID} if row.value["id"] == 3 else {"output": [1]}))
        sink.close()
    written = parquet.read_table(tmp_path / "b.parquet")
    assert written.select(schema.names).equals(table)
    assert written["output"].to_pylist()[2:4] == ["[1]", None]
    assert written["error"].to_pylist()[2:4] == [None, SAID]


def test_parquet_takes_the_types_of_the_first_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "parquet", [{"n": 1, "x": None}, {"n": 2.5, "x": None}])
    written = parquet.read_table(tmp_path / "a.parquet")
    assert written.to_pylist()[1] == {"n": 2.5, "x": None, "output": "out", "error": None}
    odd: Any
    for odd in ("one", 2**70):
        rows = [{"n": 1}] * ROW_GROUP + [{"n": odd}]
        with pytest.raises(
            DataFileError, match=f"rows {ROW_GROUP + 1} to {ROW_GROUP + 1} don't fit"
        ):
            write(tmp_path / "b.parquet", "parquet", rows)
    assert not (tmp_path / "b.parquet").exists()


def test_an_output_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("before")
    sink = Sink(str(path), "jsonl", ["a"], None, "output", "error")
    sink.write({"a": 1})
    sink.flush()
    assert path.read_text() == "before"
    assert (tmp_path / "a.jsonl.part").read_text() == '{"a": 1}\n'
    sink.close()
    assert path.read_text() == '{"a": 1}\n'
    assert [*tmp_path.iterdir()] == [path]


def test_an_output_that_is_abandoned_leaves_nothing(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "a.jsonl"), "jsonl", ["a"], None, "output", "error")
    sink.write({"a": 1})
    assert (tmp_path / "a.jsonl.part").exists()
    sink.abandon()
    assert not [*tmp_path.iterdir()]


def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "file.jsonl")
    write(tmp_path / "link.jsonl", "jsonl", [{"a": 1}])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert read(tmp_path / "file.jsonl", "jsonl") == [{"a": 1, "output": "out"}]
    write(Path("/dev/null"), "jsonl", [{"a": 1}])
    assert Path("/dev/null").is_char_device()


@pytest.mark.linux
def test_a_full_disk_is_told() -> None:
    with pytest.raises(DataFileError, match=r"/dev/full can't be written \(No space left"):
        write(Path("/dev/full"), "jsonl", [{"a": 1}])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_row_with_a_field_of_its_own_has_no_place_in_columns(form: str) -> None:
    sink = Sink(f"a.{form}", form, ["a"], None, "output", "error")
    sink.check({"a": 1}, "rows, line 2")
    with pytest.raises(GPTXAsyncError, match="rows, line 3 has the field 'b', which the first"):
        sink.check({"a": 1, "b": 2}, "rows, line 3")
