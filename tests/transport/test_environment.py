"""An engine keeps the proxies and certificates that the environment had when it was built.

Each test compares the engine with a sync client that was built at the same time.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trustme
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

from gptx_async import AsyncGPTXBatchEngine
from gptx_async.transport.settings import ClientSettings
from support.call_paths import CHAT, OURS, PATHS, ask, cause_of, stand_in_of
from support.hostile import HostileServer, Received, answer, make_argument
from support.tls import TLSRelay

CLASSES = pytest.mark.parametrize("engine_class", [GPTXChatEngine, AsyncGPTXBatchEngine])


def saying(text: str) -> Callable[[Received, socket.socket], None]:
    """Return a handler that answers each request with a text."""

    def respond(_received: Received, connection: socket.socket) -> None:
        connection.sendall(answer(text))

    return respond


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.delenv("NO_PROXY")
    with HostileServer(saying("direct")) as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[HostileServer]:
    with HostileServer(saying("by proxy")) as proxy:
        yield proxy


def client_of(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="sk-of-the-environment", base_url=base_url, max_retries=0)


def text_of(path: str, client: openai.OpenAI) -> str:
    return str(ask(path, client).choices[0].message.content)


@CLASSES
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.slow
def test_a_new_engine_uses_a_proxy_that_was_set_after_the_first_call(
    server: HostileServer,
    proxy: HostileServer,
    monkeypatch: pytest.MonkeyPatch,
    engine_class: type[Any],
    name: str,
) -> None:
    def build() -> Any:
        engine = engine_class(api_key="sk-of-a-notebook", model="gpt-4o-mini")
        engine.max_retries = 0
        return engine

    def text(engine: Any) -> Any:
        argument = make_argument("Which way?")
        engine.prepare(argument)
        [[outputs], _metadata] = engine.forward(argument)
        return outputs

    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    before = build()
    assert text(before) == "direct"
    monkeypatch.setenv(name, proxy.origin)
    assert text(build()) == "by proxy"
    assert text(before) == "direct"  # an engine keeps what it was built with
    [received] = proxy.received
    assert received.raw.startswith(f"POST {server.base_url}/chat/completions HTTP/1.1".encode())
    monkeypatch.delenv(name)
    assert text(build()) == "direct"


@pytest.mark.parametrize("path", PATHS)
def test_a_proxy_set_between_building_and_the_first_call_is_ignored(
    server: HostileServer, proxy: HostileServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    client = client_of(server.base_url)
    stand_in = client if path == "sync" else stand_in_of(client)
    monkeypatch.setenv("HTTP_PROXY", proxy.origin)
    got = stand_in.chat.completions.create(**CHAT)
    assert got.choices[0].message.content == "direct"


@pytest.mark.parametrize("path", PATHS)
def test_no_proxy_counts_as_in_the_sync_client(
    server: HostileServer, proxy: HostileServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.origin)
    assert text_of(path, client_of(server.base_url)) == "by proxy"
    for no_proxy in ("127.0.0.1", "*", "127.0.0.0/8"):
        monkeypatch.setenv("no_proxy", no_proxy)
        assert text_of(path, client_of(server.base_url)) == "direct", no_proxy


@pytest.mark.parametrize("path", PATHS)
def test_a_proxys_password_is_sent_to_it(
    server: HostileServer, proxy: HostileServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.origin.replace("//", "//bob:pw@"))
    assert text_of(path, client_of(server.base_url)) == "by proxy"
    [received] = proxy.received
    assert b"\r\nproxy-authorization: basic ym9iOnB3\r\n".lower() in received.raw.lower()


@pytest.mark.parametrize("path", PATHS)
def test_a_certificate_that_is_named_after_a_failure_counts_for_a_new_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with HostileServer(saying("encrypted")) as plain, TLSRelay(authority, plain.origin) as server:
        with pytest.raises(openai.APIConnectionError) as caught:
            text_of(path, client_of(server.base_url))
        assert "CERTIFICATE_VERIFY_FAILED" in str(cause_of(caught.value))
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert text_of(path, client_of(server.base_url)) == "encrypted"


@pytest.mark.parametrize("path", OURS)
def test_another_certificate_in_the_same_file_counts_for_a_new_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    authority = trustme.CA()
    file, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    trustme.CA(organization_name="Another").cert_pem.write_to_path(file)
    authority.cert_pem.write_to_path(other)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with HostileServer(saying("encrypted")) as plain, TLSRelay(authority, plain.origin) as server:
        with pytest.raises(openai.APIConnectionError):
            text_of(path, client_of(server.base_url))
        shutil.copy(other, file)
        assert text_of(path, client_of(server.base_url)) == "encrypted"


def test_settings_show_no_password_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://bob:secret@127.0.0.1:9")
    settings = ClientSettings.of(client_of("http://127.0.0.1:9"))
    assert "secret" not in repr(settings)
    assert b"secret" not in settings.key
