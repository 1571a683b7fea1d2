"""Cases of `except_remedy`: what it is given, what it may do, and what becomes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from openai.types.chat import ChatCompletion
from symai import Symbol

from gptx_async.testing import HTTPFault, call_tool, digest

from .asking import LONG, SKY, ask_by_hand
from .cases_requests import TOOLS
from .harness import KEY, World, case, cases

MESSAGES = [{"role": "user", "content": "Which colour, please?"}]

Remedy = Callable[[Any, Exception, Any, Any], Any]


def ask_with(world: World, remedy: Any, faults: int = 1, **keywords: Any) -> Any:
    """Ask with a remedy, noting what it is given; the first requests fail."""

    def noting_remedy(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        given = (type(engine).__name__, error, callback.__name__, argument.kwargs)
        world.note("remedy", *given, argument.prop.prepared_input)
        try:
            response = remedy(engine, error, callback, argument)
        except Exception as failure:
            world.note("remedy raises", failure)
            raise
        world.note("remedy returns", response)
        return response

    world.fail(HTTPFault(400, "bad request here"), faults)
    return ask_by_hand(world, {"except_remedy": noting_remedy, **keywords})


def returns_a_response(*_given: Any) -> Any:
    message = {"role": "assistant", "content": "grey, says the remedy"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return ChatCompletion.model_validate(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )


def returns_a_look_alike(*_given: Any) -> Any:
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="grey"))])


def returns_nothing(*_given: Any) -> Any:
    return None


def calls_back(engine: Any, _error: Exception, callback: Any, argument: Any) -> Any:
    return callback(model=engine.model, messages=argument.prop.prepared_input, temperature=0)


def calls_back_with_another_model(_engine: Any, _error: Any, callback: Any, argument: Any) -> Any:
    return callback(model="gpt-4", messages=MESSAGES, n=2, seed=argument.kwargs.get("seed"))


def calls_back_without_messages(engine: Any, _error: Any, callback: Any, _argument: Any) -> Any:
    return callback(model=engine.model)


def calls_back_with_an_unknown_parameter(
    engine: Any, _error: Exception, callback: Any, _argument: Any
) -> Any:
    return callback(model=engine.model, messages=MESSAGES, no_such_parameter=1)


def calls_back_by_position(engine: Any, _error: Exception, callback: Any, _argument: Any) -> Any:
    return callback(MESSAGES, engine.model)


def raises_its_own(*_given: Any) -> Any:
    raise LookupError("the remedy does not help")


def raises_what_it_got(_engine: Any, error: Exception, *_given: Any) -> Any:
    raise error


def raises_from_what_it_got(_engine: Any, error: Exception, *_given: Any) -> Any:
    raise LookupError("the remedy does not help") from error


def queries_again(engine: Any, _error: Exception, callback: Any, _argument: Any) -> Any:
    asked = str(Symbol("The remedy's own.").query("What now?"))
    return callback(model=engine.model, messages=[{"role": "user", "content": asked}])


def uses_the_engines_client(engine: Any, *_given: Any) -> Any:
    patient = engine.client.with_options(timeout=20, max_retries=1)
    return patient.chat.completions.create(model=engine.model, messages=MESSAGES)


def asks_for_the_raw_response(engine: Any, *_given: Any) -> Any:
    create = engine.client.chat.completions.with_raw_response.create
    return create(model=engine.model, messages=MESSAGES).parse()


def shortens_the_prompt(engine: Any, _error: Exception, callback: Any, argument: Any) -> Any:
    """Do what InvalidRequestErrorRemedyChatStrategy of symbolicai 0.6.5 did."""
    system, user = argument.prop.prepared_input
    text = user["content"][-1]["text"]
    tokens = engine.tokenizer.encode(text)
    messages = [system, {"role": "user", "content": engine.tokenizer.decode(tokens[:5])}]
    assert engine.compute_required_tokens(messages) < engine.max_context_tokens
    return callback(
        model=engine.model,
        messages=messages,
        max_completion_tokens=engine.compute_remaining_tokens(messages),
        seed=engine.seed,
    )


for remedy in (
    returns_a_response,
    returns_a_look_alike,
    returns_nothing,
    calls_back,
    calls_back_with_another_model,
    calls_back_without_messages,
    calls_back_with_an_unknown_parameter,
    calls_back_by_position,
    raises_its_own,
    raises_what_it_got,
    raises_from_what_it_got,
    queries_again,
    uses_the_engines_client,
    asks_for_the_raw_response,
    shortens_the_prompt,
):
    cases({remedy.__name__: remedy}, "remedy_that")(ask_with)


@cases({"once": 2, "always": 3})
def remedy_whose_callback_fails(world: World, faults: int) -> Any:
    def call_back_twice(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        try:
            return calls_back(engine, error, callback, argument)
        except Exception as failure:
            world.note("callback raises", failure)
            return calls_back(engine, error, callback, argument)

    return ask_with(world, call_back_twice, faults)


@case()
def remedy_that_reads_the_engine(world: World) -> Any:
    def read(engine: Any, error: Any, callback: Any, argument: Any) -> Any:
        prompt = argument.prop.prepared_input
        world.note(
            engine.model,
            engine.seed,
            engine.id(),
            engine.name,
            engine.tokenizer.name,
            engine.max_context_tokens,
            engine.max_response_tokens,
            engine.compute_required_tokens(prompt),
            engine.compute_remaining_tokens(prompt),
            engine.truncate(prompt, 0.001, "head"),
            str(engine.client.base_url),
            engine.client.api_key,
            engine.client.max_retries,
            engine.client.timeout,
            engine.config,
        )
        return returns_a_response()

    return ask_with(world, read)


@case()
def remedy_that_looks_at_its_callback(world: World) -> Any:
    def look(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        parameters = inspect.signature(callback).parameters
        kinds = {name: parameter.kind.name for name, parameter in parameters.items()}
        world.note(callable(callback), callback.__qualname__, callback.__doc__, kinds)
        return calls_back(engine, error, callback, argument)

    return ask_with(world, look)


@case()
def remedy_that_lists_the_models(world: World) -> Any:
    def list_models(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        page = engine.client.models.list()
        world.note(type(page).__name__, [model.id for model in page], page.has_next_page())
        return calls_back(engine, error, callback, argument)

    return ask_with(world, list_models)


@case()
def remedy_that_asks_for_an_embedding(world: World) -> Any:
    def embed(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        answer = engine.client.embeddings.create(model="text-embedding-3-small", input=SKY)
        world.note(answer.data[0].embedding[:3], answer.usage)
        return calls_back(engine, error, callback, argument)

    return ask_with(world, embed)


@case()
def remedy_that_calls_a_tool(world: World) -> Any:
    world.reply = call_tool("paint", {"colour": "grey"})
    return ask_with(world, calls_back, tools=TOOLS, return_metadata=True)


@case()
def remedy_with_an_over_limit_number_of_tokens(world: World) -> Any:
    return ask_with(world, calls_back, max_tokens=20_000, return_metadata=True)


@case()
def remedy_for_a_truncated_prompt(world: World) -> Any:
    return ask_with(world, shortens_the_prompt, truncation_percentage=0.001, payload=LONG)


@case()
def remedy_in_three_trials(world: World) -> Any:
    def remedy(_engine: Any, error: Exception, _callback: Any, argument: Any) -> Any:
        world.note("remedy", error, argument.kwargs)
        raise error

    world.fail(HTTPFault(400), 2)
    return ask_by_hand(world, {"except_remedy": remedy}, trials=3)


@case()
def remedy_that_is_not_needed(world: World) -> Any:
    return ask_with(world, raises_its_own, faults=0)


@case(fresh=True)
def remedy_that_changes_the_engine(world: World) -> Any:
    def change(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        engine.model, engine.seed = "gpt-4o", 5
        return calls_back(engine, error, callback, argument)

    try:
        return ask_with(world, change)
    finally:
        world.note(world.engine.model, world.engine.seed, Symbol(SKY).query("And now?"))


class Strategy:
    """A remedy that is an object, with a memory."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        return calls_back(*given)


@case()
def remedy_that_is_an_object(world: World) -> Any:
    strategy = Strategy()
    world.fail(HTTPFault(400))
    world.note(Symbol(SKY).query("Which colour?", except_remedy=strategy))
    return strategy.calls


@cases({"text": "retry", "too_few_parameters": lambda engine, error: None})
def remedy_that_is_no_remedy(world: World, remedy: Any) -> Any:
    world.fail(HTTPFault(400))
    return ask_by_hand(world, {"except_remedy": remedy})


@case()
def remedy_whose_own_query_fails(world: World) -> Any:
    def outer(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        inner = Symbol("inner").query("What?", except_remedy=returns_a_response)
        world.note("inner", inner)
        return calls_back(engine, error, callback, argument)

    return ask_with(world, outer, faults=2)


@case()
def remedy_that_asks_with_another_key(world: World) -> Any:
    def remedy(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        other = engine.client.with_options(api_key=f"{KEY}-2")
        world.reply = digest
        return other.chat.completions.create(model=engine.model, messages=MESSAGES)

    return ask_with(world, remedy)
