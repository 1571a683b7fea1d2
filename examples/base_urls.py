"""Ask several servers that speak OpenAI's protocol the same question, concurrently.

    python examples/base_urls.py http://127.0.0.1:8001/v1 http://127.0.0.1:8002/v1

Each server has an engine with its own connections, retries and pace, so a server that is slow or
fails does not delay the others. The key and the model come from symbolicai's configuration.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from symai import Symbol
from symai.backend.settings import SYMAI_CONFIG
from symai.core import Argument

from gptx_async import AsyncGPTXBatchEngine

QUESTION = "Which rivers does the Danube take in?"


class Outcome(NamedTuple):
    """The answer of one server, or its error, and how long it took."""

    base_url: str
    text: str
    seconds: float


def question(text: str) -> Argument:
    """Build an Argument, symbolicai's object for one query, with the text and a prompt."""
    argument = Argument((), {}, {"prompt": "Answer in one sentence."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


async def ask(base_url: str) -> Outcome:
    """Ask one server, and wait a minute at most."""
    engine = AsyncGPTXBatchEngine(
        SYMAI_CONFIG["NEUROSYMBOLIC_ENGINE_API_KEY"],
        SYMAI_CONFIG["NEUROSYMBOLIC_ENGINE_MODEL"],
        deadline=60,
    )
    engine.client.base_url = base_url
    began = time.monotonic()
    [output], [metadata] = await engine.aforward([question(QUESTION)])
    text = f"failed: {metadata['exception']}" if metadata.get("error") else output[0]
    return Outcome(base_url, text, time.monotonic() - began)


async def main(base_urls: Sequence[str]) -> None:
    """Print the answers as they arrive."""
    for answered in asyncio.as_completed([ask(base_url) for base_url in base_urls]):
        outcome = await answered
        print(f"{outcome.base_url} ({outcome.seconds:.1f} s): {outcome.text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
