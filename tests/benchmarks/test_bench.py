"""`scripts/bench`: one small run of all of it, the server it measures with, and its arithmetic.

No figure is asserted that depends on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed
from benchmarks.__main__ import main
from benchmarks.child import running_child
from benchmarks.engines import make_argument
from benchmarks.environment import environment
from benchmarks.figures import Book, Growth, Measured, cpu_parts, spread, targets
from benchmarks.rivals import RIVALS
from benchmarks.server import Server, answer_to, control, listen, running_server
from benchmarks.workloads import FULL, KEY, MODEL, QUICK, Workload, body, items
from gptx_async.testing import FakeOpenAI
from support.unheard import UNHEARD

PNG = b"\x89PNG\r\n\x1a\n"

HERE = {name for name, rival in RIVALS.items() if rival.home != "peers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "workloads"),
    [
        pytest.param(["--only", "200 ms"], [QUICK[3]], id="one workload"),
        pytest.param(["--long"], [*QUICK], id="all workloads", marks=pytest.mark.long),
    ],
)
def test_a_small_run_measures_every_rival(
    options: list[str], workloads: list[Workload], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--calls", "8", *options]
    child = subprocess.run(
        [*command, "--json", "all.json", "--plot-dir", "."],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    written = json.loads((tmp_path / "all.json").read_text())
    measured = {(each["rival"], each["workload"]) for each in written["measured"]}
    assert measured == {
        (name, each.name) for name in HERE for each in workloads if RIVALS[name].takes(each)
    }
    is_whole = workloads == [*QUICK]
    assert not is_whole or {name for name, _ in measured} == HERE
    assert not any(each["wrong"] for each in written["measured"])
    assert written["bytes_per_item"].keys() == {"engine-batch", "sdk-aiohttp", "aiohttp"}
    assert written["tokenizing"].keys() == {"engine-batch", "gptx-loop"}
    if is_whole:
        assert written["cpu_parts"].keys() >= {"engine-batch", "floor", "sdk-aiohttp"}
        assert written["growth"]["kept"] > 0
    assert len(written["targets"]) == 10
    assert "| this engine, one batch " in child.stdout
    for name in ("calls_per_second.png", "cpu_per_call.png"):
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(PNG)
        assert len(picture) > 10_000


class Listener:
    """A server on a loop in a thread of this process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.base_url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener, self.base_url = self._loop.run_until_complete(listen(self.server))
        self._ready.set()
        self._loop.run_forever()
        listener.close()
        until = time.monotonic() + 10
        while self.server.connections and time.monotonic() < until:  # their clients have ended
            self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def __enter__(self) -> Listener:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Confused(Server):
    """Gives one of its answers to another request."""

    def answer_to(self, marker: str) -> str:
        return answer_to(marker.replace(".3", ".4") if "round" in marker else marker)


@pytest.mark.slow
def test_a_swapped_answer_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Listener(Confused()) as listener:
        there = contextlib.nullcontext(listener.base_url)
        monkeypatch.setattr(speed, "running_server", lambda: there)
        arguments = ["--quick", "--only", "64 in flight", "--calls", "8", "--rivals", "aiohttp"]
        assert main(arguments) == 1
    output = capsys.readouterr().out
    wrong, right = answer_to("measure.round-0.aiohttp.4"), answer_to("measure.round-0.aiohttp.3")
    assert f"measure.round-0.aiohttp.3: '{wrong}' instead of '{right}'" in output


class Mute(Server):
    """Closes the connection of one request in place of an answer."""

    def answer_to(self, marker: str) -> str:
        if marker.endswith("aiohttp.3"):
            raise ConnectionResetError
        return answer_to(marker)


@pytest.mark.slow
def test_a_lost_answer_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Listener(Mute()) as listener:
        there = contextlib.nullcontext(listener.base_url)
        monkeypatch.setattr(speed, "running_server", lambda: there)
        arguments = ["speed", "--quick", "--only", "1 in", "--calls", "8", "--rivals", "aiohttp"]
        assert main(arguments) == 1
    assert "measure.round-0.aiohttp.3: " in capsys.readouterr().out


