"""Mixed load for minutes: check that no item is lost and that nothing leaks.

    python -m benchmarks.soak [MINUTES] [--plot FILE]

The load is threads that query, batches, coroutines on loops, deadlines, timeouts, cancellations,
forks that end with `sys.exit`, processes of `multiprocessing`, and every fault of `FakeOpenAI`. The
server is a separate process, so the measurements show only the client.

The text of each item determines its outcome and its right answer. At the end every item must have
been answered, failed or cancelled exactly once, as expected. Resident memory, Python's allocated
blocks, threads and descriptors must be flat in the second half of the run.

How 'flat' is measured: under load the values vary more than a leak adds in minutes. So the run has
rounds, and after each round the workers rest until the pool has no idle connection. What is held
then is held permanently. At the first rest the connections expire, which takes about ten seconds.
Later they are ended by requests that the server resets, so that a short run is mostly load. A
Theil-Sen line (the median of the slopes of all pairs) is fitted to the rests of the second half, at
least three. Its rise must be less than 1 % of the median, or 2 % in a run of less than two minutes,
of which the warm-up is a larger part. For threads and descriptors a rise below one is ignored. A
falling value is flat.

Resident memory also rises because allocators keep memory for the next peak. Python's block count
does not include that. It varies with the open connections, so 3 % are allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gptx_async.symbolicai.vocabularies import provide_vocabularies
from gptx_async.testing import faults
from gptx_async.testing.faults import Fault, HTTPFault
from gptx_async.testing.replies import RecordedRequest
from gptx_async.testing.server import FakeOpenAI

from .environment import environment

__all__ = ["FIGURES", "Flatness", "Ledger", "Sample", "flatness", "main", "soak"]

KEY, MODEL = "sk-of-the-soak", "gpt-4o-mini"

LATENCY = 0.02
"""The seconds before an answer: some calls are always in flight, and the CPU is not saturated."""

PAUSE = 0.05
"""Seconds between the rounds of one worker. This limits the load, not the machine."""

REST_SECONDS = 11.0
"""The longest rest: the pool keeps idle connections for five seconds and checks them every five. A
rest ends early when the number of open descriptors reaches its minimum."""

ROUND_SECONDS = 3.0
"""The shortest load of one round."""

ROUNDS = 5
"""The lowest number of rests: three are in the second half, including the middle one."""

CHILDREN = ("os.fork", "fork", "os.fork", "spawn")
"""The ways to create child processes, used in turn."""

SERVE = "--serve"
"""The hidden argument that makes this module run the server."""

WAIT_SECONDS = 30.0
"""How long a child process, or the last round of a worker, may take before it counts as hung."""

Fate = Literal["answered", "emptied", "failed"]
"""The expected outcome of an item: its answer, no choices, or an error."""


class Kind(NamedTuple):
    """The fault of an item, and its expected outcome."""

    fault: Fault | None
    fate: Fate


KINDS: dict[str, Kind] = {
    "fine": Kind(None, "answered"),
    "late": Kind(faults.Stall(0.2), "answered"),
    "never": Kind(faults.Stall(), "failed"),  # asked only with a limit, or to be cancelled
    "emptychoices": Kind(faults.EmptyChoices(), "emptied"),
    **{
        f"status{status}": Kind(HTTPFault(status), "failed") for status in (400, 404, 429, 500, 503)
    },
    "badjson": Kind(faults.BadJSON(), "failed"),
    "emptybody": Kind(faults.EmptyBody(), "failed"),
    "html": Kind(faults.HTML(), "failed"),
    "nochoices": Kind(faults.NoChoices(), "failed"),
    "truncated": Kind(faults.TruncatedJSON(), "failed"),
    "resetbefore": Kind(faults.Reset("before"), "failed"),
    "resetmiddle": Kind(faults.Reset("middle"), "failed"),
    # Alone only: that a key is refused, or has no quota, is the end of a whole batch.
    "noquota": Kind(HTTPFault(429, code="insufficient_quota"), "failed"),
    "status401": Kind(HTTPFault(401), "failed"),
    "status403": Kind(HTTPFault(403), "failed"),
}

_ALONE = ("never", "noquota", "status401", "status403")

OF_A_BATCH = [name for name in KINDS if name not in _ALONE]
OF_ONE = [name for name in KINDS if name != "never"]


def answer_to(text: str) -> str:
    """Return the right answer to an item."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """Records every item until it ends, and checks its outcome. Allowed in any thread.

    Attributes:
        asked: How many items were started.
        ended: How many items ended, by outcome: 'answered', 'emptied', 'failed' or 'cancelled'.
        kinds: How many items of each kind were started.
        wrongs: The first problems, one sentence each.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.ended: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.wrongs: list[str] = []
        self._open: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def begin(self, kind: str, worker: str) -> str:
        """Record an item, and return its unique text."""
        with self._lock:
            text = f"item {next(self._numbers)} of {worker} is {kind}"
            self._open[text] = kind
            self.asked += 1
            self.kinds[kind] += 1
        return text

    def end(self, text: str, how: str, outputs: Sequence[Any] = (), note: str = "") -> None:
        """Record the outcome of an item: 'failed', 'cancelled', or its outputs."""
        with self._lock:
            kind = self._open.pop(text, None)
            if kind is None:
                self.add_wrong(f"'{text}' ended twice, or was never started.")
                return
            self.ended[how] += 1
            if how in ("answered", "emptied") and how != KINDS[kind].fate:
                self.add_wrong(f"'{text}' was {how}, with {outputs!r}.")
            if how == "answered" and list(outputs) != [answer_to(text)]:
                self.add_wrong(f"'{text}' has the answer {outputs!r}, which is not its own.")
            if how == "failed" and KINDS[kind].fate != "failed" and "deadline" not in note:
                self.add_wrong(f"'{text}' failed: {note}")

    def add_wrong(self, sentence: str) -> None:
        """Record a problem. Only the first ones are kept."""
        if len(self.wrongs) < 20:
            self.wrongs.append(sentence[:500])

    @property
    def lost(self) -> list[str]:
        """The texts of the items that did not end."""
        with self._lock:
            return [*self._open]


