"""The fake server through OpenAI's clients, and through a socket for what the clients hide."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

import gptx_async.testing
from gptx_async.testing import (
    HTML,
    BadJSON,
    EmptyBody,
    EmptyChoices,
    FakeOpenAI,
    Fault,
    HTTPFault,
    NoChoices,
    RecordedRequest,
    Reply,
    Reset,
    Stall,
    ToolCall,
    TruncatedJSON,
    call_tool,
    canned,
    echo,
    lognormal,
)
from support.child import run_child

MODEL = "gpt-4o-mini"
InThread = Callable[..., Future[Any]]
Ask = Callable[..., Any]


class Clients:
    """One interface to OpenAI's synchronous and asynchronous clients."""

    def __init__(self, kind: str, server: FakeOpenAI) -> None:
        self.kind = kind
        self.server = server

    def call(self, resource: str, *, key: str = "sk-fake", **arguments: Any) -> Any:
        """Call a resource such as 'chat.completions.create' with a new client and no retries."""
        options: dict[str, Any] = {
            "base_url": self.server.base_url,
            "api_key": key,
            "max_retries": 0,
            "timeout": 20.0,
        }
        if self.kind == "sync":
            with openai.OpenAI(**options) as client:
                return _find(client, resource)(**arguments)

        async def call() -> Any:
            async with openai.AsyncOpenAI(**options) as client:
                return await _find(client, resource)(**arguments)

        return asyncio.run(call())

    def chat(self, text: str = "Hello", **arguments: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.call(
            "chat.completions.create", **{"model": MODEL, "messages": messages, **arguments}
        )


def _find(client: Any, resource: str) -> Any:
    for name in resource.split("."):
        client = getattr(client, name)
    return client


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def clients(request: pytest.FixtureRequest, server: FakeOpenAI) -> Clients:
    return Clients(request.param, server)


@pytest.fixture
def ask(server: FakeOpenAI) -> Ask:
    """Call the chat endpoint with the synchronous client."""
    return Clients("sync", server).chat


# Endpoints


def test_answers_a_chat_completion(clients: Clients) -> None:
    clients.server.reply = canned("Good day")
    completion = clients.chat(seed=7)
    assert completion.choices[0].message.content == "Good day"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == MODEL
    assert completion.system_fingerprint.startswith("fp_")
    assert completion._request_id.startswith("req_")


def test_answers_a_response(clients: Clients) -> None:
    clients.server.reply = echo
    response = clients.call("responses.create", model=MODEL, input="Hello", instructions="Be brief")
    assert response.output_text == "Hello"
    assert response.status == "completed"
    assert response.usage.total_tokens == (
        response.usage.input_tokens + response.usage.output_tokens
    )
    assert response.usage.output_tokens_details.reasoning_tokens == 1
    assert response.usage.input_tokens_details.cached_tokens > 0


def test_answers_embeddings_of_length_one(clients: Clients) -> None:
    result = clients.call("embeddings.create", model="text-embedding-3-small", input=["a", "b"])
    vectors = [each.embedding for each in result.data]
    assert [len(vector) for vector in vectors] == [1536, 1536]
    assert sum(number**2 for number in vectors[0]) == pytest.approx(1, abs=1e-6)
    assert vectors[0] != vectors[1]


def test_answers_embeddings_as_numbers_of_the_given_dimension(clients: Clients) -> None:
    arguments: dict[str, Any] = {
        "model": "m",
        "input": [1, 2, 3],
        "dimensions": 4,
        "encoding_format": "float",
    }
    result = clients.call("embeddings.create", **arguments)
    assert len(result.data) == 1
    assert len(result.data[0].embedding) == 4
    assert result.usage.prompt_tokens == 3


def test_answers_the_list_of_models(clients: Clients) -> None:
    models = clients.call("models.list")
    assert MODEL in [model.id for model in models.data]


def test_answers_equal_requests_equally(clients: Clients) -> None:
    first, second = clients.chat("a", seed=1), clients.chat("a", seed=1)
    assert first.model_dump() == second.model_dump()
    other = clients.chat("b", seed=1)
    assert other.choices[0].message.content != first.choices[0].message.content
    assert other.id != first.id


def test_answers_both_clients_equally(server: FakeOpenAI) -> None:
    answers = [Clients(kind, server).chat().model_dump() for kind in ("sync", "async")]
    assert answers[0] == answers[1]


# Parameters


def test_gives_each_of_n_choices_its_own_text(ask: Ask) -> None:
    choices = ask(n=3).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) == 3


