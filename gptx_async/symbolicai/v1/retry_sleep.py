"""The waits of symbolicai's own retries: within a batch they let the other items go on.

The `forward` of some engines (Groq, OpenRouter, Cerebras) tries again by itself, by
`symai.core_ext.retry`, and sleeps in between. It runs in the thread that drives the batch, so a
real sleep of one item would hold up all others. That decorator stays as it is, delays and all; what
it finds under the name `time` is a stand-in.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from symai import core_ext

from ...batch.driver import is_item, wait_for
from ...errors import (
    ConfigurationError,
    CostLimitError,
    LoopThreadError,
    ResponseTooLargeError,
    ServiceClosedError,
)
from ...loop.call import Call

__all__ = ["let_waits_block", "let_waits_give_way"]

_FINAL = (
    ConfigurationError,
    CostLimitError,
    LoopThreadError,
    ResponseTooLargeError,
    ServiceClosedError,
)
"""The package's own errors that the next try would raise again."""


def let_waits_give_way() -> None:
    """Let the sleeps of symbolicai's `retry` give way within items. Allowed in any thread.

    To do it twice does nothing.
    """
    module = getattr(core_ext, "time", None)
    if module is not None and not isinstance(module, _Time):
        core_ext.time = _Time(module)


def let_waits_block() -> None:
    """Put back the module that `let_waits_give_way` replaced. Allowed in any thread.

    An item that begins to wait afterwards holds up its batch for as long as it waits.
    """
    module: Any = getattr(core_ext, "time", None)
    while getattr(module, "is_stand_in_of_gptx_async", False):  # also of a class before a reload
        module = core_ext.time = module._module


class _Time:
    """The module `time`, as `symai.core_ext` sees it.

    Args:
        module: The one whose place it takes.
    """

    is_stand_in_of_gptx_async = True

    def __init__(self, module: Any = time) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def sleep(self, seconds: float) -> None:
        """Sleep; as an item of a batch on the background loop, and out of the item's greenlet.

        Raises:
            Exception: The failure that is being handled, if to try again is of no use.
        """
        failure = sys.exception()
        if isinstance(failure, Exception) and _is_final(failure):
            raise failure
        if is_item():
            wait_for(Call(lambda _scope: asyncio.sleep(seconds)))
        else:
            self._module.sleep(seconds)


def _is_final(failure: Exception) -> bool:
    # Where no remedy is given, forward raises a ValueError in the place of what the call raised.
    return isinstance(failure, _FINAL) or isinstance(failure.__context__, _FINAL)