class Sample(NamedTuple):
    """The state of the process at one moment: seconds since the start, and the values."""

    seconds: float
    memory: float
    blocks: float
    threads: float
    descriptors: float


FIGURES = {
    "memory": "MB resident",
    "blocks": "1000 blocks",
    "threads": "threads",
    "descriptors": "descriptors",
}


_looking = threading.Lock()
"""Held while /proc is read, because that opens a descriptor."""


def take_sample(began: float) -> Sample:
    """Measure this process with Linux's /proc, one thread at a time."""
    with _looking:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Sample(
            time.monotonic() - began,
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            sys.getallocatedblocks() / 1000,
            len(os.listdir("/proc/self/task")),
            len(os.listdir("/proc/self/fd")) - 1,  # the one that lists
        )


SHORT_SECONDS = 120.0
"""Runs up to this length are short: memory may rise by 2 % in place of 1 %."""


BLOCKS_SHARE = 0.03
"""The allowed rise of Python's blocks in the second half, as a share. They vary by one percent with
the open connections. A leak that this found was four percent."""


class Flatness(NamedTuple):
    """The change of a value in the second half: its median, its rise, and the allowed rise."""

    level: float
    rise: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Whether the rise is below the allowed rise."""
        return self.rise < self.allowed

    @property
    def percent(self) -> float:
        """The rise in percent of the median."""
        return 100 * self.rise / self.level if self.level else 0.0


def flatness(
    seconds: Sequence[float], values: Sequence[float], unit: float = 0.0, share: float = 0.01
) -> Flatness:
    """Measure the change of a value in the second half of a run, as the module describes.

    Args:
        seconds: The times of the values, in ascending order.
        values: The value at each rest.
        unit: A smaller rise than this is ignored, for values that are counts.
        share: The allowed rise, as a share of the median.

    Raises:
        ValueError: The second half has fewer than three values.
    """
    half = [*zip(seconds, values, strict=True)][len(values) // 2 :]
    if len(half) < 3:
        raise ValueError(f"{len(half)} values are too few for a slope. Run it longer.")
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in itertools.combinations(half, 2)]
    level = statistics.median(v for _, v in half)
    return Flatness(
        level, statistics.median(slopes) * (half[-1][0] - half[0][0]), max(share * level, unit)
    )


@dataclass
class Run:
    """The state that the workers share.

    Attributes:
        engine: The engine under load.
        ledger: The items.
        stop: Set when the time is over.
    """

    engine: Any
    base_url: str
    ledger: Ledger = field(default_factory=Ledger)
    stop: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _resting: bool = False
    _at_work: int = 0

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Wait until the rest is over, and count this worker as active in the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._resting)
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Wait until no worker is active, and keep them from starting in the block."""
        with self._changed:
            self._resting = True
            if not self._changed.wait_for(lambda: self._at_work == 0, WAIT_SECONDS):
                self.ledger.add_wrong(f"{self._at_work} workers hang and do not rest.")
        yield
        with self._changed:
            self._resting = False
            self._changed.notify_all()

    def make_arguments(self, texts: Sequence[str]) -> list[Any]:
        from symai import Symbol
        from symai.core import Argument

        arguments = []
        for text in texts:
            argument = Argument((), {}, {"prompt": "Answer."})
            argument.prop.instance = Symbol(text)
            argument.prop.processed_input = text
            arguments.append(argument)
        return arguments

    def begin(self, source: random.Random, kinds: Sequence[str], count: int) -> list[str]:
        """Record items of random kinds."""
        worker = threading.current_thread().name
        return [self.ledger.begin(source.choice(kinds), worker) for _ in range(count)]

    def break_connections(self, count: int) -> None:
        """End idle connections: each request takes one from the pool, and the server resets it."""
        texts = [self.ledger.begin("resetbefore", "the rest") for _ in range(count)]
        self.end(texts, self.engine.forward(self.make_arguments(texts)))

    def end(self, texts: Sequence[str], answers: Any) -> None:
        """Record the outcome of a batch."""
        for text, outputs, metadata in zip(texts, *answers, strict=True):
            if metadata.get("error"):
                self.ledger.end(text, "failed", note=repr(metadata["exception"]))
            else:
                self.end_with(text, outputs)

    def end_with(self, text: str, outputs: list[Any]) -> None:
        self.ledger.end(text, "answered" if outputs else "emptied", outputs)

    def ask_one(self, text: str) -> None:
        """Send the query of one item as symbolicai does."""
        [argument] = self.make_arguments([text])
        self.engine.prepare(argument)
        try:
            outputs, _metadata = self.engine(argument)
        except Exception as error:
            self.ledger.end(text, "failed", note=repr(error))
        else:
            self.end_with(text, outputs)


