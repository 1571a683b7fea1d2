"""`gptx-async run`, with real symbolicai, real files, and real HTTP on loopback."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from loguru import logger
from pyarrow import parquet

import gptx_async
from gptx_async.cli import main as cli
from gptx_async.cli.terminal import Interrupts
from gptx_async.testing import FakeOpenAI, HTTPFault, RecordedRequest
from support.child import DEADLINE, Process, start_python
from support.unheard import UNHEARD

CONFIGURATION = {
    "NEUROSYMBOLIC_ENGINE_API_KEY": "sk-config",
    "NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4o-mini",
}

"""Seconds for a child process, of which the import of symbolicai takes most."""

MODULE = """
from symai import Expression, Symbol

class Ask(Expression):
    def forward(self, text):
        print(f"asking about {text}\\n", end="")  # a single write: other threads print too
        return Symbol(text).query("Answer.")

ask = Ask()

def whole(row):
    return row
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI) -> Path:
    """Create a working directory with a configuration, rows, and a module; start a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "symai.config.json").write_text(json.dumps(CONFIGURATION))
    write_rows(tmp_path / "items.jsonl", 6)
    (tmp_path / "mine.py").write_text(MODULE)
    fake_openai.reply = reply
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[..., int]]:
    """Run the command in this process; afterwards remove its engine and reset its settings."""
    level = logging.getLogger("gptx_async").level

    def run(*options: str) -> int:
        sys.modules.pop("mine", None)
        return cli.main(["run", *options])

    yield run
    gptx_async.uninstall()
    sys.modules.pop("mine", None)
    logger.enable("symai")
    logging.getLogger("gptx_async").setLevel(level)


ASK = ("--expression", "mine:Ask", "--field", "text", "--input", "items.jsonl")
PROMPT = ("--prompt", "Say {text}.", "--input", "items.jsonl")
OUT = ("--output", "out.jsonl")


def write_rows(path: Path, count: int) -> None:
    rows = [{"id": n, "text": f"text {n}"} for n in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def reply(request: RecordedRequest) -> Any:
    return HTTPFault(400) if "bad" in request.user_text else f"answer to {number_of(request)}"


def number_of(request: RecordedRequest) -> int:
    digits = "".join(filter(str.isdigit, request.user_text))
    return int(digits) if digits else -1


def rows_in(path: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def answered(numbers: Any) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"text {n}", "output": f"answer to {n}"} for n in numbers]


def test_each_row_has_its_output_in_the_order_of_the_input(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_rows(folder / "items.jsonl", 200)
    fake_openai.latency = lambda request: number_of(request) * 7 % 11 / 200
    assert run(*ASK, "--output", "out.jsonl") == 0
    assert rows_in("out.jsonl") == answered(range(200))
    assert len(fake_openai.requests) == 200
    assert {path.name for path in folder.glob("*.jsonl*")} == {"items.jsonl", "out.jsonl"}
    told = capfd.readouterr().err
    assert "rows      200: 200 done, 0 failed" in told
    assert "calls     200: 0 retries, 0 times 429" in told


@pytest.mark.parametrize("name", ["Ask", "ask", "ask.forward"])
def test_an_expression_is_a_class_an_instance_or_a_function(
    run: Callable[..., int], folder: Path, name: str
) -> None:
    assert run("--expression", f"mine:{name}", *ASK[2:], *OUT) == 0
    assert rows_in("out.jsonl") == answered(range(6))


def test_each_worker_has_an_instance_of_a_class(run: Callable[..., int], folder: Path) -> None:
    (folder / "mine.py").write_text(
        """
import threading
import types

class Work:
    def __init__(self):
        self.threads = set()

    def __call__(self, text):
        self.threads.add(threading.get_ident())
        return len(self.threads)
