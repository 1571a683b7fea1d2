"""Random 429s over real HTTP: a run takes about as long as without pacing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from symai import Symbol
from symai.core import Argument

from gptx_async import AsyncGPTXBatchEngine
from gptx_async.testing import FakeOpenAI, HTTPFault, sometimes

CALLS = 600


def arguments(engine: AsyncGPTXBatchEngine) -> list[Any]:
    made = []
    for number in range(CALLS):
        argument = Argument((), {}, {"prompt": "Answer."})
        argument.prop.instance = Symbol(f"text {number}")
        argument.prop.processed_input = f"text {number}"
        engine.prepare(argument)
        made.append(argument)
    return made


def seconds_of(share: float, *, adaptive: bool) -> float:
    """Return the duration of a batch in which random requests are refused."""
    refused = sometimes([(HTTPFault(429, retry_after_ms=100), share)])
    with FakeOpenAI(latency=0.05, faults=refused) as server:
        engine = AsyncGPTXBatchEngine(
            "sk-random", "gpt-4o-mini", max_concurrency=64, adaptive=adaptive
        )
        engine.client.base_url = server.base_url
        asked = arguments(engine)
        began = time.monotonic()
        outputs, metadatas = engine.forward(asked)
        seconds = time.monotonic() - began
        assert len(outputs) == CALLS
        assert not any(metadata.get("error") for metadata in metadatas)
        assert server.statuses[429] > 0.5 * share * CALLS
    return seconds


@pytest.mark.parametrize("share", [0.03, 0.1, 0.2])
@pytest.mark.slow
def test_a_batch_is_not_slowed_down(share: float) -> None:
    # A collapse takes ten times as long or longer; the bound leaves room for a busy machine.
    plain = seconds_of(share, adaptive=False)

    assert seconds_of(share, adaptive=True) < 3 * plain + 2
