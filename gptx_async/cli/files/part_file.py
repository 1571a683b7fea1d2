"""The file that an output is written to until it is complete: `OUTPUT.part`.

It is created exclusively and no link is followed, so that nobody else's file is written to. A file
of that name that is there already is removed only if it is known to be the leftover of a killed
run, or if the user has asked for it by `--overwrite`.

A run holds a lock (flock) on its part while it writes, and `OUTPUT.part.owner` beside it contains
the numbers of the part's device and inode: a part that is not locked, and that these numbers name,
is a leftover. An empty one is, too: nothing would be lost with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ...errors import DataFileError

__all__ = ["PartFile"]

_MARK = "gptx_async part"
"""How the content of the file that names the owner begins."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PartFile:
    """The part of one output.

    Args:
        output: The output's path, without links.
        overwrite: Whether a file of the part's name may be removed, whoever made it.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.path = output.with_name(f"{output.name}.part")
        self._owner = output.with_name(f"{output.name}.part.owner")
        self._output = output
        self._overwrite = overwrite
        self._created: os.stat_result | None = None

    def check(self) -> None:
        """See that the part can be created; nothing is changed.

        Raises:
            DataFileError: A file of that name may not be removed.
            OSError: It cannot be looked at.
        """
        for path, is_ours in ((self.path, self._is_leftover()), (self._owner, self._is_mark())):
            if os.path.lexists(path) and not (is_ours or self._overwrite):
                raise DataFileError(
                    f"{path} is there already, and is not the leftover of a killed run: it may be "
                    "somebody else's. Move it away, replace it by --overwrite, or give another "
                    "--output."
                )

    def create(self) -> BinaryIO:
        """Create the part, lock it, and return it.

        Raises:
            DataFileError: As for `check`.
            OSError: It cannot be created.
        """
        self.check()
        for path in (self._owner, self.path):
            path.unlink(missing_ok=True)
        file = os.fdopen(os.open(self.path, _CREATE, 0o666), "wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._created = os.fstat(file.fileno())
        # While the part is empty, so that it is recognised whenever the run is killed.
        with os.fdopen(os.open(self._owner, _CREATE, 0o666), "w") as owner:
            owner.write(_mark_of(self._created))
        return file

    def complete(self) -> None:
        """Give the part the output's name.

        Raises:
            DataFileError: The part is no longer the file that `create` returned.
            OSError: It cannot be renamed.
        """
        if not self._is_created():
            raise DataFileError(
                f"{self.path} was removed or replaced while it was written. Run again with "
                "--resume, and let nothing else write there."
            )
        os.replace(self.path, self._output)
        self._owner.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the part, if it is still the file that `create` returned."""
        if self._is_created():
            self.path.unlink(missing_ok=True)
            self._owner.unlink(missing_ok=True)

    def _is_created(self) -> bool:
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return self._created is not None and os.path.samestat(found, self._created)

    def _is_leftover(self) -> bool:
        """Return whether the part is of a run that has ended.

        Raises:
            DataFileError: It is of a run that has not.
        """
        try:
            part = os.open(self.path, _LOOK)
        except OSError:  # there is none, it is a link, or it cannot be read
            return False
        try:
            found = os.fstat(part)
            if not stat.S_ISREG(found.st_mode):
                return False
            try:
                fcntl.flock(part, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataFileError(
                    f"{self.path} is being written by another run. Wait for its end, or give "
                    "another --output."
                ) from None
            except OSError:  # a file system without locks
                pass
            return found.st_size == 0 or self._read_owner() == _mark_of(found)
        finally:
            os.close(part)

    def _is_mark(self) -> bool:
        return self._read_owner().startswith(_MARK)

    def _read_owner(self) -> str:
        try:
            with os.fdopen(os.open(self._owner, _LOOK), "rb") as file:
                return file.read(100).decode(errors="replace")
        except OSError:
            return ""


def _mark_of(part: os.stat_result) -> str:
    return f"{_MARK} {part.st_dev} {part.st_ino}\n"
