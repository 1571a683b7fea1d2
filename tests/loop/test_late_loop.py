"""After a pause the loop reads the data that came before it fires timeouts that expired."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest

from gptx_async.loop.late_timeouts import defer_late_timeouts
from gptx_async.testing import FakeOpenAI
from support.client_calls import CODE as CLIENT_CALLS

CALLS = 30
TIMEOUT = 10.0

PROGRAM = f"""{CLIENT_CALLS}
import openai
from gptx_async.batch.driver import Batch
from gptx_async.symbolicai.v1.stand_in_client import StandInClient

client = StandInClient(
    openai.OpenAI(max_retries=2),
    CallsOnLoop(RequestOptions(timeout={TIMEOUT})),
)

def ask(number):
    messages = [{{"role": "user", "content": str(number)}}]
    return client.chat.completions.create(model="gpt-4o-mini", messages=messages)

def ask_all(count):
    outcomes = Batch(ask, range(count)).run()
    print([outcome.error for outcome in outcomes if outcome.error], flush=True)

ask_all(1)
ask_all({CALLS})
"""


@pytest.mark.slow
def test_answers_that_came_while_the_process_was_stopped_are_taken(
    fake_openai: FakeOpenAI,
) -> None:
    """A laptop or virtual machine that resumes must not send, and pay for, a request twice."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "[]\n"
            fake_openai.clear()
            fake_openai.hold()
            fake_openai.wait_for(lambda server: server.in_flight == CALLS, timeout=50)
            os.kill(process.pid, signal.SIGSTOP)
            fake_openai.release()
            fake_openai.wait_for(lambda server: server.statuses == {200: CALLS}, timeout=50)
            time.sleep(TIMEOUT + 1)  # let the timeouts pass while the process does not run
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout.readline() == "[]\n"
            assert process.wait(50) == 0
        finally:
            process.kill()
    assert len(fake_openai.requests) == CALLS


def run_on_loop(coroutine: Callable[[], Coroutine[Any, Any, str]], *, is_deferring: bool) -> str:
    with asyncio.Runner() as runner:
        if is_deferring:
            defer_late_timeouts(runner.get_loop())
        return runner.run(coroutine())


async def connect() -> str:
    """Connect while the loop is blocked for longer than the connect timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        async with aiohttp.ClientSession() as session:
            timeout = aiohttp.ClientTimeout(sock_connect=0.2, sock_read=0.3)
            asking = asyncio.ensure_future(session.get(url, timeout=timeout))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(time.sleep, 0.5)
            try:
                await asking
            except aiohttp.ServerTimeoutError as error:
                return type(error).__name__
    return "answered"


def test_a_connection_that_stands_is_no_connect_timeout() -> None:
    """The SDK's connect timeout of 5 s once cancelled connections that the kernel had opened."""
    assert run_on_loop(connect, is_deferring=False) == "ConnectionTimeoutError"
    assert run_on_loop(connect, is_deferring=True) == "SocketTimeoutError"


async def read() -> str:
    """Read data that comes while the loop is blocked for longer than the read timeout."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader, writer = await asyncio.open_connection(sock=ours)

        def stop() -> None:
            time.sleep(0.5)
            theirs.sendall(b"answer")

        asyncio.get_running_loop().call_soon(stop)
        try:
            async with asyncio.timeout(0.1):
                return (await reader.read(100)).decode()
        except TimeoutError:
            return "too late"
        finally:
            writer.close()


def test_what_is_in_the_socket_is_no_read_timeout() -> None:
    assert run_on_loop(read, is_deferring=False) == "too late"
    assert run_on_loop(read, is_deferring=True) == "answer"


async def wait_in_vain() -> str:
    """Wait in vain twice; the loop is late for the first timeout and on time for the second."""
    seen = []
    for late in (0.3, 0.0):
        asyncio.get_running_loop().call_soon(time.sleep, late)
        try:
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timeout")
    async with asyncio.timeout(0.05):
        await asyncio.sleep(0)
    return ", ".join(seen)


def test_a_timeout_still_comes() -> None:
    assert run_on_loop(wait_in_vain, is_deferring=True) == "timeout, timeout"
