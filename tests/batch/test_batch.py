"""The batch driver without OpenAI and symbolicai: items wait for calls on the service."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gptx_async.batch import driver as batch_module
from gptx_async.batch.driver import Batch, current_item, is_item, wait_for
from gptx_async.errors import CallCancelledError, GPTXAsyncError, ServiceClosedError
from gptx_async.loop.call import Call, Outcome
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import LoopService, default_service


class Gate:
    """Calls that wait on the loop until the test releases them, by name or all at once."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.resumed: list[object] = []
        self.cancelled: list[object] = []
        self._changed = threading.Condition()
        self._waiting: dict[object, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._let_go: set[object] = set()
        self._all_let_go = False

    def call(self, name: object) -> Call[object]:
        return Call(lambda _scope: self.answer(name))

    def ask(self, name: object) -> object:
        """Make a call and return its result, as most items here do."""
        answer = wait_for(self.call(name))
        with self._changed:
            self.resumed.append(answer)
            self._changed.notify_all()
        return answer

    def let_go(self, *names: object) -> None:
        """Answer the calls of these names; without names, all present and future calls."""
        with self._changed:
            self._let_go.update(names)
            self._all_let_go = self._all_let_go or not names
            for name in names or [*self._waiting]:
                if name in self._waiting:
                    loop, event = self._waiting.pop(name)
                    loop.call_soon_threadsafe(event.set)

    def wait_until(self, *, asked: int = 0, resumed: int = 0, cancelled: int = 0) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: (
                    len(self.asked) >= asked
                    and len(self.resumed) >= resumed
                    and len(self.cancelled) >= cancelled
                ),
                10,
            )

    async def answer(self, name: object) -> object:
        event = asyncio.Event()
        with self._changed:
            self.asked.append(name)
            self._changed.notify_all()
            if self._all_let_go or name in self._let_go:
                return name
            self._waiting[name] = asyncio.get_running_loop(), event
        try:
            await event.wait()
        except asyncio.CancelledError:
            with self._changed:
                self.cancelled.append(name)
                self._changed.notify_all()
            raise
        return name


def values(outcomes: list[Outcome[Any]]) -> list[Any]:
    return [outcome.result() for outcome in outcomes]


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def test_run_resumes_items_as_answers_arrive_and_returns_them_in_order() -> None:
    gate = Gate()
    thread, results = in_thread(lambda: Batch(gate.ask, ["a", "b", "c"]).run())
    gate.wait_until(asked=3)
    for count, name in enumerate(["c", "a", "b"]):
        gate.let_go(name)
        gate.wait_until(resumed=count + 1)
    thread.join(10)
    assert gate.resumed == ["c", "a", "b"]
    assert values(results[0]) == ["a", "b", "c"]


def test_calls_are_sent_while_later_items_are_still_begun() -> None:
    gate = Gate()

    def ask(index: int) -> object:
        if index == 1:  # on the calling thread, before it makes its own call
            gate.wait_until(asked=1)
            gate.let_go()
        return wait_for(gate.call(index))

    assert values(Batch(ask, [0, 1]).run()) == [0, 1]


def test_window_bounds_how_many_items_are_begun() -> None:
    gate = Gate()
    begun: list[int] = []

    def ask(index: int) -> object:
        begun.append(index)
        return gate.ask(index)

    thread, results = in_thread(lambda: Batch(ask, range(20), window=7).run())
    gate.wait_until(asked=7)
    gate.let_go(3)
    gate.wait_until(asked=8)
    assert begun == list(range(8)), "one more for the one that ended"
    gate.let_go()
    thread.join(10)
    assert values(results[0]) == list(range(20))


def test_an_empty_batch_returns_at_once() -> None:
    assert Batch(lambda item: item, []).run() == []


def test_items_without_a_call_run_in_order() -> None:
    assert values(Batch(lambda item: item * 2, [1, 2, 3]).run()) == [2, 4, 6]


def test_a_failed_item_does_not_affect_the_others() -> None:
    gate = Gate()
    gate.let_go()

    def ask(index: int) -> object:
        if index == 3:
            raise LookupError("before its call")
        answer = wait_for(gate.call(index))
        if index == 5:
            raise LookupError("after its call")
        return answer

    outcomes = Batch(ask, range(20)).run()
    assert [index for index, outcome in enumerate(outcomes) if outcome.error] == [3, 5]
    assert [outcome.value for outcome in outcomes if not outcome.error][-1] == 19
    assert str(outcomes[5].error) == "after its call"


def test_an_error_of_a_call_is_raised_where_the_item_waits() -> None:
    async def fail(_scope: LoopScope) -> None:
        raise OSError("of the call")

    def ask(_index: int) -> str:
        try:
            wait_for(Call(fail))
        except OSError as error:
            return f"caught: {error}"
        return "not raised"

    assert values(Batch(ask, [0]).run()) == ["caught: of the call"]


