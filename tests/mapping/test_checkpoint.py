"""Checkpoints: what is stored, what a second run computes, and what a `kill -9` leaves."""

from __future__ import annotations

import functools
import os
import random
import signal
import sqlite3
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from symai import Expression, Symbol

import gptx_async
from gptx_async import Failed
from gptx_async.errors import CheckpointError, RunCancelledError
from gptx_async.mapping.checkpoint import Checkpoint, StoredValue
from gptx_async.mapping.identity import identity_of
from gptx_async.testing import FakeOpenAI
from support import TESTS
from support.child import DEADLINE, run_child, start_python
from support.engines import echo, user_text
from support.stored_values import stored_in


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


PROMPT = "Double it."


class Doubler:
    """Records its items in an attribute that is not part of its state."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.__dict__["lock"] = threading.Lock()

    def __call__(self, item: Any) -> Any:
        self.asked.append(item)
        return [item, item]

    def __getstate__(self) -> dict[str, Any]:
        return {}


def test_a_second_run_does_only_what_is_missing(path: Path) -> None:
    first, second = Doubler(), Doubler()
    assert gptx_async.map(first, ["a", "b"], checkpoint=path) == [["a", "a"], ["b", "b"]]
    results = gptx_async.map(second, ["a", "b", "c"], checkpoint=path)
    assert results == [["a", "a"], ["b", "b"], ["c", "c"]]
    assert (sorted(first.asked), second.asked) == (["a", "b"], ["c"])
    pairs = gptx_async.map(second, ["a", "b", "c"], checkpoint=path, as_completed=True)
    assert [*pairs] == [*enumerate(results)]
    assert second.asked == ["c"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_answers_of_an_expression_are_stored(fake_openai: FakeOpenAI, path: Path) -> None:
    fake_openai.reply = echo
    gptx_async.install("sk-key", "gpt-4o-mini")
    try:
        for _ in range(2):
            [value] = gptx_async.map(Asks(), [Symbol("a")], checkpoint=path)
            assert isinstance(value, Symbol)
            assert value.value == "answer to a"
    finally:
        gptx_async.uninstall()
    assert len(fake_openai.requests) == 1


class Asks(Expression):  # type: ignore[misc] # symbolicai ships no types
    def forward(self, symbol: Symbol) -> Symbol:
        return symbol.query("Answer.")


def test_failed_items_are_tried_again(path: Path) -> None:
    is_well = threading.Event()

    def replace(failed: Failed) -> str:
        return f"instead of {failed.item}"

    def divide(item: int) -> int:
        if not item and not is_well.is_set():
            raise ZeroDivisionError
        return item

    [failed, _] = gptx_async.map(divide, [0, 1], checkpoint=path, on_error="return")
    assert isinstance(failed, Failed)
    assert gptx_async.map(divide, [0, 1], checkpoint=path, on_error=replace) == ["instead of 0", 1]
    with pytest.raises(ZeroDivisionError) as raised:
        gptx_async.map(divide, [0, 1], checkpoint=path)
    assert "and in the checkpoint" in raised.value.__notes__[0]
    assert {*stored_in(path)} == {1}
    is_well.set()
    assert gptx_async.map(divide, [0, 1], checkpoint=path) == [0, 1]


def test_values_of_cancelled_items_are_not_stored(fake_openai: FakeOpenAI, path: Path) -> None:
    """One item catches all exceptions; another contains a run that is stopped half-way."""
    fake_openai.latency = lambda request: 0.0 if user_text(request.body) == "fast" else 60.0
    waits, cancelled = threading.Event(), threading.Event()
    inner_ended_with: list[type[BaseException]] = []

    def wait(failed: Failed) -> int:
        waits.set()
        assert cancelled.wait(30)
        return 0

    def work(item: str) -> Any:
        if item == "inner":
            try:
                return gptx_async.map(int, ["a", "b", "c"], workers=1, on_error=wait)
            except BaseException as error:
                inner_ended_with.append(type(error))
                raise
        try:
            return str(Symbol(item).query("Answer."))
        except BaseException:
            cancelled.set()
            return "n/a"

    gptx_async.install("sk-key", "gpt-4o-mini")
    try:
        items = ["fast", "slow", "inner"]
        stream = gptx_async.map(work, items, workers=3, checkpoint=path, as_completed=True)
        assert next(stream)[0] == 0
        fake_openai.wait_for(lambda server: server.in_flight == 1)
        assert waits.wait(30)
        stream.close()
    finally:
        gptx_async.uninstall()
    assert cancelled.is_set()
    assert inner_ended_with == [RunCancelledError]
    assert {*stored_in(path)} == {0}


def test_an_item_without_content_ends_the_run(path: Path) -> None:
    with pytest.raises(CheckpointError, match="Item 1, a lock, has no content") as raised:
        gptx_async.map(str, ["a", threading.Lock()], checkpoint=path)
    assert raised.value.results == ["a"]  # type: ignore[attr-defined]
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    with pytest.raises(CheckpointError, match="Item 0, a list, has no content"):
        gptx_async.map(len, [holds_itself], checkpoint=path.with_name("other.sqlite"))


def test_another_item_is_rejected(path: Path) -> None:
    gptx_async.map(len, ["a", "b", "c"], checkpoint=path)
    with pytest.raises(CheckpointError, match="Item 1 is not the item whose result is in"):
        gptx_async.map(len, ["a", "c", "b"], checkpoint=path)
    assert gptx_async.map(len, ["a"], checkpoint=path) == [1]
    assert gptx_async.map(len, ["a", "b", "c", "dd"], checkpoint=path) == [1, 1, 1, 2]


def other(item: Any) -> Any:
    return item


def prompts(item: Any) -> Any:
    return [item, PROMPT]


def with_default(item: Any, extra: str = "of the default") -> Any:
    return [item, extra]


def make_closure(text: str) -> Callable[[Any], Any]:
    def inner(item: Any) -> Any:
        return [item, text]

    return inner


class Summarise(Expression):  # type: ignore[misc]
    def __init__(self, words: int, secret: object = None) -> None:
        super().__init__()
        self.words = words
        self.secret = secret

    def forward(self, item: Any) -> Any:
        return f"{item} in {self.words}, {PROMPT}"


class Translate(Summarise):
    """Inherits everything."""


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (other, prompts, "its expression is test_checkpoint.other, not test_checkpoint.prompts"),
        (Summarise(5), Summarise(6), "attribute 'words' differs"),
        (Summarise(5), Translate(5), "not test_checkpoint.Translate"),
        (Summarise(5).forward, Summarise(6).forward, "attribute 'words' differs"),
        (make_closure("a"), make_closure("b"), "variable 'text' of .* differs"),
        (
            functools.partial(with_default, extra="a"),
            functools.partial(with_default, extra="b"),
            "arguments of the partial differs",
        ),
        (int, str, "its expression is builtins.int, not builtins.str"),
    ],
)
def test_the_checkpoint_of_another_job_is_rejected(
    path: Path, there: Any, here: Any, message: str
) -> None:
    first = gptx_async.map(there, [1], checkpoint=path)
    with pytest.raises(CheckpointError, match=f"is of another job: .*{message}"):
        gptx_async.map(here, [1], checkpoint=path)
    assert gptx_async.map(there, [1], checkpoint=path) == first


@pytest.mark.parametrize("expression", [prompts, Summarise(5), Summarise])
def test_a_constant_that_has_changed_is_another_job(
    monkeypatch: pytest.MonkeyPatch, expression: Any
) -> None:
    before = identity_of(expression)
    assert identity_of(expression) == before
    monkeypatch.setitem(globals(), "PROMPT", "Triple it.")
    assert {part for part, value in identity_of(expression).items() if before[part] != value} == {
        "constant PROMPT"
    }


def test_an_attribute_that_is_not_plain_data_is_not_compared(path: Path) -> None:
    gptx_async.map(Summarise(5, secret=threading.Lock()), ["a"], checkpoint=path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE results SET value = ?", ('"from the file"',))
    connection.commit()
    connection.close()
    values = gptx_async.map(Summarise(5, secret=threading.Lock()), ["a"], checkpoint=path)
    assert values == ["from the file"]


def test_a_source_that_has_changed_is_another_job(path: Path, tmp_path: Path) -> None:
    program = """
    import importlib, sys
    sys.path.insert(0, sys.argv[1])
    sys.dont_write_bytecode = True
    import gptx_async, work
    try:
        print(gptx_async.map(getattr(work, sys.argv[3]), [1], checkpoint=sys.argv[2]))
    except gptx_async.errors.CheckpointError as error:
        print(error)
    """

    def run(name: str, source: str) -> str:
        (tmp_path / "work.py").write_text(textwrap.dedent(source))
        arguments = str(tmp_path), str(path.with_name(f"{name}.sqlite")), name
        return run_child(program, *arguments).stdout

    function = "def add(item):\n    return item + {}\n"
    assert run("add", function.format(1)) == "[2]\n"
    assert "the code of the expression differs" in run("add", function.format(2))
    assert run("add", function.format(1)) == "[2]\n"
    classes = """
    class Base:
        def __call__(self, item):
            return item * {}
    class Child(Base):
        pass
    """
    assert run("Child", classes.format(3)) == "[3]\n"
    assert "the code of the expression differs" in run("Child", classes.format(4))


def test_another_model_is_another_job(fake_openai: FakeOpenAI, path: Path) -> None:
    gptx_async.map(other, ["a"], checkpoint=path)  # with whatever is registered, or nothing
    path.unlink()
    try:
        gptx_async.install("sk-key", "gpt-4o-mini")
        gptx_async.map(other, ["a"], checkpoint=path)
        gptx_async.install("sk-key", "gpt-4o")
        with pytest.raises(CheckpointError, match="its model is gpt-4o-mini, not gpt-4o"):
            gptx_async.map(other, ["a"], checkpoint=path)
    finally:
        gptx_async.uninstall()


def test_a_full_disk_ends_the_run_and_stored_values_stay(path: Path) -> None:
    """The limit of the file size (RLIMIT_FSIZE) stands in for a full disk."""
    program = """
    import resource, signal, sys
    import gptx_async
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        gptx_async.map(str.upper, ("x" * 1000 for _ in range(1000)), checkpoint=sys.argv[1])
    except gptx_async.errors.CheckpointError as error:
        print("has free space" in str(error), len(error.results) > 5)
    """
    completed = run_child(program, str(path))
    assert completed.stdout == "True True\n", completed.stderr
    kept = stored_in(path)
    assert len(kept) > 5
    assert {*kept.values()} == {("json", f'"{"X" * 1000}"')}


def test_nothing_is_stored_after_a_failed_write(path: Path) -> None:
    """Rows of other threads may have been in the same transaction and are lost as well."""
    program = """
    import resource, signal, sys
    from gptx_async.mapping.checkpoint import Checkpoint
    from gptx_async.errors import CheckpointError, RunCancelledError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    checkpoint = Checkpoint(sys.argv[1], {})
    for index, size in enumerate((10, 300_000, 10)):
        try:
            checkpoint.store(index, "digest", "x" * size)
            print("kept")
        except CheckpointError as error:
            print("has free space" in str(error))
    checkpoint.close()
    """
    completed = run_child(program, str(path))
    assert completed.stdout == "kept\nTrue\nTrue\n", completed.stderr
    assert {*stored_in(path)} == {0}


def test_many_threads_store_at_once(path: Path) -> None:
    checkpoint = Checkpoint(path, {})
    count = 2000
    with ThreadPoolExecutor(16) as pool:
        [*pool.map(lambda index: checkpoint.store(index, "digest", [index]), range(count))]
    assert all(
        kept is not None and kept.value == [index]
        for index, kept in enumerate(checkpoint.find(index, "digest") for index in range(count))
    )
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.store(count, "digest", 1)
    assert stored_in(path).keys() == {*range(count)}


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import gptx_async
from support.items import ask

# Once, before the fork. Each child starts its own background thread.
gptx_async.install("sk-key", "gpt-4o-mini")
texts = [f"text {i}" for i in range(int(sys.argv[3]))]
while True:
    child = os.fork()
    if not child:
        results = gptx_async.map(ask, texts, workers=8, checkpoint=sys.argv[2])
        os._exit(0 if results == [f"answer to {text}" for text in texts] else 1)
    print(child, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    if status >= 0:
        break
    sys.stdin.readline()
"""


