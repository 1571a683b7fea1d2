"""The example web back end under uvicorn, and under gunicorn, which loads it and then forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from gptx_async.testing import FakeOpenAI, RecordedRequest
from support.child import DEADLINE, start_python

T = TypeVar("T")

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = DEADLINE
BOTH_KINDS = ("/summary", "/summaries")  # a `def` and an `async def` handler

# Makes a call before gunicorn forks, or within uvicorn's running loop, which imports this module.
APPLICATION = """
from symai import Symbol
from web import app

before_the_fork = Symbol("text 0 of the import").query("Summarise.")


@app.get("/blocking")
async def blocking(text: str) -> str:
    return str(Symbol(text).query("Summarise."))
"""


def summary(request: RecordedRequest) -> str:
    found = re.search(r"text \d+", request.user_text)
    return f"summary of {found.group() if found else request.user_text}"


class Site:
    """A web server in a separate process, and the model that it calls.

    The socket listens before the process starts, so the first clients wait for the server.
    """

    def __init__(self, name: str, folder: Path, grace: int | None = None) -> None:
        self.workers = 2 if name == "gunicorn" else 1
        self._folder = folder
        self._grace = [] if grace is None else [f"--{_GRACE_OPTION[name]}={grace}"]
        self._name = name
        self._lines: list[str] = []
        self._written = threading.Condition()
        self.model = FakeOpenAI(reply=summary)

    def __enter__(self) -> Site:
        (self._folder / "application.py").write_text(APPLICATION)
        self.model.start()
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
            # Connections inherit this option. uvicorn takes the socket of `--fd` for a Unix socket
            # and does not set it, so every second answer on a connection would be 40 ms late.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            self.process = start_python(
                "-m",
                *_COMMANDS[self._name](listening.fileno()),
                *self._grace,
                env={
                    **os.environ,
                    **self.model.openai_environment(),
                    "PYTHONPATH": os.pathsep.join([str(self._folder), str(EXAMPLES), *sys.path]),
                },
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.model.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the server and its workers
        self.process.wait()
        self._reader.join(SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(line, end="")  # pytest shows it when a test fails
            with self._written:
                self._lines.append(line)
                self._written.notify_all()

    def lines_with(self, text: str) -> list[str]:
        with self._written:
            return [line for line in self._lines if text in line]

    def wait_for_lines(self, text: str, count: int) -> list[str]:
        """Wait until the server has written at least `count` lines that contain the text."""
        with self._written:
            assert self._written.wait_for(lambda: len(self.lines_with(text)) >= count, SECONDS), (
                f"{len(self.lines_with(text))} lines with {text!r}"
            )
        return self.lines_with(text)

    def wait_for_end(self) -> None:
        """Wait until the server and all its workers have ended."""
        self._reader.join(SECONDS)  # the reader ends when the last of them does
        assert not self._reader.is_alive(), "a process of the server is still running"
        self.process.wait(SECONDS)

    def run(self, main: Callable[[Client], Awaitable[T]]) -> T:
        """Run a coroutine with a client of this server."""

        async def run() -> T:
            connector = aiohttp.TCPConnector(limit=0)
            async with (
                asyncio.timeout(SECONDS),
                aiohttp.ClientSession(self.url, connector=connector) as session,
            ):
                return await main(Client(session, self.model))

        return asyncio.run(run())


_GRACE_OPTION = {"uvicorn": "timeout-graceful-shutdown", "gunicorn": "graceful-timeout"}
_COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "uvicorn": lambda fd: ["uvicorn", "application:app", f"--fd={fd}"],
    "gunicorn": lambda fd: [
        *("gunicorn", "application:app", f"--bind=fd://{fd}", "--preload", "--workers=2"),
        *("--worker-class=uvicorn_worker.UvicornWorker", "--no-control-socket"),
    ],
}


class Client:
    """Sends concurrent requests, as many browsers do."""

    def __init__(self, session: aiohttp.ClientSession, model: FakeOpenAI) -> None:
        self._session = session
        self._model = model

    async def get(self, path: str, **parameters: Any) -> Any:
        """Return the answer, or a status other than 200, or the error if there is no response."""
        try:
            async with self._session.get(path, params=parameters) as response:
                return await response.json() if response.status == 200 else response.status
        except aiohttp.ClientError as error:
            return error

    def begin(self, path: str, **parameters: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.get(path, **parameters))

    async def wait_for(self, predicate: Callable[[FakeOpenAI], bool]) -> None:
        """Wait until the predicate holds for the model."""
        await asyncio.to_thread(self._model.wait_for, predicate, SECONDS)


def answer(path: str, number: int) -> Any:
    """Return the right answer of a handler to the text with this number."""
    text = f"summary of text {number}"
    return text if path == "/summary" else [text]


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn"])
def shared_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with Site(request.param, tmp_path_factory.mktemp(request.param)) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    shared_site.run(lambda client: client.get("/health"))  # wait until it is up
    shared_site.model.clear()
    yield shared_site
    shared_site.model.latency = 0.0
    shared_site.model.release()


@pytest.mark.slow
def test_two_hundred_clients_of_each_kind_of_handler_are_answered_rightly(site: Site) -> None:
    async def main(client: Client) -> None:
        site.model.hold()
        asked = [(path, number) for number in range(200) for path in BOTH_KINDS]
        tasks = [client.begin(path, text=f"text {number}") for path, number in asked]
        # All `async def` handlers run concurrently, and one `def` handler per thread.
        await client.wait_for(lambda model: model.in_flight >= 200 + 40)
        site.model.release()
        assert await asyncio.gather(*tasks) == [answer(path, number) for path, number in asked]

    site.run(main)
    assert len(site.model.requests) == 400


def test_clients_that_go_away_take_their_requests_with_them_and_no_others(site: Site) -> None:
    async def main(client: Client) -> None:
        site.model.hold()
        tasks = [client.begin("/summaries", text=f"text {number}") for number in range(40)]
        await client.wait_for(lambda model: model.in_flight == 40)
        for task in tasks[::2]:
            task.cancel()
        await client.wait_for(lambda model: model.disconnected == 20)
        assert site.model.in_flight == 20
        site.model.release()
        answers = await asyncio.gather(*tasks[1::2])
        assert answers == [answer("/summaries", number) for number in range(1, 40, 2)]

    site.run(main)


@pytest.mark.serial
def test_health_stays_fast_while_async_handlers_await_the_model(site: Site) -> None:
    """If a handler blocked the loop, /health would wait for ten answers of the model."""

    async def seconds(client: Client) -> float:
        began = time.perf_counter()
        assert await client.get("/health") == "alive"
        return time.perf_counter() - began

    async def ask(client: Client) -> None:
        tasks = [client.begin("/summaries", text=f"text {number}") for number in range(10)]
        answers = await asyncio.gather(*tasks)
        assert answers == [answer("/summaries", number) for number in range(10)]

    async def main(client: Client) -> None:
        await ask(client)  # so that everything is imported
        idle = [await seconds(client) for _ in range(1000)]
        site.model.latency = 0.4
        asking = asyncio.create_task(ask(client))
        loaded = []
        while not asking.done():
            loaded.append(await seconds(client))
        await asking
        print(f"/health, 99 %: {percentile_99(idle):.6f} s, {percentile_99(loaded):.6f} s")
        assert percentile_99(loaded) < 100 * percentile_99(idle)

    site.run(main)


def percentile_99(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100]


def test_a_call_that_blocks_the_servers_loop_is_answered_and_warned_of_once(site: Site) -> None:
    async def main(client: Client) -> None:
        for number in range(5):
            answered = await client.get("/blocking", text=f"text {number}")
            assert answered == f"summary of text {number}"

    site.run(main)
    if site.workers == 1:  # uvicorn also logs each request
        site.wait_for_lines("GET /blocking", 5)
        assert len(site.lines_with("`await engine.aforward([...])`")) == 1


def ask_by(path: str) -> Callable[[Client], Awaitable[Any]]:
    return lambda client: client.get(path, text="text 1")


@pytest.mark.parametrize("shared_site", ["gunicorn"], indirect=True)
def test_each_worker_answers_though_the_service_ran_before_the_fork(site: Site) -> None:
    lines = site.wait_for_lines("Booting worker with pid", site.workers)
    workers = [int(line.rsplit(":", 1)[1]) for line in lines]
    for stopped in workers:  # so the other worker has to answer
        os.kill(stopped, signal.SIGSTOP)
        try:
            for path in BOTH_KINDS:
                assert site.run(ask_by(path)) == answer(path, 1)
        finally:
            os.kill(stopped, signal.SIGCONT)


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
@pytest.mark.parametrize("the_model_answers", [True, False])
@pytest.mark.slow
def test_a_server_that_gets_a_sigterm_under_load_ends_by_itself(
    tmp_path: Path, name: str, the_model_answers: bool
) -> None:
    """It answers requests in progress within its grace period, and then refuses the rest."""

    async def main(client: Client) -> None:
        await client.get("/health")
        own.model.hold()
        asked = [(path, number) for number in range(30) for path in BOTH_KINDS]
        tasks = [client.begin(path, text=f"text {number}") for path, number in asked]
        await client.wait_for(lambda model: model.in_flight == 60)
        own.process.terminate()
        await asyncio.to_thread(own.wait_for_lines, "Shutting down\n", own.workers)
        if the_model_answers:
            own.model.release()
            assert await asyncio.gather(*tasks) == [answer(path, number) for path, number in asked]
        else:
            answers = await asyncio.gather(*tasks)
            assert [each for each in answers if not is_refusal(each)] == []
            await client.wait_for(lambda model: model.disconnected == 60)

    with Site(name, tmp_path, grace=30 if the_model_answers else 1) as own:
        own.run(main)
        own.wait_for_end()
        assert own.process.returncode == (0 if name == "gunicorn" else -signal.SIGTERM)


def is_refusal(answered: Any) -> bool:
    return answered == 500 or isinstance(answered, aiohttp.ClientError)
