"""Read a file of rows, one row at a time, so that the file may be larger than memory.

Every error names the file and the place of the row in it.
"""

from __future__ import annotations

import contextlib
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ...errors import DataFileError
from .formats import PIPE, ROW_GROUP, first_line, import_pyarrow
from .json_values import LostValueError, from_json

__all__ = ["Row", "Source"]

_UNDECODED = re.compile(r"[\udc80-\udcff]")
"""Matches the characters that `surrogateescape` puts in place of bytes it can't decode."""


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        place: The place in the file, counted from 1: 'line 3' or 'row 3'.
        value: The fields of the row by name. In JSON Lines it can be any other JSON value, too.
    """

    place: str
    value: Any


class Source:
    """A file of rows, or standard input, open for reading; a context manager that closes it.

    Attributes:
        name: The name of the file for messages.
        fields: The field names of every row; None if rows can differ (JSON Lines).

    Args:
        path: The file name; '-' for standard input.
        form: The format, one of `formats.FORMATS`.
        encoding: The encoding of the text. When None: UTF-8, with or without a byte order mark.

    Raises:
        DataFileError: The file does not exist or can't be read, or the encoding is unknown.
        MissingPackageError: The file is Parquet, and pyarrow is not installed.
    """

    def __init__(self, path: str, form: str, encoding: str | None = None) -> None:
        self.name = "standard input" if path == PIPE else path
        self.fields: list[str] | None = None
        self._path = path
        self._form = form
        self._encoding = encoding or "utf-8-sig"
        self._is_default_encoding = encoding is None
        self._parquet: Any = None
        with contextlib.ExitStack() as stack:
            self._file = self._open(stack)
            self._rows = self._begin()
            self._stack = stack.pop_all()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @property
    def schema(self) -> Any:
        """The pyarrow schema of a Parquet file; None for other formats."""
        return None if self._parquet is None else self._parquet.schema_arrow

    def rows(self) -> Iterator[Row]:
        """Return the iterator over the rows. Every call returns the same iterator.

        Raises:
            DataFileError: By the iterator: a row can't be read.
        """
        return self._rows

    def count(self) -> int | None:
        """Return the number of rows, for a progress bar; None if it can't be known in advance."""
        if self._path == PIPE or not Path(self._path).is_file():
            return None
        if self._form == "parquet":
            return int(self._parquet.metadata.num_rows)
        try:
            with self._open_text(self._path) as file:
                if self._form == "jsonl":
                    return sum(1 for line in file if not line.isspace())
                return max(0, sum(1 for values in csv.reader(file) if values) - 1)
        except (csv.Error, UnicodeError):
            return None  # `rows` reports the error when it reads that row

    def _open(self, stack: contextlib.ExitStack) -> Any:
        try:
            if self._form == "parquet":
                return stack.enter_context(open(self._path, "rb"))
            if self._path == PIPE:
                if sys.stdin is None:  # descriptor 0 may belong to another file by now
                    raise DataFileError("Standard input is closed. Give the name of a file.")
                # Neither sys.stdin nor a file that is closed: both wait for a thread that reads.
                return self._open_text(0)
            return stack.enter_context(self._open_text(self._path))
        except OSError as error:
            raise DataFileError(
                f"{self.name} can't be read ({error.strerror}). Give the name of an existing file, "
                "or - for standard input."
            ) from error
        except LookupError as error:
            raise DataFileError(
                f"Python has no encoding {self._encoding!r}. Give another --encoding: utf-8, "
                "utf-16, cp1252, latin-1, shift_jis ..."
            ) from error

    def _open_text(self, file: str | int) -> TextIO:
        return open(
            file,
            encoding=self._encoding,
            errors="surrogateescape",  # so that the error can name the row with the bytes
            newline="" if self._form == "csv" else None,
            closefd=file != 0,
        )

    def _begin(self) -> Iterator[Row]:
        """Read what comes before the first row, and return the iterator over the rows."""
        if self._form == "jsonl":
            return self._read_jsonl()
        if self._form == "csv":
            csv.field_size_limit(sys.maxsize)  # a cell can contain a whole document
            reader = csv.reader(self._decoded_lines(), strict=True)
            self.fields = self._read_header(reader)
            return self._read_csv(reader, self.fields)
        self._parquet = self._open_parquet()
        self.fields = list(self._parquet.schema_arrow.names)
        return self._read_parquet()

    def _decoded_lines(self) -> Iterator[str]:
        number = 1
        try:
            for number, line in enumerate(self._file, 1):
                if _UNDECODED.search(line):
                    raise self._wrong_encoding(f"line {number}")
                yield line
        except UnicodeError as error:  # `surrogateescape` does not work with every encoding
            raise self._wrong_encoding(f"after line {number}") from error
        except OSError as error:
            raise DataFileError(
                f"{self.name} can't be read after line {number} ({error.strerror}). Fix the file "
                "and run again with --resume: finished rows are kept."
            ) from error

    def _wrong_encoding(self, place: str) -> DataFileError:
        name = "UTF-8" if self._is_default_encoding else self._encoding
        return DataFileError(
            f"{self.name}, {place}: there are bytes that are not {name}. Give the encoding of the "
            "file with --encoding (for example cp1252), or convert the file to UTF-8."
        )

    def _read_jsonl(self) -> Iterator[Row]:
        for number, line in enumerate(self._decoded_lines(), 1):
            if line.isspace():
                continue
            try:
                value = from_json(line)
            except LostValueError as error:
                raise DataFileError(
                    f"{self.name}, line {number} {error}, and a value would be lost. Correct it."
                ) from None
            except (ValueError, RecursionError) as error:
                is_spread = number == 1 and line.strip() in ("[", "{", "[{")
                raise DataFileError(
                    f"{self.name}, line {number} is not JSON ({error}). "
                    + (_SPREAD if is_spread else "Each line must be one JSON value: correct it.")
                ) from error
            yield Row(f"line {number}", value)

    def _read_header(self, reader: Any) -> list[str]:
        with self._csv_errors_named(reader):
            header = next(reader, None)
        if not header:
            raise DataFileError(
                f"{self.name} has no header. The first line of a CSV file must name its columns."
            )
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataFileError(
                f"{self.name} has more than one column {twice[0]!r}. Give each its own name."
            )
        return list(header)

    def _read_csv(self, reader: Any, header: list[str]) -> Iterator[Row]:
        while True:
            with self._csv_errors_named(reader):
                values = next(reader, None)
            if values is None:
                return
            if not values:  # an empty line
                continue
            place = f"line {reader.line_num}"
            if len(values) != len(header):
                raise DataFileError(
                    f"{self.name}, {place} has {len(values)} values, but the header names "
                    f"{len(header)} columns. Correct it; quote values that contain commas."
                )
            yield Row(place, dict(zip(header, values, strict=True)))

    @contextlib.contextmanager
    def _csv_errors_named(self, reader: Any) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise DataFileError(
                f"{self.name}, line {reader.line_num} is not CSV ({error}). Correct it."
            ) from error

    def _open_parquet(self) -> Any:
        pyarrow, parquet = import_pyarrow()
        try:
            return parquet.ParquetFile(self._file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataFileError(
                f"{self.name} is not a Parquet file, or is damaged ({first_line(error)}). Give "
                "another file, or choose the format with --input-format."
            ) from error

    def _read_parquet(self) -> Iterator[Row]:
        pyarrow, _ = import_pyarrow()
        number = 0
        batches = self._parquet.iter_batches(batch_size=ROW_GROUP)
        while True:
            try:
                batch = next(batches, None)
                values = [] if batch is None else batch.to_pylist()
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise DataFileError(
                    f"{self.name} can't be read after row {number} ({first_line(error)}). The file "
                    "is damaged: give an intact copy."
                ) from error
            if batch is None:
                return
            for number, value in enumerate(values, number + 1):  # noqa: B020 - it counts on
                yield Row(f"row {number}", value)


_SPREAD = (
    "The file looks like one JSON value over many lines: `jq -c '.[]' FILE` converts an array to "
    "JSON Lines."
)
