"""The bodies of answers at each endpoint of OpenAI's API.

Tokens are estimated, so that no vocabulary is needed: every four characters, or part of them, are
one token. Half of the prompt counts as cached and half of the answer as reasoning, so that a test
notices swapped numbers. Identifiers and numbers depend only on the request.
"""

from __future__ import annotations

import array
import base64
import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from .faults import HTTPFault, error_body
from .replies import RecordedRequest, Reply, Said, ToolCall

__all__ = ["ENDPOINTS", "Body", "Endpoint", "find_mistake", "is_for_model", "make_body"]

Body: TypeAlias = dict[str, Any]

CREATED = 1_700_000_000
"""The creation time of every answer, in seconds of Unix time."""

TOKEN_LENGTH = 4
"""The assumed number of characters per token."""

EMBEDDING_LENGTH = 1536
"""The default length of an embedding, as for text-embedding-3-small."""

MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4", "gpt-3.5-turbo", "text-embedding-3-small")


class Endpoint(NamedTuple):
    """One endpoint of the API.

    Attributes:
        required: The parameters that the body must have.
        speaks: Whether a model generates text, so that the reply function is called.
        answer: Makes the body of the answer from one reply per choice.
    """

    required: tuple[str, ...]
    speaks: bool
    answer: Callable[[RecordedRequest, Sequence[Reply]], Body]


class _Said(NamedTuple):
    """A reply, cut to the limits of the request."""

    text: str | None
    tokens: int
    finish_reason: str


def chat_completion(request: RecordedRequest, replies: Sequence[Reply]) -> Body:
    """Make the body of a chat completion."""
    body = request.body
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    said = [_within_limits(reply, limit, body.get("stop")) for reply in replies]
    return {
        "id": f"chatcmpl-{request.fingerprint[:29]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [_choice(request, *each) for each in zip(itertools.count(), replies, said)],
        "usage": _chat_usage(_prompt_tokens(request), sum(each.tokens for each in said)),
        "service_tier": "default",
        "system_fingerprint": f"fp_{_digest(body['model'], body.get('seed'))[:10]}",
    }


def response(request: RecordedRequest, replies: Sequence[Reply]) -> Body:
    """Make the body of an answer of the Responses API."""
    body, reply = request.body, replies[0]
    limit = body.get("max_output_tokens")
    said = _within_limits(reply, limit, None)
    complete = said.finish_reason != "length"
    return {
        "id": f"resp_{request.fingerprint[:48]}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed" if complete else "incomplete",
        "error": None,
        "incomplete_details": None if complete else {"reason": "max_output_tokens"},
        "instructions": body.get("instructions"),
        "max_output_tokens": limit,
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        "output": _outputs(request, reply, said),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "usage": _response_usage(_prompt_tokens(request), said.tokens),
    }


