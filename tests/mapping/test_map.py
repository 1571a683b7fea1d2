"""`map` and `amap`; tests that call a model use real symbolicai over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from symai import Expression, Symbol
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

import gptx_async
from gptx_async import AsyncGPTXBatchEngine, Failed, Results
from gptx_async.errors import (
    ConfigurationError,
)
from gptx_async.testing import FakeOpenAI
from support import TESTS
from support.child import DEADLINE, run_child
from support.engines import KEY, MODEL, echo, echo_unless_bad, user_text
from support.items import ask, threads_of_runs


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    fake_openai.reply = echo_unless_bad
    engine = gptx_async.install(KEY, MODEL)
    yield engine
    gptx_async.uninstall()


InThread = Callable[..., Future[Any]]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """All threads of a run end with it, however it ends. The fixture joins them."""
    yield
    for thread in threads_of_runs():
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} stayed behind"


class Ask(Expression):  # type: ignore[misc] # symbolicai ships no types
    """Two steps: the second query is about the answer to the first."""

    def forward(self, text: Any) -> str:
        first = Symbol(text).query("Answer.")
        return str(Symbol(str(first)).query("Answer."))


def double(number: int) -> int:
    return 2 * number


def answers(texts: list[str]) -> list[str]:
    return [f"answer to {text}" for text in texts]


TEXTS = [f"text {i}" for i in range(30)]


@pytest.mark.parametrize("expression", [Ask, Ask(), lambda text: Ask()(text)])
def test_an_expression_is_run_over_a_dataset_in_its_order(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, expression: Any
) -> None:
    fake_openai.latency = lambda request: hash(user_text(request.body)) % 20 / 1000
    results = gptx_async.map(expression, TEXTS)
    assert results == answers(answers(TEXTS))
    assert (results.indices, results.failed) == ([*range(30)], [])
    assert len(fake_openai.requests) == 60


def test_as_many_items_as_workers_are_in_flight_and_no_more(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, in_thread: InThread
) -> None:
    fake_openai.hold()
    running = in_thread(gptx_async.map, ask, TEXTS, workers=7)
    fake_openai.wait_for(lambda server: server.in_flight == 7)
    fake_openai.release()
    assert running.result(30) == answers(TEXTS)
    assert fake_openai.max_in_flight == 7


def test_there_is_no_barrier_between_items(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """The other items complete both steps while the first item waits for its first answer."""
    others_done = threading.Event()

    def first_waits(text: str) -> str:
        if text == "text 0":
            assert others_done.wait(30)
        return str(Ask()(text))

    stream = gptx_async.map(first_waits, TEXTS, workers=2, as_completed=True)
    for count, (index, value) in enumerate(stream, 1):
        assert value == f"answer to answer to text {index}"
        if count == 29:
            others_done.set()
    assert (count, index) == (30, 0)


class Gates:
    """A function that waits, for each item, until the test opens its gate."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.begun: list[Any] = []
        self.opened: set[Any] = set()

    def __call__(self, item: Any) -> Any:
        with self.changed:
            self.begun.append(item)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: item in self.opened, 30)
        return item

    def open(self, *items: Any) -> None:
        with self.changed:
            self.opened.update(items)
            self.changed.notify_all()

    def wait_until(self, begun: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.begun) >= begun, 30)


def test_as_completed_gives_pairs_in_the_order_of_their_ends() -> None:
    gates = Gates()
    stream = gptx_async.map(gates, ["a", "b", "c"], workers=3, as_completed=True)
    with ThreadPoolExecutor(1) as pool:
        for index, item in [(2, "c"), (0, "a"), (1, "b")]:
            pair = pool.submit(next, stream)
            gates.wait_until(begun=3)
            gates.open(item)
            assert pair.result(30) == (index, item)
        assert pool.submit(list, stream).result(30) == []


def test_an_endless_dataset_is_read_as_far_as_it_is_worked_on() -> None:
    gates, read = Gates(), []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    stream = gptx_async.map(gates, numbers(), workers=4, as_completed=True)
    assert (read, threads_of_runs()) == ([], [])  # nothing runs before the first `next`
    with ThreadPoolExecutor(1) as pool:
        pair = pool.submit(next, stream)
        gates.wait_until(begun=4)
        assert read == [0, 1, 2, 3]
        gates.open(1)
        assert pair.result(30) == (1, 1)
        gates.wait_until(begun=5)
        assert read == [0, 1, 2, 3, 4]
        # Without further `next` calls the run stops after reading ahead two items per worker.
        gates.open(*range(100))
        gates.wait_until(begun=9)
        pool.submit(stream.close).result(30)
    assert read == [*range(9)]


