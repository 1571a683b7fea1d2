"""Cases of the engine as a whole: commands, tokens, self-prompting, tracking, threads, output."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prompt_toolkit.application import create_app_session
from symai import Expression, Symbol
from symai.components import DynamicEngine, Function, MetadataTracker, SelfPrompt
from symai.functional import EngineRepository

from gptx_async.testing import HTTPFault, RecordedRequest, canned, digest

from .asking import SKY, ask_by_hand
from .harness import KEY, MODEL, World, case, cases


def command(**settings: Any) -> None:
    Expression.command(["neurosymbolic"], **settings)


@cases(
    {
        "model": {"NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4o"},
        "model_of_another_vocabulary": {"NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4"},
        "seed": {"seed": 7},
        "model_and_seed": {"NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4.1", "seed": 0},
        "the_key_it_has": {"NEUROSYMBOLIC_ENGINE_API_KEY": KEY},
    },
    fresh=True,
)
def command_of(world: World, settings: dict[str, Any]) -> Any:
    world.note("before", Symbol(SKY).tokens, Symbol(SKY).query("Which colour?"))
    command(**settings)
    world.note("after", Symbol(SKY).tokens, Symbol(SKY).query("Which colour?"))
    engine = world.engine
    world.note(engine.model, engine.seed, engine.id(), engine.tokenizer.name)
    return Symbol(SKY).tokens, engine.max_context_tokens, engine.max_response_tokens


@case(fresh=True)
def command_of_all_engines(world: World) -> Any:
    """Through the repository as users do: what `command` returns is returned for each engine."""
    EngineRepository.command(["all"], seed=3)
    return Symbol(SKY).query("Which colour?"), world.engine.seed


@cases({"text": SKY, "nothing": "", "unicode": "Ω≈ç√ \U0001f600"}, silent=True)
def tokens_of(world: World, text: str) -> Any:
    symbol = Symbol(text)
    return symbol.tokens, symbol.tokenizer().name, len(symbol.tokens)


@case(silent=True)
def tokens_of_a_special_token(world: World) -> Any:
    return Symbol("<|endoftext|>").tokens


def prompt_by_itself(request: RecordedRequest) -> Any:
    """Reply with a new prompt when asked for one, and with a digest otherwise."""
    if request.body.get("response_format"):
        return json.dumps({"system": "You are a painter.", "user": "Name the colour."})
    return digest(request)


@case()
def self_prompt_of_a_query(world: World) -> Any:
    world.reply = prompt_by_itself
    return Symbol(SKY).query("Which colour?", self_prompt=True)


@case()
def self_prompt_of_a_symbol(world: World) -> Any:
    world.reply = prompt_by_itself
    return Symbol(SKY, self_prompt=True).query("Which colour?")


@case()
def self_prompt_that_fails(world: World) -> Any:
    world.reply = canned("no JSON")
    tries, delay = SelfPrompt._default_retry_tries, SelfPrompt._default_retry_delay
    SelfPrompt._default_retry_tries, SelfPrompt._default_retry_delay = 3, 0
    try:
        return Symbol(SKY).query("Which colour?", self_prompt=True)
    finally:
        SelfPrompt._default_retry_tries, SelfPrompt._default_retry_delay = tries, delay


@case()
def tracker_of_queries(world: World) -> Any:
    with MetadataTracker() as tracker:
        Symbol(SKY).query("Which colour?")
        Symbol(SKY).query("Which port?", n=2)
    return tracker.usage, tracker.metadata


@case()
def tracker_within_an_expression(world: World) -> Any:
    class Painter(Expression):  # type: ignore[misc] # symbolicai ships no types
        def forward(self, text: str) -> Any:
            return Symbol(text).query("Which colour?").query("And its complement?")

    with MetadataTracker() as tracker:
        painted = Painter()(SKY)
    return painted, tracker.usage


@case()
def tracker_of_a_failed_query(world: World) -> Any:
    with MetadataTracker() as tracker:
        world.fail(HTTPFault(400))
        with contextlib.suppress(ValueError):
            Symbol(SKY).query("Which colour?")
        Symbol(SKY).query("Which port?")
    return tracker.usage


@case(bypasses=True)
def dynamic_engine(world: World) -> Any:
    before = Symbol(SKY).query("Which colour?")
    with _base_url(world), DynamicEngine("gpt-4o", "sk-dynamic", client_max_retries=0) as engine:
        within = Symbol(SKY).query("Which colour?")
        world.note(type(engine).__name__, engine.model, Symbol(SKY).tokenizer().name)
    return before, within, Symbol(SKY).query("Which colour?")


@case(bypasses=True)
def dynamic_engine_that_fails(world: World) -> Any:
    world.fail(HTTPFault(400))
    with _base_url(world), DynamicEngine("gpt-4o", "sk-dynamic", client_max_retries=0):
        return Symbol(SKY).query("Which colour?")


@contextlib.contextmanager
def _base_url(world: World) -> Iterator[None]:
    os.environ["OPENAI_BASE_URL"] = world.server.base_url
    try:
        yield
    finally:
        del os.environ["OPENAI_BASE_URL"]


@case(unordered=True)
def twenty_threads_at_once(world: World) -> Any:
    def ask(number: int) -> Any:
        answer = str(Symbol(f"Sky {number}").query("Which colour?", temperature=number / 20))
        world.note(number, answer)
        return answer

    with ThreadPoolExecutor(20) as pool:
        return [*pool.map(ask, range(20))]


@case(unordered=True)
def twenty_threads_at_once_with_remedies(world: World) -> Any:
    def remedy(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        world.note("remedy", str(error), argument.kwargs["seed"])
        return callback(model=engine.model, messages=argument.prop.prepared_input, seed=-1)

    def reply(request: RecordedRequest) -> Any:
        seed = request.body["seed"]
        return HTTPFault(400) if seed >= 0 and seed % 2 else digest(request)

    def ask(number: int) -> Any:
        symbol = Symbol(f"Sky {number}")
        return str(symbol.query("Which colour?", seed=number, except_remedy=remedy))

    world.reply = reply
    with ThreadPoolExecutor(20) as pool:
        return [*pool.map(ask, range(20))]


@cases({"verbose": "verbose", "time_clock": "time_clock"}, fresh=True, alone=True)
def printed_with(world: World, flag: str) -> Any:
    command(**{flag: True})
    return printed(lambda: Symbol(SKY).query("Which colour?"))


@case(alone=True)
def printed_of_an_error(world: World) -> Any:
    def ask() -> None:
        world.fail(HTTPFault(400, "no <b>bold</b> \U0001f600"))
        with contextlib.suppress(ValueError):
            Symbol(SKY).query("Which colour?", max_tokens=20_000)

    return printed(ask)


@case(alone=True)
def printed_of_an_error_with_a_control_character(world: World) -> Any:
    """The message's own printing fails, and that is what is raised."""

    def ask() -> Any:
        world.fail(HTTPFault(400, "a bell \x07"))
        return Symbol(SKY).query("Which colour?")

    return printed(ask)