def test_gives_the_texts_of_a_list_to_the_choices(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = lambda _request: ["a", Reply("b")]
    assert [choice.message.content for choice in ask(n=3).choices] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("stop", "text"),
    [("", "one two three"), (None, "one two three"), (" two", "one"), (["three", "e t"], "on")],
)
def test_cuts_before_a_stop_string(server: FakeOpenAI, ask: Ask, stop: Any, text: str) -> None:
    server.reply = canned("one two three")
    choice = ask(stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text, "stop")


@pytest.mark.parametrize("parameter", ["max_tokens", "max_completion_tokens"])
def test_cuts_at_the_limit_of_tokens(server: FakeOpenAI, ask: Ask, parameter: str) -> None:
    server.reply = canned("12345678")
    whole, cut = ask(**{parameter: 2}), ask(**{parameter: 1})
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (
        "12345678",
        "stop",
    )
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("1234", "length")
    assert cut.usage.completion_tokens == 1


def test_cuts_a_response_at_the_limit_of_tokens(server: FakeOpenAI) -> None:
    server.reply = canned("12345678")
    response = Clients("sync", server).call(
        "responses.create", model=MODEL, input="x", max_output_tokens=1
    )
    assert (response.output_text, response.status) == ("1234", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"


def test_gives_logprobs_for_each_token(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = canned("Grüße")
    entries = ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["Grüß", "e"]
    assert bytes(entries[0].bytes).decode() == "Grüß"
    assert [len(entry.top_logprobs) for entry in entries] == [2, 2]
    assert entries[0].top_logprobs[0].token == "Grüß"
    assert entries[0].top_logprobs[0].logprob > entries[0].top_logprobs[1].logprob
    assert ask(logprobs=False).choices[0].logprobs is None


def test_gives_a_json_object_when_that_is_wanted(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = echo
    content = ask("Hi", response_format={"type": "json_object"}).choices[0].message.content
    assert json.loads(content) == {"answer": "Hi"}


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "kind": {"enum": ["first", "second"]},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "minItems": 2},
    },
    "$defs": {"Item": {"type": "object", "properties": {"done": {"type": "boolean"}}}},
}
INSTANCE = {
    "name": "Hi",
    "count": 1,
    "kind": "first",
    "maybe": None,
    "items": [{"done": True}, {"done": True}],
}


def test_gives_an_instance_of_a_json_schema(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = echo
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert json.loads(ask("Hi", response_format=wanted).choices[0].message.content) == INSTANCE


def test_gives_a_response_an_instance_of_a_json_schema(server: FakeOpenAI) -> None:
    server.reply = echo
    wanted = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}
    response = Clients("sync", server).call(
        "responses.create", model=MODEL, input="Hi", text=wanted
    )
    assert json.loads(response.output_text) == INSTANCE


