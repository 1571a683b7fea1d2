"""The background thread and its loop, without OpenAI and without symbolicai."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from gptx_async.errors import (
    LoopThreadDiedError,
    LoopThreadError,
    ServiceClosedError,
    ServiceStartError,
)
from gptx_async.loop import call as call_module
from gptx_async.loop.call import Call, Outcome
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import LoopService, default_service
from support.child import run_child


@pytest.fixture
def service() -> Iterator[LoopService]:
    service = LoopService("gptx_async-test")
    yield service
    service.close()


async def name_of_thread(_scope: LoopScope) -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


class Sleeper:
    """A coroutine that sets events when it has begun and when its clean-up has run."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.cleaned_up = threading.Event()

    async def __call__(self, _scope: LoopScope) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned_up.set()


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a thread that appends the function's result or exception to the returned list."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_run_returns_the_value_from_the_loop_thread(service: LoopService) -> None:
    assert service.run(name_of_thread) == "gptx_async-test"


def test_run_starts_one_thread_for_many_callers(service: LoopService) -> None:
    idents: set[int] = set()

    async def note(_scope: LoopScope) -> None:
        idents.add(threading.get_ident())

    threads = [in_thread(lambda: service.run(note))[0] for _ in range(20)]
    for thread in threads:
        thread.join(10)
    assert len(idents) == 1


def test_run_raises_what_the_coroutine_raises(service: LoopService) -> None:
    async def fail(_scope: LoopScope) -> NoReturn:
        raise KeyError("of the coroutine")

    with pytest.raises(KeyError, match="of the coroutine"):
        service.run(fail)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_run_raises_an_exit_of_the_coroutine_and_the_loop_lives(
    service: LoopService, error: BaseException
) -> None:
    async def leave(_scope: LoopScope) -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        service.run(leave)
    assert service.run(name_of_thread) == "gptx_async-test"


def test_run_raises_cancelled_error_for_a_coroutine_that_was_cancelled(
    service: LoopService,
) -> None:
    async def cancel_itself(_scope: LoopScope) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        service.run(cancel_itself)


def test_run_on_the_loop_thread_raises_at_once(service: LoopService) -> None:
    async def call_back(_scope: LoopScope) -> str:
        return service.run(name_of_thread)

    with pytest.raises(LoopThreadError, match="another thread"):
        service.run(call_back)
    assert service.run(name_of_thread) == "gptx_async-test"


def test_close_on_the_loop_thread_raises_at_once(service: LoopService) -> None:
    async def close(_scope: LoopScope) -> None:
        service.close()

    with pytest.raises(LoopThreadError):
        service.run(close)
    assert service.run(name_of_thread) == "gptx_async-test"


def test_run_after_the_thread_died_starts_a_new_one(service: LoopService) -> None:
    """The waiter must not wait for ever (fsspec/filesystem_spec#1723)."""
    sleeper = Sleeper()
    waiter, results = in_thread(lambda: service.run(sleeper))
    assert sleeper.began.wait(10)

    async def kill_the_loop(_scope: LoopScope) -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 7)
        await asyncio.Event().wait()

    with pytest.raises(LoopThreadDiedError, match="SystemExit\\(7\\)"):
        service.run(kill_the_loop)
    waiter.join(10)
    assert isinstance(results[0], LoopThreadDiedError)
    assert service.run(name_of_thread) == "gptx_async-test"


def test_errors_of_a_dead_thread_are_one_object_per_caller(service: LoopService) -> None:
    sleepers = [Sleeper(), Sleeper()]
    waiters = [in_thread(lambda s=s: service.run(s)) for s in sleepers]  # type: ignore[misc]
    assert all(sleeper.began.wait(10) for sleeper in sleepers)

    async def kill_the_loop(_scope: LoopScope) -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 7)

    service.run(kill_the_loop)
    for thread, _ in waiters:
        thread.join(10)
    first, second = (results[0] for _, results in waiters)
    assert isinstance(first, LoopThreadDiedError)
    assert isinstance(second, LoopThreadDiedError)
    assert first is not second


