"""Run tests in copies of the repository, each in a process forked from one that has symbolicai.

To import symbolicai takes seconds of processor time, so it is imported once, in the process that
forks, and no module of the package or of the tests is. Nothing here starts a thread, which a fork
would lose.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Job", "Ran", "Verdict", "preload", "run_all"]

PRELOADED = (
    "symai",
    "symai.backend.engines.neurosymbolic.engine_openai_gptX_chat",
    "aiohttp",
    "hypothesis",
    "openai.resources",
    "pandas",
    "tiktoken",
)


class Verdict(enum.Enum):
    """What the run of a mutant's tests says."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Job:
    """Tests to run in a copy of the repository.

    Attributes:
        name: Names the job.
        tests: pytest's ids, relative to the root of the repository.
        changed: New texts of files, by their path relative to the root.
        options: Further options for pytest.
    """

    name: str
    tests: Sequence[str]
    changed: Mapping[Path, str] = field(default_factory=dict)
    options: Sequence[str] = ("-x",)


@dataclass(frozen=True)
class Ran:
    """The end of a job.

    Attributes:
        job: The job.
        verdict: Whether a test failed. Anything but failed or passed tests is a `FAILED` run.
        detail: Which test failed first, or what went wrong.
        seconds: How long it took.
        failed: pytest's ids of the tests that failed.
        output: What pytest printed.
    """

    job: Job
    verdict: Verdict
    detail: str
    seconds: float
    failed: frozenset[str] = frozenset()
    output: str = ""


def preload() -> None:
    """Import what all tests need and none changes, configured as `tests/conftest.py` does."""
    home = tempfile.mkdtemp(prefix="gptx_async-mutants-")
    account = {
        "NEUROSYMBOLIC_ENGINE_API_KEY": "sk-config",
        "NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4o-mini",
    }
    Path(home, "symai.config.json").write_text(json.dumps(account))
    with contextlib.chdir(home), pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", home)  # symbolicai reads its configuration when it is imported
        environment.setenv("SYMAI_WARNINGS", "0")
        for module in PRELOADED:
            importlib.import_module(module)
    shutil.rmtree(home, ignore_errors=True)
    assert "gptx_async" not in sys.modules, "the mutated package must be imported after the fork"


def run_all(root: Path, jobs: Iterable[Job], workers: int, limit: float) -> Iterator[Ran]:
    """Run jobs, and yield each when it has ended.

    Args:
        root: Root of the repository that is copied for each job.
        jobs: What to run.
        workers: How many jobs run at once.
        limit: Seconds after which a job is ended, which counts as a test that failed.
    """
    waiting = deque(jobs)
    running: dict[Connection[Any, Any], _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                started = _Running(root, waiting.popleft())
                running[started.connection] = started
            first = min(each.started_at for each in running.values())
            left = max(0.0, first + limit - time.monotonic())
            done = multiprocessing.connection.wait([*running], timeout=left)
            for connection, each in [*running.items()]:
                if connection in done or time.monotonic() - each.started_at >= limit:
                    del running[connection]
                    yield each.end()
    finally:
        for each in running.values():
            each.end()


class _Running:
    """A job in its process, and its copy of the repository."""

    def __init__(self, root: Path, job: Job) -> None:
        self._job = job
        self.started_at = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="gptx_async-mutant-"))
        self._tree = self._folder / "tree"
        _copy(root, self._tree)
        for path, text in job.changed.items():
            (self._tree / path).write_text(text)
        self.connection, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (root, self._folder, self._tree, job, theirs)
        fork = multiprocessing.get_context("fork")
        self._process: BaseProcess = fork.Process(target=_run_tests, args=arguments)
        self._process.start()
        theirs.close()

    def end(self) -> Ran:
        """Return what became of the job, ending it first if it still runs."""
        seconds = time.monotonic() - self.started_at
        verdict, detail, failed = Verdict.KILLED, "time-out", frozenset[str]()
        if self.connection.poll():
            try:
                status, names = self.connection.recv()
            except EOFError:
                verdict, detail = Verdict.FAILED, "the process ended before pytest did"
            else:
                verdict, detail = _verdict_of(status, names)
                failed = frozenset(names)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)  # and the children of tests
        self._process.join()
        self.connection.close()
        log = self._folder / "output"
        output = log.read_text(errors="replace") if log.exists() else ""
        shutil.rmtree(self._folder, ignore_errors=True)
        return Ran(self._job, verdict, detail, seconds, failed, output)


def _verdict_of(status: int, failed: Sequence[str]) -> tuple[Verdict, str]:
    """Read pytest's exit status: 1 says that tests failed, 0 that all passed, and nothing else."""
    if status == pytest.ExitCode.TESTS_FAILED and failed:
        return Verdict.KILLED, f"by {failed[0]}"
    if status == pytest.ExitCode.OK:
        return Verdict.SURVIVED, ""
    return Verdict.FAILED, f"pytest ended with status {status} and {len(failed)} failed tests"


def _copy(root: Path, tree: Path) -> None:
    """Copy what git tracks or would: no environment, no caches."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = root / name, tree / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


class _Watch:
    """A pytest plugin that notes which tests fail, and checks which package they test."""

    def __init__(self, tree: Path) -> None:
        self.failed: list[str] = []
        self._tree = tree

    def pytest_collection(self) -> None:
        package = importlib.import_module("gptx_async")
        if not Path(package.__file__ or "").is_relative_to(self._tree):
            raise pytest.UsageError(f"the tests would test {package.__file__}, not the copy")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)


def _run_tests(
    root: Path, folder: Path, tree: Path, job: Job, connection: Connection[Any, Any]
) -> None:
    """Run pytest in this process, which was forked for it; send its status and what failed."""
    os.setsid()  # a group of its own, which is killed with the children of tests
    log = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(tree)
    outside = [path for path in sys.path if not Path(path or ".").resolve().is_relative_to(root)]
    venv = [path for path in sys.path if "site-packages" in path and path not in outside]
    sys.path[:] = [str(tree), *outside, *venv]
    os.environ["PYTHONPATH"] = str(tree)  # for the programs that tests start
    watch = _Watch(tree)
    # The options in setup.cfg are for people, and for a run of all tests.
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "-q", "--rootdir", str(tree)]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    status = pytest.main([*options, *job.options, *job.tests], plugins=[watch])
    connection.send((int(status), watch.failed))
    sys.stdout.flush()
    os._exit(0)  # no exit handlers, which are those of the process that was forked
