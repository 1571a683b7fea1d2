"""Calls go through SOCKS proxies as with the sync client."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import trustme

from gptx_async.cli.doctor import Subject, _ask_base_url
from support.call_paths import PATHS, ask
from support.child import run_python
from support.hostile import HostileServer, Received, answer
from support.tls import TLSRelay


class SOCKSProxy:
    """A SOCKS5 proxy on loopback (RFC 1928), optionally with user and password (RFC 1929).

    Args:
        credentials: The user and password that the proxy requires.

    Attributes:
        targets: The hosts and ports to which the proxy connected.
    """

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        self._credentials = credentials
        self.targets: list[tuple[str, int]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if not self._greet(connection):
                return
            version, command, _, kind = _read(connection, 4)
            assert (version, command) == (5, 1), "only CONNECT is supported"
            if kind == 1:
                host = socket.inet_ntoa(_read(connection, 4))
            else:
                host = _read(connection, _read(connection, 1)[0]).decode()
            port = int.from_bytes(_read(connection, 2))
            self.targets.append((host, port))
            with socket.create_connection((host, port)) as target:
                connection.sendall(bytes((5, 0, 0, 1, 0, 0, 0, 0, 0, 0)))
                back = threading.Thread(target=_pump, args=(target, connection), daemon=True)
                back.start()
                _pump(connection, target)
                back.join()

    def _greet(self, connection: socket.socket) -> bool:
        _version, count = _read(connection, 2)
        methods = _read(connection, count)
        if self._credentials is None:
            connection.sendall(b"\x05\x00")
            return True
        if 2 not in methods:
            connection.sendall(b"\x05\xff")
            return False
        connection.sendall(b"\x05\x02")
        _read(connection, 1)
        user = _read(connection, _read(connection, 1)[0]).decode()
        password = _read(connection, _read(connection, 1)[0]).decode()
        is_right = (user, password) == self._credentials
        connection.sendall(b"\x01\x00" if is_right else b"\x01\x01")
        return is_right


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise OSError
        data += part
    return data


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def respond(_received: Received, connection: socket.socket) -> None:
    connection.sendall(answer("blue"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.delenv("NO_PROXY")
    with HostileServer(respond) as server:
        yield server


def text_of(path: str, base_url: str) -> Any:
    client = openai.OpenAI(api_key="sk-of-socks", base_url=base_url, max_retries=0)
    return ask(path, client).choices[0].message.content


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTP_PROXY"])
@pytest.mark.slow
def test_a_call_goes_through_a_socks_proxy(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch, path: str, scheme: str, name: str
) -> None:
    proxy = SOCKSProxy()
    with contextlib.closing(proxy):
        monkeypatch.setenv(name, f"{scheme}://{proxy.address}")
        assert text_of(path, server.base_url) == "blue"
    port = int(server.origin.rpartition(":")[2])
    assert proxy.targets == [("127.0.0.1", port)]


TWO_LOGINS = """
import os, sys, openai
from support.call_paths import ask, cause_of
path, base_url, *proxies = sys.argv[1:]
for proxy in proxies:
    os.environ["ALL_PROXY"] = proxy
    client = openai.OpenAI(api_key="sk-of-socks", base_url=base_url, max_retries=0)
    try:
        print(ask(path, client).choices[0].message.content)
    except openai.APIConnectionError as error:
        print(type(cause_of(error)).__name__)
"""


# In a child: httpcore never closes the socket of a refused login, and the garbage collector, which
# does, warns about it in whichever test is running.
@pytest.mark.parametrize("path", PATHS)
def test_its_user_and_password_are_given_to_it(server: HostileServer, path: str) -> None:
    proxy = SOCKSProxy(("bob", "p@w"))
    with contextlib.closing(proxy):
        run = run_python(
            *("-c", TWO_LOGINS, path, server.base_url),
            *(f"socks5://bob:{password}@{proxy.address}" for password in ("p%40w", "wrong")),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert (run.returncode, run.stdout) == (0, "blue\nProxyError\n"), run.stderr


@pytest.mark.parametrize("path", PATHS)
def test_tls_goes_through_it(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch, path: str, tmp_path: Any
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    proxy = SOCKSProxy()
    with contextlib.closing(proxy), TLSRelay(authority, server.origin) as relay:
        monkeypatch.setenv("ALL_PROXY", f"socks5://{proxy.address}")
        assert text_of(path, relay.base_url) == "blue"
    assert len(proxy.targets) == 1


WITHOUT_SOCKSIO = """
import sys
sys.modules["socksio"] = None
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
from gptx_async import AsyncGPTXBatchEngine
for engine_class in (GPTXChatEngine, AsyncGPTXBatchEngine):
    try:
        engine_class("sk-1", "gpt-4o-mini")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_missing_package_is_named_as_by_the_sync_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    command = [sys.executable, "-c", WITHOUT_SOCKSIO]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    theirs, ours = run.stdout.splitlines()[-2:]
    assert ours == theirs
    assert "socksio" in ours


def subject_of(base_url: str) -> Subject:
    return Subject("gpt-4o-mini", "sk-1", "here", base_url, max_concurrency=1, timeout=20.0)


def test_doctor_asks_through_the_proxy_and_names_a_missing_package(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = SOCKSProxy()
    with contextlib.closing(proxy):
        monkeypatch.setenv("ALL_PROXY", f"socks5://{proxy.address}")
        _ask_base_url(subject_of(server.base_url))
        assert len(proxy.targets) == 1
        monkeypatch.setitem(sys.modules, "socksio", None)
        check = _ask_base_url(subject_of(server.base_url))
    assert check.status == "fail"
    assert "socksio" in check.text
