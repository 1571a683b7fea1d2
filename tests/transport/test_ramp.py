"""Opening connections: a slow server is not overrun, and a fast one is not slowed down."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import trustme
import yarl

from gptx_async.batch.driver import Batch
from gptx_async.transport.connector import Connector
from gptx_async.transport.ramp import DROPPED_SECONDS, LEAST, START, Ramp
from support.call_paths import CHAT, stand_in_of
from support.hostile import HostileServer, Received, _read, answer


class SlowAcceptor:
    """A server with a backlog of 5 that accepts 30 connections a second and answers immediately."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=5)
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_over.wait(1 / 30):
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while _read(connection) is not None:
                connection.sendall(answer("blue"))


@pytest.mark.slow
def test_a_burst_of_calls_does_not_overrun_a_server_that_accepts_slowly() -> None:
    server = SlowAcceptor()
    with contextlib.closing(server):
        client = openai.OpenAI(api_key="sk-of-the-burst", base_url=server.base_url, max_retries=0)
        create = stand_in_of(client).chat.completions.create

        async def ask_all() -> list[Any]:
            batch = Batch(lambda _: create(**CHAT), range(300), window=300)
            return [*await asyncio.wait_for(batch.run_async(), 120)]

        outcomes = asyncio.run(ask_all())
    assert [each.error for each in outcomes] == [None] * 300


def run(test: Callable[[Ramp], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(Ramp()), 120)

    asyncio.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def waiting(ramp: Ramp, patience: float | None = None, **options: bool) -> asyncio.Task[bool]:
    """Start waiting for a turn."""
    task = asyncio.create_task(ramp.turn(patience, **options))
    await asyncio.sleep(0)
    return task


def test_the_limit_grows_with_each_connection_that_was_opened() -> None:
    async def test(ramp: Ramp) -> None:
        for _ in range(START):
            assert await ramp.turn(None)
        waiters = [await waiting(ramp) for _ in range(2 * START)]
        assert not any(task.done() for task in waiters)
        for _ in range(START):
            ramp.opened(now())
        assert ramp.limit == 2 * START
        assert await asyncio.gather(*waiters) == [True] * 2 * START

    run(test)


def test_the_limit_is_halved_once_for_connections_that_were_begun_together() -> None:
    async def test(ramp: Ramp) -> None:
        began = now()
        for _ in range(4):
            await ramp.turn(None)
            ramp.failed(began)
        assert ramp.limit == START // 2
        for _ in range(9):
            await ramp.turn(None)
            ramp.failed(now())
        assert ramp.limit == LEAST
        await ramp.turn(None)
        ramp.opened(now())
        assert LEAST < ramp.limit < LEAST + 1  # from here the limit grows slowly
        assert ramp.is_unused

    run(test)


def test_a_connection_as_slow_as_one_that_was_dropped_halves_the_limit() -> None:
    async def test(ramp: Ramp) -> None:
        for took in (0.01, DROPPED_SECONDS):
            await ramp.turn(None)
            ramp.opened(now() - took)
        assert ramp.limit == (START + 1) // 2

    run(test)


def test_slow_connections_to_a_distant_server_do_not() -> None:
    async def test(ramp: Ramp) -> None:
        for took in (1.5, 2.0, 4.0):
            await ramp.turn(None)
            ramp.opened(now() - took)
        assert ramp.limit == START + 3

    run(test)


def test_the_first_waiting_call_looks_into_the_pool_when_a_connection_is_returned() -> None:
    async def test(ramp: Ramp) -> None:
        for _ in range(START):
            await ramp.turn(None)
        first, second = await waiting(ramp), await waiting(ramp)
        ramp.given_back()
        assert await first is False
        again = await waiting(ramp, first=True)
        ramp.opened(now())
        assert await again is True
        assert await second is True
        ramp.given_back()  # while nothing waits

    run(test)


def test_a_wait_ends_when_no_connection_was_opened_for_as_long_as_its_patience() -> None:
    async def test(ramp: Ramp) -> None:
        for _ in range(START):
            await ramp.turn(None)
        with pytest.raises(TimeoutError):
            await ramp.turn(0.05)

    run(test)


def test_a_turn_that_is_cancelled_goes_to_the_next() -> None:
    async def test(ramp: Ramp) -> None:
        for _ in range(START):
            await ramp.turn(None)
        cancelled, late, last = [await waiting(ramp) for _ in range(3)]
        cancelled.cancel()
        ramp.unused()  # the turn of `late`, whose task has not run yet
        late.cancel()
        assert await last is True
        for _ in range(START):
            ramp.unused()
        assert ramp.is_unused
        for task in (cancelled, late):
            assert task.cancelled()

    run(test)


def test_one_lookup_of_a_name_serves_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(_received: Received, connection: socket.socket) -> None:
        connection.sendall(answer("blue"))

    looked_up = []
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        looked_up.append(host)
        return original(host, *args, **kwargs)

    with HostileServer(respond) as server:
        base_url = server.base_url.replace("127.0.0.1", "localhost")
        client = openai.OpenAI(api_key="sk-of-the-burst", base_url=base_url, max_retries=0)
        create = stand_in_of(client).chat.completions.create
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        batch = Batch(lambda _: create(**CHAT), range(100), window=100)
        outcomes = asyncio.run(batch.run_async())
    assert [each.error for each in outcomes] == [None] * 100
    assert looked_up.count("localhost") == 1


def serve(pipe: Any, certificate: str | None) -> None:
    """Accept connections and read from them, in a child process."""
    _allow_many_files()

    async def main() -> None:
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)

        async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()

        server = await asyncio.start_server(read, "127.0.0.1", 0, backlog=4096, ssl=context)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture
