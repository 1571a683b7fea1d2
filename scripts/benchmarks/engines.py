"""The rivals with symbolicai: this engine, `GPTXChatEngine`, and symbolicai's work alone.

`child.py` imports the modules before it forks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from .server import answer_to
from .workloads import KEY, MODEL, Answer, Ask, Item, Open, Workload

__all__ = [
    "eased",
    "installed",
    "instant",
    "make_argument",
    "open_batch",
    "open_frozen_batch",
    "open_scheduler",
    "open_uncollected_batch",
    "registered",
    "threaded",
]


@contextlib.contextmanager
def installed(workload: Workload, base_url: str) -> Iterator[Any]:
    """Install this engine with the workload's number of calls in flight."""
    import gptx_async

    engine = gptx_async.install(
        KEY, MODEL, window=workload.in_flight, max_concurrency=workload.in_flight
    )
    engine.client.base_url = base_url
    try:
        yield engine
    finally:
        gptx_async.uninstall()


@contextlib.contextmanager
def registered(_workload: Workload, base_url: str) -> Iterator[Any]:
    """Register a `GPTXChatEngine` with symbolicai.

    symbolicai silences the transport log of openai 1 and 2. With openai 3 each call would print a
    line, so that log is silenced here.
    """
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
    from symai.functional import EngineRepository

    engine = GPTXChatEngine(KEY, MODEL)
    engine.client.base_url = base_url
    EngineRepository.register("neurosymbolic", engine, allow_engine_override=True)
    yield engine
    engine.client.close()


@contextlib.contextmanager
def instant(workload: Workload, base_url: str) -> Iterator[Any]:
    """Give `GPTXChatEngine` a client that answers at once, to measure symbolicai's own work."""
    with registered(workload, base_url) as engine:
        client = engine.client
        completions = SimpleNamespace(create=_answer_at_once)
        engine.client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
        yield engine
        engine.client = client


@contextlib.contextmanager
def eased(workload: Workload, base_url: str) -> Iterator[Any]:
    """Like `instant`, with this engine's token cache and engine look-up."""
    from gptx_async.symbolicai.token_cache import remembering
    from gptx_async.symbolicai.v1 import engine_lookup as lookup

    class Told:
        def __init__(self, engine: Any) -> None:
            self.prepare = engine.prepare
            self._engine = engine

        def __call__(self, argument: Any) -> Any:
            lookup.LookupShortcut.prepare(argument, None)
            with lookup.LookupShortcut(argument):
                return self._engine(argument)

    with instant(workload, base_url) as engine:
        engine.tokenizer = remembering(engine.tokenizer)
        yield Told(engine)


def _answer_at_once(**payload: Any) -> Any:
    text = payload["messages"][1]["content"][0]["text"]
    said = answer_to(text[text.rindex("[[") + 2 : -2])
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=said))])


def threaded(engines: Callable[[Workload, str], Any], width: int | None = None) -> Open:
    """Make a rival that queries an engine from threads; a single one is the calling thread."""

    @contextlib.contextmanager
    def open_pool(workload: Workload, base_url: str) -> Iterator[Ask]:
        threads = min(width or workload.in_flight, workload.in_flight)
        with engines(workload, base_url) as engine, ThreadPoolExecutor(threads) as pool:
            ask = _query(engine, workload.instruction)
            if threads == 1:
                yield lambda items: [ask(item) for item in items]
            else:
                yield lambda items: list(pool.map(ask, items))

    return open_pool


def _query(engine: Any, instruction: str) -> Callable[[Item], Answer]:
    """Return a query function with the steps of symbolicai's `EngineRepository.query`."""

    def ask(item: Item) -> Answer:
        argument = make_argument(instruction, item.text)
        try:
            engine.prepare(argument)
            outputs, _metadata = engine(argument)
        except Exception as error:
            return repr(error)
        answer: Answer = outputs[0]
        return answer

    return ask


def make_argument(instruction: str, text: str) -> Any:
    """Make an unprepared Argument like symbolicai's decorators."""
    from symai import Symbol
    from symai.core import Argument

    argument = Argument((), {}, {"prompt": instruction})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


@contextlib.contextmanager
def open_batch(workload: Workload, base_url: str) -> Iterator[Ask]:
    """Run one batch on this engine, including the arguments and the texts of the answers."""
    instruction = workload.instruction
    with installed(workload, base_url) as engine:

        def ask(items: Sequence[Item]) -> list[Answer]:
            arguments = [make_argument(instruction, item.text) for item in items]
            return [outputs[0] for outputs, _metadata in engine(arguments)]

        yield ask


@contextlib.contextmanager
def open_frozen_batch(workload: Workload, base_url: str) -> Iterator[Ask]:
    """Like `open_batch`, in an application that called `gc.freeze()` after its imports."""
    with open_batch(workload, base_url) as ask:
        gc.collect()
        gc.freeze()
        yield ask


@contextlib.contextmanager
def open_uncollected_batch(workload: Workload, base_url: str) -> Iterator[Ask]:
    """Like `open_batch`, without the garbage collector, to show its share."""
    with open_batch(workload, base_url) as ask:
        gc.disable()
        yield ask
        gc.enable()


@contextlib.contextmanager
def open_scheduler(workload: Workload, base_url: str) -> Iterator[Ask]:
    """Query this engine from a scheduler. Each batch waits for its slowest call."""
    from gptx_async.testing.scheduler import BatchScheduler

    with installed(workload, base_url) as engine:
        query = _query(engine, workload.instruction)
        scheduler = BatchScheduler(workload.in_flight, workload.in_flight)
        yield lambda items: scheduler.forward(query, items)