def test_a_call_that_cannot_be_started_fails_its_item_only() -> None:
    closed = LoopService()
    closed.close()
    gate = Gate()
    gate.let_go()

    def ask(index: int) -> object:
        call = gate.call(index)
        if index == 1:
            call = Call(lambda _scope: gate.answer(index), closed)
        return wait_for(call)

    outcomes = Batch(ask, range(3)).run()
    assert isinstance(outcomes[1].error, ServiceClosedError)
    assert [outcomes[0].result(), outcomes[2].result()] == [0, 2]


def test_a_call_cancelled_on_the_loop_is_an_error_of_its_item() -> None:
    """A CancelledError would end the whole batch, and with `aforward` its caller."""

    async def cancel_itself(_scope: LoopScope) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    [outcome] = Batch(lambda _: wait_for(Call(cancel_itself)), [0]).run()
    assert isinstance(outcome.error, CallCancelledError)
    with pytest.raises(CallCancelledError, match="Ask again"):
        wait_for(Call(cancel_itself))


def test_items_share_the_context_variables_of_their_caller() -> None:
    variable: contextvars.ContextVar[list[int]] = contextvars.ContextVar("variable")
    gate = Gate()
    gate.let_go()

    def ask(index: int) -> None:
        variable.get().append(index)
        wait_for(gate.call(index))
        variable.set([*variable.get(), 100 + index])

    def run_in_context() -> list[int]:
        variable.set([])
        Batch(ask, range(3), window=1).run()
        return variable.get()

    assert contextvars.Context().run(run_in_context) == [0, 100, 1, 101, 2, 102]


def test_is_item_distinguishes_items_from_other_code() -> None:
    assert not is_item()
    assert values(Batch(lambda _: is_item(), [0]).run()) == [True]
    assert not is_item()


def test_a_batch_within_an_item_lets_the_other_items_go_on() -> None:
    gate = Gate()

    def ask(name: str) -> Any:
        if name == "outer":
            return values(Batch(lambda inner: wait_for(gate.call(inner)), ["x", "y"]).run())
        gate.let_go("x", "y")  # runs only if the batch in "outer" does not block the thread
        return name

    assert values(Batch(ask, ["outer", "other"]).run()) == [["x", "y"], "other"]


def test_a_system_exit_of_an_item_cancels_the_rest_and_is_raised() -> None:
    gate = Gate()
    unwound: list[int] = []

    def ask(index: int) -> object:
        if index == 3:
            gate.wait_until(asked=3)
            sys.exit(5)
        try:
            return wait_for(gate.call(index))
        finally:
            unwound.append(index)

    with pytest.raises(SystemExit):
        Batch(ask, range(10)).run()
    assert sorted(gate.cancelled, key=str) == [0, 1, 2]
    assert sorted(unwound) == [0, 1, 2]


def test_ctrl_c_cancels_what_is_in_flight_and_unwinds_every_item() -> None:
    gate = Gate()
    unwound: list[int] = []

    def interrupt() -> None:
        gate.wait_until(asked=20)
        os.kill(os.getpid(), signal.SIGINT)

    def ask(index: int) -> object:
        try:
            return wait_for(gate.call(index))
        finally:
            unwound.append(index)

    thread, _ = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Batch(ask, range(20)).run()
    thread.join(10)
    assert len(gate.cancelled) == 20, "cancelled before the interrupt left the batch"
    assert sorted(unwound) == list(range(20))
    gate.let_go()
    assert values(Batch(ask, range(3)).run()) == [0, 1, 2], "the next batch works"


def test_an_item_that_is_unwound_cannot_call_again() -> None:
    gate = Gate()
    after: list[str] = []

    def ask(index: int) -> None:
        if index == 1:
            gate.wait_until(asked=1)
            sys.exit(5)
        try:
            wait_for(gate.call(index))
        finally:
            wait_for(gate.call("from a finally clause"))
            after.append("went on")

    with pytest.raises(SystemExit):
        Batch(ask, range(2)).run()
    assert gate.asked == [0]
    assert after == []


def test_an_item_that_retries_a_call_that_cannot_be_started_does_not_deepen_the_stack() -> None:
    closed = LoopService()
    closed.close()

    def ask(_index: int) -> int:
        tries = 0
        while tries < 5000:
            try:
                wait_for(Call(Gate().answer, closed))
            except ServiceClosedError:
                tries += 1
        return tries

    assert values(Batch(ask, [0]).run()) == [5000]


class Thing:
    """An object that supports weak references."""