def query(run: Run, source: random.Random) -> None:
    """Send queries one after the other."""
    for text in run.begin(source, OF_ONE, 5):
        run.ask_one(text)


def run_batch(run: Run, source: random.Random) -> None:
    """Run a batch."""
    texts = run.begin(source, OF_A_BATCH, source.randint(0, 40))
    run.end(texts, run.engine.forward(run.make_arguments(texts)))


def run_batch_with_limits(run: Run, source: random.Random) -> None:
    """Run a batch with items that are never answered, with a deadline or a timeout."""
    limit = source.choice(["deadline", "timeout"])
    texts = run.begin(source, ["fine", "never", "resetbefore"], 10)
    arguments = run.make_arguments(texts)
    run.end(texts, run.engine.forward(arguments, **{limit: 2.0 if limit == "timeout" else 0.5}))


def run_loop(run: Run, source: random.Random) -> None:
    """Run a loop in this thread with concurrent `aforward` calls, some of them cancelled."""

    async def ask() -> None:
        texts = run.begin(source, OF_A_BATCH, 8)
        run.end(texts, await run.engine.aforward(run.make_arguments(texts)))

    async def ask_and_cancel() -> None:
        texts = run.begin(source, ["fine", "never"], 8)
        running = asyncio.ensure_future(run.engine.aforward(run.make_arguments(texts)))
        await asyncio.wait([running], timeout=source.choice([0.0, 0.001, 0.02, 0.1]))
        if running.cancel():
            with contextlib.suppress(asyncio.CancelledError):
                await running
        if running.cancelled():
            for text in texts:
                run.ledger.end(text, "cancelled")
        else:  # all of it was answered just before
            run.end(texts, running.result())

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(3)), *(ask_and_cancel() for _ in range(3)))

    asyncio.run(main())


WORKERS: dict[str, tuple[Callable[[Run, random.Random], None], int]] = {
    "query": (query, 4),
    "batch": (run_batch, 2),
    "limits": (run_batch_with_limits, 1),
    "loop": (run_loop, 2),
}
"""The functions that run, and the number of threads of each."""


def work(run: Run, do: Callable[[Run, random.Random], None], seed: str) -> None:
    """Repeat a function in a thread until the time is over."""
    source = random.Random(seed)
    while not run.stop.is_set():
        try:
            with run.at_work():
                do(run, source)
        except BaseException as error:  # if the thread ended, there would be less load
            run.ledger.add_wrong(f"The worker {seed} got {error!r}.")
            return
        run.stop.wait(PAUSE)


