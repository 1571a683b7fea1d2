"""`OUTPUT.part` in a folder that other processes write to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptx_async.cli.files.part_file import PartFile


def test_a_file_that_appears_at_the_last_moment_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartFile(tmp_path / "out.jsonl", overwrite=False)
    unlink = Path.unlink

    def unlink_and_lose(self: Path, **options: Any) -> None:
        unlink(self, **options)
        if self == part.path:
            self.write_text("somebody else's")

    monkeypatch.setattr(Path, "unlink", unlink_and_lose)
    with pytest.raises(FileExistsError):
        part.create()
    assert part.path.read_text() == "somebody else's"