def test_an_error_that_is_kept_does_not_keep_the_batch() -> None:
    def ask(thing: Thing) -> None:
        if thing is things[0]:
            wait_for(Call(fail))

    async def fail(_scope: LoopScope) -> None:
        raise OSError("kept")

    things = [Thing() for _ in range(10)]
    references = [weakref.ref(thing) for thing in things]
    error = Batch(ask, things).run()[0].error
    things = things[:1]
    gc.collect()
    assert error is not None
    assert sum(reference() is not None for reference in references) == 1


def run_blocking(batch: Batch[Any, Any]) -> list[Outcome[Any]]:
    return batch.run()


def run_on_a_loop(batch: Batch[Any, Any]) -> list[Outcome[Any]]:
    return asyncio.run(batch.run_async())


def run_within_an_item(batch: Batch[Any, Any]) -> list[Outcome[Any]]:
    [outcome] = Batch(lambda _: batch.run(), [0]).run()
    return outcome.result()


RUNNERS = [run_blocking, run_on_a_loop, run_within_an_item]


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.slow
def test_a_deadline_ends_what_is_not_answered_and_keeps_what_is(
    run: Callable[[Batch[Any, Any]], list[Outcome[Any]]],
) -> None:
    """A timeout must also cancel the calls (zarr-python#3997)."""
    gate = Gate()
    gate.let_go(0, 2)
    unwound: list[int] = []

    def ask(index: int) -> object:
        try:
            return gate.ask(index)
        finally:
            unwound.append(index)

    outcomes = run(Batch(ask, range(6), window=4, deadline=2.0))
    late = [index for index, outcome in enumerate(outcomes) if outcome.error is not None]
    assert late == [1, 3, 4, 5]
    assert [outcomes[0].result(), outcomes[2].result()] == [0, 2]
    errors = [outcomes[index].error for index in late]
    assert all(isinstance(error, TimeoutError) for error in errors)
    assert all(isinstance(error, GPTXAsyncError) for error in errors)
    assert len({id(error) for error in errors}) == 4, "one object each"
    assert "2.0 s" in str(errors[0])
    assert "2 of the batch's 6 were" in str(errors[0])
    assert sorted(gate.cancelled, key=str) == [1, 3, 4, 5]
    assert sorted(unwound) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.slow
def test_a_batch_that_is_unwound_is_freed_though_the_collector_ran_meanwhile(
    run: Callable[[Batch[Any, Any]], list[Outcome[Any]]],
) -> None:
    """The collector stops tracking a dictionary that contains only resumable greenlets."""
    gate = Gate()

    def ask(index: int) -> None:
        thing = Thing()
        references.append(weakref.ref(thing))
        wait_for(Call(lambda _scope: answer(thing, index)))

    async def answer(thing: Thing, index: int) -> object:
        if index == 2:
            gc.collect()
        await gate.answer(index)
        return thing

    references: list[weakref.ref[Any]] = []
    batch = Batch(ask, range(3), deadline=2.0)
    references.append(weakref.ref(batch))
    run(batch)
    del batch
    default_service().close()  # its thread may be finishing a call
    gc.collect()
    assert len(references) == 4
    assert [reference() for reference in references] == [None] * 4


@pytest.mark.parametrize("run", RUNNERS)
def test_a_deadline_that_does_not_pass_changes_nothing(
    run: Callable[[Batch[Any, Any]], list[Outcome[Any]]],
) -> None:
    gate = Gate()
    gate.let_go()
    assert values(run(Batch(gate.ask, range(6), deadline=30))) == [0, 1, 2, 3, 4, 5]


def test_closing_the_service_does_not_count_as_a_passed_deadline() -> None:
    gate = Gate()
    thread, results = in_thread(lambda: Batch(gate.ask, range(8), deadline=60).run())
    gate.wait_until(asked=8)
    default_service().close()
    thread.join(10)
    assert [type(outcome.error) for outcome in results[0]] == [ServiceClosedError] * 8


@pytest.mark.slow
def test_items_not_begun_by_the_deadline_are_never_sent() -> None:
    gate = Gate()
    outcomes = Batch(gate.ask, range(5), window=2, deadline=2.0).run()
    assert all(isinstance(outcome.error, TimeoutError) for outcome in outcomes)
    assert gate.asked == [0, 1]


def test_the_current_item_is_that_of_the_innermost_batch() -> None:
    assert current_item() is None

    def here(_: object) -> tuple[float | None, object, int]:
        item = current_item()
        assert item is not None
        return item.batch.timeout, item.batch.shared, item.index

    inner = Batch(here, [0, 0], timeout=2.0, shared="inner")
    outer = Batch(lambda _: (here(_), *values(inner.run())), [0], timeout=1.0, shared="outer")
    assert values(outer.run()) == [((1.0, "outer", 0), (2.0, "inner", 0), (2.0, "inner", 1))]


