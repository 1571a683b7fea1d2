"""The background thread after a failed wake-up, a late start, a fork, or a slow end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from gptx_async.errors import ServiceClosedError, ServiceStartError
from gptx_async.loop import thread as thread_module
from gptx_async.loop.call import Call
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import LoopService
from support.child import run_child

InThread = Callable[..., Future[Any]]


@pytest.fixture
def service() -> Iterator[LoopService]:
    service = LoopService("gptx_async-test")
    yield service
    service.close()


async def loop_of(_scope: LoopScope) -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_a_call_after_one_that_could_not_wake_the_loop_wakes_it(
    service: LoopService, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = service.run(loop_of)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no wake-up")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "call_soon_threadsafe", fail)
        with pytest.raises(OSError, match="no wake-up"):
            service.run(loop_of)
    assert in_thread(service.run, loop_of).result(20) is loop


def test_a_thread_that_starts_too_late_ends_by_itself(
    service: LoopService, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    new_event_loop = asyncio.new_event_loop

    def make_late() -> asyncio.AbstractEventLoop:
        assert go_on.wait(20)
        return new_event_loop()

    monkeypatch.setattr(thread_module, "START_SECONDS", 0.05)
    monkeypatch.setattr(asyncio, "new_event_loop", make_late)
    with pytest.raises(ServiceStartError):
        service.run(loop_of)
    [late] = [thread for thread in threading.enumerate() if thread.name == "gptx_async-test"]
    go_on.set()
    late.join(20)
    assert not late.is_alive()


def test_only_the_first_end_of_a_call_counts(service: LoopService) -> None:
    done = threading.Event()
    call = Call(loop_of, service)
    call.start(done.set)
    assert done.wait(20)
    outcome = call.outcome
    service.close()
    call.check()  # the thread is gone, but the call has its answer
    assert call.outcome is outcome


def test_a_call_that_its_caller_cancelled_was_not_lost_with_the_service(
    service: LoopService,
) -> None:
    began, cleans_up, done = threading.Event(), threading.Event(), threading.Event()

    async def sleep(_scope: LoopScope) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleans_up.set()
            await asyncio.sleep(300)  # until the service ends it

    call = Call(sleep, service)
    call.start(done.set)
    assert began.wait(20)
    call.cancel()
    assert cleans_up.wait(20)
    service.close()
    assert done.wait(20)
    assert call.outcome is not None
    assert isinstance(call.outcome.error, asyncio.CancelledError)


def test_close_answers_the_callers_of_a_loop_that_does_not_end(
    service: LoopService, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_module, "GRACE_SECONDS", 0.05)
    blocks, go_on = threading.Event(), threading.Event()

    async def block(_scope: LoopScope) -> None:
        blocks.set()
        assert go_on.wait(60)

    waiter = in_thread(service.run, block)
    assert blocks.wait(20)
    try:
        service.close()
        assert isinstance(waiter.exception(20), ServiceClosedError)
    finally:
        go_on.set()


def test_a_fork_while_another_thread_makes_the_default_service() -> None:
    """That thread holds a lock and does not exist in the child."""
    completed = run_child("""
        import os, threading
        from gptx_async.loop import service
        making, go_on = threading.Event(), threading.Event()
        make = service.LoopService

        def make_slowly():
            if threading.current_thread() is slow:
                making.set()
                go_on.wait()
            return make()

        async def answer(scope):
            return "answers"

        service.LoopService = make_slowly
        slow = threading.Thread(target=service.default_service)
        slow.start()
        making.wait()
        pid = os.fork()
        if pid == 0:
            print(service.default_service().run(answer), flush=True)
            os._exit(0)
        watch = threading.Timer(20, os.kill, (pid, 9))
        watch.start()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        watch.cancel()
        go_on.set()
    """)
    assert completed.stdout.split() == ["answers", "0"], completed.stderr