def test_a_measurement_that_fails_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = contextlib.nullcontext(f"{UNHEARD}/v1")
    monkeypatch.setattr(speed, "running_server", lambda: nobody)
    assert main(["--quick", "--only", "1 in", "--calls", "2", "--rivals", "aiohttp"]) == 1
    assert "WRONG: aiohttp, 1 in flight: Traceback" in capsys.readouterr().out


def test_a_measurement_that_takes_too_long_is_ended_and_the_next_one_is_clean(
    base_url: str,
) -> None:
    slow, quick = Workload("slow", 1, 1, delay=60.0), Workload("quick", 1, 1)
    with running_child("plain", Path(sys.executable)) as child:
        child.read()
        told = child.order(
            "measure", "sockets", slow, calls=1, seed="s", base_url=base_url, limit=0.5
        )
        assert "Did it take too long" in told["failed"]
        told = child.order("measure", "sockets", quick, calls=1, seed="q", base_url=base_url)
        assert told["answers"] == [answer_to("q.0")]


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(SystemExit, match="No workload matches --only"):
        main(["--only", "by bicycle"])


def test_bodies_are_what_symbolicai_sends(fake_openai: FakeOpenAI) -> None:
    from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

    engine = GPTXChatEngine(KEY, MODEL)
    for workload in QUICK:
        [item] = items(workload, 1, "test")
        argument = make_argument(workload.instruction, item.text)
        engine.prepare(argument)
        engine(argument)
        assert fake_openai.requests[-1].body == body(workload.instruction, item.text)
    engine.client.close()


def test_prompts_have_as_many_tokens_as_they_are_named_for() -> None:
    import tiktoken

    tokens = tiktoken.encoding_for_model(MODEL)
    long, shared = (
        next(each for each in FULL if each.prompt == kind) for kind in ("long", "shared")
    )
    [item] = items(long, 1, "test")
    assert len(tokens.encode(item.text)) == pytest.approx(8_000, rel=0.01)
    assert len(tokens.encode(shared.instruction)) == pytest.approx(2_000, rel=0.01)


def test_no_two_items_are_alike() -> None:
    made = [each for seed in ("a", "b") for each in items(FULL[0], 50, seed)]
    assert len({each.name for each in made}) == len({each.text for each in made}) == 100


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with running_server() as base_url:
        yield base_url


