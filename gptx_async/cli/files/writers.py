"""Write rows to an open binary file as JSON Lines, CSV or Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any, BinaryIO, Protocol, TextIO

from ...errors import DataFileError
from .formats import ROW_GROUP, first_line, import_pyarrow
from .json_values import text_for, to_json

__all__ = ["CSVWriter", "JSONLWriter", "ParquetWriter", "RowWriter"]


class RowWriter(Protocol):
    """Writes rows to an open file, which the caller closes."""

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write one row."""

    def close(self) -> None:
        """Write what is buffered. The file stays open."""


class JSONLWriter:
    """Writes each row as one line of JSON."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = _text_over(file)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write one row."""
        self._text.write(f"{to_json(fields)}\n")

    def close(self) -> None:
        """Detach from the file, which stays open."""
        with contextlib.suppress(ValueError):  # already detached
            self._text.detach()


class _Lines:
    """The file that `csv.writer` writes to: replaces the line terminator with a newline.

    Before Python 3.11.9 a writer quotes a carriage return in a cell only if it is part of the line
    terminator (https://github.com/python/cpython/issues/67044); unquoted it ends the row.
    """

    END = "\r\n"

    def __init__(self, text: TextIO) -> None:
        self._text = text

    def write(self, line: str) -> None:
        self._text.write(f"{line.removesuffix(self.END)}\n")


class CSVWriter:
    """Writes rows as CSV: an error as 'type: message', other values that are not text as JSON."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], *, is_safe: bool) -> None:
        self._text = _text_over(file)
        self._columns = columns
        self._is_safe = is_safe
        self._writer = csv.writer(_Lines(self._text), lineterminator=_Lines.END)
        self._write_cells(columns)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write one row."""
        self._write_cells([_cell(fields.get(column)) for column in self._columns])

    def _write_cells(self, cells: Sequence[str]) -> None:
        self._writer.writerow([_quoted(cell) for cell in cells] if self._is_safe else cells)

    def close(self) -> None:
        """Detach from the file, which stays open."""
        with contextlib.suppress(ValueError):  # already detached
            self._text.detach()


class ParquetWriter:
    """Writes rows in groups. Without a schema, the first group determines the column types."""

    def __init__(
        self,
        file: BinaryIO,
        fields: Sequence[str],
        schema: Any,
        columns: tuple[str, str],
        name: str,
    ) -> None:
        self._pyarrow, self._parquet = import_pyarrow()
        self._file = file
        self._fields = fields
        self._schema = schema
        self._columns = columns
        self._name = name
        self._rows: list[Mapping[str, Any]] = []
        self._written = 0
        self._writer: Any = None

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write one row, or keep it until its group is full.

        Raises:
            DataFileError: The group has values that do not fit the column types.
        """
        self._rows.append(fields)
        if len(self._rows) >= ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        """Write the last group and the index of the file.

        Raises:
            DataFileError: The group has values that do not fit the column types.
        """
        try:
            self._write_group()
        finally:
            if self._writer is not None:
                self._writer.close()  # does nothing the second time

    def _write_group(self) -> None:
        rows, self._rows = self._rows, []
        if not rows and self._writer is not None:
            return
        try:
            if self._writer is None:
                self._writer = self._parquet.ParquetWriter(self._file, self._full_schema(rows))
            schema = self._writer.schema
            output = self._columns[0]
            arrays = [
                self._pyarrow.array(
                    [
                        _text(row.get(each.name)) if each.name == output else row.get(each.name)
                        for row in rows
                    ],
                    each.type,
                )
                for each in schema
            ]
            self._writer.write_table(self._pyarrow.Table.from_arrays(arrays, schema=schema))
        except (self._pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise DataFileError(
                f"{self._name}: the rows {self._written + 1} to {self._written + len(rows)} don't "
                f"fit the types of its columns ({first_line(error)}). Give a field the same type "
                "in all rows; or continue in JSON Lines, with another --output and with "
                "--checkpoint and --resume."
            ) from error
        self._written += len(rows)

    def _full_schema(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return the schema of the fields, with the columns for outputs and errors."""
        pa = self._pyarrow
        schema = self._schema
        if schema is None:
            schema = pa.schema([(name, self._type_in(rows, name)) for name in self._fields])
        output, error = self._columns
        schema = schema.append(pa.field(output, pa.string()))
        return schema.append(
            pa.field(error, pa.struct([("type", pa.string()), ("message", pa.string())]))
        )

    def _type_in(self, rows: Sequence[Mapping[str, Any]], name: str) -> Any:
        kind = self._pyarrow.array([row.get(name) for row in rows]).type
        return self._pyarrow.string() if self._pyarrow.types.is_null(kind) else kind


def _text_over(file: BinaryIO) -> io.TextIOWrapper:
    """Return a text file over a binary file, without a buffer of its own."""
    # UTF-8 can't encode a lone surrogate; its backslash escape is a JSON escape as well.
    return io.TextIOWrapper(
        file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True
    )


def _quoted(cell: str) -> str:
    """Quote a cell that a spreadsheet would compute as a formula.

    The characters are from https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and value.keys() == {"type", "message"}:
        return f"{value['type']}: {value['message']}"
    if isinstance(value, (date, time, bytes)):
        return text_for(value)
    return _text(value) or ""
