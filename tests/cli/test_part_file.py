"""The file that an output is written to first, against others who write to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptx_async.cli.files.datafiles import Sink
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


def test_lines_of_csv_end_as_those_of_other_text_files(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "a.csv"), "csv", ["a"], None, "output", "error")
    sink.write({"a": "x\r\ny", "output": "z"})
    sink.close()
    assert (tmp_path / "a.csv").read_bytes() == b'a,output,error\n"x\r\ny",z,\n'
