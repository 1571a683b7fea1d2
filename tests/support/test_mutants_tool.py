"""The tool behind scripts/mutants: what counts as a kill, and what is a failure of the table."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mutants.mutant import Mutant
from mutants.placing import NotPlacedError, find_tests, place
from mutants.table import MUTANTS
from support import TESTS
from support.child import run_child

SOURCE = '''\
LIMIT = 3


class Queue:
    """Holds few."""

    def is_full(self, count):
        if count > LIMIT:
            return True
        return count >= LIMIT


def is_full(count):
    return count == LIMIT
'''

MUTANT = Mutant("m", "Queue.is_full", "count >= LIMIT", "count > LIMIT", "why", ("test_it.py",))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "gptx_async" / "room").mkdir(parents=True)
    (tmp_path / "gptx_async" / "__init__.py").write_text("")
    (tmp_path / "gptx_async" / "room" / "__init__.py").write_text("")
    (tmp_path / "gptx_async" / "room" / "queue.py").write_text(SOURCE)
    (tmp_path / "tests" / "room").mkdir(parents=True)
    (tmp_path / "tests" / "room" / "test_it.py").write_text("def test_it():\n    pass\n")
    return tmp_path


def test_a_mutant_is_found_by_its_function_in_whichever_file(repository: Path) -> None:
    placed = place(MUTANT, repository)
    assert (placed.path, placed.line) == (Path("gptx_async/room/queue.py"), 10)
    assert placed.text == SOURCE.replace("count >= LIMIT", "count > LIMIT")
    assert (repository / placed.path).read_text() == SOURCE, "only copies are changed"
    assert find_tests(MUTANT, repository) == ["tests/room/test_it.py"]
    assert find_tests(replace(MUTANT, tests=("test_it.py::test_it",)), repository) == [
        "tests/room/test_it.py::test_it"
    ]


def test_a_constant_can_be_changed(repository: Path) -> None:
    placed = place(replace(MUTANT, function="LIMIT", old="= 3", new="= 4"), repository)
    assert placed.text.startswith("LIMIT = 4\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "Queue.is_empty"}, "has no Queue.is_empty"),
        ({"old": "count == LIMIT"}, "found 0 times"),
        ({"old": "LIMIT"}, "found 2 times"),
        ({"new": "count >"}, "does not compile"),
        ({"new": "(count >= LIMIT)"}, "the same program"),
    ],
    ids=["function", "none", "twice", "syntax", "same"],
)
def test_a_mutant_that_does_not_fit_is_not_placed(
    repository: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotPlacedError, match=message):
        place(replace(MUTANT, **change), repository)


def test_a_mutant_whose_tests_are_not_there_is_not_placed(repository: Path) -> None:
    with pytest.raises(NotPlacedError, match="no tests"):
        find_tests(replace(MUTANT, tests=()), repository)
    with pytest.raises(NotPlacedError, match="0 files"):
        find_tests(replace(MUTANT, tests=("test_that.py",)), repository)


def test_a_mutant_whose_tests_are_there_twice_is_not_placed(repository: Path) -> None:
    (repository / "tests" / "test_it.py").write_text("")
    with pytest.raises(NotPlacedError, match="2 files"):
        find_tests(MUTANT, repository)


PROGRAM = """
import json, sys
from pathlib import Path
from typing import Any

from mutants.running import Job, run_all

root, path = Path(sys.argv[1]), Path("gptx_async/room/queue.py")


def run(jobs, limit):
    made = [Job(text, [test], {path: text}, ("-x", "-p", "no:gptx_async")) for text, test in jobs]
    for ran in run_all(root, made, workers=2, limit=limit):
        print(json.dumps([ran.job.name, ran.verdict.value, ran.detail]))


run(json.loads(sys.argv[2]), 100.0)
run([("def check():\\n    while True: pass", "tests/room/test_it.py::test_it")], 2.0)
"""

PROGRAM_TESTS = """\
import pytest


def test_it():
    from gptx_async.room import queue

    assert queue.check()


@pytest.fixture
def checked():
    from gptx_async.room import queue

    return queue.check()


def test_a_fixture(checked):
    assert checked
"""

IT = "test_it.py::test_it"
ENDINGS = {
    ("def check(): return True", IT): ("SURVIVED", ""),
    ("def check(): return False", IT): ("killed", f"by tests/room/{IT}"),
    ("def check(): 1 / 0", "test_it.py::test_a_fixture"): (
        "killed",
        "by tests/room/test_it.py::test_a_fixture",
    ),
    ("def check():\n    import os; os._exit(1)", IT): (
        "FAILED",
        "the process ended before pytest did",
    ),
    ("def check():\n    import pytest; pytest.exit('enough', 1)", IT): (
        "FAILED",
        "pytest ended with status 1 and 0 failed tests",
    ),
    ("no such test", "test_it.py::test_that"): (
        "FAILED",
        "pytest ended with status 4 and 0 failed tests",
    ),
    ("no tests", "test_none.py"): ("FAILED", "pytest ended with status 5 and 0 failed tests"),
    ("1 / 0", "test_import.py"): ("FAILED", "pytest ended with status 2 and 0 failed tests"),
}
"""Of the text of a module, and the test that is run, what the run of the test says."""


@pytest.mark.slow
def test_only_a_test_that_fails_is_a_kill(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = repository / "tests" / "room"
    (tests / "test_it.py").write_text(PROGRAM_TESTS)
    (tests / "test_none.py").write_text("")
    (tests / "test_import.py").write_text("import gptx_async.room.queue\n")
    subprocess.run(["git", "init", "-q", repository], check=True)
    monkeypatch.setenv("PYTHONPATH", TESTS)
    jobs = json.dumps([(text, f"tests/room/{test}") for text, test in ENDINGS])
    child = run_child(PROGRAM, str(repository), jobs, strict=False)
    assert child.stderr == ""
    ended = {
        name: (verdict, detail)
        for name, verdict, detail in map(json.loads, child.stdout.splitlines())
    }
    assert ended.pop("def check():\n    while True: pass") == ("killed", "time-out")
    assert ended == {text: expected for (text, _), expected in ENDINGS.items()}


def test_the_table_names_each_mutant_once_with_its_reason() -> None:
    assert Counter(mutant.name for mutant in MUTANTS).most_common(1)[0][1] == 1
    assert len(MUTANTS) > 100
    for mutant in MUTANTS:
        assert mutant.reason, mutant.name
        assert bool(mutant.tests) != bool(mutant.equivalent), mutant.name