def fork_and_exit(run: Run) -> None:
    """Fork a child that makes a call and ends with `sys.exit`, as scripts do.

    Called in the main thread: only there does `sys.exit` end a process. Nothing above in the stack
    may have a `finally` that is not the child's business.
    """
    text = run.ledger.begin("fine", "a forked child")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _write(writing, _ask_in_child(run, text))
        sys.exit(0)
    os.close(writing)
    told = _read(reading)
    if told is None:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _end_of_child(run, text, told, code)


def start_process(run: Run, method: str) -> None:
    """Make a call in a `multiprocessing` process."""
    text = run.ledger.begin("fine", f"a process by {method}")
    context: Any = multiprocessing.get_context(method)
    reading, writing = context.Pipe(duplex=False)
    if method == "fork":
        process = context.Process(target=lambda: writing.send(_ask_in_child(run, text)))
    else:
        process = context.Process(target=_ask_plainly, args=(run.base_url, text, writing))
    process.start()
    writing.close()
    with contextlib.suppress(EOFError):
        told = reading.recv() if reading.poll(WAIT_SECONDS) else None
    if told is None:
        process.kill()
    process.join(WAIT_SECONDS)
    _end_of_child(run, text, told, process.exitcode)
    reading.close()
    process.close()


def _ask_in_child(run: Run, text: str) -> str:
    run.ledger = Ledger()  # the parent's ledger may be locked
    run.ledger._open[text] = "fine"
    run.ask_one(text)
    return json.dumps([run.ledger.ended["answered"], run.ledger.wrongs])


def _ask_plainly(base_url: str, text: str, pipe: Any) -> None:
    """Send a call without symbolicai, whose import would take a new process seconds."""
    import openai

    from gptx_async.batch.driver import wait_for
    from gptx_async.calls.request import RequestOptions
    from gptx_async.loop.call import Call
    from gptx_async.symbolicai.v1.stand_in_client import StandInClient

    class Calls:
        def begin(self) -> None:
            pass

        def options(self, _arguments: Any) -> RequestOptions:
            return RequestOptions()

        def dispatch(self, request: Any) -> Any:
            return wait_for(Call(request))

    client = StandInClient(openai.OpenAI(api_key=KEY, base_url=base_url, max_retries=0), Calls())
    message = {"role": "user", "content": text}
    answer = client.chat.completions.create(model=MODEL, messages=[message])
    said = answer.choices[0].message.content
    right = said == answer_to(text)
    pipe.send(json.dumps([int(right), [] if right else [f"'{text}' has the answer {said!r}."]]))


def _end_of_child(run: Run, text: str, told: str | None, code: int | None) -> None:
    if told is None:
        run.ledger.add_wrong(f"The process of '{text}' did not answer; it ended with {code}.")
        return
    answered, wrongs = json.loads(told)
    for wrong in [*wrongs, *([] if code == 0 else [f"The process of '{text}' ended with {code}."])]:
        run.ledger.add_wrong(wrong)
    if answered:
        run.ledger.end(text, "answered", [answer_to(text)])
    else:
        run.ledger.end(text, "failed")


def _write(descriptor: int, text: str) -> None:
    with open(descriptor, "w") as file:
        file.write(text)


def _read(descriptor: int) -> str | None:
    """Read a child's output to its end; None if it takes too long or is empty."""
    parts: list[bytes] = []
    until = time.monotonic() + WAIT_SECONDS
    with open(descriptor, "rb", buffering=0) as file:
        while select.select([file], [], [], max(0.0, until - time.monotonic()))[0]:
            if not (part := file.read(65536)):
                return b"".join(parts).decode() or None
            parts.append(part)
    return None


def soak(seconds: float, engine: Any, base_url: str) -> tuple[Ledger, list[Sample], list[Sample]]:
    """Put the engine under load, and measure this process. Call it in the main thread.

    Args:
        seconds: For how long, with the rests; each of the rounds has a few seconds at least.
        engine: An `AsyncGPTXBatchEngine` whose client asks a server that answers by `reply`.
        base_url: Where that server is.

    Returns:
        What was asked, the samples under load, and those at the rests.
    """
    run = Run(engine, base_url)
    began = time.monotonic()
    threads = [
        threading.Thread(
            target=work, args=(run, do, f"{name} {number}"), name=f"{name} {number}", daemon=True
        )
        for name, (do, count) in WORKERS.items()
        for number in range(count)
    ]
    samples: list[Sample] = []
    interval = max(0.1, seconds / 1000)
    threads.append(threading.Thread(target=look, args=(run, began, interval, samples), daemon=True))
    for thread in threads:
        thread.start()
    rests = _rounds(run, began, seconds)
    run.stop.set()
    until = time.monotonic() + WAIT_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            run.ledger.add_wrong(f"The thread {thread.name} hangs.")
    return run.ledger, samples, rests


