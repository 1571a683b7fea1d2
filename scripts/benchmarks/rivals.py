"""The rivals that are measured. Each gets texts and returns answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from . import clients, engines
from .workloads import Open, Workload

__all__ = ["RIVALS", "Home", "Rival"]

Home: TypeAlias = Literal["plain", "symbolicai", "peers"]
"""The process in which a rival runs, named by what it imports."""

POOL_THREADS = 50
"""How many threads use `GPTXChatEngine` concurrently."""


@dataclass(frozen=True)
class Rival:
    """A way of getting many answers.

    Attributes:
        name: The name in the table and on the command line.
        title: A short description.
        home: The process in which it runs.
        open: Prepares it, and returns the function that answers texts.
        most: The highest number of calls in flight that it is measured with: sequential rivals get
            one, and nobody would use thousands of threads.
        width: The number of calls in flight, if it does not depend on the workload. Such a rival is
            not measured with one call in flight.
        sends: Whether it sends requests. If not, workloads with a server delay are skipped.
    """

    name: str
    title: str
    home: Home
    open: Open
    most: int = 4_096
    width: int | None = None
    sends: bool = True

    def takes(self, workload: Workload) -> bool:
        """Return whether the rival is measured with a workload."""
        if workload.delay and not self.sends:
            return False
        if workload.in_flight == 1 and self.width is not None:
            return False
        return workload.in_flight <= self.most

    def calls(self, workload: Workload) -> int:
        """Return how many calls to time: fewer if the rival would mostly wait."""
        if self.width is None or not workload.delay:
            return workload.calls
        return min(workload.calls, 12 * self.width)


_ALL = (
    Rival("engine-batch", "this engine, one batch", "symbolicai", engines.open_batch),
    Rival(
        "engine-frozen",
        "this engine, one batch, after gc.freeze()",
        "symbolicai",
        engines.open_frozen_batch,
    ),
    Rival(
        "engine-uncollected",
        "this engine, one batch, without GC",
        "symbolicai",
        engines.open_uncollected_batch,
    ),
    Rival(
        "engine-threads",
        "this engine, from threads",
        "symbolicai",
        engines.threaded(engines.installed),
        most=64,
    ),
    Rival(
        "engine-scheduler",
        "this engine, under a scheduler",
        "symbolicai",
        engines.open_scheduler,
        most=512,
    ),
    Rival(
        "gptx-loop",
        "GPTXChatEngine, in a loop",
        "symbolicai",
        engines.threaded(engines.registered),
        most=1,
    ),
    Rival(
        "gptx-pool",
        f"GPTXChatEngine, {POOL_THREADS} threads",
        "symbolicai",
        engines.threaded(engines.registered, POOL_THREADS),
        most=512,
        width=POOL_THREADS,
    ),
    Rival("sdk", "AsyncOpenAI() + gather", "plain", clients.open_sdk("default", "same")),
    Rival(
        "sdk-aiohttp",
        "AsyncOpenAI(DefaultAioHttpClient()) + gather",
        "plain",
        clients.open_sdk("aiohttp", "same"),
    ),
    Rival(
        "sdk-aiohttp-small",
        "the same, sending messages and model only",
        "plain",
        clients.open_sdk("aiohttp", "small"),
    ),
    Rival(
        "aiohttp-parsed",
        "aiohttp + ChatCompletion",
        "plain",
        clients.open_aiohttp(clients.parse_content),
    ),
    Rival(
        "aiohttp", "aiohttp, nothing parsed", "plain", clients.open_aiohttp(clients.find_content)
    ),
    Rival(
        "symbolicai",
        "symbolicai's work alone, no HTTP",
        "symbolicai",
        engines.threaded(engines.instant, 1),
        sends=False,
    ),
    Rival(
        "symbolicai-eased",
        "the same, with this engine's shortcuts",
        "symbolicai",
        engines.threaded(engines.eased, 1),
        sends=False,
    ),
    Rival("sockets", "bare sockets: the server's limit", "plain", clients.open_sockets),
    Rival("async-batch-llm", "async-batch-llm", "peers", clients.open_async_batch_llm),
    Rival("litellm", "litellm.batch_completion", "peers", clients.open_litellm, most=512),
)

RIVALS = {rival.name: rival for rival in _ALL}
"""The rivals by name. The 'floor' is not a rival: it is the sum of `symbolicai` and `aiohttp`; see
`figures.py`."""
