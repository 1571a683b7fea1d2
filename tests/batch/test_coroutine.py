"""`acall`: any code that queries a model, as a coroutine in a greenlet of the caller's thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest
import trio
from symai import Expression, Symbol, core_ext
from symai.functional import EngineRepository

import gptx_async
from gptx_async import AsyncGPTXBatchEngine, acall, errors
from gptx_async.batch.driver import is_item
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault
from support.engines import KEY, MODEL, TwoSteps, argument, echo_unless_bad

SECONDS = 120.0


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    fake_openai.reply = echo_unless_bad
    engine = gptx_async.install(KEY, MODEL)
    engine.client.max_retries = 0
    yield engine
    gptx_async.uninstall()


class TenSteps(Expression):  # type: ignore[misc] # symbolicai ships no types
    """Asks ten times, each time about the last answer."""

    def forward(self, text: str, **_kwargs: Any) -> str:
        for _ in range(10):
            text = str(Symbol(text).query("Answer."))
        return text


def ask(text: str) -> str:
    return str(Symbol(text).query("Answer."))


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), SECONDS))


def wait_until_received(fake_openai: FakeOpenAI, count: int) -> None:
    """Block until the server has received so many requests."""
    fake_openai.wait_for(lambda server: len(server.requests) >= count, SECONDS)


async def received(fake_openai: FakeOpenAI, count: int) -> None:
    """Wait, as a coroutine, until the server has received so many requests."""
    await asyncio.to_thread(wait_until_received, fake_openai, count)


@pytest.mark.usefixtures("engine")
def test_a_query_gives_what_the_sync_call_gives(fake_openai: FakeOpenAI) -> None:
    expected = Symbol("text").query("Summarise.")
    result = asyncio.run(acall(Symbol("text").query, "Summarise."))
    assert isinstance(result, Symbol)
    assert result.value == expected.value
    first, second = fake_openai.requests
    assert first.body == second.body


@pytest.mark.usefixtures("engine")
def test_an_expression_with_nested_queries_runs_in_the_callers_thread(
    fake_openai: FakeOpenAI,
) -> None:
    threads: list[int] = []

    def function(text: str, *, suffix: str) -> str:
        answer = str(TenSteps()(text))
        threads.append(threading.get_ident())
        return answer + suffix

    result = asyncio.run(acall(function, "a", suffix="!"))
    assert result == "answer to " * 10 + "a!"
    assert len(fake_openai.requests) == 10
    assert threads == [threading.get_ident()]


@pytest.mark.usefixtures("engine")
def test_a_thousand_calls_run_concurrently_without_threads() -> None:
    before: list[int] = []

    async def main() -> list[str]:
        await acall(ask, "first")
        before.append(threading.active_count())
        running = [asyncio.ensure_future(acall(ask, str(number))) for number in range(1000)]
        answers: list[str] = []
        for each in running:
            answers.append(await each)
            before.append(threading.active_count())
        return answers

    assert run(main) == [f"answer to {number}" for number in range(1000)]
    assert max(before) == before[0]


@pytest.mark.usefixtures("engine")
def test_the_loop_runs_on_while_calls_are_in_flight(fake_openai: FakeOpenAI) -> None:
    """The server answers only after the loop has seen all requests arrive."""
    fake_openai.hold()

    async def main() -> list[str]:
        running = asyncio.gather(*(acall(ask, str(number)) for number in range(20)))
        await received(fake_openai, 20)
        fake_openai.release()
        return list(await running)

    assert run(main) == [f"answer to {number}" for number in range(20)]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("ends_by", ["cancel", "deadline"])
def test_cancelling_or_a_deadline_cancels_the_call_and_unwinds_the_function(
    fake_openai: FakeOpenAI, ends_by: str
) -> None:
    fake_openai.hold()
    events: list[str] = []

    def function() -> str:
        try:
            return ask("text")
        except Exception:  # a remedy must not see the end
            events.append("caught")
            raise
        finally:
            events.append("unwound")

    async def main() -> None:
        if ends_by == "cancel":
            running = asyncio.ensure_future(acall(function))
            await received(fake_openai, 1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            with pytest.raises(errors.TimeoutError, match=r"The deadline of 0\.5 s passed"):
                await acall(function, deadline=0.5)
        assert events == ["unwound"]
        fake_openai.release()
        assert await acall(ask, "after") == "answer to after"

    run(main)


def test_the_engines_own_deadline_applies_to_each_query(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    engine.deadline = 0.5
    fake_openai.hold()
    with pytest.raises(Exception, match=r"The deadline of 0\.5 s passed"):
        run(lambda: acall(ask, "text"))
    fake_openai.release()


@pytest.mark.usefixtures("engine")
def test_the_function_runs_in_a_copy_of_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    def function(name: str) -> tuple[str, str]:
        before = variable.get()
        variable.set(name)
        ask(name)
        return before, variable.get()

    async def main() -> None:
        variable.set("the caller's")
        results = await asyncio.gather(*(acall(function, name) for name in "abc"))
        assert results == [("the caller's", name) for name in "abc"]
        assert await acall(function, "d") == ("the caller's", "d")
        assert variable.get() == "the caller's"

    run(main)


@pytest.mark.usefixtures("engine")
def test_a_dynamic_engine_that_the_caller_entered_answers(fake_openai: FakeOpenAI) -> None:
    async def main() -> None:
        with gptx_async.dynamic_engine("gpt-4o", KEY):
            await acall(ask, "a")
            await asyncio.gather(acall(ask, "b"), acall(ask, "c"))
        await acall(ask, "d")

    run(main)
    models = [request.body["model"] for request in fake_openai.requests]
    assert models == ["gpt-4o"] * 3 + [MODEL]


@pytest.mark.usefixtures("engine")
def test_an_error_is_what_the_sync_call_raises() -> None:
    with pytest.raises(Exception, match="400") as expected:
        ask("bad")
    with pytest.raises(type(expected.value)) as raised:
        asyncio.run(acall(ask, "bad"))
    assert type(raised.value) is type(expected.value)
    assert str(raised.value) == str(expected.value)


def test_without_an_engine_the_error_is_the_sync_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = EngineRepository()
    monkeypatch.setattr(repository, "_engines", {})
    monkeypatch.setattr(EngineRepository, "register_from_package", _register_nothing)
    with pytest.raises(Exception, match="neurosymbolic") as expected:
        ask("text")
    with pytest.raises(type(expected.value)) as raised:
        asyncio.run(acall(ask, "text"))
    assert type(raised.value) is type(expected.value)
    assert str(raised.value) == str(expected.value)


def _register_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for symbolicai's registration of the engines that it is configured for."""


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, LookupError])
def test_an_exception_of_the_function_passes_through(kind: type[BaseException]) -> None:
    def function() -> None:
        ask("text")
        raise kind("why")

    async def main() -> None:
        await acall(function)

    with pytest.raises(kind, match="why"):
        asyncio.run(main())
    assert asyncio.run(acall(ask, "after")) == "answer to after"


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), "1", True])
def test_a_bad_deadline_is_rejected_before_the_function_runs(deadline: Any) -> None:
    ran: list[bool] = []
    with pytest.raises(errors.ConfigurationError, match="deadline"):
        asyncio.run(acall(ran.append, True, deadline=deadline))
    assert ran == []


