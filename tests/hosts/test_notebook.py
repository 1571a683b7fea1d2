"""The example notebook, interrupts and shutdowns, in real Jupyter kernels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from gptx_async.testing import FakeOpenAI, RecordedRequest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
SECONDS = 50.0


def read_notebook() -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    return notebook


def code_cells() -> list[Any]:
    return [cell for cell in read_notebook().cells if cell.cell_type == "code"]


def cell_with(code: str) -> str:
    """Return the source of the only notebook cell that contains the code."""
    [source] = [cell.source for cell in code_cells() if code in cell.source]
    return str(source)


def summary(request: RecordedRequest) -> str:
    found = re.search(r"text number \d+|greenlet|in a \w+", request.user_text)
    return f"summary of {found.group() if found else request.user_text}"


SUMMARIES = [f"summary of text number {number}" for number in range(20)]


class Kernel:
    """A Jupyter kernel in a separate process, which writes its errors to a file."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        # After half of this time the manager sends SIGTERM, and after all of it SIGKILL.
        self.manager = KernelManager(shutdown_wait_time=SECONDS)

    def start(self) -> None:
        with self.errors.open("w") as file:
            self.manager.start_kernel(stderr=file)
        provisioner = self.manager.provisioner
        assert isinstance(provisioner, LocalProvisioner)
        assert provisioner.process is not None
        self.process = provisioner.process
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def begin(self, code: str, **options: Any) -> str:
        """Send a cell, and return the id that its reply will have.

        `stop_on_error` is off, because ipykernel drops its queue after the reply of a failed cell.
        A cell that is sent right after that reply may otherwise be 'aborted'.
        """
        return str(self.client.execute(code, stop_on_error=False, **options))

    def reply_to(self, cell_id: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=SECONDS)
            if message["parent_header"]["msg_id"] == cell_id:
                return dict(message["content"])

    def run(self, code: str, value: str = "None") -> str:
        """Run a cell to its end, and return the value of an expression after it."""
        cell_id = self.begin(code, user_expressions={"value": value})
        reply = self.reply_to(cell_id)
        assert reply["status"] == "ok", reply
        return str(reply["user_expressions"]["value"]["data"]["text/plain"])

    def close(self) -> None:
        """Kill the kernel if it is still running."""
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(fake_openai: FakeOpenAI, tmp_path: Path) -> Iterator[Kernel]:
    """Start a kernel and run the notebook up to the first batch."""
    fake_openai.reply = summary
    kernel = Kernel(tmp_path / "stderr")
    try:
        kernel.start()
        kernel.run(cell_with("gptx_async.install("))
        kernel.run(cell_with("def question("))
        fake_openai.clear()
        yield kernel
        kernel.client.stop_channels()
    finally:
        kernel.close()


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in code_cells():
        assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = summary
    notebook = read_notebook()
    nbclient.NotebookClient(notebook, timeout=int(SECONDS)).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [
        ast.literal_eval(output.data["text/plain"])
        for output in outputs
        if output.output_type == "execute_result"
    ]
    keywords = ["summary of text number"] * 20
    assert [*shown[:4], [each[:22] for each in shown[4]]] == [
        *("summary of greenlet", SUMMARIES, [], SUMMARIES),
        keywords,
    ]
    assert len(fake_openai.requests) == 81
    [plot] = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(plot.data["image/png"]) > 1_000
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "answered" in told


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("engine.forward(", "KeyboardInterrupt"),
        ("await engine.aforward(", "CancelledError"),  # how Jupyter interrupts an await
    ],
)
@pytest.mark.slow
def test_an_interrupt_cancels_a_batchs_requests_and_the_next_cell_is_answered(
    kernel: Kernel, fake_openai: FakeOpenAI, code: str, raised: str
) -> None:
    fake_openai.hold()
    cell_id = kernel.begin(cell_with(code))
    fake_openai.wait_for(lambda server: server.in_flight == 20)
    kernel.manager.interrupt_kernel()
    fake_openai.wait_for(lambda server: server.disconnected == 20)
    reply = kernel.reply_to(cell_id)  # while the server still holds all answers back
    assert (reply["status"], reply["ename"]) == ("error", raised)
    fake_openai.release()
    query = f"answer = {cell_with('in five words')}"
    assert kernel.run(query, "answer") == "'summary of greenlet'"
    answers = kernel.run(cell_with(code), "[output[0] for output in outputs]")
    assert ast.literal_eval(answers) == SUMMARIES


CALLS_FROM_EVERYWHERE = """
import asyncio
import sys
import threading


def ask() -> None:
    try:
        Symbol("in a thread").query("Summarise.")
    except Exception as error:
        print(error, file=sys.__stderr__, flush=True)


for _ in range(5):
    threading.Thread(target=ask).start()
task = asyncio.create_task(engine.aforward([question("in a task")] * 5))
"""


@pytest.mark.slow
def test_a_kernel_with_calls_in_flight_ends_by_itself_when_it_is_shut_down(
    kernel: Kernel, fake_openai: FakeOpenAI
) -> None:
    """Shut it down as a front end does: an interrupt, a request, and signals if needed."""
    fake_openai.hold()
    kernel.run(CALLS_FROM_EVERYWHERE)
    fake_openai.wait_for(lambda server: server.in_flight == 10)
    kernel.begin(cell_with("engine.forward("))
    fake_openai.wait_for(lambda server: server.in_flight == 30)
    kernel.manager.shutdown_kernel()
    assert kernel.process.returncode == 0, "no signal ended it"
    fake_openai.wait_for(lambda server: server.disconnected == 30)
    errors = kernel.errors.read_text()
    assert errors.count("The interpreter is exiting") == 5, errors
    assert "never awaited" not in errors