def test_reports_the_usage_with_all_its_details(ask: Ask) -> None:
    usage = ask("x" * 400).usage
    assert usage.prompt_tokens > 100
    assert usage.completion_tokens == 3
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    details = usage.completion_tokens_details
    figures = [
        usage.prompt_tokens_details.cached_tokens,
        usage.prompt_tokens_details.audio_tokens,
        details.reasoning_tokens,
        details.audio_tokens,
        details.accepted_prediction_tokens,
        details.rejected_prediction_tokens,
    ]
    assert figures == [usage.prompt_tokens // 2, 0, 1, 0, 0, 0]


# Replies


def test_echoes_the_text_parts_of_the_last_user_message(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = echo
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": "last"}, picture]},
        {"role": "assistant", "content": "no"},
    ]
    assert ask(messages=messages).choices[0].message.content == "last"


def test_says_canned_texts_in_turn(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = canned(["a", "b"])
    assert [ask().choices[0].message.content for _ in range(3)] == ["a", "b", "a"]


def test_calls_tools(clients: Clients) -> None:
    clients.server.reply = lambda _request: Reply(
        tool_calls=[ToolCall("add", {"a": 1}), ToolCall("sub", "{not json")]
    )
    choice = clients.chat().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("add", '{"a": 1}'), ("sub", "{not json")]
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_calls_a_tool_in_a_response(server: FakeOpenAI) -> None:
    server.reply = call_tool("add", {"a": 1})
    response = Clients("sync", server).call("responses.create", model=MODEL, input="Hi")
    assert [(item.type, item.name, item.arguments) for item in response.output] == [
        ("function_call", "add", '{"a": 1}')
    ]


def test_sends_the_reasoning_of_a_reply(clients: Clients) -> None:
    clients.server.reply = lambda _request: Reply("Grey.", reasoning="Dead channels hum.")
    message = clients.chat().choices[0].message
    assert (message.reasoning_content, message.reasoning) == ("Dead channels hum.",) * 2
    response = clients.call("responses.create", model=MODEL, input="Hi")
    thought, said = response.output
    assert (thought.type, thought.summary[0].text) == ("reasoning", "Dead channels hum.")
    assert said.content[0].text == response.output_text == "Grey."


def test_a_deepseek_model_thinks_by_itself(server: FakeOpenAI, ask: Ask) -> None:
    assert ask(model="deepseek-reasoner").choices[0].message.reasoning_content
    assert not hasattr(ask().choices[0].message, "reasoning_content")


def test_sends_a_reply_as_it_is(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = lambda _request: Reply(
        content=None, refusal="No.", finish_reason="content_filter", logprobs={"content": []}
    )
    choice = ask().choices[0]
    assert (choice.message.content, choice.message.refusal) == (None, "No.")
    assert choice.finish_reason == "content_filter"
    assert choice.logprobs.content == []


def test_sends_a_whole_body_as_it_is(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = lambda _request: {"id": "mine", "choices": []}
    completion = ask()
    assert isinstance(completion, ChatCompletion)
    assert (completion.id, completion.choices) == ("mine", [])


def test_spoils_the_digest_when_the_reply_is_a_fault(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = lambda _request: EmptyChoices()
    assert ask().choices == []


def test_names_the_exception_of_a_reply_that_raises(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = lambda _request: str(1 / 0)
    with pytest.raises(openai.InternalServerError, match="ZeroDivisionError"):
        ask()


# Invalid requests


@pytest.mark.parametrize(
    ("keys", "header", "code"),
    [(None, "Basic sk-a", None), ({"sk-a"}, "Bearer sk-b", "invalid_api_key")],
)
def test_refuses_a_wrong_key(
    clients: Clients, keys: set[str] | None, header: str, code: str | None
) -> None:
    clients.server.api_keys = keys
    with pytest.raises(openai.AuthenticationError) as caught:
        clients.chat(extra_headers={"Authorization": header})
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"


def test_accepts_a_listed_key(server: FakeOpenAI) -> None:
    server.api_keys = {"sk-a"}
    assert Clients("sync", server).call("models.list", key="sk-a").data
    assert server.requests[0].api_key == "sk-a"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stream": True}, openai.BadRequestError, "Streaming is not supported"),
        ({"extra_body": {"messages": None}}, openai.BadRequestError, "'messages'"),
        ({"extra_body": {"model": None}}, openai.BadRequestError, "'model'"),
    ],
)
def test_refuses_a_mistaken_request(
    clients: Clients, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        clients.chat(**arguments)


def test_refuses_an_unknown_path(server: FakeOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Invalid URL \(GET /v1/files\)"):
        Clients("sync", server).call("files.list")


def test_refuses_a_body_that_is_not_json(server: FakeOpenAI) -> None:
    head, _ = send_raw(server, b"{")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert server.requests[0].body is None
    assert server.requests[0].raw == b"{"


# Faults


@pytest.mark.parametrize(
    ("status", "error", "kind", "code"),
    [
        (400, openai.BadRequestError, "invalid_request_error", None),
        (401, openai.AuthenticationError, "invalid_request_error", "invalid_api_key"),
        (
            403,
            openai.PermissionDeniedError,
            "request_forbidden",
            "unsupported_country_region_territory",
        ),
        (404, openai.NotFoundError, "invalid_request_error", "model_not_found"),
        (409, openai.ConflictError, "invalid_request_error", None),
        (422, openai.UnprocessableEntityError, "invalid_request_error", None),
        (429, openai.RateLimitError, "requests", "rate_limit_exceeded"),
        (500, openai.InternalServerError, "server_error", None),
        (503, openai.InternalServerError, "server_error", None),
        (529, openai.InternalServerError, "server_error", None),
    ],
)
def test_fails_with_the_error_of_the_status(
    clients: Clients, status: int, error: type[openai.APIStatusError], kind: str, code: str | None
) -> None:
    clients.server.fail_next(HTTPFault(status))
    with pytest.raises(error) as caught:
        clients.chat()
    assert (caught.value.status_code, caught.value.type, caught.value.code) == (status, kind, code)
    assert caught.value.request_id is not None


def test_fails_for_an_exhausted_quota(ask: Ask, server: FakeOpenAI) -> None:
    server.fail_next(HTTPFault(429, code="insufficient_quota"))
    with pytest.raises(openai.RateLimitError, match="exceeded your current quota") as caught:
        ask()
    assert caught.value.type == "insufficient_quota"


def test_fails_with_what_the_fault_says(ask: Ask, server: FakeOpenAI) -> None:
    fault = HTTPFault(
        429, "Wait", "tokens", "mine", "p", 1.5, 1500, {"x-request-id": "mine", "x-other": "o"}
    )
    server.fail_next(fault)
    with pytest.raises(openai.RateLimitError) as caught:
        ask()
    assert caught.value.body == {"message": "Wait", "type": "tokens", "param": "p", "code": "mine"}
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1.5", "1500")
    assert (headers["x-request-id"], headers["x-other"]) == ("mine", "o")


@pytest.mark.parametrize(
    ("body", "sent"), [(b"\xff", b"\xff"), ("plain", b"plain"), ([1], b"[1]"), ("", b"")]
)
def test_fails_with_a_body_of_its_own(server: FakeOpenAI, body: Any, sent: bytes) -> None:
    server.fail_next(HTTPFault(502, body=body, content_type="text/plain; charset=x"))
    head, content = send_raw(server)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"text/plain; charset=x" in head
    assert content == sent


@pytest.mark.parametrize("fault", [BadJSON(), EmptyBody(), TruncatedJSON()])
def test_fails_with_a_body_that_is_not_json(clients: Clients, fault: Fault) -> None:
    clients.server.fail_next(fault)
    with pytest.raises(json.JSONDecodeError):
        clients.chat()


def test_fails_with_a_page(clients: Clients) -> None:
    clients.server.fail_next(HTML())
    assert clients.chat().startswith("<!doctype html>")


def test_fails_with_empty_or_missing_choices(clients: Clients) -> None:
    clients.server.fail_next(EmptyChoices())
    clients.server.fail_next(NoChoices())
    assert clients.chat().choices == []
    assert clients.chat().choices is None
    assert clients.chat().choices[0].message.content


def test_fails_with_an_empty_list_at_the_other_endpoints(clients: Clients) -> None:
    clients.server.fail_next(EmptyChoices(), times=3)
    assert clients.call("responses.create", model=MODEL, input="x").output == []
    assert clients.call("models.list").data == []
    with pytest.raises(ValueError, match="No embedding data received"):
        clients.call("embeddings.create", model=MODEL, input="x")


@pytest.mark.parametrize("when", ["before", "middle"])
def test_fails_with_a_reset_connection(clients: Clients, when: Any) -> None:
    clients.server.fail_next(Reset(when))
    with pytest.raises(openai.APIConnectionError):
        clients.chat()
    assert clients.chat().choices


def test_resets_before_or_in_the_middle_of_the_answer(server: FakeOpenAI) -> None:
    server.faults = lambda request: Reset(request.headers["when"])  # type: ignore[arg-type]
    with pytest.raises(ConnectionResetError):
        send_raw(server, headers="when: before")
    with pytest.raises(ConnectionResetError) as caught:
        send_raw(server, headers="when: middle")
    head, _, content = caught.value.args[-1].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert content.startswith(b'{"id": ')
    assert not content.endswith(b"}")


def test_stalls_until_the_client_goes_away(clients: Clients) -> None:
    clients.server.fail_next(Stall())
    with pytest.raises(openai.APITimeoutError):
        clients.chat(timeout=0.2)
    clients.server.wait_for(lambda server: server.disconnected == 1)
    assert clients.server.in_flight == 0


def test_answers_regularly_after_a_stall(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = canned("late")
    server.fail_next(Stall(0.01))
    assert ask().choices[0].message.content == "late"


def test_fails_the_requests_that_the_function_picks(server: FakeOpenAI, ask: Ask) -> None:
    server.faults = lambda request: HTTPFault(500) if request.user_text == "bad" else None
    with pytest.raises(openai.InternalServerError):
        ask("bad")
    assert ask("good").choices


def test_fails_as_often_as_asked(server: FakeOpenAI, ask: Ask) -> None:
    server.fail_next(HTTPFault(500), times=2)
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            ask()
    assert ask().choices


def test_does_not_ask_the_reply_for_a_failed_request(server: FakeOpenAI, ask: Ask) -> None:
    server.reply = canned(["first", "second"])
    server.fail_next(HTTPFault(500))
    with pytest.raises(openai.InternalServerError):
        ask()
    assert ask().choices[0].message.content == "first"


# Records and waiting


def test_records_what_was_sent(clients: Clients) -> None:
    clients.chat("Grüße", temperature=0.5, extra_headers={"X-Mine": "1"})
    (request,) = clients.server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["x-mine"] == "1"
    assert request.api_key == "sk-fake"
    assert request.body["temperature"] == 0.5
    assert request.user_text == "Grüße"
    assert json.loads(request.raw) == request.body


def test_records_are_copies_and_can_be_cleared(server: FakeOpenAI, ask: Ask) -> None:
    ask()
    server.requests.clear()
    assert len(server.requests) == 1
    assert server.max_in_flight == 1
    server.clear()
    assert server.requests == []
    assert server.max_in_flight == 0


def test_keeps_the_last_requests_only(in_thread: InThread) -> None:
    with FakeOpenAI(keep_requests=1) as server:
        for text in ("a", "b"):
            Clients("sync", server).chat(text)
        assert [request.user_text for request in server.requests] == ["b"]


def test_holds_answers_back_until_released(server: FakeOpenAI, in_thread: InThread) -> None:
    server.reply = echo
    server.hold()
    asking = [in_thread(Clients("sync", server).chat, text) for text in "abc"]
    server.wait_for(lambda server: server.in_flight == 3)
    assert not any(future.done() for future in asking)
    server.release()
    assert [future.result(10).choices[0].message.content for future in asking] == ["a", "b", "c"]
    assert (server.in_flight, server.max_in_flight, server.disconnected) == (0, 3, 0)
    assert Clients("sync", server).chat("d").choices


def test_notices_a_client_that_goes_away_while_held(
    server: FakeOpenAI, in_thread: InThread
) -> None:
    server.hold()
    with pytest.raises(openai.APITimeoutError):
        Clients("sync", server).chat(timeout=0.2)
    server.wait_for(lambda server: (server.disconnected, server.in_flight) == (1, 0))
    asking = in_thread(Clients("sync", server).chat)
    server.wait_for(lambda server: server.in_flight == 1)
    server.release()
    assert asking.result(10).choices


def test_wait_for_reports_what_it_saw(server: FakeOpenAI, ask: Ask) -> None:
    ask()
    figures = "recorded: 1, in flight: 0, most in flight at once: 1, disconnected: 0, "
    with pytest.raises(TimeoutError, match=figures + r"answered by status: \{200: 1\}"):
        server.wait_for(lambda server: server.in_flight == 5, timeout=0.01)


def test_answers_after_the_latency(server: FakeOpenAI) -> None:
    order = []
    server.latency = lambda request: 0.3 if request.user_text == "slow" else 0.0

    async def ask_both() -> None:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as client:

            async def ask(text: str) -> None:
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": text}]
                )
                order.append(text)

            slow = asyncio.create_task(ask("slow"))
            await asyncio.to_thread(server.wait_for, lambda server: server.in_flight == 1)
            await ask("fast")
            await slow

    asyncio.run(ask_both())
    assert order == ["fast", "slow"]


def test_draws_a_latency_by_body_and_seed() -> None:
    def request(body: Mapping[str, Any]) -> RecordedRequest:
        return RecordedRequest("POST", "/", {}, body, b"", 0.0)

    latency = lognormal(2.0, 0.5, seed=1)
    draws = sorted(latency(request({"n": number})) for number in range(2001))
    assert draws[1000] == pytest.approx(2.0, rel=0.1)
    assert draws[1950] == pytest.approx(2.0 * 2.71828 ** (0.5 * 1.96), rel=0.15)
    assert latency(request({"a": 1, "b": 2})) == latency(request({"b": 2, "a": 1}))
    assert latency(request({})) != lognormal(2.0, 0.5, seed=2)(request({}))


# Starting and closing the server


def test_starts_at_a_port_of_its_own_and_closes_twice() -> None:
    server = FakeOpenAI()
    with pytest.raises(RuntimeError, match="start"):
        _ = server.base_url
    with server.start(), FakeOpenAI() as other:
        assert other.base_url != server.base_url
        assert Clients("sync", server).chat().choices
    server.close()
    with pytest.raises(openai.APIConnectionError):
        Clients("sync", server).chat()


@pytest.mark.serial
def test_starts_again_at_the_same_port() -> None:
    with FakeOpenAI() as server:
        address = server.base_url
    with server:
        assert server.base_url == address
        assert Clients("sync", server).chat().choices


@pytest.mark.serial
def test_raises_when_the_port_is_taken(server: FakeOpenAI) -> None:
    threads = threading.active_count()
    taken = FakeOpenAI(port=int(server.base_url.split(":")[2].split("/")[0]))
    with pytest.raises(OSError, match=r"(?i)address already in use"):
        taken.start()
    taken.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize("held", [True, False])
def test_closes_at_once_with_requests_in_flight(in_thread: InThread, held: bool) -> None:
    with FakeOpenAI(faults=lambda _request: Stall()) as server:
        if held:
            server.hold()
        asking = [in_thread(Clients("sync", server).chat) for _ in range(5)]
        server.wait_for(lambda server: server.in_flight == 5)
        in_thread(server.close).result(2)
        for future in asking:
            assert isinstance(future.exception(5), openai.APIConnectionError)
        assert (server.in_flight, server.disconnected) == (0, 0)
        server.release()


@pytest.mark.linux
@pytest.mark.serial
def test_leaves_no_threads_or_descriptors() -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with FakeOpenAI():  # opens what stays open until the process ends
        pass
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        with FakeOpenAI() as server:
            send_raw(server)
            assert any("fake-openai" in thread.name for thread in threading.enumerate())
        assert not any("fake-openai" in thread.name for thread in threading.enumerate())
    assert (descriptors(), threading.active_count()) == (before, threads)


def test_has_500_requests_in_flight(server: FakeOpenAI) -> None:
    server.reply = echo
    server.hold()

    async def ask() -> list[str]:
        reader_writers = [
            await asyncio.open_connection("127.0.0.1", _port(server)) for _ in range(500)
        ]
        for number, (_, writer) in enumerate(reader_writers):
            writer.write(_request(_chat_body(str(number)), "connection: close"))
        await asyncio.to_thread(server.wait_for, lambda server: server.in_flight == 500, 30)
        server.release()
        answers = [await reader.read() for reader, _ in reader_writers]
        for _, writer in reader_writers:
            writer.close()
            await writer.wait_closed()
        contents = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
        return [content["choices"][0]["message"]["content"] for content in contents]

    assert asyncio.run(ask()) == [str(number) for number in range(500)]
    assert server.max_in_flight == 500


# The fixture, the command, the package


def test_fixture_leads_clients_to_the_server(fake_openai: FakeOpenAI) -> None:
    with openai.OpenAI() as client:
        assert client.models.list().data
    assert fake_openai.requests[0].path == "/v1/models"


def test_environment_names_an_accepted_key() -> None:
    with FakeOpenAI(api_keys=["sk-a"]) as server:
        assert server.openai_environment() == {
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "sk-a",
        }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_a_signal(number: signal.Signals) -> None:
    program = "from gptx_async.testing import serve; serve(reply='echo', api_keys={'sk-a'})"
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            base_url = child.stdout.readline().strip()
            with openai.OpenAI(base_url=base_url, api_key="sk-a") as client:
                assert client.responses.create(model=MODEL, input="Hi").output_text == "Hi"
            child.send_signal(number)
            rest, errors = child.communicate(timeout=20)
        finally:
            child.kill()
    assert (child.returncode, rest, errors) == (0, "", "")


def test_serve_refuses_an_unknown_reply() -> None:
    with pytest.raises(ValueError, match="Give one of digest, echo"):
        gptx_async.testing.serve(reply="no such")


def test_plugin_and_package_import_no_server() -> None:
    program = textwrap.dedent("""
        import sys
        import gptx_async.testing, gptx_async.testing.plugin
        heavy = {"aiohttp", "symai", "openai", "gptx_async.symbolicai"} & set(sys.modules)
        assert not heavy, heavy
        from gptx_async.testing import *
        rooms = {"gptx_async.symbolicai", "gptx_async.loop"}
        heavy = ({"symai", "openai"} | rooms) & set(sys.modules)
        assert not heavy, heavy
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_public_names_are_sorted_and_there() -> None:
    names = gptx_async.testing.__all__
    assert sorted(names) == sorted(set(names))
    for name in names:
        assert getattr(gptx_async.testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gptx_async.testing.nothing


def _port(server: FakeOpenAI) -> int:
    return int(server.base_url.removesuffix("/v1").rpartition(":")[2])


def _chat_body(text: str) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]}).encode()


def _request(body: bytes, headers: str) -> bytes:
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: fake",
        "authorization: Bearer sk-fake",
        f"content-length: {len(body)}",
        headers,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def send_raw(
    server: FakeOpenAI, body: bytes | None = None, headers: str = "x-none: 0"
) -> tuple[bytes, bytes]:
    """Send a request without a client; append the received bytes to a reset error's arguments."""
    content = _chat_body("Hello") if body is None else body
    received = b""
    with socket.create_connection(("127.0.0.1", _port(server)), timeout=10) as connection:
        connection.sendall(_request(content, f"connection: close\r\n{headers}"))
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError as error:
            error.args = (*error.args, received)
            raise
    head, _, content = received.partition(b"\r\n\r\n")
    return head, content


def test_closes_connections_accepted_while_it_closes() -> None:
    """asyncio leaves a connection open if its server closes before it attaches the connection."""
    program = """
        import asyncio, gc, socket, threading
        from gptx_async.testing import FakeOpenAI

        clients, closing = [], []

        def connect_and_close(_request):
            # Runs on the server's loop, which sees the connections and the close in one iteration.
            loop, told = asyncio.get_running_loop(), threading.Event()
            tell = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = lambda *arguments: (tell(*arguments), told.set())
            clients.extend(socket.create_connection(address) for _ in range(3))
            closing.append(threading.Thread(target=server.close))
            closing[0].start()
            assert told.wait(10)
            return "Bye"

        async def wait_and_connect(*arguments, **options):
            # Connects after the others are served. Two iterations later it would be served too.
            asyncio.wait = wait
            outcome = await wait(*arguments, **options)
            clients.append(socket.create_connection(address))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return outcome

        wait, asyncio.wait = asyncio.wait, wait_and_connect
        server = FakeOpenAI(connect_and_close).start()
        address = ("127.0.0.1", int(server.base_url.split(":")[2].split("/")[0]))
        body = b'{"model": "m", "messages": []}'
        with socket.create_connection(address, timeout=10) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\nauthorization: Bearer k"
            connection.sendall(head + b"\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body)
            while connection.recv(65536):
                pass
        closing[0].join(10)
        for client in clients:
            client.close()
        gc.collect()
        print(len(clients), server.statuses[200])
    """
    completed = run_child(program)
    assert (completed.stdout, completed.stderr) == ("4 1\n", "")


@pytest.mark.slow
def test_closes_what_connects_while_it_closes() -> None:
    """Two threads keep connecting while servers start and close; no transport is left open."""
    completed = run_child(
        strict=False,
        fresh=True,
        program="""
import gc, socket, threading, warnings
from gptx_async.testing import FakeOpenAI

warnings.simplefilter("always")
told, address, stop = [], [None], threading.Event()
warnings.showwarning = lambda message, *_, **__: told.append(str(message))

def connect():
    while not stop.is_set():
        try:
            with socket.create_connection(address[0], timeout=1) as connection:
                connection.sendall(b"POST / HTTP/1.1\\r\\n")
        except OSError:
            pass

threads = [threading.Thread(target=connect, daemon=True) for _ in range(2)]
for number in range(20):
    server = FakeOpenAI().start()
    address[0] = ("127.0.0.1", int(server.base_url.split(":")[2].split("/")[0]))
    if not number:
        for thread in threads:
            thread.start()
    server.wait_for(lambda server: True)
    threading.Event().wait(0.01)
    server.close()
    gc.collect()
stop.set()
print(len(told))
""",
    )
    assert completed.stdout.strip() == "0", completed.stdout + completed.stderr
