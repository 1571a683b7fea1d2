"""The processes that run the rivals: one per environment, which forks for each order.

    python -m benchmarks.child HOME

A child imports what its rivals need. It then reads orders from standard input, one line of JSON
each, and writes the results to standard output. Each measurement runs in a fork, so it does not
import again and leaves nothing behind for the next one. A fork that takes too long is killed. The
garbage collector has its default settings.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import engines
from .environment import environment
from .rivals import RIVALS, Home
from .server import WAIT_SECONDS, control, raise_descriptor_limit
from .workloads import MODEL, Workload, items

__all__ = ["Child", "running_child"]

SECONDS = 150.0
"""The time limit of one measurement."""

SAMPLE_SECONDS = 0.2
"""The time between two samples of the memory."""

IMPORTS = {
    "plain": ("aiohttp", "openai", "openai.types.chat", "openai.resources.chat"),
    "symbolicai": (
        "symai.core",
        "gptx_async.symbolicai.install",
        "gptx_async.symbolicai.v1.gptx_engine",
        "gptx_async.testing.scheduler",
        "tiktoken",
    ),
    "peers": ("async_batch_llm", "litellm", "openai.resources.chat"),
}
"""The modules to import before the forks, by home."""


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Time one rival with one workload, after a warm-up that opens its connections.

    Returns:
        The wall-clock seconds; the CPU seconds of this process, of the calling thread and of the
        server; the peak of the resident bytes; and the answers.
    """
    rival, workload, base_url = _read(order)
    calls = order["calls"]
    control(base_url, median=workload.delay, sigma=workload.sigma)
    before = _resident()
    with rival.open(workload, base_url) as ask:
        ask(items(workload, min(workload.in_flight, calls), f"{order['seed']}.warm-up"))
        asked = items(workload, calls, order["seed"])
        gc.collect()
        server = control(base_url)["cpu"]
        clocks = _clocks()
        answers = ask(asked)
        seconds, cpu, caller = (after - at for at, after in zip(clocks, _clocks(), strict=True))
        server = control(base_url)["cpu"] - server
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "seconds": seconds,
        "cpu": cpu,
        "caller_cpu": caller,
        "server_cpu": server,
        "peak_bytes": peak,
        "answers": list(answers),
    }


def hold(order: dict[str, Any]) -> dict[str, Any]:
    """Measure the memory of a workload's calls while the server holds all answers back."""
    rival, workload, base_url = _read(order)
    calls = workload.in_flight
    control(base_url, median=0.0)
    with rival.open(workload, base_url) as ask:
        ask(items(workload, min(calls, 64), f"{order['seed']}.warm-up"))
        asked = items(workload, calls, order["seed"])
        gc.collect()
        control(base_url, held=True)
        before = _resident()
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.extend(ask(asked)))
        thread.start()
        while control(base_url)["in_flight"] < calls and thread.is_alive():
            time.sleep(SAMPLE_SECONDS)
        held = _resident() - before
        control(base_url, held=False)
        thread.join()
    return {"bytes_per_item": held / calls, "answers": answers}


def tokenize(order: dict[str, Any]) -> dict[str, Any]:
    """Measure how often a rival calls tiktoken, and the CPU time that this takes."""
    rival, workload, base_url = _read(order)
    control(base_url, median=0.0)
    with rival.open(workload, base_url) as ask:
        ask(items(workload, 2, f"{order['seed']}.warm-up"))
        asked = items(workload, order["calls"], order["seed"])
        with _counted_tokenizer() as counted:
            answers = ask(asked)
    return {
        "times_per_item": counted["times"] / len(asked),
        "cpu_per_item": counted["cpu"] / len(asked),
        "answers": list(answers),
    }


def grow(order: dict[str, Any]) -> dict[str, Any]:
    """Run one long batch of this engine, and measure whether it leaks memory.

    Memory rises anyway, because the caller keeps the arguments and the answers. So the allocated
    blocks (`sys.getallocatedblocks`) are compared: their rise per answer in the second half of the
    batch; the blocks per answer at the end, while the arguments and answers are kept; and the
    blocks that remain when these are deleted.
    """
    _, workload, base_url = _read(order)
    control(base_url, median=0.0)
    samples: list[tuple[float, int, int]] = []
    with engines.installed(workload, base_url) as engine:

        def make_arguments(count: int, seed: str) -> list[Any]:
            made = items(workload, count, seed)
            return [engines.make_argument(workload.instruction, item.text) for item in made]

        engine(make_arguments(workload.in_flight, f"{order['seed']}.warm-up"))
        gc.collect()
        bare = sys.getallocatedblocks()
        arguments = make_arguments(order["calls"], order["seed"])
        before, began = sys.getallocatedblocks(), control(base_url)["requests"]
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                answered = int(control(base_url)["requests"] - began)
                samples.append((answered, sys.getallocatedblocks() - before, _resident()))

        thread = threading.Thread(target=look)
        thread.start()
        pairs = engine(arguments)
        ended.set()
        thread.join()
        gc.collect()
        kept = sys.getallocatedblocks() - before
        answers = [outputs[0] for outputs, _metadata in pairs]
        count = len(pairs)
        del pairs, arguments
    gc.collect()
    return {
        "samples": samples,
        "blocks_kept": kept / count,
        "blocks_left": (sys.getallocatedblocks() - bare) / count - 1,  # the text, which is checked
        "answers": answers,
    }


