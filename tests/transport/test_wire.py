"""The route past the SDK gives the same requests, responses and errors as the SDK's own path.

A listener to the SDK's log closes the route, so each call is compared with the same call made while
there is a listener. The tests also fail if a request is sent twice, or if the route is not used.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import logging
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from aiohttp import client_proto
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types.chat import ChatCompletion

from gptx_async import errors
from gptx_async.batch.driver import wait_for
from gptx_async.calls.request import RequestOptions
from gptx_async.loop.call import Call
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import (
    HTML,
    BadJSON,
    EmptyBody,
    EmptyChoices,
    FakeOpenAI,
    Fault,
    HTTPFault,
    NoChoices,
    Reset,
    TruncatedJSON,
)
from gptx_async.transport import exchange
from gptx_async.transport.exchange import Exchange, RawResponse
from gptx_async.transport.response_model import parse
from gptx_async.transport.route import PROBES, route_of
from gptx_async.transport.settings import ClientSettings
from support.client_calls import CallsOnLoop
from support.hostile import HostileServer, Received, Respond, completion
from support.looking import client_on

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "é \u2028 \U0001f600"}]}],
    "model": "gpt-4o-mini",
    "temperature": 0.1,
    "seed": None,
}

OF_ITS_OWN = ("date", "x-request-id")
"""Headers that differ in each response."""


def stand_in_of(client: openai.OpenAI, timeout: float | None = None) -> StandInClient:
    return StandInClient(client, CallsOnLoop(RequestOptions(timeout=timeout, patience=0)))


@contextlib.contextmanager
def by_the_sdk() -> Iterator[None]:
    """Send the calls of a block by the SDK's own path, by listening to its log."""
    logger = logging.getLogger("openai._base_client")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)


def routes_of(client: openai.OpenAI) -> list[Any]:
    """Return the routes of the loop's client, with None for a POST that has no route."""

    async def look(scope: LoopScope) -> list[Any]:
        loop_client = client_on(scope, ClientSettings.of(client))
        return [task.result() for task in loop_client._routes.values()]

    return default_service().run(look)


def seen(error: BaseException) -> dict[str, Any]:
    """Describe an exception and its causes by values that can be compared."""
    told: dict[str, Any] = {"type": type(error), "text": str(error)}
    for name in ("status_code", "code", "param", "body"):
        told[name] = getattr(error, name, None)
    response = getattr(error, "response", None)
    if response is not None:
        headers = response.headers
        told["headers"] = {name: headers[name] for name in headers if name not in OF_ITS_OWN}
        told["text"] = response.text
        told["history"] = [each.status_code for each in response.history]
    if isinstance(error, openai.APIError):
        told["request"] = (error.request.method, str(error.request.url), error.request.content)
    for name in ("__cause__", "__context__"):
        below = getattr(error, name)
        told[name] = None if below is None else (type(below), str(below))
    return told


def outcome_of(ask: Callable[[], Any]) -> Any:
    try:
        answer = ask()
    except Exception as error:
        return seen(error)
    if isinstance(answer, ChatCompletion):
        told = answer.model_dump(exclude={"id", "created"})
        return told, sorted(answer.model_fields_set), bool(answer._request_id)
    return (type(answer), answer)


FAULTS: dict[str, Fault] = {
    **{f"status {status}": HTTPFault(status) for status in (400, 401, 403, 404, 409, 422, 429)},
    **{f"status {status}": HTTPFault(status) for status in (500, 502, 503, 529, 201, 204, 300)},
    "no JSON in an error": HTTPFault(500, body="<html>", content_type="text/html"),
    "a request id": HTTPFault(400, headers={"x-request-id": "req_1"}),
    "odd content type": HTTPFault(200, body=completion("x"), content_type="text/plain"),
    "charset": HTTPFault(200, body=completion("x"), content_type="application/json; charset=utf-8"),
    "cookie": HTTPFault(200, body=completion("x"), headers={"set-cookie": "a=b; Path=/"}),
    "null": HTTPFault(200, body=None),
    "a list": HTTPFault(200, body=[completion("x")]),
    "numbers as texts": HTTPFault(200, body=completion("x") | {"created": "1"}),
    "an unknown reason": HTTPFault(
        200, body=completion("x") | {"choices": [{"index": 0, "finish_reason": "tired"}]}
    ),
    "reset before": Reset("before"),
    "reset in the middle": Reset("middle"),
    "bad JSON": BadJSON(),
    "empty body": EmptyBody(),
    "HTML": HTML(),
    "truncated": TruncatedJSON(),
    "empty choices": EmptyChoices(),
    "no choices": NoChoices(),
}