KILLS, ITEMS = 20, 400


class Killed:
    """A program that imports symai once and forks a child whenever the previous one is killed."""

    def __init__(self, path: Path, in_thread: Callable[..., Future[Any]]) -> None:
        folder = TESTS
        arguments = KILLED, folder, str(path), str(ITEMS)
        self.process = start_python("-c", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._in_thread = in_thread

    def line(self) -> int:
        assert self.process.stdout is not None
        return int(self._in_thread(self.process.stdout.readline).result(DEADLINE))

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def killed(path: Path, in_thread: Callable[..., Future[Any]]) -> Iterator[Killed]:
    killed = Killed(path, in_thread)
    with killed.process:
        yield killed
        killed.process.kill()


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_computes_no_stored_item_again(
    fake_openai: FakeOpenAI, path: Path, killed: Killed
) -> None:
    fake_openai.reply = echo
    fake_openai.latency = lambda request: hash(user_text(request.body)) % 30 / 1000
    chance = random.Random(7)
    kept: dict[int, tuple[str, Any]] = {}
    answered_before = 0
    for _ in range(KILLS):
        seen = len(fake_openai.requests)
        child = killed.line()
        wanted = seen + chance.randrange(1, 25)
        fake_openai.wait_for(lambda server, wanted=wanted: len(server.requests) >= wanted, DEADLINE)  # type: ignore[misc]
        os.kill(child, signal.SIGKILL)
        assert killed.line() == -signal.SIGKILL
        asked = {index_of(request) for request in fake_openai.requests[seen:]}
        assert not asked & kept.keys(), "stored items are not computed again"
        kept_now = stored_in(path)
        assert kept_now.items() >= kept.items(), "stored values are kept"
        assert {*kept_now} <= {index_of(request) for request in fake_openai.requests}
        # At most the answers that the workers were handling are not stored.
        assert len(kept_now) - len(kept) >= len(fake_openai.answers) - answered_before - 2 * 8
        kept, answered_before = kept_now, len(fake_openai.answers)
        killed.go_on()
    assert kept
    seen = len(fake_openai.requests)
    killed.line()
    assert killed.line() == 0, "the last run returns every answer, in order"
    asked_last = sorted(index_of(request) for request in fake_openai.requests[seen:])
    assert asked_last == sorted({*range(ITEMS)} - kept.keys()), "each is computed once"
    assert stored_in(path) == {
        index: ("json", f'"answer to text {index}"') for index in range(ITEMS)
    }


def index_of(request: Any) -> int:
    return int(user_text(request.body).removeprefix("text "))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class FailsOnce:
    """Replaces a connection, and raises an error for the first group of rows."""

    def __init__(self, connection: sqlite3.Connection, error: type[BaseException]) -> None:
        self._connection = connection
        self._error: type[BaseException] | None = error

    def executemany(self, *arguments: Any) -> Any:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._connection.executemany(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, SystemExit])
