"""`CancelScope`, without OpenAI and symbolicai."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from test_batch import Gate, values

from gptx_async.batch.cancel_scope import CancelScope, holding
from gptx_async.batch.driver import Batch, wait_for
from gptx_async.errors import CallCancelledError, RunCancelledError

InThread = Callable[..., Future[Any]]


def test_a_cancelled_scope_cancels_its_calls_and_rejects_later_ones(in_thread: InThread) -> None:
    gate, scope = Gate(), CancelScope()
    attempts: list[str] = []

    def ask_until_answered(name: str) -> object:
        while True:
            attempts.append(name)
            try:
                return gate.ask(name)
            except Exception:
                continue

    inside = [in_thread(scope.run, ask_until_answered, name) for name in ("a", "b")]
    outside = in_thread(gate.ask, "outside")
    gate.wait_until(asked=3)
    scope.cancel()
    for future in inside:
        with pytest.raises(RunCancelledError, match="stopped"):
            future.result(10)
    gate.wait_until(cancelled=2)
    with pytest.raises(RunCancelledError):
        scope.run(gate.ask, "late")
    gate.let_go()
    assert outside.result(10) == "outside"
    assert sorted(attempts) == ["a", "b"]
    assert {*gate.cancelled} == {"a", "b"}
    assert {*gate.asked} == {"a", "b", "outside"}


def test_a_batch_in_a_scope_is_cancelled_with_all_its_items(in_thread: InThread) -> None:
    gate, scope = Gate(), CancelScope()
    unwound: list[object] = []

    def ask(name: object) -> object:
        try:
            return gate.ask(name)
        finally:
            unwound.append(name)

    future = in_thread(scope.run, lambda names: Batch(ask, names).run(), [*range(50)])
    gate.wait_until(asked=50)
    scope.cancel()
    with pytest.raises(RunCancelledError):
        future.result(10)
    assert sorted(map(str, gate.cancelled)) == sorted(map(str, range(50)))
    assert sorted(map(str, unwound)) == sorted(map(str, range(50)))


def test_a_batch_on_a_loop_in_a_scope_is_cancelled(in_thread: InThread) -> None:
    gate, scope = Gate(), CancelScope()

    def run(names: list[int]) -> Any:
        return asyncio.run(Batch(gate.ask, names).run_async())

    future = in_thread(scope.run, run, [*range(5)])
    gate.wait_until(asked=5)
    scope.cancel()
    with pytest.raises(RunCancelledError):
        future.result(10)
    gate.wait_until(cancelled=5)


def test_a_scope_that_is_not_cancelled_changes_nothing() -> None:
    gate, scope = Gate(), CancelScope()
    gate.let_go()
    assert values(scope.run(lambda names: Batch(gate.ask, names).run(), ["a", "b"])) == ["a", "b"]
    assert scope.run(gate.ask, "c") == "c"
    scope.cancel()
    assert gate.ask("after it, in the same thread") == "after it, in the same thread"


def test_a_call_that_something_else_cancels_is_not_attributed_to_the_scope(
    in_thread: InThread,
) -> None:
    gate, scope = Gate(), CancelScope()
    call = gate.call("a")
    future = in_thread(scope.run, wait_for, call)
    gate.wait_until(asked=1)
    call.cancel()
    with pytest.raises(CallCancelledError):
        future.result(10)


class Waiting:
    """A `Cancellable` that is not a model call."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def cancel(self) -> None:
        self.ended.set()

    def wait(self, _: object) -> bool:
        with holding(self):
            self.begun.set()
            return self.ended.wait(20)


def test_what_a_block_holds_is_cancelled_with_its_scope(in_thread: InThread) -> None:
    waiting, scope = Waiting(), CancelScope()
    future = in_thread(scope.run, waiting.wait, None)
    assert waiting.begun.wait(10)
    scope.cancel()
    with pytest.raises(RunCancelledError):
        future.result(10)
    assert waiting.ended.is_set()


def test_scopes_nest_and_the_inner_one_counts(in_thread: InThread) -> None:
    gate, outer, inner = Gate(), CancelScope(), CancelScope()

    def ask(_: object) -> object:
        with pytest.raises(RunCancelledError):
            inner.run(gate.ask, "inner")
        return gate.ask("outer")

    future = in_thread(outer.run, ask, None)
    gate.wait_until(asked=1)
    inner.cancel()
    gate.wait_until(asked=2, cancelled=1)
    gate.let_go()
    assert future.result(10) == "outer"
    assert gate.cancelled == ["inner"]