def look(run: Run, began: float, interval: float, samples: list[Sample]) -> None:
    """Take samples in a thread until the time is over."""
    while not run.stop.wait(interval):
        samples.append(take_sample(began))


def _rounds(run: Run, began: float, seconds: float) -> list[Sample]:
    """Create child processes during the load, and rest at the end of each round."""
    children = itertools.cycle(CHILDREN)
    count = max(ROUNDS, int(seconds / 60))
    rests: list[Sample] = []
    for number in range(1, count + 1):
        until = max(began + seconds * number / count, time.monotonic() + ROUND_SECONDS)
        while time.monotonic() < until:
            make_child(run, next(children))
            run.stop.wait(1.0)  # not set yet, so this is a pause
        with run.at_rest():
            rests.append(_rest(run, began, min((rest.descriptors for rest in rests), default=0.0)))
    return rests


def _rest(run: Run, began: float, fewest: float) -> Sample:
    """Wait until the open descriptors reach their minimum or the rest is over; take a sample."""
    until = time.monotonic() + REST_SECONDS
    surplus = int(take_sample(began).descriptors - fewest)
    if fewest and surplus > 0:
        run.break_connections(surplus)
    while take_sample(began).descriptors > fewest and time.monotonic() < until:
        run.stop.wait(0.1)
    gc.collect()
    return take_sample(began)


def make_child(run: Run, how: str) -> None:
    """Make a call in a child process. Call it in the main thread."""
    if how == "os.fork":
        fork_and_exit(run)
    else:
        start_process(run, how)


def reply(request: RecordedRequest) -> str | Fault:
    """Answer an item as its text says, in the server."""
    text = request.user_text
    kind = KINDS.get(text.rpartition(" ")[2])
    if kind is None or kind.fault is None:
        return answer_to(text)
    return kind.fault


def serve() -> None:
    """Run the server until standard input ends, which it does when the parent ends."""
    with FakeOpenAI(
        lambda request: answer_to(request.user_text),
        latency=LATENCY,
        faults=lambda request: said if isinstance(said := reply(request), Fault) else None,
        keep_requests=0,
    ) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, SERVE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()  # the process ends then
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _build_engine(home: str) -> Any:
    """Import symbolicai with its files in a temporary directory, and build an engine."""
    Path(home, "symai.config.json").write_text(
        json.dumps({"NEUROSYMBOLIC_ENGINE_API_KEY": KEY, "NEUROSYMBOLIC_ENGINE_MODEL": MODEL})
    )
    os.environ.update(HOME=home, SYMAI_WARNINGS="0", TIKTOKEN_CACHE_DIR=f"{home}/vocabularies")
    os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    provide_vocabularies(f"{home}/vocabularies")
    with contextlib.chdir(home):
        from loguru import logger  # symbolicai prints a message for each failure with it

        from gptx_async import AsyncGPTXBatchEngine
    logger.remove()
    logging.getLogger("gptx_async").setLevel(logging.CRITICAL)  # most calls fail on purpose
    # Without retries and pauses, because this tests completeness and not the pace.
    return AsyncGPTXBatchEngine(
        KEY, MODEL, client_max_retries=0, rate_limit_patience=0, adaptive=False
    )


