"""Runs a job in the consumer's thread or on its loop: waits, yields values, and ends the run.

Items run in the threads of a back end, without a scheduler or a barrier; the background loop makes
their calls. The two classes here start a run, wait for its outcomes and stop it: one blocks a
thread, the other awaits on the caller's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any

from .. import clock
from ..batch.cancel_scope import holding
from ..errors import AsyncioNeededError
from ..loop.call import SLICE_SECONDS
from ..loop.thread import GRACE_SECONDS
from .backends.backend import BackendRun
from .consumer import Consumer
from .job import MapJob
from .results import Results

__all__ = ["collect", "collect_on_loop", "stream", "stream_in_order_on_loop", "stream_on_loop"]

STREAM_WINDOW = 2
"""How many items per worker a stream reads ahead of the values that its caller has taken."""

ORDERED_WINDOW = 16
"""The same for a stream in the order of the items, where one slow item holds back later values."""


class _ThreadWaker:
    """Wakes the thread that waits for a run."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def wake(self) -> None:
        """Wake the thread. Allowed in any thread."""
        if not self._woken.is_set():
            self._woken.set()

    def wait(self) -> None:
        """Wait, up to a slice of time, until `wake` is called or was called since the last wait."""
        self._woken.wait(SLICE_SECONDS)
        self._woken.clear()


class _LoopWaker:
    """Wakes the coroutine that waits for a run."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        """Wake the coroutine. Allowed in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._resolve)

    async def wait(self, seconds: float = SLICE_SECONDS) -> None:
        """Wait, up to so many seconds, until `wake` is called or was called since the last wait."""
        await asyncio.wait([self._woken], timeout=seconds)
        if self._woken.done():
            self._woken = self._loop.create_future()

    def _resolve(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)


class _RunInThread:
    """Runs a job for the length of a `with` block, which takes the values.

    The block gets the consumer, and a function that waits for the next outcome. When the block
    ends with an error, the run is stopped and its results are attached to the error.

    Not a `contextlib.contextmanager`: that sets the traceback of an error that leaves the block,
    which fails for an error that is a frozen dataclass.
    """

    def __init__(self, job: MapJob, window: int | None, *, in_frame: bool) -> None:
        self._waker = _ThreadWaker()
        self._consumer = Consumer(job, window, self._waker.wake, in_frame=in_frame)
        self._holding = holding(self._consumer.run)  # an outer run cancels this one

    def __enter__(self) -> tuple[Consumer, Callable[[], None]]:
        try:
            self._holding.__enter__()
            self._consumer.run.start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self._consumer, self._wait

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._holding.__exit__(kind, error, traceback)
            if error is None:
                self._consumer.run.join()
        except BaseException as failure:
            self._stop(failure)
            raise
        else:
            if error is not None:
                self._stop(error)
        finally:
            self._consumer.run.join()
            self._consumer.close_progress()

    def _stop(self, error: BaseException) -> None:
        self._consumer.run.cancel()
        with self._consumer.attaching_results(error):  # last: items that end meanwhile count too
            self._consumer.run.join()

    def _wait(self) -> None:
        self._waker.wait()
        self._consumer.refresh_progress()


class _RunOnLoop:
    """Does what `_RunInThread` does, on the caller's loop.

    Raises:
        AsyncioNeededError: No asyncio loop runs in this thread.
    """

    def __init__(self, job: MapJob, window: int | None) -> None:
        if asyncio._get_running_loop() is None:
            raise AsyncioNeededError(
                "gptx_async.amap needs asyncio's event loop, and none is running here. Under trio "
                "use trio.to_thread.run_sync(gptx_async.map, expression, dataset)."
            )
        self._waker = _LoopWaker()
        self._consumer = Consumer(job, window, self._waker.wake, in_frame=True)
        self._holding = holding(self._consumer.run)

    async def __aenter__(self) -> tuple[Consumer, Callable[[], Awaitable[None]]]:
        try:
            self._holding.__enter__()
            self._consumer.run.start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self._consumer, self._wait

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._holding.__exit__(kind, error, traceback)
            if error is None:
                await _wait_for_end(self._consumer.run, self._waker)
        except BaseException as failure:
            await self._stop(failure)
            raise
        else:
            if error is not None:
                await self._stop(error)
        finally:
            _join_on_loop(self._consumer.run)
            self._consumer.close_progress()

    async def _stop(self, error: BaseException) -> None:
        self._consumer.run.cancel()
        if isinstance(error, GeneratorExit):  # the coroutine is being closed and cannot await
            self._consumer.attach_results(error)
            return
        with self._consumer.attaching_results(error):
            await _wait_for_end(self._consumer.run, self._waker)

    async def _wait(self) -> None:
        await self._waker.wait()
        self._consumer.refresh_progress()


async def _wait_for_end(run: BackendRun, waker: _LoopWaker) -> None:
    until = clock.seconds() + GRACE_SECONDS
    while not run.is_over and (seconds := until - clock.seconds()) > 0:
        await waker.wait(seconds)


def _join_on_loop(run: BackendRun) -> None:
    """Join a run that is over; otherwise start a thread that does, because the loop cannot wait."""
    if run.is_over:
        run.join()
        return
    try:
        threading.Thread(target=run.join, name="gptx_async-map-end", daemon=True).start()
    except RuntimeError:  # the system cannot start another thread
        run.close()


def collect(job: MapJob) -> Results:
    """Run a job and return its values; blocks this thread."""
    with _RunInThread(job, None, in_frame=False) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.outcomes:
                consumer.accept()
            else:
                wait()
        return consumer.results()


def stream(job: MapJob) -> Generator[tuple[int, Any]]:
    """Run a job and yield `(index, value)` as items end; blocks the thread that iterates."""
    with _RunInThread(job, STREAM_WINDOW, in_frame=True) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.outcomes:
                index = consumer.accept()
                yield index, consumer.hand_over(index)
                consumer.forget(index)
            else:
                wait()


async def collect_on_loop(job: MapJob) -> Results:
    """Run a job and return its values, without blocking the caller's loop."""
    async with _RunOnLoop(job, None) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.outcomes:
                consumer.accept()
                await asyncio.sleep(0)  # let the loop run, however many outcomes there are
            else:
                await wait()
        return consumer.results()


async def stream_on_loop(job: MapJob) -> AsyncGenerator[tuple[int, Any]]:
    """Run a job and yield `(index, value)` as items end, without blocking the caller's loop."""
    async with _RunOnLoop(job, STREAM_WINDOW) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.outcomes:
                index = consumer.accept()
                await asyncio.sleep(0)
                yield index, consumer.hand_over(index)
                consumer.forget(index)
            else:
                await wait()


async def stream_in_order_on_loop(job: MapJob) -> AsyncGenerator[Any]:
    """Run a job and yield its values in the order of the items, without blocking the loop."""
    index = 0
    async with _RunOnLoop(job, ORDERED_WINDOW) as (consumer, wait):
        while not consumer.is_over:
            if consumer.run.outcomes:
                consumer.accept()
                await asyncio.sleep(0)
            else:
                await wait()
            while index in consumer.values:
                yield consumer.hand_over(index)
                consumer.forget(index)
                index += 1