@pytest.mark.parametrize("fault", [None, *FAULTS.values()], ids=["none", *FAULTS])
@pytest.mark.slow
def test_a_call_has_the_same_outcome_as_by_the_sdk(
    fake_openai: FakeOpenAI, fault: Fault | None
) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)
    stand_in = stand_in_of(client)
    fake_openai.faults = lambda _request: fault
    ask = functools.partial(stand_in.chat.completions.create, **CHAT)
    with by_the_sdk():
        expected = outcome_of(ask)
    assert outcome_of(ask) == expected
    assert len(fake_openai.requests) == 2, "no request is sent twice"
    theirs, ours = fake_openai.requests
    assert ours.raw == theirs.raw
    assert [*ours.headers.items()] == [*theirs.headers.items()] or fault == FAULTS["cookie"]
    [route] = routes_of(client)
    assert route is not None
    assert route.is_open


def test_the_key_of_a_route_is_not_shown(fake_openai: FakeOpenAI) -> None:
    client = openai.OpenAI(api_key="sk-key-of-a-route", base_url=fake_openai.base_url)
    stand_in_of(client).chat.completions.create(**CHAT)
    [route] = routes_of(client)
    assert "sk-key-of-a-route" in str(route.headers)
    assert "sk-key-of-a-route" not in repr(route)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "organization and project": {"organization": "org", "project": "proj"},
    "headers": {"default_headers": {"X-Mine": "1", "User-Agent": "me"}},
    "no content type": {"default_headers": {"Content-Type": "text/plain"}},
    "query": {"default_query": {"api-version": "1", "list": [1, 2]}},
    "timeout": {"timeout": 7.0},
    "no timeout": {"timeout": None},
    "timeouts": {"timeout": httpx2.Timeout(5.0, read=9.0)},
    "a cookie by hand": {"default_headers": {"Cookie": "a=b"}},
    "an odd key": {"api_key": "sk-kéy"},
}

LEFT_TO_THE_SDK = {"a cookie by hand", "an odd key"}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("timeout", [None, 8.0])
def test_the_settings_give_the_same_request(
    fake_openai: FakeOpenAI, posts: list[int], name: str, timeout: float | None
) -> None:
    given_settings = SETTINGS[name]
    usual: dict[str, Any] = {"api_key": "sk-key", "base_url": fake_openai.base_url}
    client = openai.OpenAI(**usual | given_settings, max_retries=0)
    ask = functools.partial(stand_in_of(client, timeout).chat.completions.create, **CHAT)
    with by_the_sdk():
        expected = outcome_of(ask)
    assert outcome_of(ask) == expected
    assert len(posts) == (name not in LEFT_TO_THE_SDK)
    sent = [(each.path, [*each.headers.items()], each.raw) for each in fake_openai.requests]
    assert sent[: len(sent) // 2] == sent[len(sent) // 2 :]


def test_a_retry_is_counted_in_its_header(fake_openai: FakeOpenAI) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=2)
    fake_openai.fail_next(HTTPFault(500, retry_after_ms=1), times=2)
    stand_in_of(client).chat.completions.create(**CHAT)
    counts = [each.headers["x-stainless-retry-count"] for each in fake_openai.requests]
    assert counts == ["0", "1", "2"]