def test_each_row_of_a_commit_that_fails_is_reported(
    path: Path, in_thread: Callable[..., Future[None]], error: type[BaseException]
) -> None:
    checkpoint = Checkpoint(path, {})
    checkpoint.store(0, "digest", 0)
    connection: Any = FailsOnce(checkpoint._file.connection, error)
    checkpoint._file.connection = connection
    with checkpoint._lock:  # both threads wait; then one of them commits both rows
        keeping = [in_thread(checkpoint.store, index, "digest", index) for index in (1, 2)]
        wait_for(lambda: len(checkpoint._pending) == 2)
    for each in keeping:
        with pytest.raises(CheckpointError, match="could not be written to the checkpoint"):
            each.result(60)
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoint.store(3, "digest", 3)
    checkpoint.close()
    again = Checkpoint(path, {})
    assert [again.find(index, "digest") for index in range(4)] == [StoredValue(0), None, None, None]
    again.close()


def test_values_that_could_not_be_written_are_in_the_results(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)

    def work(item: int) -> int:
        if item:
            together.wait(60)
        return item

    def fail(self: Checkpoint) -> None:
        connection: Any = FailsOnce(self._file.connection, MemoryError)
        self._file.connection = connection
        write(self)

    write = Checkpoint._write
    assert gptx_async.map(work, [0], checkpoint=path) == [0]
    monkeypatch.setattr(Checkpoint, "_write", fail)
    with pytest.raises(CheckpointError, match="could not be written to the checkpoint") as raised:
        gptx_async.map(work, range(3), workers=2, checkpoint=path)
    assert sorted(raised.value.results) == [0, 1, 2]  # type: ignore[attr-defined]
    assert "all but 2 of them in the checkpoint" in raised.value.__notes__[-1]
