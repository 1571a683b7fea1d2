"""Checkpoints: what is kept, what is refused, and what is left after a `kill -9`."""

from __future__ import annotations

import enum
import functools
import os
import random
import signal
import sqlite3
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pytest
from symai import Expression, Symbol

import gptx_async
from gptx_async import Failed
from gptx_async.errors import CheckpointError, RunCancelledError
from gptx_async.mapping.checkpoint import Checkpoint
from gptx_async.mapping.identity import digest_of, identity_of
from gptx_async.testing import FakeOpenAI
from support import TESTS
from support.child import DEADLINE, run_child, start_python
from support.engines import echo, user_text

PROMPT = "Double it."


class Doubler:
    """Counts what it is asked for, outside of what is its state."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.__dict__["lock"] = threading.Lock()

    def __call__(self, item: Any) -> Any:
        self.asked.append(item)
        return [item, item]

    def __getstate__(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def kept_in(path: Path) -> dict[int, tuple[str, Any]]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT item, format, value FROM results").fetchall()
    finally:
        connection.close()
    assert len({item for item, _, _ in rows}) == len(rows)
    return {item: (form, value) for item, form, value in rows}


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


def test_text_and_json_stay_readable(path: Path) -> None:
    values = ["größer", {"a": [1, 2.5, None, True]}]
    gptx_async.map(lambda item: values[item], [0, 1], checkpoint=path)
    assert kept_in(path) == {
        0: ("json", '"größer"'),
        1: ("json", '{"a": [1, 2.5, null, true]}'),
    }


class Colour(enum.Enum):
    RED = 1


class Text(str):
    __slots__ = ()


@dataclass
class Point:
    x: int


VALUES = [
    "text",
    "half of a pair: \ud800, and \x00",
    "",
    None,
    True,
    -1,
    2**63,
    10**5000,
    0.1,
    float("inf"),
    {"b": 1, "a": {"nested": [1, [2]]}},
    {1: "a number's key"},
    (1, "a tuple"),
    {"a", "set"},
    b"bytes",
    Text("of a subclass"),
    Colour.RED,
    Point(1),
    Decimal("0.1"),
    datetime(2026, 1, 1),
    [Point(2), {"in": Colour.RED}],
]


def test_values_come_back_as_they_were(path: Path) -> None:
    def value_of(index: int) -> Any:
        return VALUES[index]

    for _ in range(2):
        results = gptx_async.map(
            value_of, range(len(VALUES)), checkpoint=path, checkpoint_pickle=True
        )
    assert results == VALUES
    assert [*map(type, results)] == [*map(type, VALUES)]
    assert [*results[10]] == ["b", "a"]


def test_symbols_and_numpy_come_back_as_they_were(path: Path) -> None:
    values = [Symbol("text"), Symbol({"a": [1]}), numpy.arange(3), float("nan")]

    def value_of(index: int) -> Any:
        return values[index]

    for _ in range(2):
        text, mapping, array, nan = gptx_async.map(
            value_of, range(4), checkpoint=path, checkpoint_pickle=True
        )
    assert isinstance(text, Symbol)
    assert (text.value, mapping.value, array.tolist()) == ("text", {"a": [1]}, [0, 1, 2])
    assert nan != nan


def test_the_answers_of_an_expression_are_kept(fake_openai: FakeOpenAI, path: Path) -> None:
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

    def mend(failed: Failed) -> str:
        return f"instead of {failed.item}"

    def divide(item: int) -> int:
        if not item and not is_well.is_set():
            raise ZeroDivisionError
        return item

    [failed, _] = gptx_async.map(divide, [0, 1], checkpoint=path, on_error="return")
    assert isinstance(failed, Failed)
    assert gptx_async.map(divide, [0, 1], checkpoint=path, on_error=mend) == ["instead of 0", 1]
    with pytest.raises(ZeroDivisionError) as raised:
        gptx_async.map(divide, [0, 1], checkpoint=path)
    assert "and in the checkpoint" in raised.value.__notes__[0]
    assert {*kept_in(path)} == {1}
    is_well.set()
    assert gptx_async.map(divide, [0, 1], checkpoint=path) == [0, 1]


def test_what_is_made_of_a_cancelled_call_is_not_kept(fake_openai: FakeOpenAI, path: Path) -> None:
    """An item that catches everything, and one whose inner run was stopped in the middle."""
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
    assert {*kept_in(path)} == {0}


class OnlyWritten:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.parametrize("value", [threading.Lock(), lambda: None, OnlyWritten()])
def test_a_value_that_cannot_be_kept_fails_its_item(path: Path, value: Any) -> None:
    def value_of(item: int) -> Any:
        return value if item == 1 else item

    results = gptx_async.map(
        value_of, range(3), checkpoint=path, on_error="return", checkpoint_pickle=True
    )
    assert (results[0], results[2]) == (0, 2)
    [failed] = results.failed
    assert isinstance(failed.error, CheckpointError)
    assert f"value of item 1, a {type(value).__name__}, can't be stored" in str(failed.error)
    with pytest.raises(CheckpointError, match="Let the expression return text"):
        gptx_async.map(value_of, range(3), checkpoint=path, checkpoint_pickle=True)
    assert {*kept_in(path)} == {0, 2}


def test_an_item_without_content_ends_the_run(path: Path) -> None:
    with pytest.raises(CheckpointError, match="Item 1, a lock, has no content") as raised:
        gptx_async.map(str, ["a", threading.Lock()], checkpoint=path)
    assert raised.value.results == ["a"]  # type: ignore[attr-defined]
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    with pytest.raises(CheckpointError, match="Item 0, a list, has no content"):
        gptx_async.map(len, [holds_itself], checkpoint=path.with_name("other.sqlite"))


def test_an_item_that_differs_is_refused(path: Path) -> None:
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
    """Inherits all that it does."""


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
def test_the_checkpoint_of_another_job_is_refused(
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


def test_an_attribute_that_is_no_plain_value_is_not_looked_at(path: Path) -> None:
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


DIGESTS = """
import sys
from decimal import Decimal
from gptx_async.mapping.identity import digest_of
shared = "".join(["sha", "red"])
print(digest_of([{"a", "set", "of", "texts"}, {"b": 1, "a": Decimal("0.1")}, (shared, shared)]))
"""


def test_digests_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a set is another in each, and whether equal texts are one object may be."""
    value = [{"a", "set", "of", "texts"}, {"a": Decimal("0.1"), "b": 1}, ("shared", "sha" + "red")]
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert run_child(DIGESTS).stdout.strip() == digest_of(value)


