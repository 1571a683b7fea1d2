"""What runs a case: on one engine or the other, in the test's thread or through a scheduler."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import openai
from symai import Expression, Symbol, core_ext
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
from symai.functional import EngineRepository

from gptx_async import AsyncBatchEngine, AsyncGPTXBatchEngine
from gptx_async.symbolicai.v1.retry_sleep import let_waits_give_way
from gptx_async.testing import BatchScheduler, FakeOpenAI, Fault, RecordedRequest, digest, echo
from gptx_async.testing.replies import ReplyFunction
from support.looking import close_idle_connections

from .outcomes import Outcome, error_of, plain, request_of

__all__ = [
    "CASES",
    "CHAT",
    "KEY",
    "MODEL",
    "Case",
    "Laboratory",
    "Subject",
    "World",
    "case",
    "cases",
]

KEY, MODEL = "sk-of-the-cases", "gpt-4o-mini"

_CEREBRAS = "CEREBRAS_BASE_URL"

COMPANION = "a query beside the case"
"""Marks the queries that others make while a case runs under the scheduler."""

STEPS_BESIDE = 5
"""How many those are: two steps of each of two other items, and the first one of the case's."""

Function: TypeAlias = Callable[["World"], Any]


@dataclass(frozen=True)
class Case:
    """Something to do with an engine, of which what the caller sees is to be the same.

    Attributes:
        function: Does it, and returns or raises what the caller sees.
        options: What the engine is built with beside key, model and `client_max_retries=0`.
        environment: Environment variables with which it is built.
        fresh: Whether the case needs an engine of its own, which it changes.
        alone: Whether nothing else may go on at the engine meanwhile.
        unordered: Whether requests and notes come in no particular order: the case has threads.
        bypasses: Whether the requests are not queries of the registered engine, so that a
            scheduler does not get them.
        silent: Whether the case is meant to send no request.
    """

    function: Function
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False
    alone: bool = False
    unordered: bool = False
    bypasses: bool = False
    silent: bool = False


@dataclass(frozen=True)
class Subject:
    """An engine of symbolicai that the cases are run on, beside its asynchronous twin.

    Attributes:
        engine_class: Its class.
        model: The model that it is built for.
    """

    engine_class: type[Any]
    model: str

    def build(self, engine_name: str, options: Mapping[str, Any]) -> Any:
        """Build the engine itself ('sync') or its twin ('async'), which is as patient as it.

        Its base URL, which may be a constant of its class, is that of the environment.
        """
        given = {"api_key": KEY, "model": self.model, "client_max_retries": 0, **options}
        if self.engine_class is GPTXChatEngine and engine_name == "async":
            return AsyncGPTXBatchEngine(**given, rate_limit_patience=0)
        engine = self.engine_class(**given)
        if isinstance(engine.client, openai.OpenAI):  # another one's comes from the environment
            engine.client.base_url = os.environ["OPENAI_BASE_URL"]
        if engine_name == "sync":
            return engine
        # Not adaptive: the retries of some engines make so many failures that the pace would fall.
        return AsyncBatchEngine(engine, rate_limit_patience=0, adaptive=False)


CHAT = Subject(GPTXChatEngine, MODEL)

CASES: dict[str, Case] = {}
"""All cases, by name; the modules `cases_*` fill it when they are imported."""


def case(**options: Any) -> Callable[[Function], Function]:
    """Make a function a case, by its name; the options are those of `Case`."""

    def decorate(function: Function) -> Function:
        _add(function.__name__, Case(function, **options))
        return function

    return decorate