"""
    )
    write_rows(folder / "items.jsonl", 200)
    assert run("--expression", "mine:Work", *ASK[2:], *OUT, "--workers", "8") == 0
    assert {row["output"] for row in rows_in("out.jsonl")} == {1}


def test_failed_rows_have_their_error_and_are_tried_again_by_resume(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_openai.faults = lambda request: HTTPFault(400) if number_of(request) in {2, 5} else None
    assert run(*ASK, "--output", "out.jsonl") == 1
    rows = rows_in("out.jsonl")
    assert [row["id"] for row in rows if "error" in row] == [2, 5]
    assert rows[2]["error"]["type"] == "ValueError"
    assert "Error code: 400" in rows[2]["error"]["message"]
    assert rows[:2] == answered([0, 1])
    told = capfd.readouterr().err
    assert "errors    ValueError 2" in told
    assert "--resume to process the missing rows" in told
    fake_openai.faults = None
    fake_openai.clear()
    assert run(*ASK, "--output", "out.jsonl", "--resume") == 0
    assert sorted(map(number_of, fake_openai.requests)) == [2, 5]
    assert rows_in("out.jsonl") == answered(range(6))
    assert "rows      6: 6 done (4 by an earlier run), 0 failed" in capfd.readouterr().err
    assert not (folder / "out.jsonl.checkpoint").exists()


def test_a_prompt_is_asked_as_it_stands(
    run: Callable[..., int], folder: Path, fake_openai: FakeOpenAI
) -> None:
    (folder / "items.jsonl").write_text('{"a": "{x} é", "b c": [1, "é"]}\n')
    prompt = "Of {a}: {b c} {{as JSON}}"
    assert run("--prompt", prompt, "--input", "items.jsonl", "--output", "out.jsonl") == 0
    [request] = fake_openai.requests
    assert request.messages == [{"role": "user", "content": 'Of {x} é: [1, "é"] {as JSON}'}]


def test_rows_that_are_not_objects_are_the_field_input(
    run: Callable[..., int], folder: Path
) -> None:
    (folder / "items.jsonl").write_text('"text 1"\n"text 2"\n')
    options = ("--input", "items.jsonl", "--output", "out.jsonl")
    assert run("--prompt", "Say {input}.", *options) == 0
    assert rows_in("out.jsonl") == [
        {"input": f"text {n}", "output": f"answer to {n}"} for n in (1, 2)
    ]


def test_a_row_that_lacks_the_field_fails_alone(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (folder / "items.jsonl").write_text('{"text": "text 0"}\n{"t": 1}\n{"text": null}\n')
    for options in (PROMPT, ASK):
        assert run(*options, "--output", "out.jsonl", "--overwrite") == 1
        first, second, third = rows_in("out.jsonl")
        assert first["output"] == "answer to 0"
        assert "'text' of the row is missing; its fields are: t." in second["error"]["message"]
        assert "'text' of the row is null." in third["error"]["message"]
        assert "rows      3: 1 done, 2 failed" in capfd.readouterr().err
    assert len(fake_openai.requests) == 2


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ("[Symbol('s'), {'a': (1, None, True)}]", ["s", {"a": [1, None, True]}]),
        ("Model(n=1)", {"n": 1}),
        ("numpy.arange(2)", [0, 1]),
        ("dataclasses.make_dataclass('D', ['n'])(3)", {"n": 3}),
        ("", "OutputValueError: The expression returned a generator, which JSON can't represent."),
        ("float('nan')", "OutputValueError: The expression returned nan, which JSON can't"),
        ("2**63", 2**63),
        ("10**640", "OutputValueError: The expression returned an integer of more than 640 digits"),
        ("{1: 2}", "OutputValueError: The expression returned a dict"),
        ("itself", "OutputValueError: The expression returned a list that contains itself"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_an_expression_returns_is_json_or_the_rows_error(
    run: Callable[..., int], folder: Path, returned: str, output: Any
) -> None:
    (folder / "mine.py").write_text(
        f"""
import dataclasses
import numpy, pydantic
from symai import Symbol

class Model(pydantic.BaseModel):
    n: int

itself = []
itself.append(itself)

def give(row):
    return {returned or "(n for n in row)"}
