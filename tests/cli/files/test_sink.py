"""Writing rows in each format."""

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

from gptx_async.cli.files.formats import ROW_GROUP
from gptx_async.cli.files.sink import Sink
from gptx_async.cli.files.source import Source
from gptx_async.errors import DataFileError, GPTXAsyncError
from support.row_files import read_values, write_fields

SAID = {"type": "ValueError", "message": "no"}


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
    write_fields(tmp_path / "b.jsonl", "jsonl", read_values(tmp_path / "a.parquet", "parquet"))
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
    write_fields(tmp_path / "a.jsonl", "jsonl", rows)
    assert "é".encode() in (tmp_path / "a.jsonl").read_bytes()
    expected = [row | {"output": "out"} for row in rows]
    assert read_values(tmp_path / "a.jsonl", "jsonl") == expected


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
    write_fields(tmp_path / "a.parquet", "parquet", [{"n": 1, "x": None}, {"n": 2.5, "x": None}])
    written = parquet.read_table(tmp_path / "a.parquet")
    assert written.to_pylist()[1] == {"n": 2.5, "x": None, "output": "out", "error": None}
    odd: Any
    for odd in ("one", 2**70):
        rows = [{"n": 1}] * ROW_GROUP + [{"n": odd}]
        with pytest.raises(
            DataFileError, match=f"rows {ROW_GROUP + 1} to {ROW_GROUP + 1} don't fit"
        ):
            write_fields(tmp_path / "b.parquet", "parquet", rows)
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
    write_fields(tmp_path / "link.jsonl", "jsonl", [{"a": 1}])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert read_values(tmp_path / "file.jsonl", "jsonl") == [{"a": 1, "output": "out"}]
    write_fields(Path("/dev/null"), "jsonl", [{"a": 1}])
    assert Path("/dev/null").is_char_device()


@pytest.mark.linux
def test_a_full_disk_is_told() -> None:
    with pytest.raises(DataFileError, match=r"/dev/full can't be written \(No space left"):
        write_fields(Path("/dev/full"), "jsonl", [{"a": 1}])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_row_with_a_field_of_its_own_has_no_place_in_columns(form: str) -> None:
    sink = Sink(f"a.{form}", form, ["a"], None, "output", "error")
    sink.check({"a": 1}, "rows, line 2")
    with pytest.raises(GPTXAsyncError, match="rows, line 3 has the field 'b', which the first"):
        sink.check({"a": 1, "b": 2}, "rows, line 3")


def test_lines_of_csv_end_as_those_of_other_text_files(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "a.csv"), "csv", ["a"], None, "output", "error")
    sink.write({"a": "x\r\ny", "output": "z"})
    sink.close()
    assert (tmp_path / "a.csv").read_bytes() == b'a,output,error\n"x\r\ny",z,\n'
