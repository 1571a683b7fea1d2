"""The stand-in scheduler, with real symbolicai and an engine that echoes its prompts."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from symai import Expression, Symbol
from symai.backend.base import BatchEngine

from gptx_async.testing import BatchScheduler
from support.child import run_python

InThread = Callable[..., Future[Any]]
SECONDS = 20.0


class EchoEngine(BatchEngine):  # type: ignore[misc]
    """Answers a batch with its prompts; records the batches and the calling threads."""

    def __init__(self) -> None:
        super().__init__()
        self.time_clock = False
        self.batches: list[list[str]] = []
        self.threads: list[threading.Thread] = []
        self.answer: Callable[[list[str]], Any] = lambda prompts: [
            ([prompt], {"prompt": prompt}) for prompt in prompts
        ]

    @property
    def prompts(self) -> list[str]:
        return [prompt for batch in self.batches for prompt in batch]

    def id(self) -> str:
        return "neurosymbolic"

    def prepare(self, argument: Any) -> None:
        argument.prop.prepared_input = str(argument.prop.instance.value)

    def __call__(self, arguments: list[Any]) -> Any:
        prompts = [argument.prop.prepared_input for argument in arguments]
        self.batches.append(prompts)
        self.threads.append(threading.current_thread())
        return self.answer(prompts)


class Query(Expression):  # type: ignore[misc]
    def forward(self, input: Any, **_kwargs: Any) -> Any:  # noqa: A002 - the protocol's name
        return Symbol(input).query("say it back").value


class TwoQueries(Expression):  # type: ignore[misc]
    def forward(self, input: Any, **_kwargs: Any) -> Any:  # noqa: A002 - the protocol's name
        first = Symbol(input).query("say it back").value
        return Symbol(f"{first}!").query("say it back").value


@pytest.fixture
def engine(engine_repository: Any) -> EchoEngine:
    engine = EchoEngine()
    engine_repository.register("neurosymbolic", engine, allow_engine_override=True)
    return engine


def items(count: int) -> list[str]:
    return [f"item {number}" for number in range(count)]


def test_answers_every_item_in_order(engine: EchoEngine, in_thread: InThread) -> None:
    scheduler = BatchScheduler(4, 4)
    assert in_thread(scheduler.forward, Query, items(10)).result(SECONDS) == items(10)
    assert sorted(engine.prompts) == items(10)


def test_answers_nested_queries(engine: EchoEngine, in_thread: InThread) -> None:
    results = in_thread(BatchScheduler(4, 3).forward, TwoQueries, items(9)).result(SECONDS)
    assert results == [f"{item}!" for item in items(9)]
    assert len(engine.prompts) == 18


@pytest.mark.parametrize(
    ("workers", "batch_size", "count", "largest"), [(8, 3, 7, 3), (2, 5, 6, 2), (4, 4, 1, 1)]
)
def test_makes_batches_no_larger_than_workers_or_items(
    engine: EchoEngine,
    in_thread: InThread,
    workers: int,
    batch_size: int,
    count: int,
    largest: int,
) -> None:
    in_thread(BatchScheduler(workers, batch_size).forward, Query, items(count)).result(SECONDS)
    assert max(map(len, engine.batches)) == largest
    # A batch is full while enough items are left.
    assert [len(batch) for batch in engine.batches[: count // largest]] == (
        [largest] * (count // largest)
    )


def test_brings_all_batches_on_one_thread(engine: EchoEngine, in_thread: InThread) -> None:
    in_thread(BatchScheduler(4, 2).forward, TwoQueries, items(8)).result(SECONDS)
    assert len(engine.threads) >= 8
    assert len(set(engine.threads)) == 1
    assert threading.current_thread() not in engine.threads


def test_begins_no_batch_before_the_last_is_picked_up(
    engine: EchoEngine, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_one, let_it_pick_up, second_batch = threading.Lock(), threading.Event(), threading.Event()

    class LateFuture(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            answer = super().result(timeout)
            if first_one.acquire(blocking=False):
                let_it_pick_up.wait(SECONDS)
            return answer

    def answer(prompts: list[str]) -> Any:
        if len(engine.batches) == 2:
            second_batch.set()
        return [([prompt], {}) for prompt in prompts]

    engine.answer = answer
    monkeypatch.setattr("gptx_async.testing.scheduler.Future", LateFuture)
    running = in_thread(BatchScheduler(4, 2).forward, Query, items(4))
    assert not second_batch.wait(0.3)
    let_it_pick_up.set()
    assert second_batch.wait(SECONDS)
    assert running.result(SECONDS) == items(4)
    assert [len(batch) for batch in engine.batches] == [2, 2]


def test_looks_the_engine_up_for_every_batch(
    engine: EchoEngine, engine_repository: Any, in_thread: InThread
) -> None:
    other = EchoEngine()

    def answer(prompts: list[str]) -> Any:
        engine_repository.register("neurosymbolic", other, allow_engine_override=True)
        other.__setattr__("executor_callback", scheduler.executor_callback)
        return [([prompt], {}) for prompt in prompts]

    engine.answer = answer
    scheduler = BatchScheduler(2, 2)
    assert in_thread(scheduler.forward, Query, items(6)).result(SECONDS) == items(6)
    assert (len(engine.batches), len(other.batches)) == (1, 2)


def test_wraps_an_output_that_is_not_a_list(engine: EchoEngine, in_thread: InThread) -> None:
    engine.answer = lambda prompts: [(prompt, {}) for prompt in prompts]
    assert in_thread(BatchScheduler(2, 2).forward, Query, items(3)).result(SECONDS) == items(3)


def test_passes_metadata_on(engine: EchoEngine, in_thread: InThread) -> None:
    scheduler = BatchScheduler(1, 1)

    def query(item: str) -> Any:
        return Symbol(item).query("say it back", return_metadata=True)[1]

    assert in_thread(scheduler.forward, query, ["a"]).result(SECONDS) == [{"prompt": "a"}]


def test_makes_the_expression_once_and_hands_it_the_options(
    engine: EchoEngine, in_thread: InThread
) -> None:
    made = []

    class Options(Expression):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__()
            made.append(kwargs)

        def forward(self, *, input: Any, **kwargs: Any) -> Any:  # noqa: A002 - the protocol's name
            return input, kwargs

    results = in_thread(BatchScheduler(2, 2).forward, Options, ["a", "b"], x=1).result(SECONDS)
    assert made == [{"x": 1}]
    assert results == [("a", {"x": 1}), ("b", {"x": 1})]


def test_gives_an_exception_as_its_items_result(engine: EchoEngine, in_thread: InThread) -> None:
    def fail(item: int) -> float:
        return 1 / item

    results = in_thread(BatchScheduler(2, 2).forward, fail, [1, 0, 2]).result(SECONDS)
    assert (results[0], results[2]) == (1.0, 0.5)
    assert isinstance(results[1], ZeroDivisionError)


def test_reports_the_end_of_a_run(engine: EchoEngine, in_thread: InThread) -> None:
    scheduler = BatchScheduler(1, 1)
    assert not hasattr(scheduler, "all_batches_complete")
    during = []
    query = Query()

    def look(item: str) -> Any:
        during.append(scheduler.all_batches_complete.is_set())
        return query(item)

    for _ in range(2):
        assert in_thread(scheduler.forward, look, items(2)).result(SECONDS) == items(2)
        assert scheduler.all_batches_complete.is_set()
    assert during == [False] * 4


def test_takes_an_empty_dataset(engine: EchoEngine, in_thread: InThread) -> None:
    scheduler = BatchScheduler(2, 2)
    assert in_thread(scheduler.forward, Query, []).result(SECONDS) == []
    assert scheduler.all_batches_complete.is_set()


def test_the_scheduler_made_last_owns_the_engine(engine: EchoEngine, in_thread: InThread) -> None:
    first, second = BatchScheduler(2, 2), BatchScheduler(2, 1)
    assert engine.executor_callback == second.executor_callback
    assert in_thread(second.forward, Query, items(3)).result(SECONDS) == items(3)
    third = BatchScheduler(2, 2)
    assert in_thread(third.forward, Query, items(3)).result(SECONDS) == items(3)
    assert first.executor_callback != third.executor_callback


def test_refuses_a_query_before_the_first_run(engine: EchoEngine) -> None:
    with pytest.raises(AttributeError):
        BatchScheduler(1, 1).executor_callback(object())


@pytest.mark.parametrize("answer", [lambda _prompts: 1 / 0, lambda _prompts: [], lambda _: [1]])
def test_raises_in_the_query_when_the_engine_fails(
    engine: EchoEngine, in_thread: InThread, answer: Any
) -> None:
    engine.answer = answer
    results = in_thread(BatchScheduler(3, 3).forward, Query, items(5)).result(SECONDS)
    assert [type(result) for result in results] == [RuntimeError] * 5
    assert len({id(result) for result in results}) == 5


def test_ends_the_run_when_an_expression_exits(engine: EchoEngine, in_thread: InThread) -> None:
    query = Query()

    def leave(item: str) -> Any:
        if item == "item 0":
            raise SystemExit(3)
        return query(item)

    scheduler = BatchScheduler(2, 2)
    with pytest.raises(SystemExit):
        in_thread(scheduler.forward, leave, items(4)).result(SECONDS)
    assert scheduler.all_batches_complete.wait(SECONDS)
    with pytest.raises(RuntimeError, match="run ended before"):
        scheduler.executor_callback(object())


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (1, 0)])
def test_refuses_numbers_below_one(engine: EchoEngine, workers: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="Give a whole number above 0"):
        BatchScheduler(workers, batch_size)


def test_leaves_no_threads(engine: EchoEngine, in_thread: InThread) -> None:
    before = set(threading.enumerate())
    in_thread(BatchScheduler(4, 2).forward, Query, items(8)).result(SECONDS)
    left = {thread for thread in threading.enumerate() if thread.name != "test"} - before
    for thread in left:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.slow
def test_interrupt_ends_a_run_whose_engine_hangs() -> None:
    program = textwrap.dedent("""
        import os, signal, threading
        from symai.functional import EngineRepository
        from gptx_async.testing import BatchScheduler

        class Engine:
            def __call__(self, arguments):
                # Signals the process, so the main thread is interrupted. `raise_signal` would
                # signal this thread, and the main thread would continue to wait.
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait()

        EngineRepository()._engines["neurosymbolic"] = Engine()
        scheduler = BatchScheduler(2, 1)
        try:
            scheduler.forward(lambda item: scheduler.executor_callback(item), [1, 2, 3])
        except KeyboardInterrupt:
            print(scheduler.all_batches_complete.wait(10))
    """)
    child = run_python("-c", program)
    assert (child.returncode, child.stdout.split()) == (0, ["True"]), child.stderr