def test_cookies_are_kept_and_sent_as_by_the_sdk(fake_openai: FakeOpenAI) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)
    ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
    ask()
    fake_openai.fail_next(
        HTTPFault(200, body=completion("x"), headers={"set-cookie": "bm=1; Path=/"})
    )
    ask()
    ask()
    with by_the_sdk():
        ask()
    fake_openai.fail_next(
        HTTPFault(200, body=completion("x"), headers={"set-cookie": "bm=; Path=/; Max-Age=0"})
    )
    ask()
    ask()
    cookies = [each.headers.get("cookie") for each in fake_openai.requests]
    assert cookies == [None, None, "bm=1", "bm=1", "bm=1", None]


@pytest.mark.parametrize("when", ["the head", "the body"])
@pytest.mark.slow
def test_an_attempt_that_is_late_is_the_same_error(when: str) -> None:
    def respond(_received: Received, connection: socket.socket) -> bool:
        if when == "the body":
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
            connection.sendall(head + b"{")
        return False

    with HostileServer(respond) as server:
        client = openai.OpenAI(api_key="sk-key", base_url=server.base_url, max_retries=0)
        ask = functools.partial(stand_in_of(client, 2.0).chat.completions.create, **CHAT)
        with by_the_sdk():
            expected = outcome_of(ask)
        assert outcome_of(ask) == expected
        assert expected["type"] is errors.TimeoutError
        assert len(server.received) == 2


def sending(head: Mapping[str, str], body: bytes, status: str = "200 OK") -> Respond:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in head.items()]
    content = "\r\n".join([*lines, "", ""]).encode() + body

    def respond(_received: Received, connection: socket.socket) -> bool:
        connection.sendall(content)
        return False

    return respond


def sending_raw(before: bytes, head: Mapping[str, str], body: bytes) -> Respond:
    """Return a handler that sends bytes, then a response if there is a head, and closes."""

    def respond(received: Received, connection: socket.socket) -> bool:
        connection.sendall(before)
        if head:
            sending(head, body)(received, connection)
        return True

    return respond


ANSWER = json.dumps(completion("the answer")).encode()
JSON_TYPE = {"content-type": "application/json"}

HEADS: dict[str, Respond] = {
    "gzip": sending(JSON_TYPE | {"content-encoding": "gzip"}, gzip.compress(ANSWER)),
    "deflate": sending(JSON_TYPE | {"content-encoding": "deflate"}, zlib.compress(ANSWER)),
    "gzip that is none": sending(JSON_TYPE | {"content-encoding": "gzip"}, ANSWER),
    "gzip cut off": sending(JSON_TYPE | {"content-encoding": "gzip"}, gzip.compress(ANSWER)[:-9]),
    "an unknown encoding": sending(JSON_TYPE | {"content-encoding": "x"}, ANSWER),
    "a body in UTF-16": sending(JSON_TYPE, ANSWER.decode().encode("utf-16")),
    "a byte-order mark": sending(JSON_TYPE, b"\xef\xbb\xbf" + ANSWER),
    "no UTF-8": sending(JSON_TYPE, ANSWER.replace(b"the answer", b"\xff")),
    "a lone surrogate": sending(JSON_TYPE, ANSWER.replace(b"the answer", rb"\ud800")),
    "two of a key": sending(JSON_TYPE, ANSWER[:-1] + b', "id": "second"}'),
    "NaN": sending(JSON_TYPE, ANSWER[:-1] + b', "extra": NaN}'),
    "a long number": sending(JSON_TYPE, ANSWER[:-1] + b', "extra": %d}' % 10**400),
    "a deep extra": sending(
        JSON_TYPE, ANSWER[:-1] + b', "extra": ' + b"[" * 300 + b"]" * 300 + b"}"
    ),
    "an interim answer": sending_raw(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", JSON_TYPE, ANSWER
    ),
    "another protocol": sending_raw(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", {}, b""
    ),
    "no content": sending_raw(b"HTTP/1.1 204 No Content\r\n\r\n", {}, b""),
    "long headers": sending(JSON_TYPE | {"x-long": "x" * 101 * 1024}, ANSWER),
}


