"""The file that holds an output until it is complete: `OUTPUT.part`.

It is created exclusively, without following links, so that a run never writes to somebody else's
file. An existing file of that name is removed only if a killed run left it behind, or if the user
gave `--overwrite`.

A run holds a lock (flock) on its part while it writes. `OUTPUT.part.owner` contains the device and
inode numbers of the part. A part that is not locked and has these numbers is a leftover. An empty
part is a leftover, too: removing it loses nothing.
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
"""The first words of the file `OUTPUT.part.owner`."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PartFile:
    """The part file of one output.

    Args:
        output: The path of the output, with links resolved.
        overwrite: Whether to remove any existing file that has the part's name.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.path = output.with_name(f"{output.name}.part")
        self._owner = output.with_name(f"{output.name}.part.owner")
        self._output = output
        self._overwrite = overwrite
        self._created: os.stat_result | None = None

    def check(self) -> None:
        """Check that the part can be created, without changing anything.

        Raises:
            DataFileError: There is a file of that name that must not be removed.
            OSError: The existing file can't be examined.
        """
        for path, is_ours in ((self.path, self._is_leftover()), (self._owner, self._is_mark())):
            if os.path.lexists(path) and not (is_ours or self._overwrite):
                raise DataFileError(
                    f"{path} already exists, and no killed run left it behind: it may be somebody "
                    "else's. Move it away, replace it with --overwrite, or give another --output."
                )

    def create(self) -> BinaryIO:
        """Create the part, lock it, and return it.

        Raises:
            DataFileError: There is a file of that name that must not be removed.
            OSError: The part can't be created.
        """
        self.check()
        for path in (self._owner, self.path):
            path.unlink(missing_ok=True)
        file = os.fdopen(os.open(self.path, _CREATE, 0o666), "wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._created = os.fstat(file.fileno())
        # Written while the part is empty, so that a kill at any time leaves a known leftover.
        with os.fdopen(os.open(self._owner, _CREATE, 0o666), "w") as owner:
            owner.write(_mark_of(self._created))
        return file

    def complete(self) -> None:
        """Rename the part to the output's name.

        Raises:
            DataFileError: The part is no longer the file that `create` returned.
            OSError: The part can't be renamed.
        """
        if not self._is_created():
            raise DataFileError(
                f"{self.path} was removed or replaced while the run wrote to it. Run again with "
                "--resume, and make sure that nothing else writes there."
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
        """Return whether an ended run left the part behind.

        Raises:
            DataFileError: Another run is writing to the part.
        """
        try:
            part = os.open(self.path, _LOOK)
        except OSError:  # it does not exist, is a link, or can't be read
            return False
        try:
            found = os.fstat(part)
            if not stat.S_ISREG(found.st_mode):
                return False
            try:
                fcntl.flock(part, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataFileError(
                    f"Another run is writing to {self.path}. Wait until it ends, or give another "
                    "--output."
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
