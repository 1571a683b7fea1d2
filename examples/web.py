"""A web back end that queries a model in `def` and in `async def` handlers.

    uvicorn web:app --timeout-graceful-shutdown 30
    gunicorn web:app --preload -w 4 -k uvicorn_worker.UvicornWorker

The engine is built at import. Under `--preload` this happens once, before the workers are forked;
each worker starts its own background thread, with its own connections, at its first call. The key
and the model come from symbolicai's configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from symai import Symbol
from symai.core import Argument

import gptx_async

T = TypeVar("T")

engine = gptx_async.install()
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
    asking = engine.aforward([question(text) for _ in range(copies)])
    outputs, metadatas = await while_connected(request, asking)
    for metadata in metadatas:
        if metadata.get("error"):
            raise HTTPException(502, str(metadata["exception"]))
    return [output[0] for output in outputs]


def question(text: str) -> Argument:
    """Build an Argument, symbolicai's object for one query, with the text and a prompt.

    The prompt becomes the system message, whereas `Symbol.query` writes it next to the text.
    """
    argument = Argument(args=(), signature_kwargs={}, decorator_kwargs={"prompt": "Summarise."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


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
