"""How symbolicai finds the engine: as ever, but with fewer looks at its callers' variables."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from symai import Expression, Symbol
from symai.components import DynamicEngine
from symai.context import CURRENT_ENGINE_VAR
from symai.functional import EngineRepository

import gptx_async
from gptx_async import AsyncGPTXBatchEngine
from gptx_async.symbolicai.v1 import engine_lookup as lookup
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault
from support.hostile import make_argument

KEY, MODEL = "sk-of-the-tests", "gpt-4o-mini"


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    yield gptx_async.install(KEY, MODEL)
    gptx_async.uninstall()


class Ask(Expression):  # type: ignore[misc] # symbolicai ships no types
    def forward(self, input: str, **_: Any) -> Any:  # noqa: A002 - a scheduler's name for an item
        return Symbol(input).query("b")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that symbolicai looks through its callers."""
    seen: list[str] = []
    get = EngineRepository.get_dynamic_engine_instance

    def get_and_tell(self: Any) -> Any:
        if CURRENT_ENGINE_VAR.get() is None:
            seen.append("looked")
        return get(self)

    monkeypatch.setattr(EngineRepository, "get_dynamic_engine_instance", get_and_tell)
    return seen


@pytest.fixture
def tokenizers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engines whose tokenizers `Symbol.tokens` was given, one by one."""
    seen: list[Any] = []
    bind_property = EngineRepository.bind_property

    def bind_and_tell(engine: str, property: str) -> Any:  # noqa: A002 - symbolicai's name
        seen.append(EngineRepository.get(engine))
        return bind_property(engine, property)

    monkeypatch.setattr(EngineRepository, "bind_property", staticmethod(bind_and_tell))
    return seen


def test_items_of_a_batch_have_symbolicai_look_at_no_caller(
    engine: AsyncGPTXBatchEngine, looks: list[str]
) -> None:
    for ask in (engine, engine.forward):
        ask([make_argument("a"), make_argument("b")])
    assert looks == []


def test_a_query_has_symbolicai_look_through_its_callers_once_for_its_tokens(
    engine: AsyncGPTXBatchEngine, looks: list[str]
) -> None:
    prepared = make_argument("a")
    engine.prepare(prepared)
    engine(prepared)
    assert looks == ["looked"]


def test_a_schedulers_queries_look_once_as_well(
    engine: AsyncGPTXBatchEngine, looks: list[str]
) -> None:
    BatchScheduler(4, 4).forward(Ask, ["a"])
    # For the scheduler's engine, its batch's and the query's, and for the tokens of the prompt.
    assert len(looks) == 4


def where_engines_stand() -> Any:
    return CURRENT_ENGINE_VAR.get()


@pytest.mark.parametrize("as_batch", [True, False])
def test_code_of_the_application_finds_no_engine_put_for_it(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, as_batch: bool
) -> None:
    """Else a query for a search engine would be answered by the one for prompts."""
    found: dict[str, Any] = {}

    def tools() -> Iterator[dict[str, Any]]:
        found["payload"] = where_engines_stand()
        yield {"type": "function", "function": {"name": "f", "parameters": {}}}

    def remedy(_engine: Any, _error: Exception, callback: Any, argument: Any) -> Any:
        found["remedy"] = where_engines_stand()
        return callback(model=MODEL, messages=argument.prop.prepared_input)

    def handler(name: str) -> Callable[..., None]:
        return lambda *_: found.__setitem__(name, where_engines_stand())

    asked = make_argument(
        "a",
        tools=tools(),
        except_remedy=remedy,
        input_handler=handler("input handler"),
        output_handler=handler("output handler"),
    )
    fake_openai.fail_next(HTTPFault(400))
    engine.prepare(asked)
    engine([asked]) if as_batch else engine(asked)
    assert found == dict.fromkeys(["payload", "remedy", "input handler", "output handler"])
    assert where_engines_stand() is None


@pytest.mark.parametrize("as_batch", [True, False])
def test_an_error_before_the_call_takes_the_engine_away(
    engine: AsyncGPTXBatchEngine, as_batch: bool
) -> None:
    asked = make_argument("<|endoftext|>")  # which tiktoken refuses to count
    engine.prepare(asked)
    if as_batch:
        [(_, metadata)] = engine([asked])
        assert isinstance(metadata["exception"], ValueError)
    else:
        with pytest.raises(ValueError, match="special token"):
            engine(asked)
    assert where_engines_stand() is None


def test_each_item_finds_the_engine_that_is_registered_when_it_begins(
    engine: AsyncGPTXBatchEngine, tokenizers: list[Any]
) -> None:
    other = AsyncGPTXBatchEngine(KEY, "gpt-4")
    first = make_argument(
        "a",
        output_handler=lambda *_: EngineRepository.register(
            lookup.NEUROSYMBOLIC, other, allow_engine_override=True
        ),
    )
    engine.window = 1
    engine([first, make_argument("b")])
    EngineRepository.register(lookup.NEUROSYMBOLIC, engine, allow_engine_override=True)
    assert tokenizers == [engine] * 2 + [other] * 2


@pytest.mark.parametrize("as_batch", [True, False])
def test_a_block_that_was_entered_in_another_context_counts_the_tokens(
    engine: AsyncGPTXBatchEngine, tokenizers: list[Any], as_batch: bool
) -> None:
    block = DynamicEngine("gpt-4o", KEY)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, block.__enter__).result(30)
    asked = make_argument("a")
    engine.prepare(asked)
    engine([asked]) if as_batch else engine(asked)
    assert tokenizers == [block.engine_instance] * 2
    block._entered = False
    del block


def test_a_block_within_a_handler_counts_the_tokens_of_what_is_asked_in_it(
    engine: AsyncGPTXBatchEngine, tokenizers: list[Any]
) -> None:
    blocks = []

    def ask_in_a_block(_: Any) -> None:
        block = DynamicEngine("gpt-4o", KEY)
        contextvars.Context().run(block.__enter__)
        blocks.append(block.engine_instance)
        other = make_argument("b")
        engine.prepare(other)
        engine.forward(other)
        block._entered = False

    engine([make_argument("a", input_handler=ask_in_a_block)])
    assert tokenizers == blocks * 2 + [engine] * 2


def test_nothing_is_put_where_no_engine_is_registered(
    engine: AsyncGPTXBatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineRepository, "list", staticmethod(dict))
    with lookup.LookupShortcut(make_argument("a")):
        assert where_engines_stand() is None
