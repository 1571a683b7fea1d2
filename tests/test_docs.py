"""The documentation is built without a warning, and agrees with the code."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptx_async
from gptx_async import errors
from gptx_async.cli import main as cli
from gptx_async.telemetry.events import EVENTS
from support.child import DEADLINE
from support.pages import ROOT, section_of, text_of


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_names_every_public_name(tmp_path: Path) -> None:
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
    assert '<pre class="mermaid">' in (tmp_path / "architecture.html").read_text()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert {*re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)} == pages


def test_the_page_of_the_command_line_has_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "doctor", "serve", "demo"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        there = {*re.findall(r"--[a-z][\w-]+", capsys.readouterr().out)} - {"--help"}
        section = section_of("docs/cli.md", f"`gptx-async {name}`")
        assert {*re.findall(r"--[a-z][\w-]+", section)} - {"--help"} == there


@pytest.mark.parametrize(
    ("page", "function"),
    [
        ("docs/guide/dataset.md", gptx_async.map),
        ("docs/guide/dataset.md", gptx_async.amap),
        ("docs/guide/engine.md", gptx_async.AsyncBatchEngine.__init__),
    ],
)
def test_the_table_of_options_is_that_of_the_code(page: str, function: Callable[..., Any]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)`.*? \| ", section_of(page, "Options"), re.MULTILINE)
    documented = {name: ast.literal_eval(default) for name, default in rows}
    parameters = inspect.signature(function).parameters.values()
    assert documented == {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def test_the_table_of_models_is_that_of_the_code() -> None:
    from gptx_async.symbolicai.v1.engine_classes import engine_class_of

    page = text_of("docs/guide/models.md")
    rows = re.findall(r"^\| `(\w+Engine)` \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) == 7
    for name, models in rows:
        for model in re.findall(r"`(.+?)`", models):
            assert engine_class_of(model).__name__ == name


def test_the_table_of_events_is_that_of_the_code() -> None:
    page = text_of("docs/observability.md")
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (\w+) \| .* \| (.*) \|$", page, re.MULTILINE)
    documented = {name: (level, re.findall(r"`(\w+)`", fields)) for name, level, fields in rows}
    assert documented == {
        name: (logging.getLevelName(level), [*fields]) for name, (level, fields) in EVENTS.items()
    }
