"""How batches wait and end: cancellation, deadlines, wake-ups, greenlets."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any

import greenlet
import pytest
from test_batch import Gate, values

from gptx_async.batch.cancel_scope import CancelScope, holding
from gptx_async.batch.driver import Batch, wait_for
from gptx_async.errors import RunCancelledError, ServiceClosedError
from gptx_async.loop.call import Call, Outcome
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from support.child import run_child

InThread = Callable[..., Future[Any]]
Run = Callable[[Batch[Any, Any]], list[Outcome[Any]]]


def run_blocking(batch: Batch[Any, Any]) -> list[Outcome[Any]]:
    return batch.run()


def run_on_a_loop(batch: Batch[Any, Any]) -> list[Outcome[Any]]:
    return asyncio.run(batch.run_async())


RUNNERS = [run_blocking, run_on_a_loop]


class NotedCall(Call[object]):
    """A call that records its cancellation, and sets an event when `on_done` was called."""

    def __init__(self, gate: Gate, name: object, cancelled: list[object]) -> None:
        super().__init__(lambda _scope: gate.answer(name))
        self.name = name
        self.told = threading.Event()
        self._notes = cancelled

    def start(self, on_done: Callable[[], None]) -> None:
        def tell() -> None:
            on_done()
            self.told.set()

        super().start(tell)

    def cancel(self) -> None:
        self._notes.append(self.name)
        super().cancel()


@pytest.mark.parametrize("run", RUNNERS)
def test_a_batch_that_ends_cancels_the_last_begun_first(run: Run) -> None:
    """A call that waits for a permit must not get the permit of a call cancelled before it."""
    gate, cancelled = Gate(), list[object]()

    def ask(index: int) -> object:
        if index == 4:
            gate.wait_until(asked=4)
            sys.exit(5)
        return wait_for(NotedCall(gate, index, cancelled))

    with pytest.raises(SystemExit):
        run(Batch(ask, range(5)))
    assert cancelled == [3, 2, 1, 0]


def test_a_scope_cancels_the_last_begun_first(in_thread: InThread) -> None:
    scope, cancelled = CancelScope(), list[object]()
    inside = threading.Semaphore(0)

    class Noted:
        def __init__(self, name: str) -> None:
            self.name, self.ended = name, threading.Event()

        def cancel(self) -> None:
            cancelled.append(self.name)
            self.ended.set()

    def hold(name: str) -> None:
        noted = Noted(name)
        with holding(noted):
            inside.release()
            assert noted.ended.wait(20)

    waiting = []
    for name in ("first", "second", "third"):
        waiting.append(in_thread(scope.run, hold, name))
        assert inside.acquire(timeout=20)
    scope.cancel()
    for future in waiting:
        assert isinstance(future.exception(20), RunCancelledError)
    assert cancelled == ["third", "second", "first"]


@pytest.mark.parametrize("run", RUNNERS)
def test_what_was_answered_before_the_deadline_stays_though_it_was_not_looked_at(run: Run) -> None:
    """The thread is busy with an item while the answer arrives and the deadline passes."""
    gate = Gate()

    def ask(name: str) -> object:
        if name != "busy":
            return gate.ask(name)
        gate.wait_until(asked=2)
        gate.let_go("answered")
        default_service().run(
            lambda _scope: asyncio.sleep(0.6)
        )  # on the loop that runs the deadline's timer
        return name

    outcomes = run(Batch(ask, ["answered", "late", "busy"], deadline=0.3))
    assert [outcome.value for outcome in outcomes] == ["answered", None, "busy"]
    assert isinstance(outcomes[1].error, TimeoutError)


def test_an_answer_that_comes_just_before_the_wait_is_not_missed(in_thread: InThread) -> None:
    """The answer arrives after a nested batch found none and before it leaves its item."""
    gate = Gate()
    calls: list[NotedCall] = []
    drivers: list[greenlet.greenlet] = []

    def ask(name: str) -> object:
        calls.append(NotedCall(gate, name, []))
        return wait_for(calls[0])

    def answer_in_between(event: str, switch: Any) -> None:
        _, target = switch
        if calls and target in drivers:  # the nested batch leaves its item
            gate.wait_until(asked=1)
            gate.let_go("inner")
            assert calls[0].told.wait(20)

    def run() -> list[Any]:
        drivers.append(greenlet.getcurrent())
        before = greenlet.settrace(answer_in_between)
        try:
            return values(Batch(lambda names: values(Batch(ask, names).run()), [["inner"]]).run())
        finally:
            greenlet.settrace(before)

    assert in_thread(run).result(20) == [["inner"]]


def test_a_deadline_whose_timer_was_cancelled_has_not_passed(in_thread: InThread) -> None:
    """Closing the service ends the timer at once, but the call only after its clean-up."""
    began = threading.Event()

    async def answer(_scope: LoopScope) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)

    batch = Batch(lambda _: wait_for(Call(answer)), [0], deadline=300)
    running = in_thread(batch.run)
    assert began.wait(20)
    default_service().close()
    [outcome] = running.result(20)
    assert isinstance(outcome.error, ServiceClosedError)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_batch_that_ended_leaves_no_timer_on_the_loop(run: Run) -> None:
    async def count(_scope: LoopScope) -> int:
        return len(asyncio.all_tasks())

    gate = Gate()
    gate.let_go()
    before = default_service().run(count)
    for _ in range(10):
        assert values(run(Batch(gate.ask, range(2), deadline=3600))) == [0, 1]
    until = time.monotonic() + 20
    while default_service().run(count) > before:
        assert time.monotonic() < until, "each timer still runs, for an hour"


def test_an_unwound_item_is_at_its_end_when_the_batch_is() -> None:
    """This includes an item that makes a call in a `finally` clause of a nested batch."""
    gate, ended = Gate(), list[int]()

    def ask(index: int) -> None:
        if index == 3:
            gate.wait_until(asked=3)
            sys.exit(5)
        try:
            wait_for(gate.call(index))
        finally:
            try:
                wait_for(gate.call("from a finally clause"))
            finally:
                ended.append(index)

    with pytest.raises(SystemExit):
        Batch(ask, range(4)).run()
    assert ended == [0, 1, 2]
    assert sorted(map(str, gate.asked)) == ["0", "1", "2"]


class InNewGreenlets:
    """Awaits a coroutine with each step in another greenlet, as a framework may do."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        while True:
            step = greenlet.greenlet(self._step)
            is_over, value = step.switch()
            if is_over:
                return value
            yield value

    def _step(self) -> tuple[bool, Any]:
        try:
            return False, self._coroutine.send(None)
        except StopIteration as end:
            return True, end.value


