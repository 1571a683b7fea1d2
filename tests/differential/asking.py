"""Ways to ask symbolicai that several modules of cases use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from symai import Symbol, core
from symai.core import Argument
from symai.functional import EngineRepository

from .harness import World

__all__ = ["LONG", "SKY", "UNTYPED", "ask_by_hand", "function_returning"]

SKY = "The sky over the port was the color of a dead channel."

LONG = " ".join(f"word{number}" for number in range(400))
"""About 1,000 tokens; one percent of the context of gpt-4o-mini is 1,280."""

UNTYPED = object()
"""In place of a return type: the function has no annotation."""


def function_returning(
    returns: Any, fallback: Callable[..., Any] | None = None, **options: Any
) -> Callable[[Any], Any]:
    """Make a function that the model answers, as symbolicai's decorators do.

    Args:
        returns: The return type that it is annotated with, or `UNTYPED`.
        fallback: What its body does; it gets `error` and `stack_trace` when the query has failed.
        options: Those of `symai.core.zero_shot`.
    """

    def convert(_self: Any, **keywords: Any) -> Any:
        return None if fallback is None else fallback(**keywords)

    # Set here: this module's annotations are strings, which symbolicai does not take for types.
    convert.__annotations__ = {} if returns is UNTYPED else {"return": returns}
    function: Callable[[Any], Any] = core.zero_shot(prompt="Convert.", **options)(convert)
    return function


def ask_by_hand(
    world: World,
    keywords: dict[str, Any],
    fallback: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """Query with an Argument of one's own, and note what has become of it."""

    def answer(_self: Any, *_args: Any, **keywords: Any) -> Any:
        return None if fallback is None else fallback(**keywords)

    answer.__annotations__ = {"return": str}
    argument = Argument((SKY,), keywords, {"prompt": "Answer."})
    try:
        return EngineRepository.query(
            "neurosymbolic",
            instance=Symbol(SKY),
            func=answer,
            argument=argument,
            **{"limit": 1, **options},
        )
    finally:
        world.note("the argument after it", argument.kwargs, vars(argument.prop))
