"""A request that fails on a closed pooled connection is sent again on a new one, once."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import openai
import pytest
import yarl

from gptx_async.transport.connector import Connector
from support.call_paths import OURS, ask
from support.hostile import HostileServer, Received, answer

PATH = pytest.mark.parametrize("path", OURS)

Ending = Callable[[socket.socket], object]


class ClosingServer(HostileServer):
    """Answers the first request on each connection, and closes the connection at the second.

    Attributes:
        ending: Handles a second request.
        first: Handles a first request.
    """

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        self.first: Ending = answered
        self.requests_of: dict[int, int] = {}
        super().__init__(self.respond_by_count)

    def respond_by_count(self, _received: Received, connection: socket.socket) -> bool:
        port = connection.getpeername()[1]
        self.requests_of[port] = count = self.requests_of.get(port, 0) + 1
        return bool((self.first if count == 1 else self.ending)(connection))


def answered(connection: socket.socket) -> bool:
    connection.sendall(answer("blue"))
    return False


def closed(_connection: socket.socket) -> bool:
    return True


def reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return False


def cut_in_the_head(connection: socket.socket) -> bool:
    connection.sendall(b"HTTP/1.1 200 O")
    return True


def silent(_connection: socket.socket) -> bool:
    return False


@pytest.fixture(params=[closed, reset], ids=["closed", "reset"])
def server(request: pytest.FixtureRequest) -> Iterator[ClosingServer]:
    server = ClosingServer(request.param)
    with server:
        yield server


def client_of(server: HostileServer, timeout: float = 20.0) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="sk-of-the-pool", base_url=server.base_url, max_retries=0, timeout=timeout
    )


@PATH
def test_a_request_on_a_connection_that_was_closed_goes_to_a_new_one_without_a_retry(
    server: ClosingServer, path: str
) -> None:
    client = client_of(server)
    for _ in range(2):
        assert ask(path, client).choices[0].message.content == "blue"
    assert server.connections == 2
    assert len(server.received) == 3
    assert server.received[1].raw == server.received[2].raw  # of the same attempt


@PATH
def test_it_goes_to_a_new_connection_only_once(server: ClosingServer, path: str) -> None:
    client = client_of(server)
    ask(path, client)
    server.first = server.ending
    with pytest.raises(openai.APIConnectionError):
        ask(path, client)
    assert (server.connections, len(server.received)) == (2, 3)


@PATH
def test_a_request_that_fails_on_a_new_connection_is_not_sent_again(
    server: ClosingServer, path: str
) -> None:
    server.first = server.ending
    with pytest.raises(openai.APIConnectionError):
        ask(path, client_of(server))
    assert (server.connections, len(server.received)) == (1, 1)


@PATH
def test_a_request_that_was_answered_in_part_is_not_sent_again(path: str) -> None:
    with ClosingServer(cut_in_the_head) as server:
        client = client_of(server)
        ask(path, client)
        with pytest.raises(openai.APIConnectionError):
            ask(path, client)
        assert (server.connections, len(server.received)) == (1, 2)


@PATH
def test_a_request_that_times_out_is_not_sent_again(path: str) -> None:
    with ClosingServer(silent) as server:
        client = client_of(server, timeout=0.5)
        ask(path, client)
        with pytest.raises(openai.APITimeoutError):
            ask(path, client)
        assert (server.connections, len(server.received)) == (1, 2)


@pytest.mark.parametrize("unread", [b"HTTP/1.1 200 OK\r\n\r\n", b""], ids=["bytes", "the end"])
def test_a_connection_with_something_unread_is_not_given_out(unread: bytes) -> None:
    """The data is in the kernel; the loop has not read it yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = yarl.URL(f"http://127.0.0.1:{listener.getsockname()[1]}/")

        async def connections() -> tuple[bool, bool]:
            async with aiohttp.ClientSession(connector=Connector(limit=0)) as session:
                request = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop())
                connector: Any = session.connector
                limits = aiohttp.ClientTimeout()

                async def protocol_of_next() -> Any:
                    connection = await connector.connect(request, [], limits)
                    protocol = connection.protocol
                    connection.release()
                    return protocol

                first = await protocol_of_next()
                was_kept = await protocol_of_next() is first
                accepted, _ = listener.accept()
                accepted.sendall(unread) if unread else accepted.shutdown(socket.SHUT_WR)
                poll = select.poll()
                poll.register(first.transport.get_extra_info("socket").fileno(), select.POLLIN)
                assert poll.poll(10_000)
                is_another = await protocol_of_next() is not first
                accepted.close()
                return was_kept, is_another

        assert asyncio.run(connections()) == (True, True)
