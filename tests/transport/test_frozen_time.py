"""Calls while time is frozen, compared with the sync engine: no wait may last forever.

The tests use child processes, because a frozen clock affects every thread of its process.
"""

from __future__ import annotations

import pytest

from gptx_async.testing import FakeOpenAI, Fault, HTTPFault, RecordedRequest
from support import TESTS
from support.child import run_child

PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import freezegun, time_machine
from support.hostile import make_argument
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
from gptx_async import AsyncGPTXBatchEngine

freeze = {"freezegun": freezegun.freeze_time, "time-machine": time_machine.travel}[sys.argv[2]]
options = {} if sys.argv[2] == "freezegun" else {"tick": False}
account = ("sk-fake", "gpt-4o-mini")
ours = AsyncGPTXBatchEngine(*account)
engines = {"sync": GPTXChatEngine(*account), "ours": ours}

def ask(when):
    for name, engine in engines.items():
        for failure in ("500", "429"):
            argument = make_argument(f"{when} {name} {failure}")
            engine.prepare(argument)
            [text], _ = engine(argument)
            print(f"{when} {name} {failure}: {text.strip()}", flush=True)
    [[one], _], [[two], _] = engines["ours"]([make_argument(f"{when} {n} 500") for n in (1, 2)])
    print(f"{when} batch: {one.strip()}, {two.strip()}", flush=True)

def run_out():
    # Each limit ends a call that is answered too late.
    ours.client.max_retries = 0
    waits = lambda: make_argument("for an hour")
    for name, ask in {
        "timeout": lambda: ours([waits()], timeout=0.5)[0][1]["exception"],
        "deadline": lambda: ours([waits()], deadline=0.5)[0][1]["exception"],
        "aforward": lambda: asyncio.run(ours.aforward([waits()], deadline=0.5))[1][0]["exception"],
    }.items():
        print(f"{name}: {type(ask()).__name__}", flush=True)
    ours.client.max_retries = 2

if sys.argv[3] == "started before":
    ask("before")
with freeze("2020-01-01 12:00:00", **options):
    ask("frozen")
    run_out()
ask("thawed")
"""


class FailsOnce:
    """Answers the first request for a text with the status at its end, and later ones normally."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, request: RecordedRequest) -> Fault | None:
        text = str(request.body["messages"][-1]["content"])
        if text in self._seen:
            return None
        self._seen.add(text)
        return HTTPFault(429 if "429" in text else 500)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("freezer", "start"),
    [
        ("freezegun", "started before"),
        ("freezegun", "started within"),
        ("time-machine", "started within"),
    ],
)
@pytest.mark.slow
def test_a_retry_ends_within_a_frozen_time_and_after_it(
    fake_openai: FakeOpenAI, freezer: str, start: str
) -> None:
    """See freezegun#437, #563: asyncio's clock is `time.monotonic`."""
    fake_openai.faults = FailsOnce()
    fake_openai.reply = lambda _request: "answered"
    fake_openai.latency = lambda request: 3600.0 if "for an hour" in str(request.body) else 0.0
    tests = TESTS
    completed = run_child(PROGRAM, tests, freezer, start, strict=False, seconds=180)
    expected = []
    for when in ["before"] * (start == "started before") + ["frozen", "thawed"]:
        for engine in ("sync", "ours"):
            expected += [f"{when} {engine} {failure}: answered" for failure in ("500", "429")]
        expected.append(f"{when} batch: answered, answered")
        if when == "frozen":
            expected += [f"{limit}: TimeoutError" for limit in ("timeout", "deadline", "aforward")]
    assert completed.stdout.splitlines()[-len(expected) :] == expected, completed.stderr


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_the_fake_server_answers_within_a_frozen_time() -> None:
    """symbolicai must not be imported first, because freezegun reads every name in every module."""
    completed = run_child(
        """
import freezegun, openai, symai
from gptx_async.testing import FakeOpenAI
with freezegun.freeze_time("2020-01-01"), FakeOpenAI(latency=0.1) as server:
    client = openai.OpenAI(base_url=server.base_url, api_key="sk-test")
    client.chat.completions.create(model="gpt-4o-mini", messages=[])
    print(server.statuses)
""",
        strict=False,
        seconds=120,
    )
    assert completed.stdout.splitlines()[-1:] == ["Counter({200: 1})"], completed.stderr
