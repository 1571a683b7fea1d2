"""Write a file of rows, row by row, so that the file may be larger than memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import DataFileError
from .formats import PIPE
from .part_file import PartFile
from .writers import CSVWriter, JSONLWriter, ParquetWriter, RowWriter

__all__ = ["Sink"]


class Sink:
    """A file of rows, or standard output, open for writing.

    A file is written to `NAME.part`, and `close` renames it to NAME when it is complete. Until then
    an existing file NAME stays unchanged. Pipes and devices are written directly.

    Args:
        path: The file name.
        form: The format, one of `formats.FORMATS`.
        fields: The names of the columns; None to take them from the first row.
        schema: The pyarrow schema of the columns, if it is known; for Parquet only.
        output: The name of the column for outputs, which are text.
        error: The name of the column for errors: None, or `{"type": ..., "message": ...}`.
        pipe: Standard output, if the path is '-'.
        overwrite: Whether to replace any existing file `NAME.part`.
        safe_csv: Whether to quote the CSV cells that a spreadsheet would compute as formulas.
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
        self._writer: RowWriter | None = None
        self._is_closed = False

    @property
    def is_begun(self) -> bool:
        """Whether the file was opened. Before that no file is changed."""
        return self._writer is not None

    def check(self, fields: Mapping[str, Any], place: str) -> None:
        """Check, before a row costs anything, that it can be written. Allowed in any thread.

        Args:
            fields: The fields of the row.
            place: The place of the row in the input, for the message.

        Raises:
            DataFileError: A field has the name of the output or error column, or has no column.
        """
        self.check_names(fields, place)
        if self._form == "jsonl" or self._fields is None:
            return
        strange = [field for field in fields if field not in self._fields]
        if strange:
            raise DataFileError(
                f"{place} has the field {strange[0]!r}, which the first row does not have. "
                f"{self._form.upper()} has the same columns in each row: give all rows the same "
                "fields, or write JSON Lines (--output-format jsonl)."
            )

    def check_names(self, names: Collection[str], place: str) -> None:
        """Check that no field has the name of the output or error column. Allowed in any thread.

        Args:
            names: The names of the fields.
            place: The place of the fields in the input, for the message.

        Raises:
            DataFileError: A field has the name of the output or error column.
        """
        for option, name in zip(("--output-field", "--error-field"), self._columns, strict=True):
            if name in names:
                raise DataFileError(
                    f"{place} has a field {name!r}, which the results would overwrite. Give the "
                    f"results another name with {option}."
                )

    def check_part(self) -> None:
        """Check, before anything costs money, that the `.part` file can be created.

        Raises:
            DataFileError: There is such a file, and no killed run left it behind.
        """
        if self._pipe is None and self._is_file:
            with self._file_errors_named():
                self._part.check()

    def begin(self) -> None:
        """Open the file, if it is not open.

        Raises:
            DataFileError: It can't be opened.
        """
        if self._writer is not None:
            return
        with self._file_errors_named():
            self._file = self._pipe or self._open()
            self._writer = self._make_writer(self._file)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write a row. Opens the file first if it is not open.

        Raises:
            DataFileError: The row can't be written.
            BrokenPipeError: The reader of standard output has closed it.
        """
        self.begin()
        assert self._writer is not None
        with self._file_errors_named():
            self._writer.write(fields)

    def flush(self) -> None:
        """Make written rows visible to others, except those of an incomplete Parquet row group."""
        if self._file is not None:
            with self._file_errors_named():
                self._file.flush()

    def close(self) -> None:
        """Complete the file and rename it. Creates an empty file if nothing was written.

        Raises:
            DataFileError: It can't be written.
        """
        self.begin()
        assert self._writer is not None
        assert self._file is not None
        try:
            with self._file_errors_named():
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
        """Remove the incomplete file. Does nothing after `close`, or before `begin`."""
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
        """Whether the path is a regular file or does not exist: not a device or a named pipe."""
        return self._path.is_file() or not self._path.exists()

    def _make_writer(self, file: BinaryIO) -> RowWriter:
        if self._form == "jsonl":
            return JSONLWriter(file)
        if self._form == "csv":
            columns = [*(self._fields or ()), *self._columns]
            return CSVWriter(file, columns, is_safe=self._safe_csv)
        return ParquetWriter(file, self._fields or [], self._schema, self._columns, self.name)

    @contextlib.contextmanager
    def _file_errors_named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DataFileError(
                f"{self.name} can't be written ({error.strerror}). Check that its folder exists, "
                "is writable and has free space."
            ) from error
