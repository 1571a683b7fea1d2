"""A loop whose clock stands still while something runs and jumps to the next timer otherwise.

And calls on it, through a governor and the real retries, without a network.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

import openai

from gptx_async.calls import retry
from gptx_async.pacing.governor import Governor
from gptx_async.pacing.queue import StarvedError
from gptx_async.pacing.settings import Pacing

__all__ = ["call", "clock", "error_with", "settle_down", "simulate"]

Headers = Mapping[str, str]

T = TypeVar("T")


class _VirtualSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("Nothing will ever happen: something waits that nobody wakes.")
        self.now += max(0.0, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual_selector = _VirtualSelector()
        super().__init__(self._virtual_selector)

    def time(self) -> float:
        return self._virtual_selector.now


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


def clock() -> float:
    """Return the virtual time, in seconds."""
    return asyncio.get_running_loop().time()


async def settle_down() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


def error_with(status: int, headers: Headers | None = None) -> openai.APIStatusError:
    """Make the SDK's error for a response."""
    response: Any = SimpleNamespace(request=None, status_code=status, headers=headers or {})
    return openai.APIStatusError(f"status {status}", response=response, body=None)


async def call(
    governor: Governor,
    pacing: Pacing,
    send: Callable[[], Awaitable[Headers]],
    *,
    patience: float = 300.0,
    max_retries: int = 2,
) -> str:
    """Make one call as a request does; return 'answered', 'starved' or 'failed'.

    Args:
        governor: Paces the call.
        pacing: The engine's.
        send: Makes one attempt: returns the headers of the answer, or raises the SDK's error.
        patience: Seconds, as `rate_limit_patience`.
        max_retries: As `client_max_retries`.
    """
    ticket = governor.ticket(pacing)
    budget = retry.Budget(max_retries, patience, clock=clock)

    async def attempt() -> str:
        permit = await ticket.admit(patience)
        try:
            headers = await send()
        except BaseException as error:
            retry.settle(permit, error)
            budget.is_free = permit.is_probe and retry.is_of_outage(error)
            raise
        permit.succeeded(headers, None)
        return "answered"

    try:
        try:
            return await attempt()
        except openai.APIStatusError as error:
            return await retry.run_retries(attempt, error, budget, lambda _error, _seconds: None)
    except StarvedError:
        return "starved"
    except openai.APIStatusError:
        return "failed"
    finally:
        ticket.close()