def _read(order: dict[str, Any]) -> tuple[Any, Workload, str]:
    return RIVALS[order["rival"]], Workload(**order["workload"]), order["base_url"]


def _clocks() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), time.thread_time()


def _resident() -> int:
    """Return the resident bytes of this process, from Linux's /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _counted_tokenizer() -> Iterator[dict[str, float]]:
    """Count the calls of tiktoken's `encode` in the block, and their CPU seconds."""
    import tiktoken

    counted = {"times": 0.0, "cpu": 0.0}
    original = tiktoken.Encoding.encode

    def encode(*args: Any, **kwargs: Any) -> list[int]:
        began = time.thread_time()
        try:
            return original(*args, **kwargs)
        finally:
            counted["cpu"] += time.thread_time() - began
            counted["times"] += 1

    tiktoken.Encoding.encode = encode  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        tiktoken.Encoding.encode = original  # type: ignore[method-assign]


ORDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    each.__name__: each for each in (measure, hold, tokenize, grow)
}


def _in_fork(order: dict[str, Any]) -> dict[str, Any]:
    """Execute an order in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            with open(writing, "w") as file:
                json.dump(_carry_out(order), file)
        finally:
            os._exit(0)  # skips exit handlers, which belong to the parent
    os.close(writing)
    told = _read_until(reading, time.monotonic() + order.get("limit", SECONDS))
    if told is None:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not told:
        return {"failed": "The process ended without a result. Did it take too long?"}
    result: dict[str, Any] = json.loads(told)
    return result


def _carry_out(order: dict[str, Any]) -> dict[str, Any]:
    try:
        return ORDERS[order["do"]](order)
    except Exception:
        return {"failed": traceback.format_exc()}


def _read_until(descriptor: int, until: float) -> str | None:
    """Read to the end of the file; None if the end does not come in time."""
    parts: list[bytes] = []
    with open(descriptor, "rb", buffering=0) as file:
        while select.select([file], [], [], max(0.0, until - time.monotonic()))[0]:
            if not (part := file.read(1 << 20)):
                return b"".join(parts).decode()
            parts.append(part)
    return None


@contextlib.contextmanager
def _surroundings(home: str) -> Iterator[None]:
    """Import what the rivals of a home need."""
    with contextlib.ExitStack() as stack:
        if home == "symbolicai":
            from gptx_async.cli.demo import symbolicai_sandbox
            from gptx_async.symbolicai.vocabularies import provide_vocabularies

            provide_vocabularies()
            stack.enter_context(symbolicai_sandbox(MODEL))
            # symbolicai's logging is part of its cost.
            logging.disable(logging.NOTSET)
        for module in IMPORTS[home]:
            importlib.import_module(module)
        if home == "symbolicai":
            importlib.import_module("tiktoken").encoding_for_model(
                MODEL
            )  # read once, before the forks
        yield


def main(home: str) -> None:
    """Execute orders until standard input ends."""
    raise_descriptor_limit()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not mix with the results
    with _surroundings(home):
        print("{}", file=answers, flush=True)  # ready
        for line in sys.stdin:
            print(json.dumps(_in_fork(json.loads(line))), file=answers, flush=True)


class Child:
    """The parent's side of a child process; created by `running_child`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self) -> dict[str, Any]:
        """Wait for the next result.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("A benchmark process ended. Its output above shows why.")
        result: dict[str, Any] = json.loads(line)
        return result

    def order(self, do: str, rival: str, workload: Workload, **more: Any) -> dict[str, Any]:
        """Send an order and wait for its result, for at most a few minutes.

        Args:
            do: One of `ORDERS`.
            rival: The name of the rival.
            workload: The workload.
            **more: The other arguments of the order.
        """
        assert self._process.stdin is not None
        order = {"do": do, "rival": rival, "workload": asdict(workload), **more}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self.read()


@contextlib.contextmanager
def running_child(home: Home, python: Path) -> Iterator[Child]:
    """Run a child process in the block. The first `Child.read` waits until it is ready."""
    variables = environment(
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # litellm fetches the map when it is imported
    )
    with subprocess.Popen(
        [python, "-m", __spec__.name, home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    ) as process:
        assert process.stdin is not None
        try:
            yield Child(process)
        finally:
            process.stdin.close()  # the process ends after its current order
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    main(sys.argv[1])
