"""A governor stores data only for the requests in flight.

The test fails if memory grows with the number of calls that the process has made.
"""

from __future__ import annotations

import tracemalloc

import pytest

from gptx_async.calls import retry
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.settings import Pacing
from support.virtual_time import error_with, simulate

ROUND = 2_000


async def make_calls(governor: Governor, pacing: Pacing, *, refused_every: int) -> None:
    for number in range(ROUND):
        ticket = governor.ticket(pacing)
        permit = await ticket.admit(300.0)
        if number % refused_every == 0:
            retry.settle(permit, error_with(429, {}))
        else:
            permit.succeeded({}, 10)
        ticket.close()


@pytest.mark.parametrize("refused_every", [ROUND + 1, 50], ids=["none refused", "some refused"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_memory_does_not_grow_with_the_calls(adaptive: bool, refused_every: int) -> None:
    async def growth() -> int:
        governor, pacing = Governor(), Pacing(8, adaptive=adaptive)
        await make_calls(governor, pacing, refused_every=refused_every)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await make_calls(governor, pacing, refused_every=refused_every)
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

    assert simulate(growth()) < 16 * ROUND  # bytes; data stored for a request takes over 100
