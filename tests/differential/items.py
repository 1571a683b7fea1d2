"""The items of a batch: Arguments of all kinds, good and bad, that know each other not at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from symai import Symbol
from symai.core import Argument

from gptx_async.testing import (
    BadJSON,
    EmptyChoices,
    HTTPFault,
    NoChoices,
    RecordedRequest,
    Reply,
    Reset,
    call_tool,
    digest,
)
from gptx_async.testing.replies import ReplyFunction

from .asking import LONG, SKY
from .cases_engine import prompt_by_itself
from .cases_remedies import calls_back, queries_again, raises_its_own, returns_a_response
from .cases_requests import TOOLS
from .harness import World

__all__ = ["make_arguments", "make_items", "reply_by_item"]


@dataclass(frozen=True)
class Item:
    """One argument of a batch.

    Attributes:
        keywords: Its keyword arguments.
        reply: What the model says to it.
        text: What is asked, before the item's name, by which the reply is found.
        symbol: The options of the Symbol that asks.
    """

    keywords: dict[str, Any] = field(default_factory=dict)
    reply: ReplyFunction = digest
    text: str = SKY
    symbol: dict[str, Any] = field(default_factory=dict)


def failing(fault: Any) -> ReplyFunction:
    """Make a reply that fails, but for what a remedy asks: that has temperature 0."""
    return lambda request: digest(request) if request.body.get("temperature") == 0 else fault


BAD_REQUEST = failing(HTTPFault(400, "bad request here"))


def make_items(world: World) -> dict[str, Item]:
    """Make the items, by name; their handlers and remedies note what they get in the world."""
    return {
        "plain": Item(),
        "of a context": Item(symbol={"static_context": "This is a novel."}),
        "of all sections": Item({"payload": "More.", "suppress_verbose_output": True}),
        "truncated": Item({"truncation_percentage": 0.005}, text=LONG),
        "of another model": Item({"model": "gpt-4o", "seed": 3, "stop": ["x"]}),
        "with three answers": Item({"n": 3, "logprobs": True, "top_logprobs": 2}),
        "over the limit": Item({"max_tokens": 20_000}),
        "with a tool": Item({"tools": TOOLS}, call_tool("paint", {"colour": "grey"})),
        "with a bad tool call": Item({"tools": TOOLS}, call_tool("paint", "{")),
        "of JSON": Item({"response_format": {"type": "json_object"}}),
        "with a picture": Item(text="See <<vision:data:image/png;base64,AA==:>>."),
        "raw": Item({"raw_input": True}),
        "raw and empty": Item({"raw_input": True}, text=""),
        "without its picture": Item(text="See <<vision:/no/such/picture.png:>>."),
        "with a special token": Item(text="It ends <|endoftext|> here."),
        "that is not JSON": Item({"logit_bias": {"1": object}}),
        "of a bad format": Item({"response_format": {"schema": {}}}),
        "with nothing said": Item(reply=lambda _request: Reply(None)),
        "refused with 400": Item(reply=BAD_REQUEST),
        "refused with 404": Item(reply=failing(HTTPFault(404))),  # not 401, which ends a batch
        "refused with 429": Item(reply=failing(HTTPFault(429))),
        "refused with 500": Item(reply=failing(HTTPFault(500))),
        "of bad JSON": Item(reply=failing(BadJSON())),
        "of no choices": Item(reply=failing(NoChoices())),
        "of empty choices": Item(reply=failing(EmptyChoices())),
        "cut off": Item(reply=failing(Reset("middle"))),
        "remedied": Item({"except_remedy": returns_a_response}, BAD_REQUEST),
        "remedied by its callback": Item({"except_remedy": calls_back}, BAD_REQUEST),
        "remedied by a query": Item({"except_remedy": queries_again}, BAD_REQUEST),
        "remedied in vain": Item({"except_remedy": raises_its_own}, BAD_REQUEST),
        "with handlers": Item(handlers(world)),
        "failing with handlers": Item(handlers(world), BAD_REQUEST),
        "with a bad input handler": Item(handlers(world, bad="input")),
        "with a bad output handler": Item(handlers(world, bad="output")),
        "prompting itself": Item({"self_prompt": True}, prompt_by_itself),
    }


def handlers(world: World, bad: str = "") -> dict[str, Any]:
    """Make handlers that note what they get; the bad one raises then."""

    def make(kind: str) -> Any:
        def handle(given: Any) -> None:
            world.note(kind, given)
            if kind == bad:
                raise LookupError(f"the {kind} handler failed")

        return handle

    return {f"{kind}_handler": make(kind) for kind in ("input", "output")}


def make_arguments(items: dict[str, Item]) -> dict[str, Any]:
    """Make an Argument of each item, not prepared."""
    arguments = {}
    for name, item in items.items():
        asked = item.text and f"[{name}] {item.text}"
        argument = Argument((asked,), item.keywords, {"prompt": "Answer."})
        argument.prop.instance = Symbol(item.text, **item.symbol)
        argument.prop.processed_input = asked
        arguments[name] = argument
    return arguments


def reply_by_item(items: dict[str, Item]) -> ReplyFunction:
    """Make a reply that says to each item what it is to be told."""

    def reply(request: RecordedRequest) -> Any:
        named = re.search(r"\[([\w ]+)\]", request.user_text)
        return items[named[1]].reply(request) if named else digest(request)

    return reply
