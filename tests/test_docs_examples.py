"""Every Python block of the README and of the pages, run as it is written.

The blocks of a page run in one child, one after the other, as a reader would run them. Those of the
notebook's page run in a real kernel, those of web back ends also under a real web server, and
those that are tests also under pytest.
"""

from __future__ import annotations

import json
import os
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

from gptx_async.testing import FakeOpenAI
from support.child import DEADLINE, run_python, start_python
from support.pages import PAGES, code_in, section_of, text_of

REQUESTS = {
    "README.md": 7,
    "docs/guide/engine.md": 2,
    "docs/guide/scheduler.md": 6,
    "docs/index.md": 3,
    "docs/observability.md": 1,
    "docs/pacing.md": 0,
    "docs/testing.md": 0,
}
"""How many requests the blocks of each page send when they are run as one program."""

RUN_IN_OTHER_WAYS = {
    "docs/cli.md",
    "docs/guide/dataset.md",
    "docs/guide/models.md",
    "docs/guide/notebook.md",
    "docs/guide/web.md",
}
"""Pages that have a test of their own below."""

pytestmark = pytest.mark.slow


def test_every_page_with_a_python_block_is_run_here() -> None:
    with_blocks = {page for page in PAGES if "```py" in text_of(page)}
    assert with_blocks == REQUESTS.keys() | RUN_IN_OTHER_WAYS
    for page in with_blocks:
        assert text_of(page).count("```py") == len(code_in(text_of(page))), page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with symbolicai's configuration."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path.home() / "symai.config.json", tmp_path)
    return tmp_path


def run_page(page: str) -> str:
    """Run the blocks of a page as one program, and return what they print."""
    completed = run_python("-c", "\n".join(code_in(text_of(page))))
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.mark.parametrize("page", REQUESTS)
def test_the_blocks_of_a_page_run(page: str, folder: Path, fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: "keywords"
    printed = run_page(page)
    assert len(fake_openai.requests) == REQUESTS[page], printed
    assert "Error" not in printed


def test_the_page_of_datasets_prints_values_in_order_and_then_as_they_come(
    folder: Path, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda _request: "keywords"
    lines = run_page("docs/guide/dataset.md").splitlines()
    assert lines[:3] == ["keywords"] * 3
    assert sorted(lines[3:6]) == ["0 keywords", "1 keywords", "2 keywords"]
    assert lines[6:8] == ["keywords"] * 2
    assert sorted(lines[8:]) == ["0 keywords", "1 keywords"]
    assert (folder / "run.sqlite").exists()
    assert len(fake_openai.requests) == 18


def test_the_page_of_models_asks_both(folder: Path, fake_openai: FakeOpenAI) -> None:
    assert run_page("docs/guide/models.md").strip() == "1 gpt-4o-mini"
    paths = [(request.path, request.body["model"]) for request in fake_openai.requests]
    assert paths == [("/v1/chat/completions", "o3-mini"), ("/v1/responses", "gpt-4o-mini")]


def test_the_cells_of_the_notebook_page_run_in_a_kernel(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: "a summary"
    cells = [*code_in(text_of("docs/guide/notebook.md")), "print(summary, summaries)"]
    notebook: Any = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(
        notebook, timeout=int(DEADLINE), startup_timeout=int(DEADLINE)
    ).execute()
    printed = notebook.cells[-1].outputs[-1].text.strip()
    assert printed == "a summary ['a summary', 'a summary', 'a summary']"
    assert len(fake_openai.requests) == 10
    assert fake_openai.requests[0].headers["Authorization"] == "Bearer sk-..."


def serve(program: str, folder: Path) -> Iterator[str]:
    """Run a web back end under uvicorn, and yield its URL."""
    (folder / "app.py").write_text(program)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = ["-m", "uvicorn", "app:app", "--fd", str(listening.fileno())]
        process = start_python(*command, "--app-dir", str(folder), pass_fds=[listening.fileno()])
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        process.terminate()
        assert process.wait(DEADLINE) in {0, -15}


@pytest.fixture
def web_page(fake_openai: FakeOpenAI, folder: Path) -> Iterator[str]:
    yield from serve("\n".join(code_in(text_of("docs/guide/web.md"))), folder)


@pytest.fixture
def web_readme(fake_openai: FakeOpenAI, folder: Path) -> Iterator[str]:
    yield from serve("\n".join(code_in(section_of("README.md", "In a web handler"))), folder)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        return json.load(answer)


def test_the_web_handlers_of_the_readme_answer(web_readme: str, fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: "a summary"
    assert get(f"{web_readme}/summary?text=some") == "a summary"
    assert get(f"{web_readme}/summaries?text=some&copies=5") == ["a summary"] * 5
    assert len(fake_openai.requests) == 6


def test_the_web_handlers_of_the_page_answer(web_page: str, fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: "a summary"
    assert get(f"{web_page}/summary?text=some") == "a summary"
    assert get(f"{web_page}/summaries?text=some&copies=2") == ["a summary"] * 2
    assert get(f"{web_page}/batch?text=some&copies=5") == ["a summary"] * 5
    assert get(f"{web_page}/short?text=some") == "a summary"
    assert len(fake_openai.requests) == 9
    first, *others = [request.messages for request in fake_openai.requests]
    assert others == [first] * 8  # every way of the page sends the same query


def test_the_test_of_the_page_passes_under_pytest(folder: Path) -> None:
    [program] = [block for block in code_in(text_of("docs/testing.md")) if "def test_" in block]
    (folder / "test_page.py").write_text(program)
    completed = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py")
    assert "1 passed" in completed.stdout, completed.stdout + completed.stderr


FORKED_COMMAND = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from support.child import start_python
sys.exit(start_python("-m", "gptx_async", *sys.argv[1:]).wait())
"""


def test_the_commands_over_a_file_run(folder: Path, fake_openai: FakeOpenAI) -> None:
    introduction = text_of("docs/cli.md").split("\n## ")[0]
    [commands] = code_in(introduction, "bash")
    [expression] = code_in(introduction)
    (folder / "mine.py").write_text(expression)
    (folder / "items.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    (folder / "items.csv").write_text("id,text\n1,one\n")
    fake_openai.reply = lambda request: "an answer"
    installed = Path(sys.executable).with_name("gptx-async")
    subprocess.run([installed, "--version"], check=True, timeout=DEADLINE)
    command = folder / "bin" / "gptx-async"
    command.parent.mkdir()
    command.write_text(FORKED_COMMAND)
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
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
    summaries = (folder / "summaries.jsonl").read_text().splitlines()
    assert json.loads(summaries[1]) == {"id": 2, "text": "two", "output": "an answer"}
    described = (folder / "described.csv").read_text()
    assert described == "id,text,output,error\n1,one,an answer,\n"
    assert len(fake_openai.requests) == 6
