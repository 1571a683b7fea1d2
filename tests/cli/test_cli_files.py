"""Files of `gptx-async run`: it overwrites only its own, and reports an error in one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli_run import (
    ASK,
    OUT,
    PROMPT,
    answered,
    child,
    folder,
    number_of,
    rows_in,
    run,
    write_rows,
)

from gptx_async.cli.files.sink import Sink
from gptx_async.errors import DataFileError
from gptx_async.testing import FakeOpenAI
from support.child import DEADLINE
from support.planted import plant

__all__ = ["folder", "run"]

Run = Callable[..., int]


def lines_told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    told = capfd.readouterr().err.splitlines()
    return [line for line in told if line.startswith("gptx-async run:")]


@pytest.mark.parametrize(
    ("field", "option"), [("output", "--output-field"), ("error", "--error-field")]
)
def test_a_later_rows_own_field_is_not_overwritten(
    run: Run, folder: Path, capfd: pytest.CaptureFixture[str], field: str, option: str
) -> None:
    rows = [{"text": "text 0"}, {"text": "text 1", field: "PRECIOUS"}, {"text": "text 2"}]
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert run(*PROMPT, *OUT) == 2
    assert lines_told(capfd) == [
        f"gptx-async run: items.jsonl, line 2 has a field '{field}', which the results would "
        f"overwrite. Give the results another name with {option}."
    ]
    assert rows_in("out.jsonl") == [{"text": "text 0", "output": "answer to 0"}]
    assert run(*PROMPT, *OUT, "--overwrite", option, "result") == 0
    assert rows_in("out.jsonl")[1][field] == "PRECIOUS"


@pytest.mark.parametrize("content", ["theirs", '{"id": 0, "text": "te'])
def test_a_part_of_somebody_else_stays_until_overwrite(
    run: Run, folder: Path, fake_openai: FakeOpenAI, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    part = folder / "out.jsonl.part"
    part.write_text(content)
    for options in ((), ("--resume",)):
        assert run(*ASK, *OUT, *options) == 2
        [told] = lines_told(capfd)
        assert "out.jsonl.part already exists, and no killed run left it behind" in told
    assert (part.read_text(), fake_openai.requests) == (content, [])
    assert run(*ASK, *OUT, "--overwrite") == 0
    assert rows_in("out.jsonl") == answered(range(6))
    assert not part.exists()


@pytest.mark.parametrize("name", ["out.jsonl.part", "out.jsonl.part.owner"])
@pytest.mark.parametrize("leads_to", ["a file", "an empty file", "nothing"])
def test_a_link_in_place_of_the_part_is_not_followed(
    run: Run, folder: Path, capfd: pytest.CaptureFixture[str], name: str, leads_to: str
) -> None:
    victim = folder / "victim"
    if leads_to != "nothing":
        victim.write_text("precious" if leads_to == "a file" else "")
    before = victim.read_text() if victim.exists() else None
    (folder / name).symlink_to(victim)
    assert run(*ASK, *OUT) == 2
    assert name in lines_told(capfd)[0]
    assert run(*ASK, *OUT, "--overwrite") == 0
    assert (victim.read_text() if victim.exists() else None) == before
    assert not (folder / "out.jsonl").is_symlink()
    assert rows_in("out.jsonl") == answered(range(6))


@pytest.mark.slow
def test_the_leftover_of_a_killed_run_is_replaced(
    run: Run, folder: Path, fake_openai: FakeOpenAI
) -> None:
    write_rows(folder / "items.jsonl", 100)
    fake_openai.latency = lambda request: 3600.0 if number_of(request) == 50 else 0.0
    with child(*ASK, *OUT, "--workers", "4") as process:
        fake_openai.wait_for(lambda server: len(server.requests) >= 80, DEADLINE)
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    part = folder / "out.jsonl.part"
    assert part.stat().st_size > 0
    fake_openai.latency = 0.0
    assert run(*ASK, *OUT, "--resume") == 0
    assert rows_in("out.jsonl") == answered(range(100))
    assert not [*folder.glob("out.jsonl.*")]


def test_a_part_that_is_being_written_is_not_replaced(tmp_path: Path) -> None:
    def sink(*, overwrite: bool = False) -> Sink:
        path = str(tmp_path / "a.jsonl")
        return Sink(path, "jsonl", ["a"], None, "output", "error", overwrite=overwrite)

    first = sink()
    first.write({"a": 1})
    try:
        for overwrite in (False, True):
            second = sink(overwrite=overwrite)
            with pytest.raises(DataFileError, match="Another run is writing to"):
                second.check_part()
            with pytest.raises(DataFileError, match="Another run is writing to"):
                second.write({"a": 2})
            second.abandon()
        first.close()
    finally:
        first.abandon()
    assert (tmp_path / "a.jsonl").read_text() == '{"a": 1}\n'
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_empty_part_is_a_leftover(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.part").touch()
    (tmp_path / "a.jsonl.part.owner").write_text("gptx_async part 1 2\n")
    sink = Sink(str(tmp_path / "a.jsonl"), "jsonl", ["a"], None, "output", "error")
    sink.write({"a": 1})
    sink.close()
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_that_took_the_place_of_the_part_is_not_the_output(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "a.jsonl"), "jsonl", ["a"], None, "output", "error")
    sink.write({"a": 1})
    part = tmp_path / "a.jsonl.part"
    part.unlink()
    part.write_text("theirs")
    with pytest.raises(DataFileError, match="was removed or replaced while the run wrote"):
        sink.close()
    sink.abandon()
    assert part.read_text() == "theirs"
    assert not (tmp_path / "a.jsonl").exists()


def run_in_shell(redirections: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -m gptx_async run "$@" {redirections}'
    return subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, *options],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirections", "options", "told"),
    [
        (">/dev/full", ("--output", "-"), "standard output can't be written (No space left"),
        (">&-", ("--output", "-"), "Standard output is closed. Open it, or give --output"),
        ("<&-", (*OUT, "--input", "-"), "Standard input is closed. Give the name of a file"),
    ],
)
@pytest.mark.slow
def test_a_standard_stream_that_cannot_be_used_is_one_line(
    folder: Path, fake_openai: FakeOpenAI, redirections: str, options: tuple[str, ...], told: str
) -> None:
    completed = run_in_shell(redirections, *PROMPT, "--quiet", *options)
    assert completed.stderr.count("\n") == 1, completed.stderr
    assert completed.stderr.startswith(f"gptx-async run: {told}")
    assert completed.returncode == 2


@pytest.mark.slow
def test_no_standard_error_is_no_error(folder: Path, fake_openai: FakeOpenAI) -> None:
    completed = run_in_shell("2>&-", *ASK, "--output", "-")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert [json.loads(line) for line in completed.stdout.splitlines()] == answered(range(6))


def test_safe_csv_quotes_what_a_spreadsheet_computes(
    run: Run, folder: Path, fake_openai: FakeOpenAI
) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "x=1", "'=1", ""]
    rows = [{"text": f"text {n}", "=own": text} for n, text in enumerate(texts)]
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fake_openai.reply = lambda request: texts[number_of(request)]

    def cells(*options: str) -> list[list[str]]:
        assert run(*PROMPT, "--output", "out.csv", "--overwrite", *options) == 0
        with open("out.csv", newline="") as file:
            return [*csv.reader(file)]

    assert [row[1:3] for row in cells()] == [["=own", "output"], *([text] * 2 for text in texts)]
    safe = [f"'{text}" if text[:1] in {*"=+-@\t\r"} else text for text in texts]
    assert [row[1:3] for row in cells("--csv-safe")] == [
        ["'=own", "output"],
        *([text] * 2 for text in safe),
    ]


def test_the_command_never_unpickles(
    run: Run, folder: Path, fake_openai: FakeOpenAI, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text("def work(row):\n    return 1 // (row['id'] - 3)\n")
    options = ("--expression", "mine:work", "--input", "items.jsonl", *OUT)
    assert run(*options) == 1
    plant(folder / "out.jsonl.checkpoint", folder / "proof")
    assert run(*options, "--resume") == 2
    assert "is pickled, and reading it would run" in lines_told(capfd)[0]
    assert not (folder / "proof").exists()


def test_the_checkpoint_of_a_command_is_private(run: Run, folder: Path) -> None:
    (folder / "mine.py").write_text("def work(row):\n    return 1 // (row['id'] - 3)\n")
    before = os.umask(0)
    try:
        assert run("--expression", "mine:work", "--input", "items.jsonl", *OUT) == 1
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.glob("out.*")}
    assert modes == {"out.jsonl": 0o666, "out.jsonl.checkpoint": 0o600}
