"""The documentation is built without a warning, and leaves out no public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptx_async
from gptx_async import errors
from gptx_async.cli import main as cli
from support.child import DEADLINE

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_tells_of_every_public_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "api.html").read_text()
    names = {*gptx_async.__all__, *errors.__all__} - {"__version__", "errors"}
    assert {name for name in names if f".{name}" not in reference} == set()
    assert (tmp_path / "images" / "calls_per_second.png").stat().st_size > 10_000


def test_the_page_of_the_command_line_has_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for name in ("run", "doctor", "serve", "demo"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        there = {*re.findall(r"--[a-z][\w-]+", capsys.readouterr().out)} - {"--help"}
        section = page.split(f"## `gptx-async {name}`\n", 1)[1].split("\n## ")[0]
        told = {*re.findall(r"--[a-z][\w-]+", section)} - {"--help"}
        assert told == there