class _Async:
    async def __call__(self) -> None:
        """Return nothing."""


async def _async() -> None:
    """Return nothing."""


@pytest.mark.parametrize("function", [_async, functools.partial(_async), _Async()])
def test_a_coroutine_function_is_rejected(function: Any) -> None:
    with pytest.raises(TypeError, match="not a coroutine function"):
        asyncio.run(acall(function))


def test_what_cannot_be_called_is_rejected() -> None:
    with pytest.raises(TypeError, match="not a str"):
        asyncio.run(acall("text"))  # type: ignore[arg-type]


def test_trio_gets_a_clear_error() -> None:
    with pytest.raises(errors.AsyncioNeededError, match=r"trio\.to_thread"):
        trio.run(acall, len, "text")


def test_a_batch_within_the_function_gives_way_to_other_calls(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.hold()

    def function(name: str) -> list[str]:
        outputs, _ = engine.forward([argument(f"{name}{number}") for number in range(40)])
        return [output[0] for output in outputs]

    async def main() -> list[list[str]]:
        running = asyncio.gather(acall(function, "a"), acall(function, "b"))
        await received(fake_openai, 80)
        fake_openai.release()
        return list(await running)

    assert run(main) == [[f"answer to {name}{n}" for n in range(40)] for name in "ab"]


@pytest.mark.usefixtures("engine")
def test_the_function_can_start_a_task_that_calls_again() -> None:
    def function() -> asyncio.Task[str]:
        task = asyncio.get_running_loop().create_task(acall(ask, "inner"))
        assert ask("outer") == "answer to outer"
        return task

    async def main() -> str:
        return await (await acall(function))

    assert run(main) == "answer to inner"


@pytest.mark.usefixtures("engine")
def test_a_loop_of_its_own_in_the_function_is_refused_by_asyncio() -> None:
    async def nothing() -> None:
        """Return nothing."""

    def function() -> None:
        work = nothing()
        try:
            asyncio.run(work)
        finally:
            work.close()

    with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
        asyncio.run(acall(function))


@pytest.mark.usefixtures("engine")
def test_two_loops_in_two_threads_call_concurrently(
    fake_openai: FakeOpenAI, in_thread: Any
) -> None:
    fake_openai.hold()

    async def main(name: str) -> list[str]:
        return list(await asyncio.gather(*(acall(ask, f"{name}{n}") for n in range(10))))

    running = {name: in_thread(asyncio.run, main(name)) for name in "ab"}
    wait_until_received(fake_openai, 20)
    fake_openai.release()
    for name, future in running.items():
        assert future.result(SECONDS) == [f"answer to {name}{n}" for n in range(10)]


@pytest.mark.usefixtures("engine")
def test_a_loop_that_ends_unwinds_the_function(fake_openai: FakeOpenAI) -> None:
    fake_openai.hold()
    events: list[str] = []

    def function() -> None:
        try:
            ask("text")
        finally:
            events.append("unwound")

    loop = asyncio.new_event_loop()
    coroutine = acall(function)
    task = loop.create_task(coroutine)
    loop.run_until_complete(received(fake_openai, 1))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    del task, coroutine
    gc.collect()
    assert events == ["unwound"]
    fake_openai.release()
    assert asyncio.run(acall(ask, "after")) == "answer to after"


@pytest.mark.usefixtures("engine")
def test_symbolicais_own_pause_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause of `symai.core_ext.retry` ends when another call of the same loop has begun."""
    together: list[str] = []
    gate: list[asyncio.Event] = []

    async def pause(_seconds: float) -> None:
        if not gate:
            gate.append(asyncio.Event())
        together.append("pauses")
        if len(together) == 2:
            gate[0].set()
        await gate[0].wait()

    monkeypatch.setattr(
        "gptx_async.symbolicai.v1.retry_sleep.asyncio", SimpleNamespace(sleep=pause)
    )
    failures = {"a": 1, "b": 1}

    @core_ext.retry(tries=2, delay=1)  # type: ignore[untyped-decorator]
    def function(name: str) -> str:
        failures[name] -= 1
        if failures[name] >= 0:
            raise LookupError
        return name

    async def main() -> list[str]:
        return list(await asyncio.gather(acall(function, "a"), acall(function, "b")))

    assert run(main) == ["a", "b"]
    assert together == ["pauses", "pauses"]


@pytest.mark.usefixtures("engine")
def test_a_schedulers_run_answers_beside_calls(fake_openai: FakeOpenAI, in_thread: Any) -> None:
    """The scheduler's batch of one is never full: calls that went to it would wait for others."""
    fake_openai.hold()
    running = in_thread(BatchScheduler(2, 2).forward, TwoSteps, ["x", "y"])
    wait_until_received(fake_openai, 2)

    async def main() -> str:
        answering = asyncio.ensure_future(acall(ask, "beside"))
        await received(fake_openai, 3)
        fake_openai.release()
        return await answering

    assert run(main) == "answer to beside"
    expected = ["answer to answer to x", "answer to answer to y"]
    assert [str(each) for each in running.result(SECONDS)] == expected


def test_the_function_runs_in_a_greenlet_and_leaves_none_behind() -> None:
    seen: list[bool] = []

    async def main() -> None:
        before = greenlet.getcurrent()
        await acall(lambda: seen.append(is_item()))
        assert greenlet.getcurrent() is before
        assert not is_item()

    run(main)
    assert seen == [True]


def test_a_failed_call_does_not_fail_others(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.fail_next(HTTPFault(500), 1)

    async def main() -> list[Any]:
        calls = [acall(ask, str(number)) for number in range(20)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    results = run(main)
    assert sum(isinstance(each, Exception) for each in results) == 1
    assert engine.stats().failed == 1