def embeddings(request: RecordedRequest, _replies: Sequence[Reply]) -> Body:
    """Make embeddings: vectors of length 1 that depend only on the text."""
    body = request.body
    given = body["input"]
    # A string, a list of strings, a list of token numbers, or a list of such lists.
    single = isinstance(given, str) or bool(given and isinstance(given[0], int))
    inputs = [given] if single else given
    length = body.get("dimensions") or EMBEDDING_LENGTH
    tokens = sum(_count(each) if isinstance(each, str) else len(each) for each in inputs)
    return {
        "object": "list",
        "model": body["model"],
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _vector(each, length, body.get("encoding_format")),
            }
            for index, each in enumerate(inputs)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def models(_request: RecordedRequest, _replies: Sequence[Reply]) -> Body:
    """Make the list of models."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": CREATED, "owned_by": "openai"}
            for name in MODELS
        ],
    }


ENDPOINTS: Mapping[tuple[str, str], Endpoint] = {
    ("POST", "/v1/chat/completions"): Endpoint(
        ("model", "messages"), speaks=True, answer=chat_completion
    ),
    ("POST", "/v1/responses"): Endpoint(("model", "input"), speaks=True, answer=response),
    ("POST", "/v1/embeddings"): Endpoint(("model", "input"), speaks=False, answer=embeddings),
    ("GET", "/v1/models"): Endpoint((), speaks=False, answer=models),
}
"""The endpoints by method and path."""


def find_mistake(request: RecordedRequest) -> HTTPFault | None:
    """Return the error with which OpenAI answers a malformed request, or None."""
    endpoint = ENDPOINTS.get((request.method, request.path))
    if endpoint is None:
        message = f"Invalid URL ({request.method} {request.path})"
        return HTTPFault(404, body=error_body(message, "invalid_request_error"))
    if not endpoint.required:
        return None
    if not isinstance(request.body, dict):
        return HTTPFault(400, "We could not parse the JSON body of your request.")
    for name in endpoint.required:
        if request.body.get(name) is None:
            return HTTPFault(
                400,
                f"Missing required parameter: '{name}'.",
                code="missing_required_parameter",
                param=name,
            )
    if request.body.get("stream"):
        return HTTPFault(
            400,
            "Streaming is not supported by this fake server. Leave `stream` out.",
            code="unsupported_value",
            param="stream",
        )
    return None


def is_for_model(request: RecordedRequest) -> bool:
    """Return whether a model answers the request, so that the reply function is called."""
    return ENDPOINTS[request.method, request.path].speaks


def make_body(request: RecordedRequest, said: Said) -> Body:
    """Make the body of the answer.

    Args:
        request: A request for which `find_mistake` returned None.
        said: What the model says; ignored at endpoints without generated text.
    """
    if isinstance(said, dict):
        return said
    said = [said] if isinstance(said, str | Reply) else said
    replies = [Reply(each) if isinstance(each, str) else each for each in said]
    choices = (request.body or {}).get("n") or 1
    return ENDPOINTS[request.method, request.path].answer(
        request, [*itertools.islice(itertools.cycle(replies), choices)]
    )


def _within_limits(reply: Reply, limit: int | None, stop: str | Sequence[str] | None) -> _Said:
    """Cut the text before a stop string and at the token limit, and set the finish reason."""
    if reply.content is None:
        tokens = sum(_count(_arguments(call)) for call in reply.tool_calls)
        return _Said(
            None, tokens, reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")
        )
    text, finish_reason = reply.content, "tool_calls" if reply.tool_calls else "stop"
    for mark in [stop] if isinstance(stop, str) else stop or []:
        if mark:  # symbolicai sends an empty stop string with every request
            text = text.partition(mark)[0]
    if limit is not None and _count(text) > limit:
        text, finish_reason = text[: limit * TOKEN_LENGTH], "length"
    return _Said(text, _count(text), reply.finish_reason or finish_reason)


def _choice(request: RecordedRequest, index: int, reply: Reply, said: _Said) -> Body:
    message: Body = {
        "role": "assistant",
        "content": said.text,
        "refusal": reply.refusal,
        "annotations": [],
    }
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": f"call_{_digest(request.fingerprint, index, position)[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call)},
            }
            for position, call in enumerate(reply.tool_calls)
        ]
    reasoning = reply.reasoning
    if reasoning is None and str(request.body["model"]).startswith("deepseek"):
        reasoning = f"thought {request.fingerprint[:12]}"
    if reasoning is not None:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    logprobs = reply.logprobs
    if logprobs is None and request.body.get("logprobs"):
        logprobs = _logprobs(said.text or "", request.body.get("top_logprobs") or 0)
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": said.finish_reason,
    }


def _outputs(request: RecordedRequest, reply: Reply, said: _Said) -> list[Body]:
    """Make the output items of the Responses API: reasoning, tool calls, the message."""
    identity = request.fingerprint
    status = "incomplete" if said.finish_reason == "length" else "completed"
    outputs: list[Body] = []
    if reply.reasoning is not None:
        summary = {"type": "summary_text", "text": reply.reasoning}
        outputs.append({"type": "reasoning", "id": f"rs_{identity[:48]}", "summary": [summary]})
    outputs += [
        {
            "type": "function_call",
            "id": f"fc_{_digest(identity, position)[:48]}",
            "call_id": f"call_{_digest(identity, position)[:24]}",
            "name": call.name,
            "arguments": _arguments(call),
            "status": "completed",
        }
        for position, call in enumerate(reply.tool_calls)
    ]
    parts: list[Body] = []
    if said.text is not None:
        parts.append({"type": "output_text", "text": said.text, "annotations": [], "logprobs": []})
    if reply.refusal is not None:
        parts.append({"type": "refusal", "refusal": reply.refusal})
    if parts:
        outputs.append(
            {
                "type": "message",
                "id": f"msg_{identity[:48]}",
                "role": "assistant",
                "status": status,
                "content": parts,
            }
        )
    return outputs


def _logprobs(text: str, alternatives: int) -> Body:
    def entry(token: str, position: int) -> Body:
        # Falls with the position, so that the entries of a token differ.
        return {"token": token, "logprob": -0.125 * (position + 1), "bytes": [*token.encode()]}

    def entries(token: str) -> Body:
        others = [entry(f"{token}{position}", position) for position in range(1, alternatives)]
        first = [entry(token, 0)] if alternatives else []
        return entry(token, 0) | {"top_logprobs": first + others}

    return {"content": [entries(token) for token in _tokens(text)], "refusal": None}


def _chat_usage(prompt: int, completion: int) -> Body:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": prompt // 2, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": completion // 2,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _response_usage(prompt: int, completion: int) -> Body:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": prompt // 2, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": completion // 2},
        "total_tokens": prompt + completion,
    }


def _prompt_tokens(request: RecordedRequest) -> int:
    return _count(json.dumps(request.messages))


def _arguments(call: ToolCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(dict(call.arguments))


def _vector(given: str | list[int], length: int, encoding: str | None) -> list[float] | str:
    source = random.Random(_digest(given))
    numbers = [source.gauss(0, 1) for _ in range(length)]
    norm = math.hypot(*numbers)
    vector = [number / norm for number in numbers]
    if encoding == "base64":  # OpenAI's clients ask for it
        return base64.b64encode(array.array("f", vector).tobytes()).decode()
    return vector


def _tokens(text: str) -> list[str]:
    return [text[start : start + TOKEN_LENGTH] for start in range(0, len(text), TOKEN_LENGTH)]


def _count(text: str) -> int:
    return -(-len(text) // TOKEN_LENGTH)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