def fast_server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[yarl.URL, ssl.SSLContext | None]]:
    authority = trustme.CA()
    certificate, context = None, None
    if request.param == "tls":
        certificate = tmp_path / "server.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        context = ssl.create_default_context()
        authority.configure_trust(context)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, certificate), daemon=True)
    process.start()
    assert ours.poll(120)
    scheme = "https" if context else "http"
    yield yarl.URL(f"{scheme}://127.0.0.1:{ours.recv()}/"), context
    process.kill()
    process.join(10)


async def seconds_to_open(
    kind: type[aiohttp.TCPConnector], url: yarl.URL, context: ssl.SSLContext | None, count: int
) -> float:
    connector = kind(limit=0, ssl=context or True)
    request = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop())
    limits = aiohttp.ClientTimeout(sock_connect=120)
    began = time.perf_counter()
    connections = await asyncio.gather(
        *(connector.connect(request, [], limits) for _ in range(count))
    )
    took = time.perf_counter() - began
    protocols = [connection.protocol for connection in connections if connection.protocol]
    closings = [protocol.closed for protocol in protocols if protocol.closed is not None]
    for connection in connections:
        if connection.transport is not None:
            connection.transport.abort()  # a TLS connection would otherwise close after its loop
        connection.close()
    await asyncio.gather(*closings, return_exceptions=True)
    await connector.close()
    return took


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fast_server", "count"),
    [("plain", 2000), ("tls", 500), pytest.param("tls", 2000, marks=pytest.mark.long)],
    indirect=["fast_server"],
)
def test_many_connections_to_a_fast_server_are_not_opened_more_slowly(
    fast_server: tuple[yarl.URL, ssl.SSLContext | None], count: int
) -> None:
    """Compare the best of three rounds with aiohttp's pool, which opens all concurrently."""
    _allow_many_files()
    times: dict[type, list[float]] = {aiohttp.TCPConnector: [], Connector: []}
    for _ in range(3):
        for kind, taken in times.items():
            taken.append(asyncio.run(seconds_to_open(kind, *fast_server, count)))
    ours, theirs = min(times[Connector]), min(times[aiohttp.TCPConnector])
    print(f"ratio {ours / theirs:.2f}")
    assert ours < 1.5 * theirs, (ours, theirs)