def test_run_async_gives_the_loop_back_between_items_and_while_calls_are_out() -> None:
    gate = Gate()
    order: list[object] = []

    def ask(name: str) -> object:
        order.append(name)
        return wait_for(gate.call(name))

    async def other_work() -> None:
        await asyncio.sleep(0)
        order.append("other work")
        await asyncio.to_thread(gate.wait_until, asked=3)
        order.append("more of it")
        gate.let_go()

    async def main() -> list[Any]:
        running = asyncio.create_task(Batch(ask, ["a", "b", "c"]).run_async())
        await other_work()
        return values(await running)

    assert asyncio.run(main()) == ["a", "b", "c"]
    assert order.index("other work") < order.index("c")
    assert order[-1] == "more of it"


@pytest.mark.serial
def test_run_async_holds_no_thread_while_a_thousand_wait() -> None:
    gate = Gate()

    async def main() -> tuple[int, list[Any]]:
        tasks = [
            asyncio.create_task(Batch(gate.ask, [number]).run_async()) for number in range(1000)
        ]
        await asyncio.to_thread(gate.wait_until, asked=1000)
        threads = threading.active_count()
        gate.let_go()
        return threads, [outcomes[0].result() for outcomes in await asyncio.gather(*tasks)]

    before = threading.active_count()
    threads, answers = asyncio.run(main())
    assert answers == list(range(1000))
    assert threads <= before + 2, "the service's thread, and the one that this test waits in"


def test_run_async_shares_the_context_of_its_task() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    gate = Gate()
    gate.let_go()

    def ask(index: int) -> str:
        before = variable.get()
        wait_for(gate.call(index))
        return before + variable.get()

    async def main(name: str) -> list[str]:
        variable.set(name)
        return values(await Batch(ask, range(3)).run_async())

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(main("a"), main("b")))

    assert asyncio.run(both()) == [["aa"] * 3, ["bb"] * 3]


@pytest.mark.parametrize("nested", [False, True])
def test_cancelling_run_async_cancels_the_calls_and_unwinds_the_items(nested: bool) -> None:
    gate = Gate()
    unwound: list[int] = []

    def ask(index: int) -> object:
        try:
            return wait_for(gate.call(index))
        finally:
            unwound.append(index)

    def ask_nested(_index: int) -> object:
        return values(Batch(ask, range(5)).run())

    async def main() -> None:
        batch = Batch(ask_nested, [0]) if nested else Batch(ask, range(5))
        running = asyncio.create_task(batch.run_async())
        await asyncio.to_thread(gate.wait_until, asked=5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert sorted(gate.cancelled, key=str) == [0, 1, 2, 3, 4]
    assert sorted(unwound) == [0, 1, 2, 3, 4]


def test_a_discarded_coroutine_cancels_its_calls() -> None:
    gate = Gate()
    unwound: list[int] = []

    def ask(index: int) -> object:
        try:
            return gate.ask(index)
        finally:
            unwound.append(index)

    coroutine = Batch(ask, range(3)).run_async()
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(coroutine)
        loop.run_until_complete(asyncio.wait_for(wait_on(loop, gate), 10))
        coroutine.close()
        assert sorted(unwound) == [0, 1, 2]
        task.cancel()  # otherwise asyncio warns that it was left pending
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    gate.wait_until(cancelled=3)


async def wait_on(loop: asyncio.AbstractEventLoop, gate: Gate) -> None:
    await loop.run_in_executor(None, lambda: gate.wait_until(asked=3))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return this package's messages. asyncio logs too, once symbolicai configures logging."""
    return [record.message for record in caplog.records if record.name.startswith("gptx_async")]


def test_blocking_a_running_loop_works_and_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_has_warned", False)
    gate = Gate()
    gate.let_go()

    async def main() -> list[Any]:
        first = gate.ask("one call")
        return [first, *values(Batch(gate.ask, range(20)).run())]

    gate.ask("without a loop")
    values(Batch(gate.ask, range(3)).run())
    asyncio.run(Batch(gate.ask, range(3)).run_async())
    assert said(caplog) == []
    assert asyncio.run(main()) == ["one call", *range(20)]
    asyncio.run(main())
    [message] = said(caplog)
    assert "await engine.aforward" in message


def test_blocking_the_loop_of_a_notebook_is_not_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_has_warned", False)
    shell = types.SimpleNamespace(kernel="a kernel")
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    gate = Gate()
    gate.let_go()

    async def main() -> object:
        return gate.ask("in a cell")

    assert asyncio.run(main()) == "in a cell"
    assert said(caplog) == []