def cases(
    variants: Mapping[str, Any], prefix: str | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function several cases, which differ in its second argument, by `name: argument`.

    Their names begin with the prefix, which is the function's name when not given.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, variant in variants.items():
            variant_function = functools.partial(_call, function, variant)
            _add(f"{prefix or function.__name__}_{name}", Case(variant_function, **options))
        return function

    return decorate


def _call(function: Callable[..., Any], variant: Any, world: World) -> Any:
    return function(world, variant)


def _add(name: str, new: Case) -> None:
    assert name not in CASES, f"there are two cases {name}"
    CASES[name] = new


class World:
    """What a case finds: an engine that is registered, and a server that it may instruct.

    Attributes:
        engine: The registered engine.
        engine_class: Its class.
        server: The server; `reply` and `fail` instruct it.
        reply: What the model says to the case.
        tmp_path: A directory for files.
        notes: See `note`.
    """

    def __init__(self, engine: Any, server: FakeOpenAI, tmp_path: Path) -> None:
        self.engine = engine
        self.engine_class = type(engine)
        self.server = server
        self.reply: ReplyFunction = digest
        self.tmp_path = tmp_path
        self.notes: list[Any] = []
        self._faults: deque[Fault] = deque()
        server.clear()
        server.reply = self._reply
        server.faults = self._fault

    def note(self, *event: Any) -> None:
        """Note what happens, as it is now, for comparison."""
        self.notes.append([plain(part) for part in event])

    def fail(self, fault: Fault, times: int = 1) -> None:
        """Let the next requests of the case fail."""
        self._faults.extend([fault] * times)

    def requests(self) -> list[RecordedRequest]:
        """Return the requests of the case, without those of its companions."""
        return [each for each in self.server.requests if not _is_companion(each)]

    def _reply(self, request: RecordedRequest) -> Any:
        return echo(request) if _is_companion(request) else self.reply(request)

    def _fault(self, request: RecordedRequest) -> Fault | None:
        return self._faults.popleft() if self._faults and not _is_companion(request) else None


class Laboratory:
    """Runs cases on engines that it builds, against one server.

    Args:
        server: The server.
        tmp_path: A directory for files of the cases.
    """

    def __init__(self, server: FakeOpenAI, tmp_path: Path) -> None:
        self.server = server
        self.tmp_path = tmp_path
        self._engines: dict[Any, Any] = {}
        self._expected: dict[tuple[int, Subject], Outcome] = {}

    def expected(self, case: Case, subject: Subject = CHAT) -> Outcome:
        """Run a case on the sync engine, once for all modes of the other one."""
        key = id(case), subject
        if key not in self._expected:
            self._expected[key] = self.run_directly(case, "sync", subject)
        return copy.deepcopy(self._expected[key])

    def run_directly(self, case: Case, engine_name: str, subject: Subject = CHAT) -> Outcome:
        """Run a case in this thread."""
        with self.world(case, engine_name, subject) as world:
            outcome = _observe(case, world)
            if not case.alone:
                _query_beside("after the case")
            return outcome

    def run_by_scheduler(
        self, case: Case, engine_name: str = "async", subject: Subject = CHAT
    ) -> Outcome:
        """Run a case as an item of a scheduler, beside others; what happens in it is returned."""
        with self.world(case, engine_name, subject) as world:
            items: list[Case | None] = [case] if case.alone else [None, case, None]
            scheduler = _CountingScheduler(num_workers=3, batch_size=3)
            results = scheduler.forward(_CaseExpression(world), items)
            outcome = results.pop(items.index(case))
            assert results == [None] * (len(items) - 1), results
            assert isinstance(outcome, Outcome), outcome
            queries = scheduler.queries - (0 if case.alone else STEPS_BESIDE)
            assert queries > 0 or case.bypasses or not outcome.requests, (
                "a case that sends requests sends them by the scheduler, unless it says so"
            )
            return outcome

    @contextlib.contextmanager
    def world(self, case: Case, engine_name: str, subject: Subject = CHAT) -> Iterator[World]:
        """Register an engine as the case wants it, and put back afterwards all that was before."""
        engines = EngineRepository()._engines
        registered, api_key = dict(engines), openai.api_key
        if engine_name == "async":
            close_idle_connections()
        try:
            with _kept_root_logger(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # as symbolicai does when imported
                engine = self._engine(case, engine_name, subject)
                EngineRepository.register("neurosymbolic", engine, allow_engine_override=True)
                openai.api_key = KEY
                world = World(engine, self.server, self.tmp_path)
                # Cerebras's engine builds its client anew for a key.
                root = {_CEREBRAS: self.server.base_url.removesuffix("/v1")}
                try:
                    with _noted_waits(world), _environment(root):
                        yield world
                finally:
                    if engine_name == "async":
                        engine.executor_callback = None
        finally:
            engines.clear()
            engines.update(registered)
            openai.api_key = api_key

    def _engine(self, case: Case, engine_name: str, subject: Subject) -> Any:
        """Build an engine, or take the one that was built for an earlier case."""
        key = repr((engine_name, subject, case.options, case.environment))
        if case.fresh or key not in self._engines:
            base_url = case.environment.get("OPENAI_BASE_URL", self.server.base_url)
            ours = {"OPENAI_BASE_URL": base_url, _CEREBRAS: base_url.removesuffix("/v1")}
            with _environment({**ours, **case.environment}):
                engine = subject.build(engine_name, case.options)
            if case.fresh:
                return engine
            self._engines[key] = engine
        return self._engines[key]


class _CountingScheduler(BatchScheduler):
    """A scheduler that counts the queries that come to it."""

    def __init__(self, num_workers: int, batch_size: int) -> None:
        self.queries = 0
        super().__init__(num_workers, batch_size)

    def executor_callback(self, argument: Any) -> Any:
        self.queries += 1
        return super().executor_callback(argument)


class _CaseExpression(Expression):  # type: ignore[misc] # symbolicai ships no types
    """Two steps, both through the queue: a plain query, then the case, or another plain query."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def forward(self, case: Case | None, **_kwargs: Any) -> Outcome | None:
        if case is None or not case.alone:
            _query_beside("first step")
        if case is not None:
            return _observe(case, self._world)
        _query_beside("second step")
        return None


def _observe(case: Case, world: World) -> Outcome:
    """Run a case in this thread, and put what is seen of it into plain data."""
    seen: dict[str, Any]
    try:
        seen = {"returned": plain(case.function(world))}
    except Exception as error:
        seen = {"raised": error_of(error)}
    outcome = Outcome(seen, [request_of(each) for each in world.requests()], world.notes)
    return outcome.sorted() if case.unordered else outcome


def _query_beside(name: str) -> None:
    answer = str(Symbol(name).query(COMPANION))
    assert COMPANION in answer, answer
    assert name in answer, answer


def _is_companion(request: RecordedRequest) -> bool:
    return COMPANION.encode() in request.raw


@contextlib.contextmanager
def _noted_waits(world: World) -> Iterator[None]:
    """Let symbolicai's own retries wait no longer than it takes to note that they do."""
    before = core_ext.time
    core_ext.time = SimpleNamespace(sleep=lambda _seconds: world.note("waits"))
    let_waits_give_way()
    try:
        yield
    finally:
        core_ext.time = before


@contextlib.contextmanager
def _kept_root_logger() -> Iterator[None]:
    """Take from the root logger the handlers that engines add, one or two for each engine."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    try:
        yield
    finally:
        for handler in [*root.handlers]:
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()
        root.setLevel(level)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
