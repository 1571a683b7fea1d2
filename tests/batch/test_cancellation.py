"""Queries and batches that end early, and remedies that block, query again or exit."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from symai import Symbol

import gptx_async
from gptx_async import AsyncGPTXBatchEngine
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault
from support import TESTS
from support.child import DEADLINE, run_child
from support.engines import KEY, MODEL, TwoSteps, argument, echo, user_text

PRELUDE = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
import gptx_async
from gptx_async.testing import BatchScheduler
from loguru import logger
from symai import Symbol
logger.remove()  # symbolicai logs the errors that its workers receive
from support.engines import TwoSteps, argument
engine = gptx_async.install("sk-key", "gpt-4o-mini")

def interrupt():
    sys.stdin.readline()  # until the requests have reached the server
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
"""


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    fake_openai.reply = lambda request: (
        HTTPFault(400) if user_text(request.body).startswith("bad") else echo(request)
    )
    engine = gptx_async.install(KEY, MODEL)
    engine.client.max_retries = 0
    yield engine
    gptx_async.uninstall()


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ('Symbol("text").query("Answer.")', 1),
        ('engine.forward([argument(f"text {i}") for i in range(50)])', 50),
        ("BatchScheduler(10, 10).forward(TwoSteps, [str(i) for i in range(30)])", 10),
    ],
    ids=["a query", "forward", "a scheduler's main thread"],
)
@pytest.mark.slow
def test_ctrl_c_takes_the_requests_back_and_the_engine_answers_after_it(
    fake_openai: FakeOpenAI, call: str, count: int
) -> None:
    """A scheduler's batch runs in its own thread, so its requests end with the program."""
    fake_openai.hold()
    after = 'print("answered", len(engine.forward([argument("after")])[0]), flush=True)'
    program = f"""{PRELUDE}
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    {"" if "Scheduler" in call else "sys.stdin.readline()"}
    {"" if "Scheduler" in call else after}
"""

    def until() -> None:
        fake_openai.wait_for(lambda server: server.in_flight == count, DEADLINE)

    def release() -> None:
        fake_openai.wait_for(lambda server: server.disconnected == count, DEADLINE)
        fake_openai.release()

    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(release)
        completed = run_child(program, TESTS, strict=False, until=until, lines=2)
        released.result(DEADLINE)
    assert completed.stdout.split("\n")[0] == "interrupted", completed.stderr
    if "Scheduler" not in call:
        assert completed.stdout.split("\n")[1] == "answered 1", completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_remedy_that_blocks_holds_its_thread_and_nothing_else(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """It waits for another thread's answer, which needs the loop that it must not block."""
    asked_elsewhere = threading.Event()

    def remedy(sync_engine: Any, error: Exception, callback: Any, given: Any) -> Any:
        assert asked_elsewhere.wait(30)
        return callback(model=MODEL, messages=[{"role": "user", "content": "remedied"}])

    with ThreadPoolExecutor(1) as pool:
        batch = [argument("bad", except_remedy=remedy), *(argument(f"t{i}") for i in range(20))]
        running = pool.submit(engine.forward, batch)
        fake_openai.wait_for(lambda server: any("bad" in str(r.body) for r in server.requests))
        assert str(Symbol("elsewhere").query("Answer.")) == "answer to elsewhere"
        asked_elsewhere.set()
        outputs, _ = running.result(30)
    assert outputs == [["answer to remedied"], *([f"answer to t{i}"] for i in range(20))]


def nested_remedy(depth: int) -> Any:
    """A remedy whose own query fails and has a remedy, to the given depth."""

    def remedy(sync_engine: Any, error: Exception, callback: Any, given: Any) -> Any:
        text = f"depth {depth}"
        if depth:
            nested = nested_remedy(depth - 1)
            text = str(Symbol(f"bad {depth}").query("Answer.", except_remedy=nested))
        return callback(model=MODEL, messages=[{"role": "user", "content": text}])

    return remedy


def test_remedies_that_query_again_three_deep(engine: AsyncGPTXBatchEngine) -> None:
    expected = "answer to answer to answer to answer to depth 0"
    batch = [argument(f"bad {i}", except_remedy=nested_remedy(3)) for i in range(10)]
    outputs, _ = engine.forward([*batch, argument("good")])
    assert outputs == [*([expected] for _ in batch), ["answer to good"]]
    answer = Symbol("bad").query("Answer.", except_remedy=nested_remedy(3))
    assert str(answer) == expected


def test_remedies_that_query_again_under_a_scheduler(engine: AsyncGPTXBatchEngine) -> None:
    def ask(item: str) -> str:
        return str(Symbol(item).query("Answer.", except_remedy=nested_remedy(3)))

    results = BatchScheduler(4, 4).forward(ask, [f"bad {i}" for i in range(12)])
    assert results == ["answer to answer to answer to answer to depth 0"] * 12


def test_a_remedy_that_exits_ends_the_batch(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    unwound: list[str] = []

    def leave(*_: Any) -> Any:
        fake_openai.wait_for(lambda server: server.in_flight == 5)
        sys.exit(3)

    def note(*_: Any) -> Any:
        unwound.append("a handler ran")

    def held(request: Any) -> Any:
        return 0.0 if user_text(request.body).startswith("bad") else 60.0

    fake_openai.latency = held
    arguments = [argument(f"t{i}", output_handler=note) for i in range(5)]
    with pytest.raises(SystemExit):
        engine([*arguments, argument("bad", except_remedy=leave)])
    fake_openai.wait_for(lambda server: server.disconnected == 5)
    assert unwound == []
    fake_openai.latency = 0.0
    assert engine.forward([argument("after")])[0] == [["answer to after"]]


def test_a_remedy_that_exits_in_a_query_is_raised_there(engine: AsyncGPTXBatchEngine) -> None:
    def leave(*_: Any) -> Any:
        sys.exit(3)

    with pytest.raises(SystemExit):
        Symbol("bad").query("Answer.", except_remedy=leave)
    assert str(Symbol("after").query("Answer.")) == "answer to after"


def test_two_steps_after_an_aborted_run(engine: AsyncGPTXBatchEngine) -> None:
    """An Expression that exits ends the scheduler's run, but not the next scheduler's."""

    def leave(_item: str) -> None:
        sys.exit(3)

    with pytest.raises(SystemExit):
        BatchScheduler(2, 2).forward(leave, ["one", "two"])
    results = BatchScheduler(2, 2).forward(TwoSteps, ["one", "two"])
    assert results == ["answer to answer to one", "answer to answer to two"]
