"""Cases of how it is asked: every parameter of the request, tools, JSON, models."""

from __future__ import annotations

from typing import Any

from symai import Symbol

from gptx_async.testing import Reply, ToolCall, call_tool, canned

from .asking import SKY, ask_by_hand
from .harness import World, case, cases

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "colour",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"colour": {"type": "string"}, "shade": {"type": "integer"}},
            "required": ["colour", "shade"],
            "additionalProperties": False,
        },
    },
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paint the sky.",
            "parameters": {"type": "object", "properties": {"colour": {"type": "string"}}},
        },
    }
]

PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"model": "gpt-4o"},
    "seed": {"seed": 7},
    "temperature": {"temperature": 0.25},
    "top_p": {"top_p": 0.5},
    "frequency_penalty": {"frequency_penalty": -0.5},
    "presence_penalty": {"presence_penalty": 1.5},
    "logit_bias": {"logit_bias": {"1734": -100}},
    "stop": {"stop": "a"},
    "stop_list": {"stop": ["a", "b"]},
    "n": {"n": 3},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "max_tokens": {"max_tokens": 2},
    "max_tokens_over_the_limit": {"max_tokens": 20_000},
    "max_completion_tokens": {"max_completion_tokens": 1},
    "max_completion_tokens_over_the_limit": {"max_completion_tokens": 20_000},
    "both_limits": {"max_tokens": 3, "max_completion_tokens": 2},
    "null_ones": {"temperature": None, "stop": None, "n": None},
}


@cases({"that_is_not_json": {"logit_bias": {"1": object}}}, silent=True)
@cases(PARAMETERS)
def parameter(world: World, keywords: dict[str, Any]) -> Any:
    return Symbol(SKY).query("Which colour?", return_metadata=True, **keywords)


@cases(
    {
        "success": {"temperature": 0.5},
        "max_tokens": {"max_tokens": 50},
        "max_tokens_over_the_limit": {"max_tokens": 20_000},
        "a_model": {"model": "gpt-4o", "seed": 1},
        "raw_output": {"raw_output": True, "return_metadata": True},
    }
)
def argument_after(world: World, keywords: dict[str, Any]) -> Any:
    return ask_by_hand(world, keywords)


@cases(
    {
        "once": call_tool("paint", {"colour": "grey"}),
        "with_bad_json": call_tool("paint", '{"colour": '),
        "with_no_arguments": call_tool("paint", ""),
        "twice": lambda _request: Reply(
            tool_calls=[ToolCall("paint", {"colour": "grey"}), ToolCall("paint", {"colour": "red"})]
        ),
        "and_a_text": lambda _request: Reply("Done.", tool_calls=[ToolCall("paint", {})]),
        "in_no_case": canned("I do not paint."),
    }
)
def tool_called(world: World, reply: Any) -> Any:
    world.reply = reply
    return Symbol(SKY).query("Paint it.", tools=TOOLS, tool_choice="auto", return_metadata=True)


@case()
def tool_called_in_raw_output(world: World) -> Any:
    world.reply = call_tool("paint", {"colour": "grey"})
    return Symbol(SKY).query("Paint it.", tools=TOOLS, raw_output=True, return_metadata=True)


@cases(
    {
        "an_object": {"type": "json_object"},
        "a_schema": SCHEMA,
        "text": {"type": "text"},
        "an_unknown_type": {"type": "no_such_type"},
    }
)
def response_format_of(world: World, wanted: Any) -> Any:
    return Symbol(SKY).query("Which colour?", response_format=wanted, return_metadata=True)


@cases({"without_a_type": {"schema": {}}, "that_is_no_dict": "json"}, silent=True)
def response_format(world: World, wanted: Any) -> Any:
    return Symbol(SKY).query("Which colour?", response_format=wanted)


def ask_the_model(world: World, name: str) -> Any:
    seen = Symbol(SKY).query("Paint it.", tools=TOOLS, stop="x", seed=1, return_metadata=True)
    return name, seen, world.engine.tokenizer.name


for model in ("gpt-4", "gpt-3.5-turbo", "chatgpt-4o-latest", "gpt-5.1-chat-latest", "gpt-4.1"):
    cases({model: model}, "model", options={"model": model})(ask_the_model)


@case(options={"model": "gpt-3.5-turbo-1106"}, alone=True, silent=True)
def model_whose_tokens_cannot_be_counted(world: World) -> Any:
    return Symbol(SKY).query("Which colour?")


@case(options={"model": None})
def key_without_a_model(world: World) -> Any:
    return Symbol(SKY).query("Which colour?")


@case(options={"api_key": None})
def model_without_a_key(world: World) -> Any:
    return Symbol(SKY).query("Which colour?")


@case(environment={"OPENAI_ORG_ID": "org-of-the-cases", "OPENAI_PROJECT_ID": "proj-of-the-cases"})
def organization_and_project(world: World) -> Any:
    return Symbol(SKY).query("Which colour?")
