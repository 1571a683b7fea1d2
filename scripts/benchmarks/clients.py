"""The rivals without symbolicai: the SDK, aiohttp, bare sockets, and packages for batches of calls.

Each is used as its documentation recommends and as efficiently as possible: there is one coroutine
per call in flight, because a task per item costs more. `child.py` imports the modules before it
forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, TypeAlias

from .workloads import KEY, MODEL, Answer, Ask, Item, Open, Workload, body

__all__ = [
    "find_content",
    "open_aiohttp",
    "open_async_batch_llm",
    "open_litellm",
    "open_sdk",
    "open_sockets",
    "parse_content",
]

AskOne: TypeAlias = Callable[[Item], Awaitable[Answer]]
Connect: TypeAlias = Callable[[Workload, str], AbstractAsyncContextManager[AskOne]]


def _gathered(connect: Connect) -> Open:
    """Make a rival of a coroutine function: one coroutine per call in flight, on its own loop."""

    @contextlib.contextmanager
    def open_loop(workload: Workload, base_url: str) -> Iterator[Ask]:
        with asyncio.Runner() as runner:
            stack = contextlib.AsyncExitStack()
            ask = runner.run(stack.enter_async_context(connect(workload, base_url)))
            try:
                yield lambda items: runner.run(_gather(ask, items, workload.in_flight))
            finally:
                runner.run(stack.aclose())

    return open_loop


async def _gather(ask: AskOne, items: Sequence[Item], in_flight: int) -> list[Answer]:
    answers: list[Answer] = [None] * len(items)
    left = iter(enumerate(items))

    async def work() -> None:
        for index, item in left:
            try:
                answers[index] = await ask(item)
            except Exception as error:
                answers[index] = repr(error)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return answers


def open_sdk(transport: Literal["default", "aiohttp"], payload: Literal["same", "small"]) -> Open:
    """Make a rival of `AsyncOpenAI` that sends symbolicai's payload, or only what is required."""

    @contextlib.asynccontextmanager
    async def connect(workload: Workload, base_url: str) -> AsyncIterator[AskOne]:
        import openai

        http_client = openai.DefaultAioHttpClient() if transport == "aiohttp" else None
        instruction = workload.instruction
        async with openai.AsyncOpenAI(
            api_key=KEY, base_url=base_url, http_client=http_client
        ) as client:

            async def ask(item: Item) -> Answer:
                sent = dict(body(instruction, item.text))
                if payload == "small":
                    sent = {name: sent[name] for name in ("messages", "model")}
                answer = await client.chat.completions.create(**sent)
                content: str | None = answer.choices[0].message.content
                return content

            yield ask

    return _gathered(connect)


def open_aiohttp(read: Callable[[bytes], Answer]) -> Open:
    """Make a rival of aiohttp alone.

    Args:
        read: Finds the answer in the body of a response.
    """

    @contextlib.asynccontextmanager
    async def connect(workload: Workload, base_url: str) -> AsyncIterator[AskOne]:
        import aiohttp

        instruction = workload.instruction
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": f"Bearer {KEY}"}
        ) as session:

            async def ask(item: Item) -> Answer:
                sent = body(instruction, item.text)
                async with session.post(f"{base_url}/chat/completions", json=sent) as response:
                    return read(await response.read())

            yield ask

    return _gathered(connect)


def find_content(raw: bytes) -> Answer:
    """Find the answer without parsing the body."""
    return raw.partition(b'"content": "')[2].partition(b'"')[0].decode()


def parse_content(raw: bytes) -> Answer:
    """Find the answer with the SDK's model of the body, built in the fastest way."""
    from openai.types.chat import ChatCompletion

    return ChatCompletion.model_validate_json(raw).choices[0].message.content


@contextlib.asynccontextmanager
async def _connect_sockets(workload: Workload, base_url: str) -> AsyncIterator[AskOne]:
    """Send over bare sockets and read only the length of the answer: the limit of the server."""
    host, _, port = urllib.parse.urlsplit(base_url).netloc.partition(":")
    loop, instruction = asyncio.get_running_loop(), workload.instruction
    idle = [
        (await loop.create_connection(_Socket, host, int(port)))[1]
        for _ in range(workload.in_flight)
    ]

    async def ask(item: Item) -> Answer:
        sent = json.dumps(body(instruction, item.text)).encode()
        socket = idle.pop()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n"
        answer = find_content(await socket.send(head % len(sent) + sent))
        idle.append(socket)
        return answer

    yield ask
    for socket in idle:
        socket.close()


class _Socket(asyncio.Protocol):
    """A connection that sends one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def send(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, said = self._received.partition(b"\r\n\r\n")
        if found and len(said) == int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]):
            self._received = b""
            self._answer.set_result(said)

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("The server closed the connection."))

    def close(self) -> None:
        self._transport.close()


open_sockets = _gathered(_connect_sockets)


@contextlib.contextmanager
def open_async_batch_llm(workload: Workload, base_url: str) -> Iterator[Ask]:
    """Call `async_batch_llm.process_prompts`."""
    package: Any = importlib.import_module("async_batch_llm")  # installed in another environment
    in_flight = workload.in_flight
    with asyncio.Runner() as runner:

        async def ask(items: Sequence[Item]) -> list[Answer]:
            model = package.OpenAIModel.from_api_key(
                MODEL,
                KEY,
                base_url=base_url,
                system_instruction=workload.instruction,
                api_surface="chat_completions",
                max_connections=in_flight,
            )
            results = await package.process_prompts(
                package.ModelStrategy(model),
                [(item.name, item.text) for item in items],
                concurrency=in_flight,
                preserve_order=True,
            )
            return [each.output if each.success else each.error for each in results.results]

        yield lambda items: runner.run(ask(items))


@contextlib.contextmanager
def open_litellm(workload: Workload, base_url: str) -> Iterator[Ask]:
    """Call `litellm.batch_completion`."""
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    instruction = {"role": "system", "content": workload.instruction}

    def ask(items: Sequence[Item]) -> list[Answer]:
        answers = litellm.batch_completion(
            model=f"openai/{MODEL}",
            messages=[[instruction, {"role": "user", "content": item.text}] for item in items],
            max_workers=workload.in_flight,
            api_base=base_url,
            api_key=KEY,
        )
        return [
            repr(answer) if isinstance(answer, Exception) else answer.choices[0].message.content
            for answer in answers
        ]

    yield ask
