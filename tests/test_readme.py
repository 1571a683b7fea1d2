"""The README's examples, run as they are written: in a real kernel, under a real web server."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from gptx_async.telemetry.events import EVENTS
from gptx_async.testing import FakeOpenAI
from support.child import DEADLINE, run_python, start_python

README = (Path(__file__).parent.parent / "README.md").read_text()


def example(heading: str) -> str:
    """The Python block under a heading of the README."""
    section = re.split(r"\n#{2,3} ", README.split(f"# {heading}\n", 1)[1])[0]
    [block] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(block)


@pytest.mark.slow
def test_the_notebook_cell_runs_in_a_real_kernel(fake_openai: FakeOpenAI) -> None:
    cells = [example("In a notebook"), "print(type(summary).__name__, len(summaries))"]
    notebook: Any = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(
        notebook, timeout=int(DEADLINE), startup_timeout=int(DEADLINE)
    ).execute()
    assert notebook.cells[-1].outputs[-1].text.strip() == "Symbol 3"
    assert len(fake_openai.requests) == 4
    assert fake_openai.requests[0].headers["Authorization"] == "Bearer sk-..."


@pytest.fixture
def web_server(fake_openai: FakeOpenAI, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "app.py").write_text(example("In a web back end"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = ["-m", "uvicorn", "app:app", "--fd", str(listening.fileno())]
        process = start_python(*command, "--app-dir", str(tmp_path), pass_fds=[listening.fileno()])
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        process.terminate()
        assert process.wait(DEADLINE) in {0, -15}


@pytest.mark.slow
def test_the_web_handlers_answer_under_uvicorn(web_server: str, fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: "a summary"
    with urllib.request.urlopen(
        f"{web_server}/summaries?text=some&copies=5", timeout=DEADLINE
    ) as answer:
        assert json.load(answer) == ["a summary"] * 5
    with urllib.request.urlopen(f"{web_server}/summary?text=some", timeout=DEADLINE) as answer:
        assert json.load(answer) == "a summary"
    assert len(fake_openai.requests) == 6


@pytest.mark.slow
def test_the_scheduler_example_runs(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda request: f"{len(fake_openai.requests)}"
    completed = run_python("-c", example("Under a scheduler") + "\nprint(len(results), results)")
    assert completed.stdout.startswith("3 ["), completed.stderr
    assert "Error" not in completed.stdout
    assert len(fake_openai.requests) == 6


@pytest.mark.slow
def test_the_example_of_other_models_runs(fake_openai: FakeOpenAI) -> None:
    completed = run_python("-c", example("Other models"))
    assert completed.stdout.strip() == "1 gpt-4o-mini", completed.stderr
    paths = [(request.path, request.body["model"]) for request in fake_openai.requests]
    assert paths == [("/v1/chat/completions", "o3-mini"), ("/v1/responses", "gpt-4o-mini")]


def test_the_table_of_models_is_that_of_the_code() -> None:
    from gptx_async.symbolicai.v1.engine_classes import engine_class_of

    section = README.split("### Other models\n", 1)[1]
    rows = re.findall(r"^\| `(\w+Engine)` \| (.*?) \|", section, re.MULTILINE)
    assert len(rows) == 7
    for name, models in rows:
        for model in re.findall(r"`(.+?)`", models):
            assert engine_class_of(model).__name__ == name


@pytest.mark.slow
def test_the_example_of_a_dataset_runs(
    fake_openai: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path.home() / "symai.config.json", tmp_path)
    fake_openai.reply = lambda request: "keywords"
    completed = run_python("-c", example("Over a dataset"))
    lines = completed.stdout.split("\n")
    assert lines[:3] == ["keywords"] * 3, completed.stderr
    assert sorted(lines[3:6]) == ["0 keywords", "1 keywords", "2 keywords"]
    assert (tmp_path / "run.sqlite").exists()
    assert len(fake_openai.requests) == 12


@pytest.mark.slow
def test_the_example_of_a_dataset_in_a_coroutine_runs(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda request: "a summary"
    completed = run_python("-c", example("Over a dataset, in a coroutine"))
    lines = completed.stdout.split("\n")
    assert lines[:2] == ["a summary"] * 2, completed.stderr
    assert sorted(lines[2:4]) == ["0 a summary", "1 a summary"]
    assert len(fake_openai.requests) == 6


FORKED_COMMAND = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from support.child import start_python
sys.exit(start_python("-m", "gptx_async", *sys.argv[1:]).wait())
"""


@pytest.mark.slow
def test_the_commands_over_a_file_run(
    fake_openai: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.split("## Command line\n", 1)[1]
    [block] = re.findall(r"```bash\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    shutil.copy(Path.home() / "symai.config.json", tmp_path)
    (tmp_path / "items.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    (tmp_path / "items.csv").write_text("id,text\n1,one\n")
    scheduler_example = example("Under a scheduler").split("gptx_async.install()")[0]
    (tmp_path / "mine.py").write_text(scheduler_example)
    fake_openai.reply = lambda request: "an answer"
    installed = Path(sys.executable).with_name("gptx-async")
    subprocess.run([installed, "--version"], check=True, timeout=DEADLINE)
    command = tmp_path / "bin" / "gptx-async"
    command.parent.mkdir()
    command.write_text(FORKED_COMMAND)
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    translated = [json.loads(line) for line in done.stdout.splitlines()]
    assert translated == [
        {"id": 1, "text": "one", "output": "an answer"},
        {"id": 2, "text": "two", "output": "an answer"},
    ]
    summaries = (tmp_path / "summaries.jsonl").read_text().splitlines()
    assert json.loads(summaries[1]) == {"id": 2, "text": "two", "output": "an answer"}
    described = (tmp_path / "described.csv").read_text()
    assert described == "id,text,output,error\n1,one,an answer,\n"
    assert len(fake_openai.requests) == 6


@pytest.mark.slow
def test_the_example_of_pacing_runs(fake_openai: FakeOpenAI) -> None:
    program = example("Retries, pacing and costs") + "\nprint(engine.stats().table())"
    completed = run_python("-c", program)
    assert completed.stdout.startswith("calls"), completed.stderr


def test_the_table_of_events_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (\w+) \| .* \| (.*) \|$", README, re.MULTILINE)
    told = {name: (level, re.findall(r"`(\w+)`", fields)) for name, level, fields in rows}
    assert told == {
        name: (logging.getLevelName(level), [*fields]) for name, (level, fields) in EVENTS.items()
    }


@pytest.mark.slow
def test_the_testing_example_runs() -> None:
    completed = run_python("-c", example("Testing your own code"))
    assert completed.stdout.strip() == "[]", completed.stderr


def test_the_commands_of_the_readme_are_there() -> None:
    root = Path(__file__).parent.parent
    for command in re.findall(r"^(scripts/\w+)", README, re.MULTILINE):
        assert (root / command).stat().st_mode & 0o111, f"{command} can be run"