def test_check_fails_a_call_whose_thread_is_gone(
    service: LoopService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last resort when the dying thread could wake nobody, as after a fork."""
    monkeypatch.setattr(call_module, "SLICE_SECONDS", 0.01)
    sleeper = Sleeper()
    waiter, results = in_thread(lambda: service.run(sleeper))
    assert sleeper.began.wait(10)
    current = service._current
    assert current is not None
    monkeypatch.setattr(current, "is_alive", lambda: False)
    waiter.join(10)
    assert isinstance(results[0], LoopThreadDiedError)


# CPython warns about the unfinished loop that its constructor left behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.serial
def test_start_failing_for_want_of_descriptors_is_an_error_and_the_next_call_works(
    service: LoopService,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(ServiceStartError, match="file descriptors"):
            service.run(name_of_thread)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert service.run(name_of_thread) == "gptx_async-test"
    gc.collect()  # so that the warning appears within this test


def test_start_failing_for_want_of_threads_is_an_error_and_the_next_call_works(
    service: LoopService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed start must not hang its caller (anyio#195)."""

    def fail(self: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(ServiceStartError, match="can't start new thread"):
            service.run(name_of_thread)
    assert service.run(name_of_thread) == "gptx_async-test"


def test_close_cancels_calls_in_flight_and_their_waiters_get_an_error(service: LoopService) -> None:
    sleeper = Sleeper()
    waiter, results = in_thread(lambda: service.run(sleeper))
    assert sleeper.began.wait(10)
    service.close()
    waiter.join(10)
    assert isinstance(results[0], ServiceClosedError)
    assert sleeper.cleaned_up.is_set()


def test_close_is_final_and_may_come_twice(service: LoopService) -> None:
    service.run(name_of_thread)
    service.close()
    service.close()
    with pytest.raises(ServiceClosedError, match="was closed"):
        service.run(name_of_thread)


@pytest.mark.serial
def test_close_before_the_first_call_starts_no_thread() -> None:
    before = threading.active_count()
    service = LoopService()
    service.close()
    assert threading.active_count() == before


def test_close_closes_the_resources_of_the_scope_in_reverse_order(service: LoopService) -> None:
    closed: list[str] = []

    async def close(name: str) -> None:
        closed.append(name)

    async def build(scope: LoopScope) -> tuple[str, str, str]:
        first = scope.get("a", lambda: "first", close)
        again = scope.get("a", lambda: "another", close)
        return first, again, scope.get("b", lambda: "second", close)

    assert service.run(build) == ("first", "first", "second")
    service.close()
    assert closed == ["second", "first"]


@pytest.mark.slow
def test_close_is_bounded_though_a_task_ignores_cancellation() -> None:
    completed = run_child("""
        import asyncio, threading
        from gptx_async.loop.service import LoopService
        service = LoopService()
        began = threading.Event()

        async def stubborn(scope):
            began.set()
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass

        def wait():
            try:
                service.run(stubborn)
            except Exception as error:
                print(type(error).__name__)

        waiter = threading.Thread(target=wait)
        waiter.start()
        began.wait(10)
        service.close()
        waiter.join(10)
        print("closed")
    """)
    assert completed.stdout.split() == ["ServiceClosedError", "closed"]
    assert completed.returncode == 0


@pytest.mark.linux
@pytest.mark.serial
def test_start_and_close_leave_no_thread_and_no_descriptor() -> None:
    """Descriptors must not leak with each start and stop (dask#4072)."""

    def cycle() -> None:
        service = LoopService()
        service.run(name_of_thread)
        service.close()

    cycle()
    gc.collect()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        cycle()
    gc.collect()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.serial
def test_close_leaves_no_thread_of_the_executor() -> None:
    """The SDK reads the platform, and asyncio resolves host names, in such a thread."""

    async def look_up(_scope: LoopScope) -> str:
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    before = threading.enumerate()
    for _ in range(50):
        service = LoopService("gptx_async-test")
        assert service.run(look_up).startswith("gptx_async-test-executor-")
        service.close()
        assert threading.enumerate() == before


def test_close_is_bounded_though_a_thread_of_the_executor_does_not_end() -> None:
    began, go_on = threading.Event(), threading.Event()

    def stay() -> None:
        began.set()
        go_on.wait()

    async def look_up(_scope: LoopScope) -> None:
        await asyncio.to_thread(stay)

    service = LoopService("gptx_async-test")
    waiter, results = in_thread(lambda: service.run(look_up))
    assert began.wait(10)
    service.close()
    waiter.join(10)
    assert isinstance(results[0], ServiceClosedError)
    left = [thread for thread in threading.enumerate() if "test-executor" in thread.name]
    go_on.set()
    assert len(left) == 1
    left[0].join(10)


def test_calls_while_another_thread_closes_all_return() -> None:
    """A call may race with the stop (bellows#745, asgiref#545)."""
    service = LoopService()
    service.run(name_of_thread)
    go = threading.Barrier(51)

    def call() -> str:
        go.wait(10)
        return service.run(name_of_thread)

    callers = [in_thread(call) for _ in range(50)]
    go.wait(10)
    service.close()
    for thread, _ in callers:
        thread.join(10)
    ends = [results[0] for _, results in callers]
    assert all(isinstance(end, ServiceClosedError) or end == "gptx_async-loop" for end in ends)


def test_no_context_variable_of_a_caller_is_seen_on_the_loop(service: LoopService) -> None:
    """Otherwise a connection keeps its first caller's variables (ogx-ai/ogx#5168)."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def read(_scope: LoopScope) -> str:
        return variable.get()

    token = variable.set("the caller's")
    try:
        assert service.run(read) == "unset"
    finally:
        variable.reset(token)


def test_a_cancelled_call_ends_after_its_clean_up(service: LoopService) -> None:
    """A cancelled future is done before its task has cleaned up (python/cpython#105836)."""
    sleeper = Sleeper()
    done = threading.Event()
    call: Call[None] = Call(sleeper, service)
    call.start(done.set)
    assert sleeper.began.wait(10)
    call.cancel()
    assert done.wait(10)
    assert sleeper.cleaned_up.is_set()
    assert isinstance(call.outcome, Outcome)
    assert isinstance(call.outcome.error, asyncio.CancelledError)


def test_a_call_cancelled_before_its_start_never_begins(service: LoopService) -> None:
    sleeper = Sleeper()
    done = threading.Event()
    call: Call[None] = Call(sleeper, service)
    call.cancel()
    call.start(done.set)
    assert done.wait(10)
    assert not sleeper.began.is_set()


def test_ctrl_c_cancels_the_coroutine_before_it_is_raised() -> None:
    """The coroutine must not go on running (synchronicity#166, lancedb#2898)."""
    completed = run_child("""
        import asyncio, os, signal
        from gptx_async.loop.service import default_service
        told = []

        async def sleep(scope):
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                told.append("cleaned up")

        async def answer(scope):
            return "answers"

        try:
            default_service().run(sleep)
        except KeyboardInterrupt:
            print(told, default_service().run(answer))
    """)
    assert completed.stdout.strip() == "['cleaned up'] answers", completed.stderr
    assert completed.returncode == 0


def test_exit_with_a_call_in_flight_is_quick_and_silent() -> None:
    completed = run_child("""
        import asyncio, threading
        from gptx_async.loop.service import default_service
        began = threading.Event()

        async def sleep(scope):
            began.set()
            try:
                await asyncio.sleep(3600)
            finally:
                print("cleaned up", flush=True)

        def wait():
            try:
                default_service().run(sleep)
            except Exception:
                pass

        threading.Thread(target=wait, daemon=True).start()
        began.wait(10)
    """)
    assert completed.stdout.strip() == "cleaned up"
    assert completed.stderr == ""
    assert completed.returncode == 0


def test_a_call_after_the_exit_handler_is_an_error() -> None:
    completed = run_child("""
        import atexit
        def late():
            from gptx_async.errors import ServiceClosedError
            try:
                default_service().run(None)
            except ServiceClosedError as error:
                print(error)
        atexit.register(late)
        from gptx_async.loop.service import default_service
    """)
    assert "interpreter is exiting" in completed.stdout, completed.stderr


def test_a_forked_child_starts_its_own_thread_and_the_parent_goes_on() -> None:
    completed = run_child("""
        import asyncio, os, threading
        from gptx_async.loop.service import default_service
        began, go_on = threading.Event(), threading.Event()

        async def thread(scope):
            return threading.current_thread().ident is not None and os.getpid()

        async def wait(scope):
            began.set()
            while not go_on.is_set():
                await asyncio.sleep(0.01)
            return "the parent's answer"

        results = []
        waiter = threading.Thread(target=lambda: results.append(default_service().run(wait)))
        waiter.start()
        began.wait(10)
        pid = os.fork()
        if pid == 0:
            ok = default_service().run(thread) == os.getpid()
            os._exit(0 if ok else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        go_on.set()
        waiter.join(10)
        print(results)
    """)
    assert completed.stdout.split("\n")[:2] == ["0", '["the parent\'s answer"]'], completed.stderr


def test_a_closed_default_service_is_replaced() -> None:
    first = default_service()
    assert default_service() is first
    first.close()
    second = default_service()
    assert second is not first
    assert second.run(name_of_thread) == "gptx_async-loop"
