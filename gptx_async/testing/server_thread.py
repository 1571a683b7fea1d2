"""The thread and the listening socket of a `FakeOpenAI`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import socket
import threading
from collections.abc import Awaitable, Callable

from aiohttp import web

from .. import clock

__all__ = ["ServerThread"]

BACKLOG = 4096
"""How many connections may wait to be accepted. Tests open thousands at once."""

MAX_BODY_BYTES = 256 * 2**20
"""The largest body of a request. It may contain images."""

WAIT_SECONDS = 10.0
"""How long `start` and `close` wait for the thread, which takes a few milliseconds."""

GRACE_SECONDS = 0.01
"""How long a closing server waits for the requests in flight."""


class ServerThread:
    """A running server: a thread with an event loop and a listening socket."""

    def __init__(
        self, handle: Callable[[web.Request], Awaitable[web.StreamResponse]], host: str, port: int
    ) -> None:
        self._handle = handle
        self._address = (host, port)
        self._thread = threading.Thread(
            target=self._main, name="gptx_async-fake-openai", daemon=True
        )
        self._ready: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, int]] = (
            concurrent.futures.Future()
        )
        self._stop = asyncio.Event()

    def start(self) -> int:
        """Start the thread and return the port, or raise the error that prevents it."""
        self._thread.start()
        return self._ready.result(WAIT_SECONDS)[1]

    def close(self) -> None:
        """Stop the loop and wait for the thread."""
        loop, _port = self._ready.result()
        with contextlib.suppress(RuntimeError):  # the loop is closed, because the thread ended
            loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_SECONDS)

    def _main(self) -> None:
        try:
            with asyncio.Runner() as runner:
                clock.let_run(runner.get_loop())
                runner.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # the starter raises it

    async def _serve(self) -> None:
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        application.on_response_prepare.append(_Stamp())
        runner = web.AppRunner(
            application,
            handler_cancellation=True,  # so that a disconnected client is noticed at once
            access_log=None,
            shutdown_timeout=GRACE_SECONDS,
        )
        await runner.setup()
        try:
            listener = socket.create_server(self._address)
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            self._ready.set_result((asyncio.get_running_loop(), listener.getsockname()[1]))
            await self._stop.wait()
            await _stop_accepting(listener)
        finally:
            await runner.cleanup()


async def _stop_accepting(listener: socket.socket) -> None:
    """Accept no more connections, and wait until accepted sockets are connections.

    asyncio makes a task for each accepted socket. A task that runs when its server is closed fails
    with an assertion in asyncio, and its socket stays open.
    """
    asyncio.get_running_loop().remove_reader(listener.fileno())
    accepting = {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__name__", "").startswith("_accept_connection")
    }
    if accepting:
        await asyncio.wait(accepting, timeout=WAIT_SECONDS / 2)


class _Stamp:
    """Adds an `x-request-id` to each answer, as OpenAI does."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    async def __call__(self, _http: web.Request, response: web.StreamResponse) -> None:
        response.headers.setdefault("x-request-id", f"req_{next(self._numbers):032x}")
