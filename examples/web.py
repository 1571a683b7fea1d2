"""A web back end that queries a model in `def` and in `async def` handlers.

    uvicorn web:app --timeout-graceful-shutdown 30
    gunicorn web:app --preload -w 4 -k uvicorn_worker.UvicornWorker

The engine is built at import. Under `--preload` this happens once, before the workers are forked;
each worker starts its own background thread, with its own connections, at its first call. The key
and the model come from symbolicai's configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from symai import Symbol

import gptx_async

T = TypeVar("T")

gptx_async.install()
app = FastAPI()


@app.get("/health")
async def health() -> str:
    """Answer at once, even while many handlers wait for the model."""
    return "alive"


@app.get("/summary")
def summary(text: str) -> str:
    """Summarise a text in a `def` handler, which FastAPI runs in one of 40 threads.

    A thread cannot be cancelled, so the call continues when the client disconnects.
    `install(deadline=...)` limits it.
    """
    return str(Symbol(text).query("Summarise."))


@app.get("/summaries")
async def summaries(request: Request, text: str, copies: int = 1) -> list[str]:
    """Summarise a text several times concurrently, in an `async def` handler without a thread."""
    asking = (gptx_async.acall(summarise, text) for _ in range(copies))
    return await while_connected(request, gather(asking))


def summarise(text: str) -> str:
    """Query the model, as blocking code."""
    return str(Symbol(text).query("Summarise."))


async def gather(asking: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await coroutines concurrently; if one fails, cancel the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in asking]
    return [task.result() for task in tasks]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await some work, and cancel it when the client disconnects; FastAPI itself does not.

    Raises:
        HTTPException: The client has disconnected, so nobody will see this.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "The client has closed the connection.")
        return working.result()
    finally:  # also when the server cancels this handler because it shuts down
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(request: Request) -> None:
    """Wait until the client disconnects; discard the body if it has not been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