"""
    )
    options = ("--input", "items.jsonl", "--output", "out.jsonl")
    is_error = isinstance(output, str)
    assert run("--expression", "mine:give", *options) == (1 if is_error else 0)
    for row in rows_in("out.jsonl"):
        if is_error:
            assert f"{row['error']['type']}: {row['error']['message']}".startswith(output)
        else:
            assert row["output"] == output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*ASK[:2], *ASK[4:], *OUT, "--field", "txt"),
            "no field 'txt', which --field names. Its f",
        ),
        (("--prompt", "{a} {text}", *ASK[4:], *OUT), "no field 'a', which --prompt names. Its fi"),
        (("--prompt", "{text}", *ASK[2:], *OUT), "--field works only with --expression"),
        (("--prompt", "Say.", *ASK[4:], *OUT), "no field in it"),
        (("--prompt", "{text", *ASK[4:], *OUT), "--prompt can't be read"),
        (("--prompt", "{} {text}", *ASK[4:], *OUT), "hold no field name"),
        (("--prompt", "{text!r}", *ASK[4:], *OUT), "hold no field name"),
        (("--expression", "mine", *ASK[2:], *OUT), "not of the form package.module:Name"),
        (("--expression", "yours:Ask", *ASK[2:], *OUT), "There is no module 'yours'"),
        (("--expression", "mine:Aks", *ASK[2:], *OUT), "mine has no 'Aks'. Did you mean 'Ask'?"),
        (("--expression", "mine:__name__", *ASK[2:], *OUT), "is a str, which can't be called"),
        (("--expression", "broken:x", *ASK[2:], *OUT), "imported (ModuleNotFoundError: No module"),
        (("--expression", "wrong:x", *ASK[2:], *OUT), "can't be imported (SyntaxError: "),
        (("--expression", "needy:Needy", *ASK[2:], *OUT), "can't be built without arguments (Type"),
        (("--expression", "needy:soon", *ASK[2:], *OUT), "is a coroutine function"),
        ((*ASK[:4], "--input", "none.jsonl", *OUT), "none.jsonl can't be read (No such file"),
        ((*ASK[:4], "--input", "items.txt", *OUT), "does not indicate the format"),
        ((*ASK[:4], "--input", "bad.jsonl", *OUT), "bad.jsonl, line 1 is not JSON"),
        ((*ASK, "--output", "items.jsonl"), "--input and --output are the same file"),
        ((*ASK, "--output", "mine.py/x.jsonl"), "can't be written"),
        ((*ASK, "--output", "none/x.jsonl"), "can't be written"),
        ((*ASK, *OUT, "--output-field", "text"), "has a field 'text', which the results"),
        ((*ASK, *OUT, "--error-field", "id"), "another name with --error-field"),
        ((*ASK, *OUT, "--error-field", "output"), "have the same name"),
        ((*ASK, *OUT, "--csv-safe"), "--csv-safe is for CSV, and the output is jsonl"),
        ((*ASK, *OUT, "--checkpoint", ":memory:"), "is not a file, so a second run"),
        ((*ASK, *OUT, "--checkpoint", "file:x"), "looks like a URI"),
        ((*ASK, *OUT, "--api-key-env", "NO_SUCH"), "--api-key-env names NO_SUCH, which is not set"),
        ((*ASK, *OUT, "--model", "gpt-9"), "symbolicai knows the model 'gpt-9'"),
        ((*ASK, *OUT, "--model", "claude-sonnet-4-5"), "uses symbolicai's ClaudeX"),
        (
            (*ASK, *OUT, "--model", "groq:qwen/qwen3-32b", "--base-url", f"{UNHEARD}/v1"),
            "always uses https://api.groq.com/openai/v1/. Leave --base-url out",
        ),
        ((*ASK, *OUT, "--max-cost", "1"), "--max-cost needs the prices"),
        ((*ASK, *OUT, "--resume", "--overwrite"), "exclude each other"),
        ((*ASK, "--output", "-", "--resume"), "Give --checkpoint"),
    ],
)
def test_bad_input_is_reported_before_anything_is_sent(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    (folder / "broken.py").write_text("import no_such_module")
    (folder / "wrong.py").write_text("def")
    (folder / "needy.py").write_text(
        "class Needy:\n"
        "    def __init__(self, x): pass\n"
        "    def __call__(self, x): pass\n"
        "async def soon(x): pass"
    )
    (folder / "bad.jsonl").write_text("{'a': 1}\n")
    (folder / "items.txt").write_text("text")
    assert run(*options) == 2
    output, told = capfd.readouterr()
    assert (output, told.count("\n")) == ("", 1)
    assert told.startswith("gptx-async run: ")
    assert message in told
    assert fake_openai.requests == []
    assert not any(path.name.startswith("out.") for path in folder.iterdir())


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (None, "There is no model. Give --model, or set NEUROSYMBOLIC_ENGINE_MODEL"),
        ({"NEUROSYMBOLIC_ENGINE_API_KEY": ""}, "has no NEUROSYMBOLIC_ENGINE_MODEL. Add it"),
        (
            CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_API_KEY": ""},
            "There is no API key. Name the environment variable",
        ),
        (CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_MODEL": ""}, "There is no model."),
    ],
)
def test_an_incomplete_configuration_is_reported(
    run: Callable[..., int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    configuration: dict[str, str] | None,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "prefix", str(folder / "prefix"))
    monkeypatch.setenv("HOME", str(folder / "home"))
    if configuration is None:
        (folder / "symai.config.json").unlink()
    else:
        (folder / "symai.config.json").write_text(json.dumps(configuration))
    assert run(*ASK, *OUT) == 2
    assert message in capfd.readouterr().err
    if configuration is None or configuration.get("NEUROSYMBOLIC_ENGINE_MODEL"):
        monkeypatch.setenv("MY_KEY", "sk-mine")
        assert run(*ASK, *OUT, "--model", "gpt-4o", "--api-key-env", "MY_KEY") == 0


def test_key_model_and_base_url_are_those_given(
    run: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI
) -> None:
    base_url = fake_openai.base_url
    monkeypatch.setenv("OPENAI_BASE_URL", f"{UNHEARD}/v1")
    monkeypatch.setenv("MY_KEY", "sk-mine")
    options = ("--model", "gpt-4o", "--api-key-env", "MY_KEY", "--base-url", base_url)
    assert run(*ASK, *OUT, *options) == 0
    assert {request.api_key for request in fake_openai.requests} == {"sk-mine"}
    assert {request.body["model"] for request in fake_openai.requests} == {"gpt-4o"}


def test_pace_and_cost_are_those_given(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pace = ("--max-concurrency", "2", "--requests-per-minute", "60000")
    cost = ("--tokens-per-minute", "9e9", "--price", "1e6", "0", "--max-cost", "1")
    write_rows(folder / "items.jsonl", 30)
    assert run(*ASK, *OUT, *pace, *cost, "--workers", "5") == 1
    assert fake_openai.max_in_flight <= 2
    assert len(fake_openai.requests) < 30
    rows = rows_in("out.jsonl")
    assert sum("output" in row for row in rows) == len(fake_openai.requests)
    assert "max_cost" in rows[-1]["error"]["message"]
    assert "cost      US$ " in capfd.readouterr().err


def test_a_row_that_is_bad_in_the_middle_leaves_those_before_it_done(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    good = (folder / "items.jsonl").read_text()
    (folder / "items.jsonl").write_text(good.replace('{"id": 4', "{id: 4"))
    assert run(*ASK, *OUT) == 2
    told = capfd.readouterr().err
    assert "gptx-async run: items.jsonl, line 5 is not JSON" in told
    assert "rows      4: 4 done" in told
    assert rows_in("out.jsonl") == answered(range(4))
    (folder / "items.jsonl").write_text(good)
    fake_openai.clear()
    assert run(*ASK, *OUT, "--resume") == 0
    assert sorted(map(number_of, fake_openai.requests)) == [4, 5]
    assert rows_in("out.jsonl") == answered(range(6))


def test_an_output_that_is_there_is_not_lost_by_mistake(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (folder / "out.jsonl").write_text("before\n")
    assert run(*ASK, *OUT) == 2
    assert "out.jsonl already exists" in capfd.readouterr().err
    assert run(*ASK, *OUT, "--resume") == 2
    assert "out.jsonl.checkpoint for --resume" in capfd.readouterr().err
    assert fake_openai.requests == []
    assert (folder / "out.jsonl").read_text() == "before\n"
    assert run(*ASK, *OUT, "--overwrite") == 0
    assert rows_in("out.jsonl") == answered(range(6))


def test_a_checkpoint_is_of_one_job_and_not_lost_by_mistake(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_openai.faults = lambda request: HTTPFault(400) if number_of(request) == 2 else None
    assert run(*PROMPT, *OUT) == 1
    before = (folder / "out.jsonl").read_text()
    fake_openai.clear()
    (folder / "out.jsonl").rename(folder / "kept.jsonl")
    assert run(*PROMPT, *OUT) == 2
    assert "out.jsonl.checkpoint of an incomplete run exists" in capfd.readouterr().err
    (folder / "kept.jsonl").rename(folder / "out.jsonl")
    for options in (("--prompt", "Tell {text}.", *PROMPT[2:]), (*PROMPT, "--model", "gpt-4o"), ASK):
        assert run(*options, *OUT, "--resume") == 2
        assert "is of another job" in capfd.readouterr().err
    write_rows(folder / "items.jsonl", 7)
    changed = (folder / "items.jsonl").read_text()
    (folder / "items.jsonl").write_text(changed.replace("text 1", "text 9"))
    assert run(*PROMPT, *OUT, "--resume") == 2
    told = capfd.readouterr().err
    assert "Item 1 is not the item whose result is in" in told
    assert "output    out.jsonl, unchanged: it has more rows" in told
    assert fake_openai.requests == []
    assert (folder / "out.jsonl").read_text() == before
    (folder / "items.jsonl").write_text(changed)
    fake_openai.faults = None
    assert run(*PROMPT, *OUT, "--resume") == 0  # more rows may follow
    assert sorted(map(number_of, fake_openai.requests)) == [2, 6]
    assert rows_in("out.jsonl") == answered(range(7))


def test_a_changed_expression_is_another_job(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_openai.faults = lambda request: HTTPFault(400) if number_of(request) == 2 else None
    assert run(*ASK, *OUT) == 1
    (folder / "mine.py").write_text(MODULE.replace("Answer.", "Answer! Really."))
    assert run(*ASK, *OUT, "--resume") == 2
    assert "'source (of the expression)'" in capfd.readouterr().err


def test_only_a_checkpoint_is_overwritten(
    run: Callable[..., int], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*ASK, *OUT, "--overwrite", "--checkpoint", "mine.py") == 2
    assert "mine.py is not a checkpoint of gptx_async" in capfd.readouterr().err
    assert (folder / "mine.py").read_text() == MODULE


def test_a_run_resumes_with_another_output_format(
    run: Callable[..., int], folder: Path, fake_openai: FakeOpenAI
) -> None:
    fake_openai.faults = lambda request: HTTPFault(400) if number_of(request) == 2 else None
    assert run(*ASK, "--output", "out.csv") == 1
    fake_openai.faults = None
    fake_openai.clear()
    assert run(*ASK, *OUT, "--checkpoint", "out.csv.checkpoint", "--resume") == 0
    assert len(fake_openai.requests) == 1
    assert rows_in("out.jsonl") == answered(range(6))


def test_csv_goes_in_and_out(run: Callable[..., int], folder: Path) -> None:
    (folder / "items.csv").write_text('id,text\n0,"text 0, bad"\n1,text 1\n', "utf-8-sig")
    assert run(*ASK[:4], "--input", "items.csv", "--output", "out.csv") == 1
    with open("out.csv", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["id", "text", "output", "error"]
    assert first[:3] == ["0", "text 0, bad", ""]
    assert first[3].startswith("ValueError: Error during generation.")
    assert second == ["1", "text 1", "answer to 1", ""]


def test_parquet_goes_in_and_out(run: Callable[..., int], folder: Path) -> None:
    table = pyarrow.table({"id": range(50), "text": [f"text {n}" for n in range(50)]})
    parquet.write_table(table, "items.parquet")
    assert run(*ASK[:4], "--input", "items.parquet", "--output", "out.parquet") == 0
    written = parquet.read_table("out.parquet")
    assert written.select(["id", "text"]).equals(table)
    assert written["output"].to_pylist() == [f"answer to {n}" for n in range(50)]
    assert written["error"].null_count == 50


def test_an_input_without_rows_is_not_a_failure(run: Callable[..., int], folder: Path) -> None:
    (folder / "items.jsonl").write_text("\n")
    (folder / "items.csv").write_text("id,text\n")
    assert run(*ASK, *OUT) == 0
    assert (folder / "out.jsonl").read_text() == ""
    assert run(*ASK[:4], "--input", "items.csv", "--output", "out.csv") == 0
    assert (folder / "out.csv").read_text() == "id,text,output,error\n"
    assert run(*ASK[:4], "--input", "items.csv", "--output", "out.parquet") == 0
    assert parquet.read_table("out.parquet").schema.names == ["id", "text", "output", "error"]


def test_standard_output_has_results_only(
    run: Callable[..., int], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*ASK, "--output", "-") == 0
    output, told = capfd.readouterr()
    assert [json.loads(line) for line in output.splitlines()] == answered(range(6))
    assert "asking about text 0" in told
    assert run(*ASK, "--output", "-", "--quiet") == 0
    told = capfd.readouterr().err
    assert [line for line in told.splitlines() if not line.startswith("asking")] == []


def test_no_more_rows_are_read_than_can_be_put_in_order(
    run: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first row has no answer, at most 16 rows for each of the two workers are read."""
    write_rows(folder / "items.jsonl", 200)
    late = threading.Event()
    seen: list[int] = []

    def ask(text: str) -> str:
        number = int(text.split()[1])
        seen.append(number)
        if len(seen) == 32:
            late.set()
        if number == 0:
            assert late.wait(30)
            seen.append(-1)
        return text

    module = types.ModuleType("mine")
    monkeypatch.setattr(module, "ask", ask, raising=False)
    monkeypatch.setitem(sys.modules, "mine", module)
    options = ("--expression", "mine:ask", *ASK[2:], *OUT, "--workers", "2")
    assert cli.main(["run", *options]) == 0
    assert seen.index(-1) == 32
    assert [row["id"] for row in rows_in("out.jsonl")] == [*range(200)]