@pytest.mark.parametrize("respond", HEADS.values(), ids=HEADS)
def test_an_odd_answer_has_the_same_outcome_as_by_the_sdk(
    respond: Respond, posts: list[int]
) -> None:
    with HostileServer(respond) as server:
        client = openai.OpenAI(api_key="sk-key", base_url=server.base_url, max_retries=0)
        ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
        with by_the_sdk():
            expected = outcome_of(ask)
        server.settle()
        assert repr(outcome_of(ask)) == repr(expected)  # a NaN is not equal to itself
        assert len(posts) == 1
        assert len(server.received) == 2


def test_a_key_that_is_not_ascii_is_left_to_the_sdk_with_the_same_outcome(
    fake_openai: FakeOpenAI, posts: list[int]
) -> None:
    client = openai.OpenAI(api_key="sk-\xe9", base_url=fake_openai.base_url, max_retries=0)
    expected = outcome_of(functools.partial(client.chat.completions.create, **CHAT))
    ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
    assert outcome_of(ask) == expected
    assert posts == []
    client.close()


@pytest.mark.parametrize("key", ["sk-\x01", "sk-\r\nx: y", "sk-\x7f"])
def test_a_key_with_a_control_character_is_left_to_the_sdk_and_never_sent(
    fake_openai: FakeOpenAI, posts: list[int], key: str
) -> None:
    """The sync client sends two of these keys; aiohttp rejects all, and httpx only line breaks."""
    client = openai.OpenAI(api_key=key, base_url=fake_openai.base_url, max_retries=0)
    outcome = outcome_of(functools.partial(stand_in_of(client).chat.completions.create, **CHAT))
    assert outcome["type"] is openai.APIConnectionError
    assert outcome["__cause__"][0].__name__ == "LocalProtocolError"
    assert (fake_openai.requests, posts) == ([], [])


@pytest.fixture(autouse=True)
def no_listeners(caplog: pytest.LogCaptureFixture) -> None:
    """Silence httpx's log, as a call of an engine does; a stand-in client does not do so itself."""
    for name in ("httpx", "httpx2"):
        caplog.set_level(logging.ERROR, name)


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the lengths of the bodies that are sent past the SDK."""
    seen: list[int] = []
    post = Exchange.post

    async def post_and_tell(self: Exchange, content: bytes, *args: Any) -> RawResponse:
        seen.append(len(content))
        return await post(self, content, *args)

    monkeypatch.setattr(Exchange, "post", post_and_tell)
    return seen


def test_large_bodies_are_sent_by_the_sdk(fake_openai: FakeOpenAI, posts: list[int]) -> None:
    """The response's time limit must not start early, and an early response must not be lost."""
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)
    stand_in = stand_in_of(client)
    for text in ("a", "b" * 50_000, "c" * 70_000):
        stand_in.chat.completions.create(
            messages=[{"role": "user", "content": text}], model="gpt-4o-mini"
        )
    assert len(fake_openai.requests) == 3
    assert len(posts) == 2
    assert max(posts) < exchange.MOST_BYTES


def test_an_unknown_aiohttp_has_no_route(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parser:
        def set_response_params(self, *, another: int = 0) -> None: ...

    monkeypatch.setattr(client_proto, "ResponseHandler", Parser)
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)
    told = stand_in_of(client).chat.completions.create(**CHAT)
    assert isinstance(told, ChatCompletion)
    assert routes_of(client) == [None]


def test_a_connection_is_used_again_but_not_after_its_call_was_given_up(
    posts: list[int],
) -> None:
    is_silent = False
    calls: list[Call[Any]] = []

    def respond(received: Received, connection: socket.socket) -> object:
        if is_silent:
            calls[-1].cancel()
            return False
        return sending(JSON_TYPE, ANSWER)(received, connection)

    def dispatch(request: Any) -> Any:
        calls.append(Call(request))
        return wait_for(calls[-1])

    with HostileServer(respond) as server:
        client = openai.OpenAI(api_key="sk-key", base_url=server.base_url, max_retries=0)
        ask = functools.partial(
            StandInClient(client, CallsOnLoop(dispatch=dispatch)).chat.completions.create, **CHAT
        )
        for _ in range(3):
            ask()
        assert server.connections == 1
        is_silent = True
        with pytest.raises(errors.CallCancelledError):
            ask()
        server.wait_for(lambda: server.open_connections == 0)
        is_silent = False
        ask()
        assert server.connections == 2
        assert len(posts) == len(server.received) == 5