def printed(function: Callable[[], Any]) -> str:
    """Return what symbolicai prints, with its messages turned on."""
    os.environ["SYMAI_WARNINGS"] = "1"
    try:
        # A session of its own: prompt_toolkit keeps the output that it has seen first.
        with contextlib.redirect_stdout(io.StringIO()) as output, create_app_session():
            function()
    finally:
        os.environ["SYMAI_WARNINGS"] = "0"
    assert output.getvalue()
    return re.sub(r"[\d.]+(e-\d+)? sec", "... sec", output.getvalue())


@case(fresh=True, alone=True)
def logged_query(world: World) -> Any:
    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.msg, dict):
                world.note(record.levelname, record.msg)

    command(logging=True, log_level=logging.WARNING)
    root, handler = logging.getLogger(), Noting()
    root.addHandler(handler)
    try:
        return Symbol(SKY).query("Which colour?")
    finally:
        root.removeHandler(handler)


CONSTRUCTIONS: dict[str, dict[str, Any]] = {
    "an_unregistered_model": {"api_key": KEY, "model": "o3-mini"},
    "an_unsupported_model": {"api_key": KEY, "model": "gpt-4o-2024-08-06"},
    "an_empty_key": {"api_key": "", "model": MODEL},
    "nothing": {},
    "timeouts": {"api_key": KEY, "model": MODEL, "client_timeout": 3.5, "client_max_retries": 7},
}


@cases(CONSTRUCTIONS, silent=True)
def engine_built_with(world: World, options: dict[str, Any]) -> Any:
    engine = world.engine_class(**options)
    world.note(engine.id(), str(engine), engine.config)
    names = ("model", "seed", "name", "max_context_tokens", "time_clock", "verbose")
    world.note(*(getattr(engine, name, "missing") for name in names))
    client = getattr(engine, "client", None)
    return client and (client.api_key, client.timeout, client.max_retries)


@case()
def function_component(world: World) -> Any:
    return Function("Name the colour of it.")(SKY)


@case()
def attributes_of_the_engine(world: World) -> Any:
    engine = world.engine
    ask_by_hand(world, {})
    messages = [{"role": "user", "content": SKY}]
    world.note(engine.compute_required_tokens(messages), engine.compute_remaining_tokens(messages))
    return engine.no_such_attribute