def interrupt(done: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # Python checks for signals in the loop
        pass
    done.append("not interrupted")


def test_ctrl_c_is_put_off_where_a_row_is_half_written() -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            interrupt(done)
        with pytest.raises(KeyboardInterrupt):
            interrupt(done)
        with interrupts.held():
            done.append("held again")
    assert done == ["not interrupted", "held again"]
    assert signal.getsignal(signal.SIGINT) is before


@contextlib.contextmanager
def child(*options: str, **kwargs: Any) -> Iterator[Process]:
    pipe = subprocess.PIPE
    process = start_python(
        "-m", "gptx_async", "run", *options, stdin=pipe, stdout=pipe, stderr=pipe, **kwargs
    )
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        process.wait(DEADLINE)


def let_all_but_the_first_be_answered(server: FakeOpenAI) -> None:
    server.latency = lambda request: 3600.0 if number_of(request) == 0 else 0.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_where_it_was(
    run: Callable[..., int], folder: Path, fake_openai: FakeOpenAI, number: signal.Signals
) -> None:
    """Rows completed out of order are kept, although the first row was never answered."""
    write_rows(folder / "items.jsonl", 100)
    let_all_but_the_first_be_answered(fake_openai)
    # A worker starts a row only after the result of its previous row is stored.
    with child(*ASK, *OUT, "--workers", "4") as process:
        fake_openai.wait_for(lambda server: len(server.requests) >= 40, DEADLINE)
        process.send_signal(number)
        _, told = process.communicate(timeout=DEADLINE)
    done_at_least = 40 - 4
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "--resume to process the missing rows" in told
        ids = [row["id"] for row in rows_in("out.jsonl")]
        assert rows_in("out.jsonl") == answered(ids)
        assert ids == sorted(ids)
        assert len(ids) >= done_at_least
    else:
        assert not (folder / "out.jsonl").exists()
    fake_openai.latency = 0.0
    fake_openai.clear()
    assert run(*ASK, *OUT, "--workers", "4", "--resume") == 0
    assert 0 in map(number_of, fake_openai.requests)
    assert len(fake_openai.requests) <= 100 - done_at_least
    assert rows_in("out.jsonl") == answered(range(100))
    assert not (folder / "out.jsonl.part").exists()


@pytest.mark.slow
def test_rows_go_through_pipes_as_they_come(folder: Path, fake_openai: FakeOpenAI) -> None:
    with child(*ASK[:4], "--input", "-", "--output", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for n in range(3):
            process.stdin.write(f'{{"id": {n}, "text": "text {n}"}}\n')
            process.stdin.flush()
            # The next row is written only after this row is answered.
            assert json.loads(process.stdout.readline()) == answered([n])[0]
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
        assert process.stdout.read() == ""
        assert process.stderr is not None
        assert "rows      3: 3 done" in process.stderr.read()


@pytest.mark.slow
def test_ctrl_c_while_standard_input_is_waited_for(folder: Path, fake_openai: FakeOpenAI) -> None:
    with child(*ASK[:4], "--input", "-", "--output", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"id": 1, "text": "text 1"}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == answered([1])[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
        assert process.stderr is not None
        told = process.stderr.read()
    assert "Fatal" not in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run(folder: Path, fake_openai: FakeOpenAI) -> None:
    write_rows(folder / "items.jsonl", 5000)
    with child(*ASK, "--output", "-", "--quiet") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == answered([0])[0]
        process.stdout.close()
        assert process.wait(DEADLINE) == 1
        assert process.stderr is not None
        told = process.stderr.read()
    lines = [line for line in told.splitlines() if not line.startswith("asking")]
    assert lines == ["gptx-async run: the reader of standard output closed it."]
    assert len(fake_openai.requests) < 5000