def test_a_redirect_is_followed_as_by_the_sdk() -> None:
    def respond(received: Received, connection: socket.socket) -> object:
        path = received.raw.split(b" ")[1].decode()
        if path.endswith("/elsewhere"):
            return sending(JSON_TYPE, ANSWER)(received, connection)
        location = {"location": "/v1/elsewhere"}
        return sending(location, b"", "307 Temporary Redirect")(received, connection)

    with HostileServer(respond) as server:
        client = openai.OpenAI(api_key="sk-key", base_url=server.base_url, max_retries=0)
        ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
        with by_the_sdk():
            expected = outcome_of(ask)
        assert outcome_of(ask) == expected
        raw = [each.raw for each in server.received]
        assert len(raw) == 4
        assert raw[:2] == raw[2:]


def test_redirects_without_end_are_the_same_error() -> None:
    with HostileServer(sending({"location": "/v1/round"}, b"", "308 Permanent Redirect")) as server:
        client = openai.OpenAI(api_key="sk-key", base_url=server.base_url, max_retries=0)
        ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
        with by_the_sdk():
            expected = outcome_of(ask)
        sent = len(server.received)
        assert outcome_of(ask) == expected
        assert len(server.received) == 2 * sent


def test_the_route_is_closed_while_its_machinery_is_patched(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url)
    ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
    calls: list[str] = []

    def patched(kind: type, name: str) -> None:
        original = getattr(kind, name)

        @functools.wraps(original)
        async def note(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return await original(*args, **kwargs)

        monkeypatch.setattr(kind, name, note)

    ask()
    patched(openai.AsyncOpenAI, "request")
    patched(httpx2.AsyncClient, "send")
    ask()
    assert calls == ["request", "send"]
    ask()
    assert calls == ["request", "send"] * 2
    monkeypatch.undo()
    ask()
    assert calls == ["request", "send"] * 2
    assert len(fake_openai.requests) == 4


def test_a_patched_session_of_aiohttp_sees_each_call(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url)
    ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
    original = aiohttp.ClientSession._request
    calls: list[str] = []

    async def note(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await original(self, method, *args, **kwargs)

    ask()
    monkeypatch.setattr(aiohttp.ClientSession, "_request", note)
    ask()
    assert calls == ["POST"]
    assert len(fake_openai.requests) == 2


@pytest.mark.parametrize("what", ["trace_configs", "middlewares"])
def test_a_tracer_in_the_session_sees_each_call(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Packages that trace aiohttp patch the constructor of its session."""
    original = aiohttp.ClientSession.__init__
    seen: list[str] = []

    async def started(*_: Any) -> None:
        seen.append(what)

    async def middleware(request: Any, handler: Any) -> Any:
        seen.append(what)
        return await handler(request)

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        traced = aiohttp.TraceConfig()
        traced.on_request_start.append(started)
        added: Any = [traced] if what == "trace_configs" else [middleware]
        original(self, *args, **(kwargs | {what: added}))

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", build)
    client = openai.OpenAI(api_key=f"sk-{what}", base_url=fake_openai.base_url)
    ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
    ask()
    ask()
    assert seen == [what] * 2
    assert len(fake_openai.requests) == 2


def test_a_client_made_while_the_machinery_is_patched_has_no_route(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = openai.AsyncOpenAI._build_request
    seen: list[str] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        seen.append("built")
        return original(*args, **kwargs)

    monkeypatch.setattr(openai.AsyncOpenAI, "_build_request", note)
    client = openai.OpenAI(api_key="sk-key-2", base_url=fake_openai.base_url)
    ask = functools.partial(stand_in_of(client).chat.completions.create, **CHAT)
    ask()
    assert seen == ["built"]  # no trial request was sent
    monkeypatch.undo()
    ask()
    assert len(fake_openai.requests) == 2


def test_many_timeouts_keep_few_routes(fake_openai: FakeOpenAI) -> None:
    client = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url)
    for number in range(70):
        stand_in_of(client, 5 + number / 10).chat.completions.create(**CHAT)
    assert len(routes_of(client)) <= 64
    timeouts = {each.headers["x-stainless-read-timeout"] for each in fake_openai.requests}
    assert len(timeouts) == 70


def built(body: Any, **changes: Any) -> Any:
    told = {"method": "POST", "url": "http://127.0.0.1:9/v1/x", "json": body} | changes
    if "json" in told:
        content = json.dumps(told.pop("json"), ensure_ascii=False, separators=(",", ":"))
        told["content"] = content.encode()
    request = httpx2.Request(**told)
    request.extensions["timeout"] = {"connect": 1, "read": 1, "write": 1, "pool": 1}
    return request


def test_a_route_is_what_the_requests_have_in_common() -> None:
    http_client: Any = openai.DefaultAioHttpClient()
    usual = [built(probe) for probe in PROBES]
    assert route_of(http_client, usual, ChatCompletion) is not None
    for odd in (
        {"method": "PUT"},
        {"url": "http://127.0.0.1:9/v1/y"},
        {"headers": {"idempotency-key": "1"}},
        {"content": json.dumps(PROBES[1]).encode()},  # with spaces, as httpx once wrote
    ):
        changed = {"json": PROBES[1]} | odd
        if "content" in odd:
            del changed["json"]
        body = changed.pop("json", None)
        other = built(body, **changed) if body is not None else _with_content(odd["content"])
        assert route_of(http_client, [usual[0], other], ChatCompletion) is None, odd
    for odd in (
        {"url": "ftp://127.0.0.1:9/v1/x"},
        {"url": "http:///v1/x"},
        {"headers": {"cookie": "a=b"}},
        {"headers": {"x-stainless-raw-response": "true"}},
    ):
        requests = [built(probe, **odd) for probe in PROBES]
        assert route_of(http_client, requests, ChatCompletion) is None, odd
    assert route_of(http_client, usual, dict) is None


def _with_content(content: Any) -> Any:
    request = built(None, content=content)
    return request


# --- parsing responses ---

TEXTS = st.text(max_size=8)
EXTRA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3),
    max_leaves=6,
)


def maybe(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Build objects with some of the fields, sometimes with wrong values or extra fields."""
    loose = {name: value | EXTRA for name, value in fields.items()}
    objects = st.fixed_dictionaries(fields) | st.fixed_dictionaries({}, optional=loose)
    return st.builds(
        lambda made, others: {**{f"x_{n}": v for n, v in others.items()}, **made},
        objects,
        st.dictionaries(TEXTS, EXTRA, max_size=2),
    )


CALLS = maybe(
    {
        "id": TEXTS,
        "type": st.sampled_from(["function", "custom", "other"]),
        "function": maybe({"name": TEXTS, "arguments": TEXTS}),
        "custom": maybe({"name": TEXTS, "input": TEXTS}),
    }
)
MESSAGES = maybe(
    {
        "role": st.just("assistant"),
        "content": st.none() | TEXTS,
        "refusal": st.none() | TEXTS,
        "annotations": st.none() | st.just([]),
        "audio": st.none(),
        "function_call": st.none() | maybe({"name": TEXTS, "arguments": TEXTS}),
        "tool_calls": st.none() | st.lists(CALLS, max_size=2),
    }
)
TOKENS = st.lists(
    maybe(
        {
            "token": TEXTS,
            "bytes": st.none(),
            "logprob": st.integers() | st.floats(-9, 0),
            "top_logprobs": st.just([]),
        }
    ),
    max_size=2,
)
CHOICES = maybe(
    {
        "index": st.integers(0, 3),
        "finish_reason": st.sampled_from(["stop", "length", "tool_calls", "tired"]),
        "logprobs": st.none() | maybe({"content": TOKENS, "refusal": st.none()}),
        "message": MESSAGES,
    }
)
DETAILS = maybe({"cached_tokens": st.integers(0, 9), "audio_tokens": st.none() | st.integers(0, 9)})
USAGE = maybe(
    {
        "prompt_tokens": st.integers(0, 9),
        "completion_tokens": st.integers(0, 9),
        "total_tokens": st.integers(0, 9) | st.floats(0, 9),
        "prompt_tokens_details": st.none() | DETAILS,
    }
)
ANSWERS = maybe(
    {
        "id": TEXTS,
        "object": st.just("chat.completion"),
        "created": st.integers(),
        "model": TEXTS,
        "choices": st.lists(CHOICES, max_size=2),
        "usage": st.none() | USAGE,
        "service_tier": st.sampled_from([None, "default", "gold"]),
        "system_fingerprint": st.none() | TEXTS,
        "moderation": st.none() | EXTRA,
    }
)


def anatomy(value: Any) -> Any:
    """Describe a model by values that compare with types and order: 1 is not 1.0 or True."""
    if hasattr(value, "__pydantic_fields_set__"):
        parts = (value.__dict__, value.__pydantic_extra__, value.__pydantic_private__)
        return type(value), *map(anatomy, parts), value.__pydantic_fields_set__
    if isinstance(value, dict):
        return [(name, anatomy(each)) for name, each in value.items()]
    if isinstance(value, list):
        return [anatomy(each) for each in value]
    return type(value), value


@pytest.mark.slow
def test_an_answer_is_what_the_sdk_makes_of_it() -> None:
    made_here, left_to_the_sdk = 0, 0

    @settings(max_examples=300, deadline=None)
    @given(ANSWERS)
    @example(completion("x"))
    @example(completion("x") | {"usage": {"prompt_tokens": 1.0, "completion_tokens": 1}})
    @example(completion("x") | {"choices": [{"index": True}]})
    @example(completion("x") | {"created": "1"})
    @example(completion("x") | {"created": 1.0})
    def compare(data: dict[str, Any]) -> None:
        nonlocal made_here, left_to_the_sdk
        made = parse(ChatCompletion, json.dumps(data).encode())
        if made is None:
            left_to_the_sdk += 1
            return
        made_here += 1
        expected: Any = construct_type(type_=ChatCompletion, value=data)
        assert anatomy(made) == anatomy(expected)
        assert made.model_dump_json() == expected.model_dump_json()

    compare()
    print(f"{made_here} were made here, {left_to_the_sdk} left to the SDK")
    assert made_here > 10


def test_regular_answers_are_made_here(fake_openai: FakeOpenAI) -> None:
    """Otherwise the property test above would pass without testing anything."""
    tool_calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    calling = completion("x")
    calling["choices"][0]["message"]["tool_calls"] = tool_calls
    for data in (completion("x"), calling):
        made = parse(ChatCompletion, json.dumps(data).encode())
        assert anatomy(made) == anatomy(construct_type(type_=ChatCompletion, value=data))
    with openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url) as client:
        answer = client.chat.completions.create(**CHAT)
    assert parse(ChatCompletion, answer.model_dump_json().encode()) is not None


def test_a_class_with_a_float_of_its_own_has_no_route() -> None:
    """The SDK keeps a 1 as an int; pydantic converts it to 1.0."""

    class Inner(openai.BaseModel):
        score: float

    class Outer(openai.BaseModel):
        inner: list[Inner]

    http_client: Any = openai.DefaultAioHttpClient()
    assert route_of(http_client, [built(probe) for probe in PROBES], Outer) is None


def test_floats_that_may_be_missing_are_made_as_by_the_sdk() -> None:
    data = completion("x")
    data["choices"][0]["logprobs"] = {
        "content": [{"token": "x", "logprob": -1, "bytes": None, "top_logprobs": []}]
    }
    made = parse(ChatCompletion, json.dumps(data).encode())
    assert anatomy(made) == anatomy(construct_type(type_=ChatCompletion, value=data))