def test_a_dataset_may_wait_for_the_results_of_its_earlier_items() -> None:
    """A crawler is an example. It would deadlock if the consumer's thread read the dataset."""
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    found.put(1)
    seen = []
    for _, number in gptx_async.map(double, iter(found.get, 0), as_completed=True):
        seen.append(number)
        found.put(number if number < 100 else 0)
    assert seen == [2, 4, 8, 16, 32, 64, 128]


def test_a_dataset_is_read_in_one_thread() -> None:
    threads = set()

    def numbers() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.current_thread())
            yield number

    assert gptx_async.map(double, numbers(), workers=8) == [*range(0, 200, 2)]
    assert len(threads) == 1


def test_a_class_is_built_once_for_each_worker_and_an_instance_is_shared() -> None:
    barrier = threading.Barrier(4)
    local = threading.local()

    class Stateful:
        made: list[int] = []  # noqa: RUF012 - shared on purpose

        def __init__(self) -> None:
            self.made.append(threading.get_ident())
            self.seen = 0

        def __call__(self, item: int) -> tuple[int, int, int]:
            barrier.wait(30)
            local.seen = getattr(local, "seen", 0) + 1
            self.seen += 1
            return self.seen, local.seen, id(self)

    of_class = gptx_async.map(Stateful, range(20), workers=4)
    assert len({*Stateful.made}) == 4
    assert sorted(seen for seen, _, _ in of_class) == sorted([*range(1, 6)] * 4)
    assert all(seen == seen_in_thread for seen, seen_in_thread, _ in of_class)
    of_instance = gptx_async.map(Stateful(), range(20), workers=4)
    assert len({identity for _, _, identity in of_instance}) == 1


def test_a_class_without_call_is_called_itself() -> None:
    assert gptx_async.map(int, ["1", "2"]) == [1, 2]
    assert [symbol.value for symbol in gptx_async.map(Symbol, ["a", "b"])] == ["a", "b"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_each_item_runs_in_a_copy_of_the_callers_context() -> None:
    def look(item: int) -> tuple[str, str]:
        before = variable.get()
        variable.set(f"of item {item}")
        return before, threading.current_thread().name

    token = variable.set("of the caller")
    results = gptx_async.map(look, range(10), workers=1)
    variable.reset(token)
    assert {before for before, _ in results} == {"of the caller"}
    assert all(name.startswith("gptx_async-map-") for _, name in results)


def test_it_works_with_other_engines(fake_openai: FakeOpenAI, engine_repository: Any) -> None:
    fake_openai.reply = echo
    engine_repository.register(
        "neurosymbolic", GPTXChatEngine(KEY, MODEL), allow_engine_override=True
    )
    fake_openai.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gptx_async.map, Ask, TEXTS, workers=10, progress=True)
        fake_openai.wait_for(lambda server: server.in_flight == 10)
        fake_openai.release()
        assert running.result(30) == answers(answers(TEXTS))


def test_a_failed_item_is_returned_in_its_place(engine: AsyncGPTXBatchEngine) -> None:
    results = gptx_async.map(ask, ["a", "bad", "c"], on_error="return")
    assert (results[0], results[2]) == ("answer to a", "answer to c")
    [failed] = results.failed
    assert results[1] is failed
    assert (failed.index, failed.item) == (1, "bad")
    assert isinstance(failed.error, ValueError)
    assert "400" in str(failed.error)


def test_a_function_gives_the_value_of_a_failed_item_in_the_consumers_thread(
    engine: AsyncGPTXBatchEngine,
) -> None:
    def instead(failed: Failed) -> tuple[str, threading.Thread]:
        return f"instead of {failed.item}", threading.current_thread()

    results = gptx_async.map(ask, ["a", "bad"], on_error=instead)
    assert results == ["answer to a", ("instead of bad", threading.current_thread())]
    assert [failed.index for failed in results.failed] == [1]


