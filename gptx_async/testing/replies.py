"""The requests, replies and latencies of the fake server."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .faults import Fault

__all__ = [
    "LatencyFunction",
    "RecordedRequest",
    "Reply",
    "ReplyFunction",
    "Said",
    "ToolCall",
    "call_tool",
    "canned",
    "digest",
    "echo",
    "lognormal",
]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that the server received.

    Attributes:
        method: The HTTP method, in capitals.
        path: The path, such as '/v1/chat/completions', without the query.
        headers: The headers; look-ups ignore case.
        body: The parsed JSON body; None if there is none, or if it is not JSON.
        raw: The bytes of the body.
        arrived: When the whole request had arrived, in seconds of `gptx_async.clock`.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    raw: bytes
    arrived: float

    @property
    def api_key(self) -> str:
        """The key in the Authorization header; empty if there is none."""
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    @property
    def fingerprint(self) -> str:
        """A hexadecimal digest of the body that does not depend on the order of keys."""
        canonical = json.dumps(self.body, sort_keys=True).encode()
        return hashlib.sha256(canonical).hexdigest()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat request, or the input of a Responses request as messages."""
        if not isinstance(self.body, dict):
            return []
        if "messages" in self.body:
            return list(self.body["messages"])
        instructions, given = self.body.get("instructions"), self.body.get("input", [])
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        if instructions:
            messages.insert(0, {"role": "system", "content": instructions})
        return messages

    @property
    def user_text(self) -> str:
        """The text of the last message by the user; empty if there is none."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return _text(message.get("content"))
        return ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in a reply.

    Attributes:
        name: The name of the tool.
        arguments: The arguments; a string is sent unchanged, even if it is not JSON.
    """

    name: str
    arguments: Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says in one choice.

    Attributes:
        content: The text; None is sent as null.
        tool_calls: The tool calls.
        finish_reason: Why the model stopped; None to derive it from the reply and the limits of the
            request.
        refusal: The text of a refusal.
        logprobs: OpenAI's logprobs object; None to generate one if the request asks for it.
        reasoning: The model's reasoning. A message has it as `reasoning_content` and `reasoning`,
            like DeepSeek, Groq, OpenRouter and Cerebras; the Responses API has it as the summary of
            a reasoning item. A DeepSeek model always has reasoning: for None it is generated.
    """

    content: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: str | None = None
    refusal: str | None = None
    logprobs: Mapping[str, Any] | None = None
    reasoning: str | None = None


Said: TypeAlias = str | Reply | Sequence[str | Reply] | dict[str, Any]
"""What a model says: a text, a `Reply`, or a list of them for the `n` choices of the request,
repeated if there are too few; or the whole body of an answer."""

ReplyFunction: TypeAlias = Callable[[RecordedRequest], "Said | Fault"]
"""Returns what the model says, or a fault. Called on the server's thread in the order of arrival;
must not block."""

LatencyFunction: TypeAlias = Callable[[RecordedRequest], float]
"""Returns the seconds before the answer to a request. Called on the server's thread."""


def echo(request: RecordedRequest) -> str:
    """Reply with the text of the last message by the user, in JSON if the request asks for it."""
    return _in_wanted_format(request, request.user_text)


def digest(request: RecordedRequest) -> list[str]:
    """Reply with 12 hexadecimal digits computed from all messages, different for each choice."""
    messages = json.dumps(request.messages, sort_keys=True).encode()
    choices = (request.body or {}).get("n") or 1
    return [
        _in_wanted_format(request, hashlib.sha256(b"%d:%b" % (index, messages)).hexdigest()[:12])
        for index in range(choices)
    ]


def canned(contents: str | Sequence[str]) -> ReplyFunction:
    """Make a reply function that does not depend on the request.

    Args:
        contents: The text; or texts, which are used in turn and repeated.
    """
    texts = itertools.cycle([contents] if isinstance(contents, str) else contents)
    return lambda _request: next(texts)


def call_tool(name: str, arguments: Mapping[str, Any] | str) -> ReplyFunction:
    """Make a reply function that calls a tool.

    Args:
        name: The name of the tool.
        arguments: The arguments; a string is sent unchanged, even if it is not JSON.
    """
    reply = Reply(tool_calls=[ToolCall(name, arguments)])
    return lambda _request: reply


def lognormal(median: float, sigma: float = 0.5, seed: int = 0) -> LatencyFunction:
    """Make a latency function with log-normal latencies, like those of a model.

    The latency depends only on the body of the request and the seed: the same work takes the same
    time in any order and in any run.

    Args:
        median: The median, in seconds.
        sigma: The standard deviation of the latency's logarithm; 0.5 puts 95 % below 2.3 medians.
        seed: Changes the latencies.
    """
    mu = math.log(median)
    return lambda request: random.Random(f"{seed}:{request.fingerprint}").lognormvariate(mu, sigma)


def _text(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _in_wanted_format(request: RecordedRequest, text: str) -> str:
    """Put the text into JSON if the request asks for it."""
    body = request.body or {}
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": text})
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema", wanted).get("schema", {})
        return json.dumps(_instance(schema, schema, text))
    return text


def _instance(schema: Mapping[str, Any], root: Mapping[str, Any], text: str) -> Any:
    """Make a value that matches a JSON schema, with the text as every string."""
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, text)
    if "const" in schema:
        return schema["const"]
    for key in ("enum", "anyOf", "oneOf", "allOf"):
        if key in schema:
            first = schema[key][0]
            return first if key == "enum" else _instance(first, root, text)
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _instance(part, root, text) for name, part in properties.items()}
        case "array":
            count = max(1, schema.get("minItems", 1))
            return [_instance(schema.get("items", {"type": "string"}), root, text)] * count
        case simple:
            return {"string": text, "null": None, "boolean": True}.get(simple, 1)


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference such as '#/$defs/Item'; recursive schemas are not supported."""
    target = root
    for name in reference.removeprefix("#").split("/")[1:]:
        target = target[name]
    return target