def test_a_batch_goes_on_in_whichever_greenlet_its_coroutine_does(in_thread: InThread) -> None:
    gate = Gate()

    async def main() -> list[Any]:
        batch = Batch(lambda name: (gate.ask(name), gate.ask(f"{name} again")), ["a", "b"])
        return values(await InNewGreenlets(batch.run_async()))

    running = in_thread(lambda: asyncio.run(main()))
    gate.wait_until(asked=2)
    gate.let_go()
    assert running.result(20) == [("a", "a again"), ("b", "b again")]


def test_a_coroutine_that_outlives_the_main_thread_gets_an_error() -> None:
    """Its thread keeps the interpreter alive, and must not wait for the network."""
    completed = run_child(
        """
        import asyncio, threading
        from gptx_async.batch.driver import Batch, wait_for
        from gptx_async.loop.call import Call
        began = threading.Event()

        async def answer(scope):
            began.set()
            await asyncio.Event().wait()

        def run():
            [outcome] = asyncio.run(Batch(lambda _: wait_for(Call(answer)), [0]).run_async())
            print(type(outcome.error).__name__)

        threading.Thread(target=run).start()
        began.wait()
    """,
        seconds=50,
    )
    assert (completed.stdout.strip(), completed.returncode) == ("ServiceClosedError", 0)