def test_digests_tell_contents_from_one_another() -> None:
    values: list[Any] = [
        *VALUES,
        *(1.0, "1", b"1", [1], ["1"], [[1], []], [[], [1]], {"1"}, {1: 2}, {"a": 1, "b": 2}),
        *(Point(2), "ab", ["a", "b"], ["ab"], [], {}, set(), len, Point, numpy.arange(3)),
        *(numpy.arange(4), Symbol("a"), Symbol("b"), Symbol(["a"]), Summarise(1), Summarise(2)),
    ]
    digests = [digest_of(value) for value in values]
    assert len({*digests}) == len(values)
    assert digest_of(Symbol("a")) == digest_of(Symbol("a"))
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


@pytest.fixture
def foreign(path: Path) -> Iterator[bytes]:
    """An SQLite file of another program, which stays as it is."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE results (mine TEXT)")
    connection.close()
    before = path.read_bytes()
    yield before
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_sqlite_file_of_another_program_is_refused(path: Path, foreign: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of gptx_async"):
        gptx_async.map(other, ["a"], checkpoint=path)


@pytest.mark.parametrize("content", [b"no database\n" * 100, b"SQLite format 3\x00" + b"x" * 5000])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not an SQLite file, or is damaged"):
        gptx_async.map(other, ["a"], checkpoint=path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for impossible in (tmp_path, tmp_path / "no folder" / "run.sqlite"):
        with pytest.raises(CheckpointError, match="Check that its folder exists"):
            gptx_async.map(other, ["a"], checkpoint=impossible)


def test_a_later_format_is_refused(path: Path) -> None:
    gptx_async.map(other, ["a"], checkpoint=path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(CheckpointError, match=r"has format 3; .* reads format 2"):
        gptx_async.map(other, ["a"], checkpoint=path)


def test_a_value_that_cannot_be_read_is_told_with_its_index(path: Path) -> None:
    gptx_async.map(other, [Point(1)], checkpoint=path, checkpoint_pickle=True)
    for form, value in (("pickle", b"cgone\nGone\n."), ("json", "{"), ("symbols", "[")):
        connection = sqlite3.connect(path)
        connection.execute("UPDATE results SET format = ?, value = ?", (form, value))
        connection.commit()
        connection.close()
        with pytest.raises(CheckpointError, match=r"value of item 0 .* can't be read"):
            gptx_async.map(other, [Point(1)], checkpoint=path, checkpoint_pickle=True)


@pytest.mark.slow
def test_a_checkpoint_that_is_in_use_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptx_async.mapping.checkpoint_file.LOCK_SECONDS", 0.05)  # of this process
    items = [*range(100)]  # more than are read before they are taken
    stream = gptx_async.map(other, items, workers=1, checkpoint=path, as_completed=True)
    assert next(stream) == (0, 0)
    with pytest.raises(CheckpointError, match="is in use"):
        gptx_async.map(other, items, checkpoint=path)
    in_child = run_child(
        """
        import gptx_async, sys
        try:
            gptx_async.map(len, ["a"], checkpoint=sys.argv[1])
        except gptx_async.errors.CheckpointError as error:
            print("in use" in str(error))
        """,
        str(path),
    )
    assert in_child.stdout == "True\n", in_child.stderr
    stream.close()
    assert gptx_async.map(other, items, checkpoint=path) == items


def test_a_disk_that_is_full_ends_the_run_and_what_was_kept_stays(path: Path) -> None:
    """The system's limit on the size of a file takes the place of the disk's."""
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
    kept = kept_in(path)
    assert len(kept) > 5
    assert {*kept.values()} == {("json", f'"{"X" * 1000}"')}


def test_nothing_is_kept_after_a_write_that_failed(path: Path) -> None:
    """Others may have been written with it, and would take theirs for kept."""
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
    assert {*kept_in(path)} == {0}


def test_many_threads_keep_at_once(path: Path) -> None:
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
    assert kept_in(path).keys() == {*range(count)}


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import gptx_async
from support.items import ask

# Here, once, and not in each child, which starts a background thread of its own.
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
    """A program whose child is killed and started anew; symbolicai is imported only once."""

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
def test_a_run_that_is_killed_twenty_times_asks_for_nothing_that_is_kept(
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
        assert not asked & kept.keys(), "what is kept is not asked for again"
        kept_now = kept_in(path)
        assert kept_now.items() >= kept.items(), "what is kept stays"
        assert {*kept_now} <= {index_of(request) for request in fake_openai.requests}
        # At most what its workers had in hand is not kept of what was answered.
        assert len(kept_now) - len(kept) >= len(fake_openai.answers) - answered_before - 2 * 8
        kept, answered_before = kept_now, len(fake_openai.answers)
        killed.go_on()
    assert kept
    seen = len(fake_openai.requests)
    killed.line()
    assert killed.line() == 0, "the last run returns every answer, in order"
    asked_last = sorted(index_of(request) for request in fake_openai.requests[seen:])
    assert asked_last == sorted({*range(ITEMS)} - kept.keys()), "each is asked for once"
    assert kept_in(path) == {index: ("json", f'"answer to text {index}"') for index in range(ITEMS)}


def index_of(request: Any) -> int:
    return int(user_text(request.body).removeprefix("text "))
