"""A chat POST planned without the SDK's `create` sends the same bytes as with it.

Calls that only the SDK can send correctly are not planned.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai._utils import PropertyInfo
from openai.resources.chat import AsyncCompletions
from openai.types.chat import completion_create_params

from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI
from gptx_async.transport.chat_post import post_of
from support.client_calls import CallsOnLoop

CREATE = ("chat", "completions", "create")
CHAT: dict[str, Any] = {
    "temperature": 1,
    "model": "gpt-4o-mini",
    "logit_bias": None,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "é \u2028 \U0001f600"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": [1, 2.5, {}]}}}],
    "stop": ["a", ""],
    "seed": None,
    "stream": False,
}


@pytest.mark.parametrize("timeout", [None, 7.0])
def test_the_server_gets_the_same_bytes_and_headers_as_from_the_sync_client(
    fake_openai: FakeOpenAI, timeout: float | None
) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)
    if timeout is not None:
        client = client.with_options(timeout=timeout)
    expected = client.chat.completions.create(**CHAT)
    stand_in = StandInClient(client, CallsOnLoop())
    assert post_of(CREATE, (), CHAT) is not None
    answer = stand_in.chat.completions.create(**CHAT)
    theirs, ours = fake_openai.requests
    assert ours.raw == theirs.raw
    told = ("authorization", "accept", "content-type", "x-stainless-read-timeout")
    assert [ours.headers.get(name) for name in told] == [theirs.headers.get(name) for name in told]
    assert answer.model_dump(exclude={"id", "created"}) == expected.model_dump(
        exclude={"id", "created"}
    )
    assert answer._request_id


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": ({"role": "user", "content": "x"},)},
        {"response_format": dict},
        {"temperature": openai.NOT_GIVEN},
        {"extra_body": {"x": 1}},
        {"timeout": 5.0},
        {"unknown": 1},
        {"logit_bias": {1: 2}},
    ],
    ids=str,
)
def test_arguments_that_the_sdk_must_inspect_go_through_its_method(changes: dict[str, Any]) -> None:
    assert post_of(CREATE, (), CHAT | changes) is None


def test_a_circular_argument_is_left_to_the_sdk() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert post_of(CREATE, (), CHAT | {"stop": circle}) is None


def test_other_methods_and_missing_arguments_go_by_the_sdk() -> None:
    assert post_of(("responses", "create"), (), {"model": "m", "input": "x"}) is None
    assert post_of(CREATE, (), {"model": "m"}) is None
    assert post_of(CREATE, ("m",), CHAT) is None


def test_a_patched_create_gets_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    original = AsyncCompletions.create

    @functools.wraps(original)
    async def create(*args: Any, **kwargs: Any) -> Any:
        return await original(*args, **kwargs)

    monkeypatch.setattr(AsyncCompletions, "create", create)
    assert post_of(CREATE, (), CHAT) is None


def annotations_of(kind: Any, seen: set[Any]) -> Iterator[Any]:
    """Yield a type and all types that it contains."""
    if id(kind) in seen:
        return
    seen.add(id(kind))
    yield kind
    if hasattr(kind, "__required_keys__"):  # a TypedDict
        for value in typing.get_type_hints(kind, include_extras=True).values():
            yield from annotations_of(value, seen)
    for each in (*typing.get_args(kind), *getattr(kind, "__metadata__", ())):
        yield from annotations_of(each, seen)


def test_no_argument_of_chat_is_renamed_or_formatted_by_the_sdk() -> None:
    """So the SDK's transform, which follows annotations, does not change plain JSON."""
    found = [*annotations_of(completion_create_params.CompletionCreateParamsNonStreaming, set())]
    assert len(found) > 100, "the walk reaches the types of messages and tools"
    infos = [each for each in found if isinstance(each, PropertyInfo)]
    assert [info for info in infos if info.alias or info.format] == []
