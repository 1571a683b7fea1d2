"""`gptx-async demo`: process documents with a two-step symbolicai Expression in three ways.

The documents are the descriptions of the installed Python packages. The model is an embedded
`FakeOpenAI`, which answers with a digest of the messages. An answer is right if it equals the
answer that `GPTXChatEngine` got for the same document. With `live` the model is a real one.

symbolicai is imported inside functions: it reads its configuration when it is imported, and
`symbolicai_sandbox` must create one first.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ..errors import ConfigurationError
from ..symbolicai.configuration import FILE_NAME, KEY, MODEL, read_configuration
from ..testing import BatchScheduler, FakeOpenAI, lognormal

__all__ = ["Document", "find_wrong", "installed_documents", "run_demo", "symbolicai_sandbox"]

STEPS = ("Summarise this package in two sentences.", "Name three users of such a package.")
"""The questions about each document, and then about the answer to the first."""

WORKERS = 64
"""The number of threads, and of the scheduler's workers."""

SAMPLE = 8
"""How many documents measure `GPTXChatEngine`: all of them, one at a time, would take minutes."""

LIVE_DOCUMENTS = 20
"""The default number of documents for a real API, where they cost money."""

SHOWN_WRONG = 3
"""How many of the wrong answers are printed."""

DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_BASE_URL = "https://api.openai.com/v1"

Answer: TypeAlias = "str | Exception | None"
"""The result of a document: the last answer, or an exception; None if there is none."""


class Document(NamedTuple):
    """The description of a package."""

    name: str
    text: str


class Account(NamedTuple):
    """The API key and the model."""

    api_key: str
    model: str


class Engines(NamedTuple):
    """The two engines to compare."""

    sync: Any
    ours: Any


@dataclass(frozen=True)
class DemoResult:
    """The result of one way to process the documents: a row of the table.

    Attributes:
        title: The name of the way.
        documents: How many documents it processed.
        wrong: One sentence for each wrong answer.
        seconds: How long all documents took.
    """

    title: str
    documents: int
    wrong: Sequence[str]
    seconds: float

    @property
    def calls_per_second(self) -> float:
        """The calls of the model per second."""
        return self.documents * len(STEPS) / self.seconds


Process: TypeAlias = Callable[[Document], Answer]
Way: TypeAlias = Callable[[Process, Sequence[Document]], Sequence[Answer]]
"""A way to process documents: calls a function for each document, and returns the results."""


def run_demo(
    *,
    live: bool = False,
    count: int | None = None,
    latency: float = 0.4,
    model: str | None = None,
) -> int:
    """Run the demo and print its table.

    Args:
        live: Use the API at OPENAI_BASE_URL, or OpenAI's, in place of the embedded server.
        count: How many documents; None for all, or for 20 with `live`.
        latency: The median latency of the embedded server, in seconds.
        model: A model of `GPTXChatEngine`; None for gpt-4o-mini, or the configured one with `live`.

    Returns:
        The exit code: 1 if an answer is wrong or missing, else 0.

    Raises:
        ConfigurationError: There is no key for the real API, or `GPTXChatEngine` does not support
            the model.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """
    console = Console(highlight=False)
    documents = installed_documents()[: count or (LIVE_DOCUMENTS if live else None)]
    console.print(_describe(documents), soft_wrap=True)
    if live:
        account = _live_account(model)
        console.print(_announce(account, documents), soft_wrap=True)
        runs = _run_live(documents, account)
    else:
        runs = _run_offline(documents, Account("sk-fake", model or DEFAULT_MODEL), latency)
    console.print(_table(runs, len(documents), live=live))
    wrong = [sentence for run in runs for sentence in run.wrong]
    for sentence in wrong[:SHOWN_WRONG]:
        console.print(sentence, markup=False, soft_wrap=True)
    return 1 if wrong else 0


def installed_documents() -> list[Document]:
    """Return the descriptions of the installed packages that have one, sorted by name."""
    texts = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata.json
        text = str(metadata.get("description", ""))
        if text.strip() not in ("", "UNKNOWN"):  # written by old versions of setuptools
            texts[str(metadata["name"])] = text
    return [Document(name, texts[name]) for name in sorted(texts, key=str.casefold)]


