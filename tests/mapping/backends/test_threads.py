"""The threads of a run: what they keep alive, and runs with fewer threads than workers."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import gptx_async
from gptx_async.errors import ConfigurationError
from support.child import run_child


class Item:
    """An item that can be the target of a weak reference."""


def test_an_item_is_released_before_the_next_one_is_read() -> None:
    seen: list[weakref.ref[Item]] = []
    is_alive: list[bool] = []

    def make() -> Item:
        item = Item()
        seen.append(weakref.ref(item))
        return item

    def items() -> Iterator[Item]:
        yield make()
        is_alive.append(seen[0]() is not None)
        yield make()

    gptx_async.map(lambda _item: None, items(), workers=1)
    assert is_alive == [False]


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one number: how many more worker threads can be started."""
    left = [3]
    start = threading.Thread.start

    def start_or_fail(self: threading.Thread) -> None:
        if "-worker-" in self.name:
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    return left


class Together:
    """Returns an item once the given number of items run at the same time."""

    def __init__(self, count: int) -> None:
        self.most = 0
        self._barrier = threading.Barrier(count)
        self._lock = threading.Lock()
        self._now = 0

    def __call__(self, item: int) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._barrier.wait(60)
        with self._lock:
            self._now -= 1
        return item


def run_map(work: Any, items: Any) -> Any:
    return gptx_async.map(work, items, workers=64)


def run_stream(work: Any, items: Any) -> Any:
    return [
        value for _, value in sorted(gptx_async.map(work, items, workers=64, as_completed=True))
    ]


def run_amap(work: Any, items: Any) -> Any:
    async def run() -> Any:
        return await gptx_async.amap(work, items, workers=64)

    return asyncio.run(run())


@pytest.mark.parametrize("run", [run_map, run_stream, run_amap])
def test_a_run_continues_with_fewer_threads_and_logs_it_once(
    most: list[int], caplog: pytest.LogCaptureFixture, run: Any
) -> None:
    work = Together(3)
    with caplog.at_level(logging.WARNING, "gptx_async"):
        assert run(work, range(300)) == [*range(300)]
    assert work.most == 3, "all three ran concurrently"
    [record] = [
        each for each in caplog.records if each.name == "gptx_async.mapping.backends.threads"
    ]
    assert "Only 3 of 64 worker threads could be started (can't start new thread)" in record.message


def test_items_are_still_read_only_when_a_worker_is_free(most: list[int]) -> None:
    read: list[int] = []
    go_on = threading.Semaphore(0)
    has_begun = threading.Semaphore(0)

    def items() -> Any:
        for item in range(10):
            read.append(item)
            yield item

    def work(item: int) -> int:
        has_begun.release()
        assert go_on.acquire(timeout=60)
        return item

    stream = gptx_async.map(work, items(), workers=64, as_completed=True)
    taken: list[int] = []
    consumer = threading.Thread(target=lambda: taken.extend(index for index, _ in stream))
    consumer.start()
    for _ in range(3):
        assert has_begun.acquire(timeout=60)
    for done in range(1, 8):
        go_on.release()
        assert has_begun.acquire(timeout=60)
        assert len(read) <= 3 + done + 1, "one more may be read and wait for a worker"
    for _ in range(3):
        go_on.release()
    consumer.join(60)
    assert sorted(taken) == [*range(10)]


def test_a_run_that_waits_for_its_only_thread_can_be_cancelled(most: list[int]) -> None:
    most[0] = 1

    def work(item: int) -> int:
        if item == 1:
            raise ValueError
        return item

    with pytest.raises(ValueError) as raised:  # noqa: PT011 - of the item
        gptx_async.map(work, iter(range(10**9)), workers=64)
    results = raised.value.results  # type: ignore[attr-defined]
    assert results.indices[0] == 0
    assert results.indices == [*results]
    assert 1 not in results


def test_a_run_without_any_thread_is_an_error(most: list[int]) -> None:
    most[0] = 0
    with pytest.raises(ConfigurationError, match=r"could not be started \(can't start new"):
        gptx_async.map(str, [1])


def test_the_limit_of_the_system_has_the_same_effect() -> None:
    """The address space has room for the stacks of a few threads only."""
    program = """
    import logging, resource, sys, threading
    import gptx_async

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    items = [*range(200)]
    assert gptx_async.map(str, items, workers=2) == [*map(str, items)]
    threading.stack_size(256 << 20)
    [pages] = [line.split()[0] for line in open("/proc/self/statm")]
    most = int(pages) * resource.getpagesize() + (1500 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    together = threading.Barrier(2)
    def work(item):
        together.wait(100)
        return str(item)
    print(gptx_async.map(work, items, workers=64) == [*map(str, items)])
    """
    completed = run_child(program, fresh=True)
    logged, result = completed.stdout.splitlines()
    assert logged.startswith("Only "), completed.stderr
    assert " of 64 worker threads could be started" in logged
    assert result == "True"
