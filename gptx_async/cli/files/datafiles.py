"""Files of rows, in and out: JSON Lines, CSV and Parquet.

Rows are read one by one and written as they come, so that files may be larger than memory. What is
wrong with a row is told with the name of the file and the row's place in it. pyarrow is imported
only for Parquet, and is an extra.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import importlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TextIO

from ...errors import DataFileError, MissingPackageError
from .part_file import PartFile

__all__ = ["FORMATS", "PIPE", "Row", "Sink", "Source", "format_of", "to_json"]

FORMATS = ("jsonl", "csv", "parquet")

PIPE = "-"
"""Stands for standard input or output in the place of a file's name."""

ROW_GROUP = 1024
"""How many rows are read from Parquet, and written to it, at a time."""

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}

_UNDECODED = re.compile(r"[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that the encoding does not have."""


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        place: Where it stands: 'line 3' or 'row 3', counted from 1.
        value: Its fields by name; in JSON Lines also any other JSON value.
    """

    place: str
    value: Any


def format_of(name: str, chosen: str | None, option: str) -> str:
    """Return the format of a file: the chosen one, or what its name says; JSON Lines of a pipe.

    Args:
        name: The file's name, or '-'.
        chosen: What the user has chosen, if anything.
        option: By which option that is done.

    Raises:
        DataFileError: The name says nothing, or a pipe is to be Parquet.
    """
    form = chosen or ("jsonl" if name == PIPE else _SUFFIXES.get(Path(name).suffix.lower()))
    if form is None:
        raise DataFileError(
            f"The name {name!r} does not say what format the file has. Give it one of the suffixes "
            f"{', '.join(_SUFFIXES)}, or say it by {option}."
        )
    if name == PIPE and form == "parquet":
        raise DataFileError(
            "Parquet can't go through a pipe: its contents are listed at the file's end. Give the "
            f"name of a file, or another format by {option}."
        )
    return form


class Source:
    """A file of rows that is read, or standard input; a context manager that closes it.

    Attributes:
        name: What to call it in a message.
        fields: The names of the fields of every row; None where each row has its own.

    Args:
        path: The file's name; '-' for standard input.
        form: One of `FORMATS`.
        encoding: That of the text; UTF-8, with or without a byte order mark, when None.

    Raises:
        DataFileError: There is no such file, it can't be read, or there is no such encoding.
        MissingPackageError: Parquet needs pyarrow, which is not installed.
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
        """The schema of a Parquet file, as pyarrow has it; None of any other file."""
        return None if self._parquet is None else self._parquet.schema_arrow

    def rows(self) -> Iterator[Row]:
        """Return the iterator over the rows; there is one, which begins at the first row.

        Raises:
            DataFileError: While it is iterated over: a row can't be read.
        """
        return self._rows

    def count(self) -> int | None:
        """Return how many rows there are, for a bar; None if that can't be known beforehand."""
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
            return None  # it is told when the row is read

    def _open(self, stack: contextlib.ExitStack) -> Any:
        try:
            if self._form == "parquet":
                return stack.enter_context(open(self._path, "rb"))
            if self._path == PIPE:
                if sys.stdin is None:  # its number may be another file's by now
                    raise DataFileError("Standard input is closed. Give the name of a file.")
                # Not sys.stdin, and never closed: either would wait for the thread that reads it.
                return self._open_text(0)
            return stack.enter_context(self._open_text(self._path))
        except OSError as error:
            raise DataFileError(
                f"{self.name} can't be read ({error.strerror}). Give the name of a file that is "
                "there, or - for standard input."
            ) from error
        except LookupError as error:
            raise DataFileError(
                f"Python knows no encoding {self._encoding!r}. Give another --encoding: utf-8, "
                "utf-16, cp1252, latin-1, shift_jis ..."
            ) from error

    def _open_text(self, file: str | int) -> TextIO:
        return open(
            file,
            encoding=self._encoding,
            errors="surrogateescape",  # so that the row can be named which has them
            newline="" if self._form == "csv" else None,
            closefd=file != 0,
        )

    def _begin(self) -> Iterator[Row]:
        """Read what comes before the first row."""
        if self._form == "jsonl":
            return self._read_jsonl()
        if self._form == "csv":
            csv.field_size_limit(sys.maxsize)  # a document in a cell is nothing unusual
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
        except UnicodeError as error:  # of an encoding that `surrogateescape` can't help
            raise self._wrong_encoding(f"after line {number}") from error
        except OSError as error:
            raise DataFileError(
                f"{self.name} can't be read after line {number} ({error.strerror}). Mend that; "
                "what was done is kept."
            ) from error

    def _wrong_encoding(self, place: str) -> DataFileError:
        name = "UTF-8" if self._is_default_encoding else self._encoding
        return DataFileError(
            f"{self.name}, {place}: there are bytes that are not {name}. Say which encoding the "
            "file has by --encoding (cp1252, say), or convert it to UTF-8."
        )

    def _read_jsonl(self) -> Iterator[Row]:
        for number, line in enumerate(self._decoded_lines(), 1):
            if line.isspace():
                continue
            try:
                value = _from_json(line)
            except _LostError as error:
                raise DataFileError(
                    f"{self.name}, line {number} {error}, and a value would be lost. Correct it."
                ) from None
            except (ValueError, RecursionError) as error:
                is_spread = number == 1 and line.strip() in ("[", "{", "[{")
                raise DataFileError(
                    f"{self.name}, line {number} is not JSON ({error}). "
                    + (_SPREAD if is_spread else "Each line has to be one value: correct it.")
                ) from error
            yield Row(f"line {number}", value)

    def _read_header(self, reader: Any) -> list[str]:
        with self._csv_told(reader):
            header = next(reader, None)
        if not header:
            raise DataFileError(
                f"{self.name} has no header. The first line of a CSV file names its columns."
            )
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataFileError(
                f"{self.name} has more than one column {twice[0]!r}. Give each its own name."
            )
        return list(header)

    def _read_csv(self, reader: Any, header: list[str]) -> Iterator[Row]:
        while True:
            with self._csv_told(reader):
                values = next(reader, None)
            if values is None:
                return
            if not values:  # an empty line
                continue
            place = f"line {reader.line_num}"
            if len(values) != len(header):
                raise DataFileError(
                    f"{self.name}, {place} has {len(values)} values, but the header names "
                    f"{len(header)} columns. Correct it; quote a value that has a comma in it."
                )
            yield Row(place, dict(zip(header, values, strict=True)))

    @contextlib.contextmanager
    def _csv_told(self, reader: Any) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise DataFileError(
                f"{self.name}, line {reader.line_num} is not CSV ({error}). Correct it."
            ) from error

    def _open_parquet(self) -> Any:
        pyarrow, parquet = _pyarrow()
        try:
            return parquet.ParquetFile(self._file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataFileError(
                f"{self.name} is no Parquet file, or a damaged one ({_first_line(error)}). Give "
                "another file, or say what format it has by --input-format."
            ) from error

    def _read_parquet(self) -> Iterator[Row]:
        pyarrow, _ = _pyarrow()
        number = 0
        batches = self._parquet.iter_batches(batch_size=ROW_GROUP)
        while True:
            try:
                batch = next(batches, None)
                values = [] if batch is None else batch.to_pylist()
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise DataFileError(
                    f"{self.name} can't be read after row {number} ({_first_line(error)}). Give a "
                    "file that is whole."
                ) from error
            if batch is None:
                return
            for number, value in enumerate(values, number + 1):  # noqa: B020 - it goes on
                yield Row(f"row {number}", value)


class _Writer(Protocol):
    """Writes rows to an open file."""

    def write(self, fields: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """Write what is left; the file stays open."""


class Sink:
    """A file of rows that is written, or standard output.

    A file is written under the name with '.part' at its end, and renamed by `close`: under its own
    name it is there whole, or as it was before. Pipes and devices are written directly.

    Args:
        path: The file's name.
        form: One of `FORMATS`.
        fields: The names of the columns; None if the first row has them.
        schema: The schema of these in Parquet, if it is known.
        output: The name of the column that is for outputs, which are text.
        error: The name of the column that is for errors: None, or `{"type": ..., "message": ...}`.
        pipe: Standard output, where the path is '-'.
        overwrite: Whether a file with the name of the part may be replaced, whoever made it.
        safe_csv: Whether cells of CSV are quoted that a spreadsheet takes for a formula.
    """

    def __init__(
        self,
        path: str,
        form: str,
        fields: Sequence[str] | None,
        schema: Any,
        output: str,
        error: str,
        pipe: BinaryIO | None = None,
        *,
        overwrite: bool = False,
        safe_csv: bool = False,
    ) -> None:
        self.name = "standard output" if path == PIPE else path
        self._path = Path(os.path.realpath(path))
        self._form = form
        self._fields = None if fields is None else list(fields)
        self._schema = schema
        self._columns = (output, error)
        self._pipe = pipe
        self._safe_csv = safe_csv
        self._part = PartFile(self._path, overwrite=overwrite)
        self._file: BinaryIO | None = None
        self._writer: _Writer | None = None
        self._is_closed = False

    @property
    def is_begun(self) -> bool:
        """Whether anything was written: before that no file is touched."""
        return self._writer is not None

    def check(self, fields: Mapping[str, Any], place: str) -> None:
        """See that a row has a place in the file, before it costs anything. In any thread.

        Args:
            fields: The fields of the row.
            place: Where it was read.

        Raises:
            DataFileError: It has a field with the name of an output or an error, or a field for
                which there is no column.
        """
        self.check_names(fields, place)
        if self._form == "jsonl" or self._fields is None:
            return
        strange = [field for field in fields if field not in self._fields]
        if strange:
            raise DataFileError(
                f"{place} has the field {strange[0]!r}, which the first row has not. "
                f"{self._form.upper()} has the same columns in each row: give all rows the same "
                "fields, or write JSON Lines (--output-format jsonl)."
            )

    def check_names(self, names: Collection[str], place: str) -> None:
        """See that fields of the input have other names than outputs and errors. In any thread.

        Args:
            names: The names of the fields.
            place: Where they were read.

        Raises:
            DataFileError: An output or an error has the name of one of them.
        """
        for option, name in zip(("--output-field", "--error-field"), self._columns, strict=True):
            if name in names:
                raise DataFileError(
                    f"{place} has a field {name!r} of its own, which would be lost. Give the "
                    f"results another name by {option}."
                )

    def check_part(self) -> None:
        """See that nobody else's file has the name of the part, before anything costs something.

        Raises:
            DataFileError: There is such a file.
        """
        if self._pipe is None and self._is_file:
            with self._told():
                self._part.check()

    def begin(self) -> None:
        """Open the file, if it is not open.

        Raises:
            DataFileError: It can't be opened.
        """
        if self._writer is not None:
            return
        with self._told():
            self._file = self._pipe or self._open()
            self._writer = self._make_writer(self._file)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write a row; `begin` does not need to be called before.

        Raises:
            DataFileError: The row can't be written.
            BrokenPipeError: Nobody reads standard output any more.
        """
        self.begin()
        assert self._writer is not None
        with self._told():
            self._writer.write(fields)

    def flush(self) -> None:
        """Let others see what is written, but for what waits for its Parquet row group."""
        if self._file is not None:
            with self._told():
                self._file.flush()

    def close(self) -> None:
        """End the file, and give it its name; a file that was not begun is made now.

        Raises:
            DataFileError: It can't be written.
        """
        self.begin()
        assert self._writer is not None
        assert self._file is not None
        try:
            with self._told():
                self._writer.close()
                self._file.flush()
                if self._pipe is None:
                    self._file.close()
                if self._pipe is None and self._is_file:
                    self._part.complete()
        except BaseException:
            self.abandon()
            raise
        self._is_closed = True

    def abandon(self) -> None:
        """Let go of a file that was not closed, as if it had not been begun; else do nothing."""
        if self._writer is None or self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(DataFileError, OSError):
            self._writer.close()
        if self._file is not None and self._pipe is None:
            with contextlib.suppress(OSError):
                self._file.close()
            if self._is_file:
                self._part.remove()

    def _open(self) -> BinaryIO:
        return self._part.create() if self._is_file else open(self._path, "wb")

    @property
    def _is_file(self) -> bool:
        """Whether it is a file or is to be one, and no device and no named pipe."""
        return self._path.is_file() or not self._path.exists()

    def _make_writer(self, file: BinaryIO) -> _Writer:
        if self._form == "jsonl":
            return _JSONLWriter(file)
        if self._form == "csv":
            columns = [*(self._fields or ()), *self._columns]
            return _CSVWriter(file, columns, is_safe=self._safe_csv)
        return _ParquetWriter(file, self._fields or [], self._schema, self._columns, self.name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DataFileError(
                f"{self.name} can't be written ({error.strerror}). See that its folder is there, "
                "can be written to and has room."
            ) from error


class _JSONLWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._text = _text_over(file)

    def write(self, fields: Mapping[str, Any]) -> None:
        self._text.write(f"{to_json(fields)}\n")

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # it is detached already
            self._text.detach()


class _Lines:
    """Takes lines from `csv.writer`, and ends them as this system's tools expect it.

    Before Python 3.11.9 a writer quotes a carriage return in a cell only if it is part of the line
    terminator (https://github.com/python/cpython/issues/67044); unquoted it ends the row.
    """

    END = "\r\n"

    def __init__(self, text: TextIO) -> None:
        self._text = text

    def write(self, line: str) -> None:
        self._text.write(f"{line.removesuffix(self.END)}\n")


class _CSVWriter:
    """Writes what is no text as JSON, and an error as 'type: message'."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], *, is_safe: bool) -> None:
        self._text = _text_over(file)
        self._columns = columns
        self._is_safe = is_safe
        self._writer = csv.writer(_Lines(self._text), lineterminator=_Lines.END)
        self._write_cells(columns)

    def write(self, fields: Mapping[str, Any]) -> None:
        self._write_cells([_cell(fields.get(column)) for column in self._columns])

    def _write_cells(self, cells: Sequence[str]) -> None:
        self._writer.writerow([_quoted(cell) for cell in cells] if self._is_safe else cells)

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # it is detached already
            self._text.detach()


class _ParquetWriter:
    """Writes rows by groups; the types of columns that nobody knows are those of the first one."""

    def __init__(
        self,
        file: BinaryIO,
        fields: Sequence[str],
        schema: Any,
        columns: tuple[str, str],
        name: str,
    ) -> None:
        self._pyarrow, self._parquet = _pyarrow()
        self._file = file
        self._fields = fields
        self._schema = schema
        self._columns = columns
        self._name = name
        self._rows: list[Mapping[str, Any]] = []
        self._written = 0
        self._writer: Any = None

    def write(self, fields: Mapping[str, Any]) -> None:
        self._rows.append(fields)
        if len(self._rows) >= ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        try:
            self._write_group()
        finally:
            if self._writer is not None:
                self._writer.close()  # for the second time, it does nothing

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
                f"fit the types of its columns ({_first_line(error)}). Give a field the same type "
                "in all rows; or go on to JSON Lines, by another --output with --checkpoint and "
                "--resume."
            ) from error
        self._written += len(rows)

    def _full_schema(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return the schema with the columns of output and error."""
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
    """Return a text file that keeps nothing back from the binary one."""
    # Half a surrogate pair, which no UTF-8 has, becomes the escape that JSON, too, has for it.
    return io.TextIOWrapper(
        file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingPackageError(
            "Parquet needs pyarrow, which is not installed. Install it (pip install "
            "'gptx_async[parquet]'), or use JSON Lines or CSV."
        ) from error


def to_json(value: Any) -> str:
    """Write a value as JSON; what Parquet has beyond JSON's types as the text that stands for it.

    NaN and the infinities, for which JSON has no word, become null.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_stand_in)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=_stand_in)


def _stand_in(value: Any) -> str:
    if isinstance(value, (date, time)):  # also a datetime
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return value


def _quoted(cell: str) -> str:
    """Return a cell that a spreadsheet takes for text.

    The characters are those of https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and value.keys() == {"type", "message"}:
        return f"{value['type']}: {value['message']}"
    if isinstance(value, (date, time, bytes)):
        return _stand_in(value)
    return _text(value) or ""


class _LostError(ValueError):
    """JSON has something that Python's values do not keep."""


def _from_json(line: str) -> Any:
    return json.loads(
        line,
        parse_constant=_refuse_constant,
        parse_float=_parse_float,
        object_pairs_hook=_object_of,
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    digits = re.split("[eE]", text)[0]
    if math.isinf(number) or (number == 0 and digits.strip("-0.")):
        raise _LostError(f"has the number {text}, which no float holds")
    return number


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _LostError(f"has the key {twice!r} twice")
    return fields


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0].rstrip(".")


_SPREAD = (
    "It looks like one JSON value over many lines: `jq -c '.[]' FILE` makes JSON Lines of an array."
)
