from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptx_async
from gptx_async.cli import demo
from gptx_async.cli.demo import Document, find_wrong, installed_documents, run_demo
from gptx_async.errors import ConfigurationError
from gptx_async.testing import FakeOpenAI, HTTPFault
from support.child import DEADLINE, Process, start_python

DOCUMENTS = [Document("one", "First text"), Document("two", "Second text")]
EXPECTED = {"one": "a1", "two": "b2"}


@pytest.fixture
def engines(engine_repository: Any) -> Iterator[None]:
    """Restore symbolicai's engines after a demo in this process."""
    yield
    gptx_async.uninstall()


@pytest.fixture
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty working directory, and hide any configuration of symbolicai."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start_demo(cwd: Path, *options: str, fresh: bool = False) -> Process:
    return start_python(
        "-m",
        "gptx_async",
        "demo",
        *options,
        fresh=fresh,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=os.environ | {"HOME": str(cwd), "COLUMNS": "100"},
    )


def rows(output: str) -> dict[str, list[str]]:
    """Return the cells of each row of the printed table by the row's title."""
    cells = (line.strip("│ ").split("│") for line in output.splitlines() if "│" in line)
    return {title.strip(): [cell.strip() for cell in others] for title, *others in cells}


def test_documents_are_many_and_of_all_sizes() -> None:
    documents = installed_documents()
    sizes = [len(document.text) for document in documents]
    assert len(documents) >= 100
    assert min(sizes) < 500 < 20_000 < max(sizes)
    assert any(not document.text.isascii() for document in documents)


def test_documents_have_a_fixed_order() -> None:
    names = [document.name for document in installed_documents()]
    assert names == [document.name for document in installed_documents()]
    assert names == sorted(set(names), key=str.casefold)


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        (["a1", "b2"], []),
        (["a1", "b3"], ["two: 'b3' instead of 'b2'"]),
        (["b2", "a1"], ["one: 'b2' instead of 'a1'", "two: 'a1' instead of 'b2'"]),
        (["a1", ValueError("bad")], ["two: ValueError('bad') instead of 'b2'"]),
        (["a1"], ["two: None instead of 'b2'"]),
        ([], ["one: None instead of 'a1'", "two: None instead of 'b2'"]),
    ],
)
def test_find_wrong_names_each_wrong_answer(answers: list[Any], wrong: list[str]) -> None:
    assert find_wrong(DOCUMENTS, answers, EXPECTED) == wrong


def test_find_wrong_takes_no_error_for_right() -> None:
    error = ValueError("bad")
    assert len(find_wrong(DOCUMENTS, [error, "b2"], EXPECTED | {"one": error})) == 1


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        (["anything", "else"], []),
        (["anything", " \n"], ["two: ' \\n'"]),
        ([ValueError("bad"), "else"], ["one: ValueError('bad')"]),
        (["anything"], ["two: None"]),
    ],
)
def test_find_wrong_of_a_real_model_wants_a_text(answers: list[Any], wrong: list[str]) -> None:
    assert find_wrong(DOCUMENTS, answers, expected=None) == wrong


@pytest.mark.slow
def test_demo_answers_right_and_leaves_no_file(tmp_path: Path) -> None:
    process = start_demo(tmp_path, "--documents", "12", "--latency", "0.01", fresh=True)
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert output.startswith("12 documents, the descriptions of installed Python packages: ")
    table = rows(output)
    assert table["GPTXChatEngine (scaled)"][:2] == ["8 of 12", "0"]
    assert table["GPTXChatEngine (scaled)"][-1] == "1.0x"
    assert table["this engine, 64 threads"][:2] == ["12", "0"]
    assert table["this engine, scheduler"][:2] == ["12", "0"]
    assert "12/12" in errors  # a progress bar
    assert re.sub(r"(?m)^.*\d/\d.*\n?", "", errors).strip() == ""  # and nothing else
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_interrupted_demo_ends_without_traceback(tmp_path: Path) -> None:
    process = start_demo(tmp_path, "--documents", "2", "--latency", "3600")
    assert process.stderr is not None
    seen = ""
    while "GPTXChatEngine" not in seen:  # the first answer arrives only after the deadline
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_demo_fails_when_answers_are_wrong(
    engines: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = itertools.count()
    server = functools.partial(FakeOpenAI, reply=lambda _request: f"answer {next(numbers)}")
    monkeypatch.setattr(demo, "FakeOpenAI", server)
    assert run_demo(count=2, latency=0) == 1
    output = capsys.readouterr().out
    assert [cells[1] for cells in rows(output).values()] == ["2", "2", "2"]
    assert output.count(" instead of 'answer ") == 3


def test_live_demo_says_what_it_sends(
    engines: None, fake_openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(live=True, count=2, model="gpt-4o") == 0
    output = capsys.readouterr().out
    assert "Sending 12 requests, with " in output
    assert f" to {fake_openai.base_url}, model gpt-4o. " in output
    assert "an error or an empty answer" in output
    requests = fake_openai.requests
    assert [request.body["model"] for request in requests] == ["gpt-4o"] * 12
    assert {request.api_key for request in requests} == {"sk-fake"}


def test_live_demo_fails_when_the_key_is_refused(
    engines: None, fake_openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_openai.faults = lambda _request: HTTPFault(401)
    assert run_demo(live=True, count=2) == 1
    assert [cells[1] for cells in rows(capsys.readouterr().out).values()] == ["2", "2", "2"]


def test_demo_with_a_model_of_another_engine_says_which_to_give(engines: None) -> None:
    with pytest.raises(ConfigurationError, match=r"'o3-mini' is a model of GPTXReasoningEngine"):
        run_demo(count=2, model="o3-mini")


def test_live_demo_without_a_key_says_where_to_set_it(no_configuration: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Set OPENAI_API_KEY, or NEUROSYMBOLIC_ENGINE_"):
        run_demo(live=True)


@pytest.mark.parametrize("folder", [".", "prefix/.symai", "home/.symai"])
def test_live_account_comes_from_symbolicai(no_configuration: Path, folder: str) -> None:
    path = no_configuration / folder / "symai.config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    configuration = {
        "NEUROSYMBOLIC_ENGINE_API_KEY": "sk-1",
        "NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4.1",
    }
    path.write_text(json.dumps(configuration))
    assert demo._live_account(None) == ("sk-1", "gpt-4.1")
    assert demo._live_account("gpt-4o") == ("sk-1", "gpt-4o")


def test_live_key_of_the_environment_comes_first(
    no_configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = {"NEUROSYMBOLIC_ENGINE_API_KEY": "sk-1", "NEUROSYMBOLIC_ENGINE_MODEL": ""}
    (no_configuration / "symai.config.json").write_text(json.dumps(configuration))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    assert demo._live_account(None) == ("sk-2", "gpt-4o-mini")


def test_live_demo_names_a_broken_configuration(no_configuration: Path) -> None:
    (no_configuration / "symai.config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"symai\.config\.json can't be read as JSON"):
        demo._live_account(None)
