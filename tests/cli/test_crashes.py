"""Crashes: runs killed at random moments, full disks, and read-only folders.

The tests use a real SIGKILL, a separate tmpfs, and a file system that is mounted read-only.
Mounting needs root; without it these tests fail. `GPTX_ASYNC_CRASH_SHARE=0.2` shortens them.
"""

from __future__ import annotations

import csv
import json
import os
import random
import select
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from test_cli_run import ASK, child, folder, number_of, rows_in, run, write_rows

import gptx_async
from gptx_async.errors import CheckpointError
from gptx_async.testing import FakeOpenAI
from support.child import DEADLINE, Process, start_python

__all__ = ["folder", "run"]

pytestmark = pytest.mark.long

SHARE = float(os.environ.get("GPTX_ASYNC_CRASH_SHARE", "1"))
ROUNDS, VALUES, WORKERS = max(3, int(30 * SHARE)), int(20_000 * SHARE), 8

TWO_PROCESSES = """
import os, sys
import gptx_async
from gptx_async.errors import CheckpointError

path, log, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
asked = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def work(item):
    os.write(asked, b"%d\\n" % item)
    if item % 10 == 0:
        os.write(1, b"%d\\n" % os.getpid())
    return [item, item * item]

while True:
    try:
        results = gptx_async.map(work, range(count), workers=8, checkpoint=path)
    except CheckpointError as error:
        if "is in use" not in str(error):
            print(error, file=sys.stderr, flush=True)
            os._exit(3)
    else:
        os._exit(0 if results == [[item, item * item] for item in range(count)] else 1)
"""


class TwoProcesses:
    """Two processes that run the same job with the same checkpoint, one at a time."""

    def __init__(self, path: Path, log: Path) -> None:
        self._arguments = ("-c", TWO_PROCESSES, str(path), str(log), str(VALUES))
        self._read, self._write = os.pipe()
        self.processes: dict[int, Process] = {}

    def __enter__(self) -> TwoProcesses:
        self.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*self.processes]:
            self.kill(pid)
        os.close(self._read)
        os.close(self._write)

    def start(self) -> None:
        process = start_python(
            *self._arguments, fresh=True, stdout=self._write, stderr=subprocess.PIPE
        )
        self.processes[process.pid] = process

    def working(self, lines: int) -> int:
        """Wait for about ten computed items per line; return the ID of the working process."""
        pid = 0
        while lines > 0:
            ready, _, _ = select.select([self._read], [], [], DEADLINE)
            assert ready, "no process is working"
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(self._read, 1)
            pid = int(line)
            lines -= pid in self.processes  # the pipe may still hold lines of a killed process
        return pid

    def kill(self, pid: int) -> None:
        process = self.processes.pop(pid)
        process.kill()
        _, told = process.communicate(timeout=DEADLINE)
        assert (process.returncode, told) == (-signal.SIGKILL, "")

    def end(self) -> None:
        for pid in [*self.processes]:
            process = self.processes[pid]
            _, told = process.communicate(timeout=DEADLINE)
            del self.processes[pid]
            assert (process.returncode, told) == (0, "")


@pytest.mark.timeout(900)
def test_two_processes_that_are_killed_store_each_value_once(tmp_path: Path) -> None:
    path, log = tmp_path / "run.sqlite", tmp_path / "asked"
    chance = random.Random(17)
    with TwoProcesses(path, log) as two:
        for _ in range(ROUNDS):
            two.kill(two.working(chance.randrange(20, 80)))
            two.start()
        two.end()
    connection = sqlite3.connect(path)
    stored = dict(connection.execute("SELECT item, value FROM results"))
    [count] = connection.execute("SELECT count(*) FROM results").fetchone()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert count == len(stored) == VALUES
    assert {item: json.loads(value) for item, value in stored.items()} == {
        item: [item, item * item] for item in range(VALUES)
    }
    asked = Counter(map(int, log.read_text().split()))
    extra = asked.total() - VALUES
    assert asked.keys() == {*range(VALUES)}
    assert extra <= WORKERS * ROUNDS, "only items in progress at a kill are computed again"
    print(f"{ROUNDS} kills, {VALUES:,} values, each stored once; {extra} computed again")