def find_wrong(
    documents: Sequence[Document],
    answers: Sequence[Answer],
    expected: Mapping[str, Answer] | None,
) -> list[str]:
    """Return one sentence for each wrong answer.

    Args:
        documents: The documents.
        answers: The result of each document. Errors and missing results at the end are wrong.
        expected: The right answers by document name. None for a real model: every answer that is
            not empty is right.
    """
    wrong = []
    for document, answer in zip_longest(documents, answers[: len(documents)]):
        is_text = isinstance(answer, str) and answer.strip() != ""
        if expected is None:
            if not is_text:
                wrong.append(f"{document.name}: {answer!r}")
        elif not is_text or answer != expected[document.name]:
            wrong.append(f"{document.name}: {answer!r} instead of {expected[document.name]!r}")
    return wrong


@contextlib.contextmanager
def symbolicai_sandbox(model: str) -> Iterator[None]:
    """Import symbolicai in the block, quietly and without touching the user's files.

    symbolicai's import reads ./symai.config.json, or fails without it, and writes other files to
    the virtual environment or to HOME. In the block all of them are in a temporary directory. No
    file contains the API key: the engines get it as an argument.

    Args:
        model: The model to configure.
    """
    configuration = {MODEL: model, KEY: "sk-none"}
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="gptx_async-demo-", ignore_cleanup_errors=True)
        )
        stack.enter_context(_environment(HOME=home, SYMAI_WARNINGS="0"))
        stack.enter_context(_quiet_logging())
        Path(home, ".symai").mkdir()
        Path(home, ".symai", "symsh.config.json").write_text("{}")
        Path(home, ".symai", "symserver.config.json").write_text("{}")
        Path(home, "symai.config.json").write_text(json.dumps(configuration))
        with contextlib.chdir(home):
            importlib.import_module("symai")
        yield


def _run_offline(
    documents: Sequence[Document], account: Account, latency: float
) -> list[DemoResult]:
    with symbolicai_sandbox(account.model), _fake_openai() as server:
        engines = _build_engines(account)
        _register(engines.sync)
        answers, _ = _ask("right answers, no latency", _one_at_a_time, documents)
        expected = {
            document.name: answer for document, answer in zip(documents, answers, strict=True)
        }
        server.latency = lognormal(latency) if latency else 0.0
        return _compare(documents, engines, expected)


def _run_live(documents: Sequence[Document], account: Account) -> list[DemoResult]:
    with symbolicai_sandbox(account.model):
        return _compare(documents, _build_engines(account), expected=None)


def _compare(
    documents: Sequence[Document], engines: Engines, expected: Mapping[str, Answer] | None
) -> list[DemoResult]:
    """Process the documents in each of the three ways."""
    _register(engines.sync)
    runs = [_measure("GPTXChatEngine", _one_at_a_time, _sample(documents), expected)]
    _register(engines.ours)
    runs.append(_measure(f"this engine, {WORKERS} threads", _from_threads, documents, expected))
    runs.append(_measure("this engine, scheduler", _by_scheduler, documents, expected))
    return runs


def _one_at_a_time(process: Process, documents: Sequence[Document]) -> list[Answer]:
    return [process(document) for document in documents]


def _from_threads(process: Process, documents: Sequence[Document]) -> list[Answer]:
    pool = ThreadPoolExecutor(WORKERS)
    try:
        return list(pool.map(process, documents))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # so that Ctrl-C does not process the rest


def _by_scheduler(process: Process, documents: Sequence[Document]) -> list[Answer]:
    return BatchScheduler(num_workers=WORKERS, batch_size=WORKERS).forward(process, documents)


def _measure(
    title: str,
    way: Way,
    documents: Sequence[Document],
    expected: Mapping[str, Answer] | None,
) -> DemoResult:
    answers, seconds = _ask(title, way, documents)
    return DemoResult(title, len(documents), find_wrong(documents, answers, expected), seconds)


def _ask(title: str, way: Way, documents: Sequence[Document]) -> tuple[Sequence[Answer], float]:
    """Process the documents with the Expression, and show a progress bar.

    Returns:
        The result of each document, and the seconds that all of them took.
    """
    expression, lock = _two_steps(), threading.Lock()
    with tqdm(total=len(documents), desc=f"{title:<25}", unit=" documents") as bar:

        def process(document: Document) -> Answer:
            try:
                return str(expression(document.text))
            except Exception as error:  # counts as a wrong answer
                return error
            finally:
                with lock:  # tqdm's counter has no lock
                    bar.update()

        started = time.perf_counter()
        answers = way(process, documents)
        return answers, time.perf_counter() - started