@contextlib.asynccontextmanager
async def connected(
    base_url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def request(marker: str, more: bytes = b"") -> bytes:
    content = json.dumps({"messages": [{"role": "user", "content": f"a text [[{marker}]]"}]})
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n"
    return head % (more, len(content)) + content.encode()


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head.split(b"\r\n")[0], json.loads(await reader.readexactly(length))


def figures_when(
    base_url: str, predicate: Callable[[Mapping[str, float]], bool]
) -> Mapping[str, float]:
    """Wait until the server, which is another process, has come so far."""
    until = time.monotonic() + 120
    while not predicate(figures := control(base_url)):
        assert time.monotonic() < until, figures
        time.sleep(0.01)
    return figures


def content(answer: Any) -> str:
    said: str = answer["choices"][0]["message"]["content"]
    return said


def test_server_keeps_a_connection_and_answers_pipelined_requests_in_order(base_url: str) -> None:
    async def ask() -> list[str]:
        async with connected(base_url) as (reader, writer):
            answers = []
            for markers in (["one"], ["two", "three", "four"]):
                writer.write(b"".join(map(request, markers)))
                answers += [content((await read_answer(reader))[1]) for _ in markers]
            return answers

    control(base_url, median=0.05, sigma=1.0)  # each of them takes another time
    expected = [answer_to(marker) for marker in ("one", "two", "three", "four")]
    assert asyncio.run(ask()) == expected


def test_server_takes_a_request_that_comes_in_pieces(base_url: str) -> None:
    async def ask() -> str:
        sent = request("pieces")
        async with connected(base_url) as (reader, writer):
            for start in range(0, len(sent), 7):
                writer.write(sent[start : start + 7])
                await writer.drain()
                await asyncio.sleep(0)
            return content((await read_answer(reader))[1])

    control(base_url, median=0.0)
    assert asyncio.run(ask()) == answer_to("pieces")


def test_server_says_what_it_cannot_answer_and_closes_when_asked(base_url: str) -> None:
    async def ask() -> None:
        async with connected(base_url) as (reader, writer):
            writer.write(b"GET /v1/models HTTP/1.1\r\n\r\n")
            assert await read_answer(reader) == (b"HTTP/1.1 404 Not Found", {})
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
            assert (await read_answer(reader))[0] == b"HTTP/1.1 400 Bad Request"
            writer.write(request("last", b"Connection: close\r\n"))
            assert content((await read_answer(reader))[1]) == answer_to("last")
            assert await reader.read() == b""

    control(base_url, median=0.0)
    asyncio.run(ask())


def test_server_holds_answers_back_and_counts(base_url: str) -> None:
    async def ask() -> None:
        before = control(base_url, held=True)
        async with connected(base_url) as (reader, writer):
            writer.write(request("held"))
            now = figures_when(base_url, lambda figures: figures["in_flight"] == 1)
            assert now["requests"] == before["requests"] + 1
            assert now["connections"] >= 2
            assert now["cpu"] > 0
            assert control(base_url, held=False)["in_flight"] == 0
            assert content((await read_answer(reader))[1]) == answer_to("held")

    asyncio.run(ask())


def test_server_forgets_a_client_that_has_gone(base_url: str) -> None:
    async def ask() -> None:
        async with connected(base_url) as (_, writer):
            writer.write(request("gone"))
            figures_when(base_url, lambda figures: figures["in_flight"] == 1)
        # The connection that asks is left.
        gone = figures_when(base_url, lambda figures: figures["connections"] == 1)
        assert gone["in_flight"] == 0

    control(base_url, held=True)
    asyncio.run(ask())
    assert control(base_url, held=False)["in_flight"] == 0


def test_delays_are_as_long_as_set_and_the_same_for_a_marker() -> None:
    server = Server()
    assert server.delay_of(b"any") == 0.0
    server.set(median=0.2)
    assert server.delay_of(b"one") == server.delay_of(b"two") == pytest.approx(0.2)
    server.set(median=0.2, sigma=0.6)
    delays = sorted(server.delay_of(b"%d" % number) for number in range(2_000))
    assert delays[1_000] == pytest.approx(0.2, rel=0.1)
    assert delays[1_980] == pytest.approx(0.2 * 4.04, rel=0.2)
    assert server.delay_of(b"7") == server.delay_of(b"7")


def test_a_delayed_answer_takes_that_long(base_url: str) -> None:
    async def ask() -> str:
        async with connected(base_url) as (reader, writer):
            writer.write(request("late"))
            return content((await read_answer(reader))[1])

    control(base_url, median=0.2)
    began = time.monotonic()
    assert asyncio.run(ask()) == answer_to("late")
    assert time.monotonic() - began >= 0.19


def measured(rival: str, seconds: float, workload: str = "512 in flight", **more: Any) -> Measured:
    given = {"round": 0, "calls": 100, "cpu": seconds, "caller_cpu": 0.0} | more
    return Measured(
        rival, workload, seconds=seconds, server_cpu=0.0, peak_bytes=0, wrong=0, **given
    )


def test_spread_of_rounds() -> None:
    assert spread([]) is None
    assert spread([3.0, 1.0, 8.0]) == (3.0, 1.0, 8.0)


def test_ratios_compare_within_a_round() -> None:
    """The machine was three times slower in the second round, for both."""
    book = Book(
        [
            measured("engine-batch", 1.0),
            measured("sdk", 2.0),
            measured("engine-batch", 3.0, round=1),
            measured("sdk", 6.0, round=1),
            measured("sdk", 9.0, round=2),  # without a partner
        ]
    )
    assert book.ratio("engine-batch", "sdk", "512 in flight", lambda each: each.rate) == (2, 2, 2)
    assert book.spread("sdk", "512 in flight", lambda each: each.seconds) == (6.0, 2.0, 9.0)


def test_the_floor_is_symbolicai_and_then_aiohttp() -> None:
    book = Book([measured("symbolicai", 0.3), measured("aiohttp", 0.2)])
    [floor] = book.rounds("floor", "512 in flight").values()
    assert floor.seconds == pytest.approx(0.5)
    assert floor.rate == pytest.approx(200)
    assert floor.cpu_per_call == pytest.approx(5_000)


def test_targets_tell_what_is_met_missed_and_not_measured() -> None:
    book = Book(
        [
            measured("engine-batch", 1.0),
            measured("sdk-aiohttp", 2.0),
            measured("sdk", 3.0),
            measured("engine-batch", 1.0, "64 in flight"),
            measured("engine-batch", 1.5, "2048 in flight"),
            measured("engine-batch", 1.0, "200 ms, 512 in flight", calls=2_000),
        ],
        bytes_per_item={"engine-batch": 20 * 1024},
        tokenizing={"engine-batch": (0.001, 3.0), "gptx-loop": (0.002, 10.0)},
        growth=Growth(rising=103.0, kept=100.0, left=0.0),
    )
    told = {
        each.figure: (each.measured and round(each.measured.median, 2), each.is_met)
        for each in targets(book)
    }
    assert [*told.values()] == [
        (2.0, True),
        (3.0, False),
        (None, None),
        (1.5, False),
        (1.25, True),
        (None, None),
        (0.5, False),
        (20.0, True),
        (0.03, True),
        (None, None),
    ]


def test_growth_is_read_from_the_second_half() -> None:
    samples = [(100.0 * i, 5_000.0 + 1_000.0 * i + (9_000 if i < 4 else 0), 0) for i in range(10)]
    growth = Growth.of({"samples": samples, "blocks_kept": 8.0, "blocks_left": 0.5})
    assert growth == Growth(rising=10.0, kept=8.0, left=0.5)
    assert growth.beyond_answers == pytest.approx(0.25)
    assert Growth.of({"samples": [], "blocks_kept": 8.0, "blocks_left": 0.0}).rising == 0.0


def test_parts_of_the_cpu_time_add_up() -> None:
    book = Book(
        [
            measured("engine-batch", 0.20, caller_cpu=0.06),
            measured("sdk-aiohttp", 0.12),
            measured("aiohttp-parsed", 0.03),
            measured("aiohttp", 0.02),
            measured("symbolicai", 0.05),
            measured("symbolicai-eased", 0.04),
        ]
    )
    parts = cpu_parts(book, "512 in flight", ["engine-batch", "sdk-aiohttp", "floor", "sdk"])
    assert {name: round(sum(each.values())) for name, each in parts.items()} == {
        "engine-batch": 2_000,
        "sdk-aiohttp": 1_200,
        "floor": 700,
    }
    engine = {name: round(each) for name, each in parts["engine-batch"].items()}
    assert engine == {
        "symbolicai": 400,
        "batch and hand-over": 200,
        "HTTP": 200,
        "the answer's model": 100,
        "SDK, retries, pacing": 1_100,
    }
    assert cpu_parts(Book(), "512 in flight", ["sdk"]) == {}


def test_http_is_no_more_than_the_loop_has_taken() -> None:
    book = Book(
        [
            measured("engine-batch", 0.09, caller_cpu=0.06),
            measured("aiohttp-parsed", 0.05),
            measured("aiohttp", 0.04),
            measured("symbolicai", 0.08),
            measured("symbolicai-eased", 0.05),
        ]
    )
    parts = cpu_parts(book, "512 in flight", ["engine-batch"])["engine-batch"]
    assert {name: round(each) for name, each in parts.items()} == {
        "symbolicai": 500,
        "batch and hand-over": 100,
        "HTTP": 200,
        "the answer's model": 100,
        "SDK, retries, pacing": 0,
    }


def test_pace_is_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import pace

    monkeypatch.setattr(pace, "main", lambda: 7)
    assert main(["pace"]) == 7