def write_input(form: str, count: int) -> None:
    rows = [{"id": n, "text": f"text {n}"} for n in range(count)]
    if form == "csv":
        with open("items.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), "items.parquet")
    else:
        write_rows(Path("items.jsonl"), count)


def read_output(form: str, path: Path) -> list[tuple[int, str]]:
    rows: list[Any]
    if form == "csv":
        with path.open(newline="") as file:
            rows = [*csv.DictReader(file)]
    elif form == "parquet":
        rows = parquet.read_table(path).to_pylist()
    else:
        rows = rows_in(path)
    return [(int(row["id"]), row["output"]) for row in rows]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_a_command_that_is_killed_again_and_again_loses_nothing(
    run: Callable[..., int], folder: Path, fake_openai: FakeOpenAI, form: str
) -> None:
    rounds, count = max(3, int(10 * SHARE)), int(4000 * SHARE)
    write_input(form, count)
    fake_openai.latency = lambda request: number_of(request) % 7 / 1000
    options = [*ASK[:4], "--input", f"items.{form}", "--output", f"out.{form}", "--workers", "8"]
    chance, asked = random.Random(17), Counter[int]()
    for number in range(rounds):
        with child(*options, *(["--resume"] if number else [])) as process:
            wanted = len(fake_openai.requests) + chance.randrange(10, count // rounds)
            fake_openai.wait_for(lambda server, n=wanted: len(server.requests) >= n, DEADLINE)  # type: ignore[misc]
            process.kill()
            process.wait(DEADLINE)
        assert not Path(f"out.{form}").exists()
    assert run(*options, "--resume", "--quiet") == 0
    assert read_output(form, folder / f"out.{form}") == [
        (n, f"answer to {n}") for n in range(count)
    ]
    asked.update(map(number_of, fake_openai.requests))
    assert asked.keys() == {*range(count)}
    extra = asked.total() - count
    assert extra <= 8 * rounds, "only rows in progress when a run is killed are sent again"
    assert [path.name for path in folder.glob("out.*")] == [f"out.{form}"]
    print(f"{form}: {rounds} kills, {count:,} rows; {extra} asked again")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True, timeout=60)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(path))
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=60)


def enlarge(path: Path) -> None:
    mount("-o", "remount,size=64m", str(path))


def test_a_checkpoint_on_a_full_disk_loses_nothing(small: Path) -> None:
    begun: list[int] = []

    def work(item: int) -> str:
        begun.append(item)
        return f"{item:01000}"

    path = small / "run.sqlite"
    with pytest.raises(CheckpointError, match="has free space") as raised:
        gptx_async.map(work, range(1000), workers=4, checkpoint=path)
    results = raised.value.results  # type: ignore[attr-defined]
    assert {*begun} == {*results.indices}, "every computed value is in the results"
    assert [*results] == [f"{item:01000}" for item in results.indices]
    enlarge(small)
    computed = len(begun)
    begun.clear()
    assert gptx_async.map(work, range(1000), workers=4, checkpoint=path) == [
        f"{item:01000}" for item in range(1000)
    ]
    stored = 1000 - len(begun)
    assert 0 < stored <= computed
    print(f"full after {stored} stored values; {computed - stored} more were in `results`")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("checkpoint", ["beside", "elsewhere"])
def test_a_command_with_a_full_disk_goes_on_when_there_is_room(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    small: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    checkpoint: str,
) -> None:
    count = 3000
    write_rows(folder / "items.jsonl", count)
    fake_openai.reply = lambda request: random.Random(number_of(request)).randbytes(100).hex()
    output = small / f"out.{form}"
    options = [*ASK, "--output", str(output), "--quiet"]
    if checkpoint == "elsewhere":
        options += ["--checkpoint", str(folder / "run.checkpoint")]
    assert run(*options) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("asking")]
    assert len(told) == 1, told
    assert told[0].startswith("gptx-async run: ")
    assert "No space left" in told[0] or "has free space" in told[0]
    # The output exists only if the checkpoint filled up first. It is then valid and contains the
    # finished rows.
    done = read_output(form, output) if output.exists() else []
    assert all(text == random.Random(number).randbytes(100).hex() for number, text in done)
    enlarge(small)
    assert run(*options, "--resume") == 0
    assert read_output(form, output) == [
        (number, random.Random(number).randbytes(100).hex()) for number in range(count)
    ]
    assert [path.name for path in small.iterdir()] == [output.name]
    asked = Counter(map(number_of, fake_openai.requests))
    assert asked.keys() == {*range(count)}
    assert asked.total() - count <= 64, "only rows in progress are sent again"
    print(f"{form}, checkpoint {checkpoint}: {asked.total() - count} of {count} asked again")


@pytest.fixture
def read_only(small: Path) -> Path:
    enlarge(small)
    (small / "empty.sqlite").touch()
    gptx_async.map(str, [1], checkpoint=small / "run.sqlite")
    mount("-o", "remount,ro", str(small))
    return small


@pytest.mark.parametrize("name", ["new.sqlite", "empty.sqlite", "run.sqlite"])
def test_a_checkpoint_in_a_read_only_folder_is_an_error_at_once(read_only: Path, name: str) -> None:
    asked: list[int] = []
    with pytest.raises(CheckpointError, match="is writable"):
        gptx_async.map(asked.append, [1], checkpoint=read_only / name)
    assert not asked


@pytest.mark.parametrize("checkpoint", ["beside", "elsewhere"])
def test_a_command_for_a_read_only_folder_sends_nothing(
    run: Callable[..., int],
    folder: Path,
    fake_openai: FakeOpenAI,
    read_only: Path,
    capfd: pytest.CaptureFixture[str],
    checkpoint: str,
) -> None:
    options = ["--checkpoint", str(folder / "x")] if checkpoint == "elsewhere" else []
    assert run(*ASK, "--output", str(read_only / "out.jsonl"), *options) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1, told
    assert "can't be written" in told
    assert fake_openai.requests == []
