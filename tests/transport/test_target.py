"""On both paths the server receives the same bytes as from the SDK's default client."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.call_paths import OURS, PATHS, ask, cause_of
from support.hostile import HostileServer, Received, answer

ASYNC_ONLY = re.compile(rb"(?m)^(user-agent|x-stainless-async): .*\r\n")
"""The headers that name the async client. Every other byte must equal the sync client's."""


def respond(_received: Received, connection: socket.socket) -> None:
    connection.sendall(answer("blue"))


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer(respond) as server:
        yield server


def client_of(
    base_url: str,
    query: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="sk-of-the-target",
        base_url=base_url,
        default_query=query,
        default_headers=headers,
        max_retries=0,
    )


def sent(server: HostileServer, path: str, client: openai.OpenAI) -> bytes:
    """Return the request that the server receives, without the headers that name the client."""
    before = len(server.received)
    ask(path, client)
    [received] = server.received[before:]
    return ASYNC_ONLY.sub(b"", received.raw)


def check_same(server: HostileServer, client: openai.OpenAI) -> bytes:
    """Check that each path sends the same request as the sync client; return that request."""
    expected = sent(server, "sync", client)
    for path in OURS:
        assert sent(server, path, client) == expected, path
    return expected


@pytest.mark.parametrize(
    ("path", "query", "line"),
    [
        ("/v1", None, b"POST /v1/chat/completions HTTP/1.1"),
        (
            "/model/arn%3Aaws%3Abedrock%2Fx/v1",
            None,
            b"POST /model/arn%3Aaws%3Abedrock%2Fx/v1/chat/completions HTTP/1.1",
        ),
        (
            "/d/gpt%2D4o%7E1~/v1/",
            None,
            b"POST /d/gpt%2D4o%7E1~/v1/chat/completions HTTP/1.1",
        ),
        ("//a//b;c=(1)/", None, b"POST //a//b;c=(1)/chat/completions HTTP/1.1"),
        ("/a+b%20c/ü", None, b"POST /a+b%20c/%C3%BC/chat/completions HTTP/1.1"),
        (
            "/v1",
            {"sig": "a+b/c==", "ü": "é &", "none": ""},
            b"POST /v1/chat/completions?sig=a%2Bb%2Fc%3D%3D&%C3%BC=%C3%A9+%26&none= HTTP/1.1",
        ),
        ("/v1?x=1", None, b"POST /v1/?x=1chat/completions HTTP/1.1"),
    ],
)
def test_the_request_line_is_the_sync_clients(
    server: HostileServer, path: str, query: Mapping[str, object] | None, line: bytes
) -> None:
    expected = check_same(server, client_of(server.origin + path, query))
    assert expected.startswith(line + b"\r\n")


@given(
    path=st.text(st.sampled_from("ab/~-_.+%2Fü:;=&@!$',()* %41%7E")) | st.text(max_size=8),
    query=st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=2),
)
@example(path="%", query={"%": "%2F"})
@example(path="a/../b/./c", query={"/?#[]": "\x00\n"})
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_any_path_and_query_are_sent_as_by_the_sync_client(
    server: HostileServer, path: str, query: Mapping[str, str]
) -> None:
    try:
        client = client_of(f"{server.origin}/{path}", query)
        sent(server, "sync", client)
    except Exception as refused:
        for ours in OURS:
            with pytest.raises(type(refused)):
                ask(ours, client_of(f"{server.origin}/{path}", query))
    else:
        check_same(server, client)


@pytest.mark.parametrize(
    ("userinfo", "header"),
    [
        ("bob:p%40w@", b"Authorization: Basic Ym9iOnBAdw==\r\n"),
        ("bob@", b"Authorization: Basic Ym9iOg==\r\n"),
        (":secret@", b"Authorization: Basic OnNlY3JldA==\r\n"),
        ("@", b"authorization: Bearer sk-of-the-target\r\n"),
    ],
)
def test_credentials_in_the_base_url_take_the_keys_place(
    server: HostileServer, userinfo: str, header: bytes
) -> None:
    base_url = server.base_url.replace("//", f"//{userinfo}")
    expected = check_same(server, client_of(base_url))
    assert header in expected
    assert expected.lower().count(b"authorization:") == 1


def test_a_redirect_carries_credentials_as_by_the_sync_client(server: HostileServer) -> None:
    def redirect(received: Received, connection: socket.socket) -> None:
        if b"POST /v1/" in received.raw:
            connection.sendall(
                b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /b%3Ac?d=%2F\r\n"
                b"content-length: 0\r\n\r\n"
            )
        else:
            connection.sendall(answer("blue"))

    with HostileServer(redirect) as other:
        client = client_of(other.base_url.replace("//", "//bob:pw@"))
        seen = {}
        for path in PATHS:
            before = len(other.received)
            ask(path, client)
            seen[path] = [ASYNC_ONLY.sub(b"", each.raw) for each in other.received[before:]]
    assert len(seen["sync"]) == 2
    assert seen["sync"][1].startswith(b"POST /b%3Ac?d=%2F HTTP/1.1\r\n")
    for path in OURS:
        assert seen[path] == seen["sync"], path


@pytest.mark.parametrize("host", ["127.1", "2130706433", "127.0.1", "LOCALHOST"])
def test_hosts_are_found_and_named_as_by_the_sync_client(server: HostileServer, host: str) -> None:
    port = server.origin.rpartition(":")[2]
    expected = check_same(server, client_of(f"http://{host}:{port}/v1"))
    assert f"\r\nHost: {host.lower()}:{port}\r\n".encode() in expected


def test_header_names_have_the_sync_clients_capitals_and_order(server: HostileServer) -> None:
    client = client_of(server.base_url, headers={"X-Gateway-Key": "a"})
    expected = check_same(server, client)
    assert re.search(rb"(?i)\r\nx-gateway-key: a\r\n", expected)
    assert b"\r\nAccept-Encoding: " in expected


@pytest.mark.parametrize(
    ("base_url", "text"),
    [
        ("", "Request URL is missing an 'http://' or 'https://' protocol."),
        ("api.example.com/v1", "Request URL is missing an 'http://' or 'https://' protocol."),
        ("ftp://127.0.0.1/v1", "Request URL has an unsupported protocol 'ftp://'."),
    ],
)
def test_a_base_url_that_cannot_be_asked_says_why(base_url: str, text: str) -> None:
    for path in PATHS:
        with pytest.raises(openai.APIConnectionError) as caught:
            ask(path, client_of(base_url))
        assert str(caught.value) == "Connection error."
        cause = cause_of(caught.value)
        assert (type(cause).__name__, str(cause)) == ("UnsupportedProtocol", text)
