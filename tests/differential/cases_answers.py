"""Cases of what becomes of an answer: types, limits, constraints, fallbacks, trials, handlers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from symai import Symbol

from gptx_async.testing import HTTPFault, Reply, canned

from .asking import SKY, UNTYPED, ask_by_hand, function_returning
from .harness import World, case, cases

LIST, DICT = "['a', 'b', 'c']", "{'a': 1, 'b': 2, 'c': 3}"

TYPES: dict[str, tuple[Any, str]] = {
    "str": (str, " 'grey' "),
    "int": (int, "42"),
    "int_of_a_word": (int, "forty-two"),
    "float": (float, "0.5"),
    "float_of_a_word": (float, "half"),
    "bool_true": (bool, "True"),
    "bool_false": (bool, "no"),
    "bool_of_nothing": (bool, ""),
    "list": (list, LIST),
    "list_of_a_word": (list, "grey"),
    "dict": (dict, DICT),
    "dict_of_malformed_json": (dict, '{"a": tru'),
    "tuple": (tuple, "('a', 'b')"),
    "set": (set, "{'a', 'b'}"),
    "none": (None, "grey"),
    "no_annotation": (UNTYPED, "grey"),
}


@cases(TYPES)
def returned_type(world: World, pair: tuple[Any, str]) -> Any:
    returns, said = pair
    world.reply = canned(said)
    return function_returning(returns, limit=None)(Symbol(SKY))


@cases({"list": (list, LIST), "dict": (dict, DICT), "str_of_n": (str, "grey")})
def limited_to_two(world: World, pair: tuple[Any, str]) -> Any:
    returns, said = pair
    world.reply = canned(said)
    return function_returning(returns, limit=2, n=3)(Symbol(SKY))


@cases({"str": str, "list": list, "dict": dict})
def null_content_as(world: World, returns: Any) -> Any:
    world.reply = lambda _request: Reply(None)
    return function_returning(returns)(Symbol(SKY))


@case()
def refusal(world: World) -> Any:
    world.reply = lambda _request: Reply(None, refusal="I do not talk about skies.")
    return Symbol(SKY).query("Which colour?", return_metadata=True)


@cases(
    {
        "metadata": {"return_metadata": True},
        "raw_output": {"raw_output": True},
        "raw_output_and_metadata": {"raw_output": True, "return_metadata": True},
        "raw_output_of_three": {"raw_output": True, "n": 3},
    }
)
def returning(world: World, keywords: dict[str, Any]) -> Any:
    return Symbol(SKY).query("Which colour?", **keywords)


@cases({"str": str, "list": list, "dict": dict})
def raw_output_as(world: World, returns: Any) -> Any:
    world.reply = canned(LIST)
    return function_returning(returns, raw_output=True)(Symbol(SKY))


@cases({"satisfied": str.islower, "violated": str.isupper})
def constraint(world: World, check: Callable[[str], bool]) -> Any:
    world.reply = canned("grey")
    return Symbol(SKY).query("Which colour?", constraints=[check])


@case()
def constraint_that_raises(world: World) -> Any:
    world.reply = canned("grey")
    return Symbol(SKY).query("Which colour?", constraints=[lambda text: text.no_such_method()])


@case()
def default_of_a_query(world: World) -> Any:
    """Raises: the body of `Symbol.query` does not take an error."""
    world.fail(HTTPFault(400))
    return Symbol(SKY).query("Which colour?", default="grey")


def note_error(world: World, returned: Any, error: Any = None, stack_trace: Any = None) -> Any:
    world.note("fallback", error, type(stack_trace).__name__)
    return returned


@cases({"a_value": "grey", "nothing": None, "a_list": ["grey"]})
def fallback_returning(world: World, returned: Any) -> Any:
    world.fail(HTTPFault(500))
    return function_returning(str, functools.partial(note_error, world, returned))(Symbol(SKY))


@case()
def fallback_with_default(world: World) -> Any:
    world.fail(HTTPFault(500))
    fallback = functools.partial(note_error, world, None)
    return function_returning(str, fallback, default="grey")(Symbol(SKY))


@case()
def fallback_with_metadata(world: World) -> Any:
    world.fail(HTTPFault(500))
    fallback = functools.partial(note_error, world, "grey")
    return function_returning(dict, fallback, return_metadata=True)(Symbol(SKY))


@case()
def fallback_that_raises(world: World) -> Any:
    def fallback(error: Exception, stack_trace: str) -> Any:
        world.note("fallback", error)
        raise LookupError("the fallback failed too")

    world.fail(HTTPFault(500))
    return function_returning(str, fallback)(Symbol(SKY))


@case()
def fallback_after_a_constraint(world: World) -> Any:
    fallback = functools.partial(note_error, world, "grey")
    return function_returning(str, fallback, constraints=[str.isupper])(Symbol(SKY))


@cases({"all_failing": 3, "the_last_good": 2, "all_good": 0})
def three_trials(world: World, failing: int) -> Any:
    world.fail(HTTPFault(500), failing)
    return ask_by_hand(
        world, {"max_tokens": 20_000}, functools.partial(note_error, world, None), trials=3
    )


@case()
def three_trials_with_a_default(world: World) -> Any:
    world.fail(HTTPFault(500), 3)
    return ask_by_hand(
        world, {}, functools.partial(note_error, world, None), trials=3, default="grey"
    )


@case()
def query_without_a_limit(world: World) -> Any:
    return ask_by_hand(world, {}, limit=None)


def handlers(world: World, name: str) -> dict[str, Callable[[Any], None]]:
    return {
        "input_handler": lambda given: world.note(f"{name} input handler", given),
        "output_handler": lambda given: world.note(f"{name} output handler", given),
    }


def symbol_with_handlers(world: World, *kinds: str) -> Any:
    symbol = Symbol(SKY)
    for kind, handler in handlers(world, "instance").items():
        if kind in kinds:
            setattr(symbol._metadata, kind, handler)
    return symbol


@cases({"of_the_argument": (), "of_both": ("input_handler", "output_handler")})
def handlers_called(world: World, kinds: tuple[str, ...]) -> Any:
    symbol = symbol_with_handlers(world, *kinds)
    return symbol.query("Which colour?", **handlers(world, "argument"))


@case()
def handlers_of_the_instance(world: World) -> Any:
    symbol = symbol_with_handlers(world, "input_handler", "output_handler")
    return function_returning(str)(symbol)


@case()
def handlers_of_a_failed_query(world: World) -> Any:
    world.fail(HTTPFault(400))
    symbol = symbol_with_handlers(world, "input_handler", "output_handler")
    return symbol.query("Which colour?", **handlers(world, "argument"))


@cases({"output": "output_handler"})
@cases({"input": "input_handler"}, silent=True)
def handler_that_raises(world: World, kind: str) -> Any:
    def fail(given: Any) -> None:
        world.note(kind, given)
        raise LookupError("the handler failed")

    fallback = functools.partial(note_error, world, "grey")
    ask = function_returning(str, fallback, **{**handlers(world, "argument"), kind: fail})
    return ask(Symbol(SKY))


@cases({"input": "input_handler", "output": "output_handler"})
def handler_that_queries_again(world: World, kind: str) -> Any:
    def query(_given: Any) -> None:
        world.note(kind, Symbol("The handler's own.").query("Which colour?"))

    return Symbol(SKY).query("Which colour?", **{kind: query})


@case()
def handler_that_changes_the_argument(world: World) -> Any:
    def change(given: Any) -> None:
        _, argument = given
        argument.kwargs["temperature"] = 0
        argument.prop.prepared_input[1]["content"] = "Another question."

    return Symbol(SKY).query("Which colour?", input_handler=change)


@case()
def post_processor_that_queries_again(world: World) -> Any:
    def reword(response: str, _argument: Any) -> str:
        return str(Symbol(response).query("Say it in other words."))

    return Symbol(SKY).query("Which colour?", post_processors=[reword])


@case()
def query_of_an_answer(world: World) -> Any:
    return Symbol(SKY).query("Which colour?").query("And its complement?")
