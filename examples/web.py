"""A web back end that asks a model, in `def` and in `async def` handlers.

    uvicorn web:app --timeout-graceful-shutdown 30
    gunicorn web:app --preload -w 4 -k uvicorn_worker.UvicornWorker

The engine is built at import. Under `--preload` that is once, before the workers are forked; each
of them starts its own background thread, with connections of its own, at its first call. The key
and the model are those of symbolicai's configuration.
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
    """Answer at once, however many handlers wait for the model."""
    return "alive"


@app.get("/summary")
def summary(text: str) -> str:
    """Summarise a text: a `def` handler, which FastAPI runs in one of 40 threads.

    A thread can't be cancelled: when the client goes away the call goes on. `install(deadline=...)`
    limits it.
    """
    return str(Symbol(text).query("Summarise."))


@app.get("/summaries")
async def summaries(request: Request, text: str, copies: int = 1) -> list[str]:
    """Summarise a text, several times at once: an `async def` handler, which holds no thread."""
    asking = engine.aforward([question(text) for _ in range(copies)])
    outputs, metadatas = await while_connected(request, asking)
    for metadata in metadatas:
        if metadata.get("error"):
            raise HTTPException(502, str(metadata["exception"]))
    return [output[0] for output in outputs]


def question(text: str) -> Argument:
    """Build what is asked, as symbolicai's own decorators would."""
    argument = Argument(args=(), signature_kwargs={}, decorator_kwargs={"prompt": "Summarise."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await some work, and cancel it when the client goes away, for FastAPI itself does not.

    Raises:
        HTTPException: The client has gone; nobody will see it.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "The client has closed the connection.")
        return working.result()
    finally:  # also when the server itself cancels this handler, at its end
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(request: Request) -> None:
    """Wait until the client goes away; the body, if it has not been read by then, is dropped."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
