"""Runs the scripts of `examples/`; its web app and notebook are tested in `hosts`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gptx_async.testing import FakeOpenAI, HTTPFault
from support.child import run_python

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    return run_python(str(EXAMPLES / name), *arguments, env=environment)


@pytest.mark.slow
def test_the_scheduler_example_names_keywords(fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    fake_openai.reply = lambda request: (
        "keywords" if "keywords" in str(request.body) else "a summary"
    )
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path in paths:
        path.write_text("some text")
    done = run_example("scheduler.py", *map(str, paths))
    assert done.stdout == "".join(f"{path}: keywords\n" for path in paths), done.stderr
    assert len(fake_openai.requests) == 6
    assert "calls" in done.stderr


@pytest.mark.slow
def test_the_example_of_several_base_urls_prints_each_answer() -> None:
    with (
        FakeOpenAI(reply=lambda _: "the Inn and the Sava") as good,
        FakeOpenAI(faults=lambda _: HTTPFault(400, message="not today")) as bad,
    ):
        done = run_example("base_urls.py", good.base_url, bad.base_url)
        said = dict(line.split(" (", 1) for line in done.stdout.splitlines())
        assert said[good.base_url].endswith("s): the Inn and the Sava"), done.stderr
        assert "failed: " in said[bad.base_url]
        assert "not today" in said[bad.base_url]
        assert len(good.requests) == len(bad.requests) == 1
