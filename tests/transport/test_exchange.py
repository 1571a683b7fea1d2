"""Without a connection, an exchange raises the errors of `aiohttp.ClientSession.request`.

`test_wire.py` compares exchanges with the SDK's own path.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import aiohttp
import pytest
import yarl
from multidict import CIMultiDict

from gptx_async.transport.exchange import Exchange
from support.hostile import HostileServer

URL = yarl.URL("http://127.0.0.1:9/v1/chat/completions")


class Connector(aiohttp.TCPConnector):
    """Fails with a given error, which no server on loopback can cause."""

    failure: Exception

    async def connect(self, *_: Any, **__: Any) -> Any:
        raise self.failure


def raised_by(post: str, failure: Exception | None = None) -> BaseException:
    """Return the error of a POST by an exchange or by aiohttp's session."""

    async def run() -> BaseException:
        connector = Connector()
        if failure is not None:
            connector.failure = failure
        async with aiohttp.ClientSession(connector=connector) as session:
            exchange = Exchange(
                session, URL, CIMultiDict({"content-length": "2"}), aiohttp.ClientTimeout()
            )
            if failure is None:
                await session.close()
            sending: Any = session.post(URL, data=b"{}")
            if post == "exchange":
                sending.close()
                sending = exchange.post(b"{}", {})
            with pytest.raises(Exception) as caught:  # noqa: PT011 - compared by the caller
                await sending
        return caught.value

    return asyncio.run(run())


@pytest.mark.parametrize(
    "failure",
    [TimeoutError(), OSError(errno.EMFILE, "Too many open files"), None],
    ids=["too slow", "no descriptor", "closed"],
)
def test_no_connection_is_the_same_error_as_by_aiohttps_session(failure: Exception | None) -> None:
    ours, theirs = (raised_by(post, failure) for post in ("exchange", "session"))
    assert (type(ours), str(ours), type(ours.__cause__)) == (
        type(theirs),
        str(theirs),
        type(theirs.__cause__),
    )


def test_a_connection_that_closes_is_not_written_to() -> None:
    class Closing(aiohttp.TCPConnector):
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            connection = await super().connect(*args, **kwargs)
            assert connection.transport is not None
            connection.transport.close()
            return connection

    async def run(url: yarl.URL) -> None:
        headers = CIMultiDict({"content-length": "2"})
        async with aiohttp.ClientSession(connector=Closing()) as session:
            exchange = Exchange(session, url, headers, aiohttp.ClientTimeout())
            with pytest.raises(aiohttp.ClientConnectionResetError):
                await exchange.post(b"{}", {})

    with HostileServer(lambda *_: False) as server:
        asyncio.run(run(yarl.URL(server.base_url)))
        assert server.received == []