def _two_steps() -> Any:
    """Make the Expression. Each step asks about the answer of the previous step."""
    from symai import Expression, Symbol

    class TwoSteps(Expression):  # type: ignore[misc] # symbolicai ships no types
        def forward(self, text: str, **_options: Any) -> Any:
            answer = Symbol(text)
            for step in STEPS:
                answer = answer.query(step)
            return answer

    return TwoSteps()


def _build_engines(account: Account) -> Engines:
    from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

    from .. import AsyncGPTXBatchEngine, install, uninstall

    ours = install(*account)  # first: its errors explain problems with the model or vocabulary
    if not isinstance(ours, AsyncGPTXBatchEngine):
        uninstall()
        raise ConfigurationError(
            f"The demo compares with GPTXChatEngine, and {account.model!r} is a model of {ours}. "
            f"Give a model of GPTXChatEngine, for example {DEFAULT_MODEL}."
        )
    return Engines(GPTXChatEngine(*account), ours)


def _register(engine: Any) -> None:
    """Register an engine for every query of symbolicai."""
    from symai.functional import EngineRepository

    EngineRepository.register("neurosymbolic", engine, allow_engine_override=True)


def _sample(documents: Sequence[Document]) -> Sequence[Document]:
    """Return a few of the documents, evenly spread."""
    return documents[:: max(1, len(documents) // SAMPLE)][:SAMPLE]


def _live_account(model: str | None) -> Account:
    """Find the key and the model for a real API.

    Raises:
        ConfigurationError: There is no key, or symbolicai's configuration can't be read.
    """
    configured = read_configuration()
    key = os.environ.get("OPENAI_API_KEY") or configured.key
    if not key:
        raise ConfigurationError(
            f"No API key is given. Set OPENAI_API_KEY, or {KEY} in symbolicai's configuration "
            f"({FILE_NAME}), or leave --live out."
        )
    return Account(key, model or configured.model or DEFAULT_MODEL)


@contextlib.contextmanager
def _fake_openai() -> Iterator[FakeOpenAI]:
    """Run the server. OpenAI clients that are created in the block use it."""
    with FakeOpenAI(keep_requests=0) as server, contextlib.ExitStack() as stack:
        local = "127.0.0.1"  # no proxy, in either spelling
        stack.enter_context(_environment(NO_PROXY=local, no_proxy=local))
        stack.enter_context(_environment(**server.openai_environment()))
        yield server


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence symbolicai's logs: each of its engines adds a handler to the root logger."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)


def _describe(documents: Sequence[Document]) -> str:
    sizes = [len(document.text) for document in documents]
    return (
        f"{len(documents)} documents, the descriptions of installed Python packages: "
        f"{min(sizes):,} to {max(sizes):,} characters, {sum(sizes):,} in all."
    )


def _announce(account: Account, documents: Sequence[Document]) -> str:
    base_url = os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    sent = [*_sample(documents), *documents, *documents]
    characters = sum(len(document.text) for document in sent)
    return (
        f"Sending {len(sent) * len(STEPS)} requests, with {characters:,} characters of documents, "
        f"to {base_url}, model {account.model}. To send less, set --documents."
    )


def _table(runs: Sequence[DemoResult], total: int, *, live: bool) -> Table:
    baseline = runs[0]
    table = Table(caption=_caption(baseline, total, live=live), caption_justify="left")
    table.add_column("engine", no_wrap=True)
    for title in ("items", "wrong answers", "seconds", "calls/s", "speed-up"):
        table.add_column(title, justify="right", no_wrap=title != "wrong answers")
    for run in runs:
        in_part = run.documents < total
        table.add_row(
            f"{run.title} (scaled)" if in_part else run.title,
            f"{run.documents} of {total}" if in_part else str(total),
            str(len(run.wrong)),
            f"{run.seconds * total / run.documents:.1f}",
            f"{run.calls_per_second:.1f}",
            f"{run.calls_per_second / baseline.calls_per_second:.1f}x",
        )
    return table


def _caption(baseline: DemoResult, total: int, *, live: bool) -> str:
    scaled = (
        f"scaled: {baseline.documents} documents took {baseline.seconds:.1f} s. "
        if baseline.documents < total
        else ""
    )
    wrong = "an error or an empty answer" if live else "not what GPTXChatEngine is answered"
    return f"{scaled}wrong: {wrong}. Each item is {len(STEPS)} calls."
