"""What the fake server was asked, and what it is to say: requests, replies, latencies."""

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
    """A request as it reached the server.

    Attributes:
        method: The HTTP method, in capitals.
        path: The path, such as '/v1/chat/completions', without the query.
        headers: The headers; looked up without regard to case.
        body: The parsed JSON body; None if there is none, or if it is not JSON.
        raw: The body's bytes.
        arrived: When it had arrived in full, in seconds of `gptx_async.clock`.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    raw: bytes
    arrived: float

    @property
    def api_key(self) -> str:
        """Return the key of the Authorization header; empty if there is none."""
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    @property
    def fingerprint(self) -> str:
        """Return hexadecimal digits that are equal for equal bodies, whatever the order of keys."""
        canonical = json.dumps(self.body, sort_keys=True).encode()
        return hashlib.sha256(canonical).hexdigest()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the messages of a chat request, or a Responses request's input as messages."""
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
        """Return the text of the last message by the user; empty if there is none."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return _text(message.get("content"))
        return ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, in a reply.

    Attributes:
        name: The tool's name.
        arguments: The arguments; a string is sent as it is, also when it is not JSON.
    """

    name: str
    arguments: Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says in one choice.

    Attributes:
        content: The text; None is sent as null.
        tool_calls: The tools called.
        finish_reason: Why the model stopped; by the reply and the request's limits when None.
        refusal: The text of a refusal.
        logprobs: OpenAI's logprobs object; made up when None and the request asks for it.
        reasoning: What the model thought: as `reasoning_content` and `reasoning` of the message, as
            DeepSeek, Groq, OpenRouter and Cerebras have it; as the summary of a reasoning item in
            the Responses API. A DeepSeek model always tells it: there None is made up.
    """

    content: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: str | None = None
    refusal: str | None = None
    logprobs: Mapping[str, Any] | None = None
    reasoning: str | None = None


Said: TypeAlias = str | Reply | Sequence[str | Reply] | dict[str, Any]
"""What a model says: a text, a `Reply`, or a list of them, one for each of the request's `n`
choices, from the start again when they are too few; or a whole body of an answer."""

ReplyFunction: TypeAlias = Callable[[RecordedRequest], "Said | Fault"]
"""Decides what the model says, or what goes wrong. Called on the server's own thread, in the order
of arrival; it must not block."""

LatencyFunction: TypeAlias = Callable[[RecordedRequest], float]
"""Decides after how many seconds a request is answered. Called on the server's own thread."""


def echo(request: RecordedRequest) -> str:
    """Reply with the text of the last message by the user, as JSON if the request wants that."""
    return _in_wanted_format(request, request.user_text)


def digest(request: RecordedRequest) -> list[str]:
    """Reply with 12 hexadecimal digits that stand for all the messages; each choice has its own."""
    messages = json.dumps(request.messages, sort_keys=True).encode()
    choices = (request.body or {}).get("n") or 1
    return [
        _in_wanted_format(request, hashlib.sha256(b"%d:%b" % (index, messages)).hexdigest()[:12])
        for index in range(choices)
    ]


def canned(contents: str | Sequence[str]) -> ReplyFunction:
    """Make a reply that says always the same, whatever it is asked.

    Args:
        contents: The text, sent as it is; or texts, said in turn in the requests' order of arrival,
            from the start again after the last.
    """
    texts = itertools.cycle([contents] if isinstance(contents, str) else contents)
    return lambda _request: next(texts)


def call_tool(name: str, arguments: Mapping[str, Any] | str) -> ReplyFunction:
    """Make a reply that calls a tool.

    Args:
        name: The tool's name.
        arguments: The arguments; a string is sent as it is, also when it is not JSON.
    """
    reply = Reply(tool_calls=[ToolCall(name, arguments)])
    return lambda _request: reply


def lognormal(median: float, sigma: float = 0.5, seed: int = 0) -> LatencyFunction:
    """Make a latency that is drawn from a log-normal distribution, as that of a model is.

    The draw depends on the request's body and the seed only: the same work takes the same time in
    any order and in any run.

    Args:
        median: The median, in seconds.
        sigma: The standard deviation of the latency's logarithm; 0.5 puts 95 % below 2.3 medians.
        seed: Chooses other draws.
    """
    mu = math.log(median)
    return lambda request: random.Random(f"{seed}:{request.fingerprint}").lognormvariate(mu, sigma)


def _text(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _in_wanted_format(request: RecordedRequest, text: str) -> str:
    """Put the text into JSON, if that is what the request wants."""
    body = request.body or {}
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": text})
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema", wanted).get("schema", {})
        return json.dumps(_instance(schema, schema, text))
    return text


def _instance(schema: Mapping[str, Any], root: Mapping[str, Any], text: str) -> Any:
    """Make a value that fits a JSON schema, with the text for every string in it."""
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