def test_an_error_of_on_error_ends_the_run() -> None:
    def refuse(failed: Failed) -> None:
        raise LookupError(f"no value for {failed.item}")

    with pytest.raises(LookupError, match="no value for 0"):
        gptx_async.map(lambda item: 1 // item, [0], on_error=refuse)


@pytest.mark.parametrize("as_completed", [False, True])
def test_an_error_is_raised_and_cancels_the_calls_in_flight(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, as_completed: bool
) -> None:
    engine.client.max_retries = 0

    def latency(request: Any) -> float:
        return 0.0 if user_text(request.body) in ("done", "bad") else 60.0

    fake_openai.latency = latency

    def one_after_the_other() -> Iterator[str]:
        """With eleven workers: 'done' has ended before the eleven others start."""
        yield "done"
        fake_openai.wait_for(lambda server: len(server.answers) == 1)
        yield from (f"slow {i}" for i in range(10))
        fake_openai.wait_for(lambda server: server.in_flight == 10)
        yield "bad"

    def run() -> None:
        if as_completed:
            for _ in gptx_async.map(ask, one_after_the_other(), workers=11, as_completed=True):
                pass
        else:
            gptx_async.map(ask, one_after_the_other(), workers=11)

    with pytest.raises(ValueError, match="400") as raised:
        run()
    fake_openai.wait_for(lambda server: server.disconnected == 10)
    results = raised.value.results  # type: ignore[attr-defined]
    assert isinstance(results, Results)
    if not as_completed:
        assert (results, results.indices) == (["answer to done"], [0])
    [note] = raised.value.__notes__
    assert note.startswith("Raised for item 11. ")
    assert len(fake_openai.requests) == 12


def test_a_consumer_that_stops_cancels_the_calls_in_flight(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.latency = lambda request: 0.0 if user_text(request.body) == "0" else 60.0
    for pair in gptx_async.map(ask, map(str, itertools.count()), workers=9, as_completed=True):
        assert pair == (0, "answer to 0")
        fake_openai.wait_for(lambda server: server.in_flight == 9)
        break
    fake_openai.wait_for(lambda server: server.disconnected == 9)
    assert ask("0") == "answer to 0"


def test_code_that_tries_again_for_ever_ends_with_its_run(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    engine.client.max_retries = 0
    unwound = threading.Semaphore(0)

    def ask_until_answered(text: str) -> str:
        try:
            while True:
                with contextlib.suppress(Exception):
                    return ask(text)
        finally:
            unwound.release()

    fake_openai.latency = lambda request: 0.0 if user_text(request.body) == "a" else 60.0
    stream = gptx_async.map(ask_until_answered, ["a", "b", "c"], workers=3, as_completed=True)
    assert next(stream) == (0, "answer to a")
    fake_openai.wait_for(lambda server: server.in_flight == 2)
    stream.close()
    assert all(unwound.acquire(timeout=10) for _ in range(3))
    assert len(fake_openai.requests) == 3


def test_a_run_within_an_item_ends_with_the_outer_one(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.latency = lambda request: 60.0 if "slow" in user_text(request.body) else 0.0

    def ask_parts(text: str) -> list[Any]:
        return [*gptx_async.map(ask, [f"{text} {part}" for part in range(3)], workers=3)]

    async def ask_parts_on_a_loop(text: str) -> list[Any]:
        return [*await gptx_async.amap(ask, [f"{text} {part}" for part in range(3)], workers=3)]

    def either(text: str) -> list[Any]:
        if "loop" in text:
            return asyncio.run(ask_parts_on_a_loop(text))
        return ask_parts(text)

    stream = gptx_async.map(either, ["fast", "slow", "slow loop"], as_completed=True)
    assert next(stream) == (0, answers([f"fast {part}" for part in range(3)]))
    fake_openai.wait_for(lambda server: server.in_flight == 6)
    stream.close()
    fake_openai.wait_for(lambda server: server.disconnected == 6)


def test_threads_end_with_a_run_that_ends_well() -> None:
    assert gptx_async.map(double, range(50), workers=5) == [*range(0, 100, 2)]
    assert threads_of_runs() == []
    assert dict(gptx_async.map(double, range(50), workers=5, as_completed=True)) == {
        number: 2 * number for number in range(50)
    }
    assert threads_of_runs() == []
    assert gptx_async.map(double, []) == []


@pytest.mark.slow
def test_a_reader_that_blocks_does_not_hold_up_the_end() -> None:
    """Its thread cannot be ended from outside. It is a daemon, and ends with the dataset."""
    go_on = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        go_on.wait(30)
        yield 2

    stream = gptx_async.map(double, numbers(), as_completed=True)
    assert next(stream) == (0, 2)
    stream.close()
    [reader] = threads_of_runs()
    assert reader.daemon
    go_on.set()


INTERRUPTED = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import gptx_async
from loguru import logger
logger.remove()
from support.items import ask, threads_of_runs
engine = gptx_async.install("sk-key", "gpt-4o-mini")

def interrupt():
    sys.stdin.readline()  # until the requests are at the server
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
texts = [f"text {i}" for i in range(20)]
try:
    values = gptx_async.map(ask, texts, workers=10, checkpoint=sys.argv[2])
except KeyboardInterrupt as error:
    print(*error.results.indices, "|", *error.results, sep=",", flush=True)
    print(threads_of_runs(), flush=True)
    sys.stdin.readline()  # until the server has seen them go
print(gptx_async.map(ask, texts, checkpoint=sys.argv[2]) == [f"answer to {text}" for text in texts])
"""


@pytest.mark.slow
def test_ctrl_c_keeps_values_and_cancels_the_calls_in_flight(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, tmp_path: Any
) -> None:
    """Items 0 to 4 are answered and 5 to 14 in flight at the time; a second run does the rest."""

    def is_answered(text: str) -> bool:
        return int(text.removeprefix("text ")) < 5

    fake_openai.latency = lambda request: 0.0 if is_answered(user_text(request.body)) else 60.0

    def until() -> None:
        fake_openai.wait_for(
            lambda server: (len(server.answers), server.in_flight) == (5, 10), DEADLINE
        )

    def release() -> None:
        fake_openai.wait_for(lambda server: server.disconnected == 10, DEADLINE)
        fake_openai.latency = 0.0

    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(release)
        folder, path = TESTS, str(tmp_path / "run.sqlite")
        completed = run_child(INTERRUPTED, folder, path, strict=False, until=until, lines=1)
        released.result(DEADLINE)
    lines = completed.stdout.split("\n")
    done = range(5)
    expected = [*map(str, done), "|", *answers([f"text {i}" for i in done])]
    assert lines[0].split(",") == expected, completed.stderr
    assert lines[1:3] == ["[]", "True"], completed.stderr
    asked = [user_text(request.body) for request in fake_openai.requests]
    assert sorted(asked) == sorted([f"text {i}" for i in [*range(15), *range(5, 20)]])
    assert "Traceback" not in completed.stderr


def test_an_exit_in_an_item_is_raised_to_the_consumer() -> None:
    def leave(item: int) -> None:
        sys.exit(item)

    with pytest.raises(SystemExit) as raised:
        gptx_async.map(leave, [7], on_error="return")
    assert raised.value.code == 7


def test_a_stop_iteration_of_an_expression_ends_no_stream() -> None:
    def stop(item: int) -> None:
        raise StopIteration

    with pytest.raises(StopIteration):
        gptx_async.map(stop, [1])
    with pytest.raises(RuntimeError, match="StopIteration"):
        [*gptx_async.map(stop, [1], as_completed=True)]
    [failed] = gptx_async.map(stop, [1], on_error="return")
    assert isinstance(failed.error, StopIteration)


def test_a_stream_keeps_no_failed_items() -> None:
    class Item:
        """An item that can be the target of a weak reference."""

    items = (Item() for _ in range(20))
    stream = gptx_async.map(int, items, workers=1, on_error="return", as_completed=True)
    _, failed = next(stream)
    assert isinstance(failed, Failed)
    seen = weakref.ref(failed.item)
    del failed
    next(stream)
    gc.collect()
    assert seen() is None
    stream.close()


def test_items_that_end_while_a_run_is_stopped_are_in_the_results(in_thread: InThread) -> None:
    gates = Gates()

    def fail_or_wait(item: int) -> int:
        if item == 0:
            gates.wait_until(begun=1)
            in_thread(gates.open, 1)
            raise ValueError("the first")
        return int(gates(item))

    with pytest.raises(ValueError, match="the first") as raised:
        gptx_async.map(fail_or_wait, [0, 1], workers=2)
    assert raised.value.results == [1]  # type: ignore[attr-defined]


def test_an_error_that_is_kept_keeps_nothing_of_the_dataset() -> None:
    class Item:
        """An item that can be the target of a weak reference."""

    items = [Item() for _ in range(5)]
    seen = weakref.ref(items[0])

    def fail_at_the_last(item: Item) -> None:
        if item is items[-1]:
            raise ValueError("the last")

    results = gptx_async.map(fail_at_the_last, iter(items), workers=2, on_error="return")
    [failed] = results.failed
    del results
    items[:-1] = []
    gc.collect()
    assert seen() is None
    assert failed.item is items[-1]


def test_amap_is_awaited_or_iterated_over(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    async def run() -> None:
        results = await gptx_async.amap(ask, TEXTS)
        assert results == answers(TEXTS)
        assert [value async for value in gptx_async.amap(ask, TEXTS)] == answers(TEXTS)
        pairs = [pair async for pair in gptx_async.amap(ask, TEXTS, as_completed=True)]
        assert sorted(pairs) == sorted(enumerate(answers(TEXTS)))

    asyncio.run(run())
    assert len(fake_openai.requests) == 90


def test_amap_gives_values_in_order_whatever_the_order_of_their_ends() -> None:
    gates, early = Gates(), []

    def work(number: int) -> Any:
        if number >= 32 and 0 not in gates.opened:
            early.append(number)
        return gates(number)

    async def run() -> list[int]:
        gates.open(*range(1, 100))
        values = []
        stream = gptx_async.amap(work, itertools.count(), workers=2)
        async for value in stream:
            values.append(value)
            if value == 40:
                break
        return values

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, run())
        gates.wait_until(begun=32)  # sixteen items per worker, while the first one is not done
        with pytest.raises(TimeoutError):
            running.result(0.5)  # long enough to see a worker that wrongly continues
        gates.open(0)
        assert running.result(30) == [*range(41)]
    assert early == []


def test_amap_leaves_the_loop_free() -> None:
    """The expression and the dataset wait for the loop, which must be free to run callbacks."""

    async def run() -> list[Any]:
        loop = asyncio.get_running_loop()

        def wait_for_the_loop(item: int) -> int:
            done = threading.Event()
            loop.call_soon_threadsafe(done.set)
            assert done.wait(30)
            return item

        def numbers() -> Iterator[int]:
            yield from map(wait_for_the_loop, range(20))

        awaited = await gptx_async.amap(wait_for_the_loop, numbers(), workers=4)
        stream = gptx_async.amap(wait_for_the_loop, numbers(), workers=4)
        pairs = gptx_async.amap(wait_for_the_loop, numbers(), as_completed=True)
        in_order = [value async for value in stream]
        return [*awaited, *in_order, *[value async for _, value in pairs]]

    assert sorted(asyncio.run(run())) == sorted([*range(20)] * 3)


def test_the_loop_turns_while_amap_waits() -> None:
    """A thousand turns: a short block at each turn would exceed the time limit."""
    gates = Gates()

    async def turn_and_open() -> None:
        await asyncio.to_thread(gates.wait_until, 2)
        for _ in range(1000):
            await asyncio.sleep(0)
        gates.open(1, 2)

    async def run() -> Results:
        turning = asyncio.create_task(turn_and_open())
        results = await gptx_async.amap(gates, [1, 2])
        await turning
        return results

    assert asyncio.run(run()) == [1, 2]


@pytest.mark.parametrize("how", ["await", "in order", "as completed"])
def test_cancelling_the_caller_of_amap_cancels_the_calls_in_flight(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, how: str
) -> None:
    fake_openai.latency = lambda request: 0.0 if user_text(request.body) == "0" else 60.0
    kept: list[Any] = []

    async def consume() -> None:
        texts = map(str, itertools.count())
        try:
            if how == "await":
                await gptx_async.amap(ask, texts, workers=8)
            elif how == "in order":
                async for value in gptx_async.amap(ask, texts, workers=8):
                    kept.append(value)  # noqa: PERF401 - the stream is cancelled
            else:
                async for _, value in gptx_async.amap(ask, texts, workers=8, as_completed=True):
                    kept.append(value)
        except asyncio.CancelledError as error:
            kept.extend(error.results)  # type: ignore[attr-defined]
            raise

    async def run() -> None:
        task = asyncio.create_task(consume())
        await asyncio.to_thread(fake_openai.wait_for, lambda server: server.in_flight == 8)
        await asyncio.to_thread(fake_openai.wait_for, lambda server: len(server.answers) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads_of_runs() == []

    asyncio.run(run())
    fake_openai.wait_for(lambda server: server.disconnected == 8)
    assert kept == ["answer to 0"]


def test_an_async_consumer_that_stops_cancels_the_calls_in_flight(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.latency = lambda request: 0.0 if user_text(request.body) == "0" else 60.0

    async def run() -> None:
        async for value in gptx_async.amap(ask, map(str, itertools.count()), workers=8):
            assert value == "answer to 0"
            await asyncio.to_thread(fake_openai.wait_for, lambda server: server.in_flight == 8)
            break
        await asyncio.to_thread(fake_openai.wait_for, lambda server: server.disconnected == 8)

    asyncio.run(run())


def test_a_coroutine_of_amap_that_is_thrown_away_ends_its_run() -> None:
    gates = Gates()

    async def consume() -> None:
        await gptx_async.amap(gates, range(1, 100), workers=2)

    loop = asyncio.new_event_loop()
    coroutine = consume()

    async def begin() -> None:
        loop.call_soon(coroutine.send, None)
        await asyncio.to_thread(gates.wait_until, 2)

    loop.run_until_complete(begin())
    threads = threads_of_runs()
    coroutine.close()
    gates.open(*range(1, 100))
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(gates.begun) == [1, 2]
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_an_error_is_raised_by_amap(engine: AsyncGPTXBatchEngine) -> None:
    async def run() -> None:
        with pytest.raises(ZeroDivisionError) as raised:
            await gptx_async.amap(lambda item: 1 // item, [1, 0], workers=1)
        assert raised.value.results == [1]  # type: ignore[attr-defined]
        with pytest.raises(ZeroDivisionError):
            [value async for value in gptx_async.amap(lambda item: 1 // item, [0])]
        with pytest.raises(ConfigurationError, match="async for"):
            await gptx_async.amap(double, [1], as_completed=True)

    asyncio.run(run())


def test_symbols_are_items_and_values(engine: AsyncGPTXBatchEngine) -> None:
    values = gptx_async.map(lambda symbol: symbol.query("Answer."), [Symbol("a"), Symbol("b")])
    assert all(isinstance(value, Symbol) for value in values)
    assert [value.value for value in values] == ["answer to a", "answer to b"]
    assert [value.value for value in values.to_pandas()] == ["answer to a", "answer to b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", ["a"]), "can't be called"),
        ((Symbol("text"), ["a"]), "can't be called"),
        ((asyncio.sleep, ["a"]), "coroutine function"),
        ((double, [1], {"workers": 0}), "workers is 0. Give a whole number above 0"),
        ((double, [1], {"workers": -1}), "workers is -1. Give a whole number above 0"),
        ((double, [1], {"workers": 1.5}), "workers is 1.5. Give a whole number above 0"),
        ((double, [1], {"workers": True}), "workers is True. Give a whole number above 0"),
        ((double, [1], {"workers": "4"}), "workers is '4'. Give a whole number above 0"),
        ((double, [1], {"on_error": "ignore"}), "on_error='ignore'"),
        ((double, [1], {"on_error": None}), "on_error=None"),
        ((double, [1], {"checkpoint": 5}), "checkpoint=5"),
        ((double, [1], {"checkpoint": ""}), "checkpoint=''"),
    ],
)
@pytest.mark.parametrize("function", [gptx_async.map, gptx_async.amap])
def test_bad_arguments_are_rejected_at_once(function: Any, arguments: Any, message: str) -> None:
    expression, dataset, *options = arguments
    with pytest.raises(ConfigurationError, match=message):
        function(expression, dataset, **(options[0] if options else {}))
    assert threads_of_runs() == []


def test_a_class_that_needs_arguments_says_what_to_give_instead() -> None:
    class Needs(Expression):  # type: ignore[misc]
        def __init__(self, prompt: str) -> None:
            super().__init__()
            self.prompt = prompt

        def forward(self, item: str) -> str:
            return self.prompt + item

    with pytest.raises(TypeError, match="prompt") as raised:
        gptx_async.map(Needs, ["a"], on_error="return")
    assert "Give an instance" in raised.value.__notes__[0]
    assert gptx_async.map(Needs("a "), ["b"]) == ["a b"]


MEMORY = """
import gc, itertools, sys
import gptx_async

def resident():
    gc.collect()
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * 4096

def work(number):
    return [number] * 100

sizes = []
count = int(sys.argv[1])
stream = gptx_async.map(work, itertools.count(), workers=8, as_completed=True)
for done, (index, value) in enumerate(stream, 1):
    assert value[99] == index
    if done in (count // 4, count // 2, count):
        sizes.append(resident())
    if done == count:
        break
stream.close()
print(sizes[1] - sizes[0], sizes[2] - sizes[1])
"""


@pytest.mark.linux
@pytest.mark.serial
def test_memory_is_flat_over_many_items() -> None:
    """A value takes about 1 KB, so keeping the last 100,000 of 200,000 would take 90 MB."""
    completed = run_child(MEMORY, "200000", strict=False, fresh=True)
    _, second_half = map(int, completed.stdout.split())
    assert second_half < 8 * 2**20, completed.stderr
