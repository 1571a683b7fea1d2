"""Cases of what some engines have and others not: thinking, retries of their own, other parameters.

They are cases of every engine, as all others: an engine without the thing has to be without it
asynchronously, too.
"""

from __future__ import annotations

from typing import Any

from symai import Symbol

from gptx_async.testing import HTTPFault, Reply, ToolCall, canned, digest

from .asking import SKY, ask_by_hand
from .cases_requests import TOOLS
from .harness import World, case, cases

FLAT_TOOLS = [
    {"type": "function", "name": "paint", "description": "Paint the sky.", "parameters": {}},
    {"type": "web_search_preview"},
]
"""As the Responses API has them."""


@cases(
    {
        "in_tags": Reply("<think>\nDead channels hum.\n</think>\n\nGrey."),
        "in_empty_tags": Reply("<think></think>Grey."),
        "in_a_tag_that_is_not_closed": Reply("<think>Dead channels"),
        "in_two_tags": Reply("<think>One.</think>Grey<think>two.</think>."),
        "of_nothing": Reply(None, reasoning="Nothing comes to mind."),
        "beside_the_answer": Reply("Grey.", reasoning="Dead channels hum."),
        "that_is_empty": Reply("Grey.", reasoning=""),
        "beside_a_tool": Reply(None, [ToolCall("paint", {})], reasoning="It wants paint."),
    }
)
def thinking(world: World, reply: Reply) -> Any:
    world.reply = lambda _request: reply
    return Symbol(SKY).query("Which colour?", tools=TOOLS, return_metadata=True)


@case()
def thinking_in_each_of_three(world: World) -> Any:
    world.reply = lambda _request: [f"<think>{number}</think>grey {number}" for number in range(3)]
    return Symbol(SKY).query("Which colour?", n=3, raw_output=True, return_metadata=True)


@case()
def answer_without_any_reasoning(world: World) -> Any:
    """As from a server that speaks the protocol, but not the provider's part of it."""
    message = {"role": "assistant", "content": "grey"}
    world.reply = lambda _request: {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    return Symbol(SKY).query("Which colour?", return_metadata=True)


@cases(
    {
        "reasoning_effort": {"reasoning_effort": "low"},
        "reasoning": {"reasoning": {"effort": "low", "summary": "auto"}},
        "service_tier": {"service_tier": "flex"},
        "parallel_tool_calls": {"tools": TOOLS, "parallel_tool_calls": False},
        "max_output_tokens": {"max_output_tokens": 2},
        "max_output_tokens_over_the_limit": {"max_output_tokens": 2_000_000},
        "disable_reasoning": {"disable_reasoning": True},
        "what_groq_leaves_out": {"logprobs": True, "logit_bias": {"1": 1}},
        "flat_tools": {"tools": FLAT_TOOLS},
        "json_schema_by_its_name": {
            "response_format": {"type": "json_schema", "name": "x", "schema": {"type": "string"}}
        },
    },
    prefix="providers_parameter",
)
def providers_parameter(world: World, keywords: dict[str, Any]) -> Any:
    return ask_by_hand(world, {"return_metadata": True, **keywords})


@cases({"once": 1, "seven_times": 7, "for_good": 8})
def own_retries_after_failing(world: World, times: int) -> Any:
    world.fail(HTTPFault(400, "bad request here"), times)
    return ask_by_hand(world, {"return_metadata": True, "max_tokens": 50})


@case()
def own_retries_with_a_remedy_that_helps_at_last(world: World) -> Any:
    tries = []

    def remedy(_engine: Any, error: Exception, _callback: Any, argument: Any) -> Any:
        tries.append(error)
        world.note("remedy", error, argument.kwargs)
        if len(tries) < 3:
            raise LookupError(f"not helped {len(tries)} times")
        return Symbol("The remedy's own.").query("Which colour?", raw_output=True)

    world.fail(HTTPFault(400), 3)
    return ask_by_hand(world, {"except_remedy": remedy})


@case()
def remedy_that_calls_back_as_the_responses_api_is_called(world: World) -> Any:
    def remedy(engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        world.note(error, callback.__name__)
        return callback(model=engine.model, input=argument.prop.prepared_input)

    world.fail(HTTPFault(400))
    return ask_by_hand(world, {"except_remedy": remedy})


@case()
def two_queries_in_a_row(world: World) -> Any:
    """Of which the first leaves things behind in some engines: its tokens, its messages."""
    world.reply = canned(["grey", "red"])
    first = ask_by_hand(world, {"seed": 1})
    world.reply = digest
    return first, ask_by_hand(world, {"seed": 2})
