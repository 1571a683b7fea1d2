"""The progress bar in a terminal, in a notebook and elsewhere."""

from __future__ import annotations

import contextlib
import os
import pty
import termios

import nbclient
import nbformat
import pytest

from gptx_async.testing import FakeOpenAI
from support import TESTS
from support.child import DEADLINE, run_child, start_python
from support.engines import echo_unless_bad

PROGRESS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import gptx_async
from support.items import ask
engine = gptx_async.install("sk-key", "gpt-4o-mini", prices={"gpt-4o-mini": (1000.0, 1000.0)})
texts = [*(f"text {i}" for i in range(8)), "bad"]
gptx_async.map(ask, texts, on_error="return", progress=True)
"""


@pytest.mark.slow
def test_a_bar_in_a_terminal_shows_the_statistics_of_the_engine(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = echo_unless_bad
    shown = in_pseudo_terminal(PROGRESS, TESTS)
    last = [line for line in shown.split("\r") if "9/9" in line][-1]
    assert "failed=1, retries=0, calls/s=" in last
    assert "tokens=" in last
    assert "cost=US$ " in last
    assert "cost=US$ 0.0000" not in last


@pytest.mark.slow
def test_there_is_no_bar_where_there_is_no_terminal() -> None:
    program = "import gptx_async; print(gptx_async.map(abs, [-1, 2], progress=True))"
    completed = run_child(program)
    assert (completed.stdout, completed.stderr) == ("[1, 2]\n", "")
    shown = in_pseudo_terminal(program)  # a terminal, but no engine with statistics
    assert "2/2" in shown
    assert "failed=0" in shown


def test_there_is_a_bar_in_a_notebook() -> None:
    """A text bar, because ipywidgets is missing. The kernel's standard error is not a terminal."""
    cell = "import gptx_async; gptx_async.map(abs, [-1, 2], progress=True)"
    cells = [nbformat.v4.new_code_cell(cell)]  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=50).execute()
    shown = "".join(str(output) for output in notebook.cells[0].outputs)
    assert "2/2" in shown
    assert "failed=0" in shown


def in_pseudo_terminal(program: str, *arguments: str) -> str:
    """Run a program with a terminal of 200 columns as standard error; return what it displays."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    with start_python("-c", program, *arguments, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of the output
            while chunk := os.read(ours, 2**16):
                shown += chunk
        os.close(ours)
        assert process.wait(DEADLINE) == 0, shown.decode()
    return shown.decode()