def report(ledger: Ledger, rests: Sequence[Sample]) -> bool:
    """Print the outcomes of the items and the changes of the values; return whether all is well."""
    lost = ledger.lost
    print(f"asked {ledger.asked}: {dict(ledger.ended)}, lost {len(lost)}")
    print("kinds:", ", ".join(f"{name} {ledger.kinds[name]}" for name in KINDS))
    problems = [f"'{text}' was asked and did not end." for text in lost[:20]] + ledger.wrongs
    problems += [f"No item was {name}." for name in KINDS if not ledger.kinds[name]]
    if ledger.asked != ledger.ended.total() + len(lost):
        problems.append("The sums differ.")
    print(f"{'second':>8}" + "".join(f"{unit:>14}" for unit in FIGURES.values()))
    for sample in rests:
        print(f"{sample.seconds:8.0f}" + "".join(f"{value:14.1f}" for value in sample[1:]))
    seconds = [sample.seconds for sample in rests]
    share = 0.01 if seconds[-1] > SHORT_SECONDS else 0.02
    for name, unit in FIGURES.items():
        measured = flatness(
            seconds,
            [getattr(each, name) for each in rests],
            0.0 if name in ("memory", "blocks") else 1.0,
            BLOCKS_SHARE if name == "blocks" else share,
        )
        line = (
            f"{unit}: {measured.level:.1f}, in the second half {measured.rise:+.2f} "
            f"({measured.percent:+.2f} %), allowed {measured.allowed:.2f}"
        )
        print(line)
        if not measured.is_flat:
            problems.append(f"Not flat. {line}")
    for problem in problems:
        print(f"WRONG: {problem}")
    return not problems


def _sample_when_closed(threads: float = 1) -> Sample:
    """Take a sample after the service closed. Linux ends a thread shortly after Python joins it."""
    until = time.monotonic() + REST_SECONDS
    while (sample := take_sample(0.0)).threads > threads and time.monotonic() < until:
        time.sleep(0.05)
    return sample


def check_all_ends(before: Sample, after: Sample) -> list[str]:
    """Return what remains after the service closed and did not exist before the load."""
    names = ", ".join(thread.name for thread in threading.enumerate())
    return [
        f"{getattr(after, name):.0f} {name} after closing, {getattr(before, name):.0f} before. "
        f"The threads of Python are {names}."
        for name in ("threads", "descriptors")
        if getattr(after, name) > getattr(before, name)
    ]


def draw(samples: Sequence[Sample], rests: Sequence[Sample], path: str) -> None:
    """Draw the values over time, each on an axis that starts at zero."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(FIGURES), sharex=True, figsize=(9, 7), squeeze=False)
    seconds = [sample.seconds for sample in samples]
    for axis, (name, unit) in zip(axes[:, 0], FIGURES.items(), strict=True):
        axis.plot(seconds, [getattr(sample, name) for sample in samples], linewidth=1)
        axis.plot([rest.seconds for rest in rests], [getattr(rest, name) for rest in rests], "o-")
        axis.axvspan(rests[len(rests) // 2].seconds, rests[-1].seconds, alpha=0.1)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("seconds; the dots in the shaded half are measured")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak from the command line.

    Returns:
        The exit code: 1 when an item is lost or wrong, when a fault was never tried, or when a
        figure is not flat.
    """
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument(
        "minutes",
        nargs="?",
        type=float,
        default=10.0,
        help="the duration, including the start (default: %(default)s)",
    )
    parser.add_argument("--plot", default="soak.png", help="the chart (default: %(default)s)")
    options = parser.parse_args(arguments)
    plot = str(Path(options.plot).absolute())
    # Not a `with` block: a forked child that ends with sys.exit in it would run its exits.
    stack = contextlib.ExitStack()
    owner = os.getpid()
    try:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="gptx_async-soak-"))
        base_url = stack.enter_context(_server())
        os.environ.update(OPENAI_BASE_URL=base_url)
        return _run(began + 60 * options.minutes, home, base_url, plot)
    finally:
        if os.getpid() == owner:
            stack.close()


def _run(until: float, home: str, base_url: str, plot: str) -> int:
    from gptx_async.loop.service import default_service

    engine = _build_engine(home)
    warm_up = Run(engine, base_url)
    for name in OF_ONE:
        warm_up.ask_one(warm_up.ledger.begin(name, "the warm-up"))
    for how in CHILDREN:  # multiprocessing keeps a process and a descriptor for spawn
        make_child(warm_up, how)
    default_service().close()
    before = _sample_when_closed()
    ledger, samples, rests = soak(until - time.monotonic(), engine, base_url)
    default_service().close()
    left_over = check_all_ends(before, _sample_when_closed(before.threads))
    for wrong in warm_up.ledger.wrongs + left_over:
        ledger.add_wrong(wrong)
    is_well = report(ledger, rests)
    draw(samples, rests, plot)
    print(f"drawn to {plot}")
    print("all items are accounted for, and nothing grows" if is_well else "FAILED")
    return 0 if is_well else 1


if __name__ == "__main__":
    if sys.argv[1:] == [SERVE]:
        serve()
    else:
        sys.exit(main())
