"""The waits of symbolicai's own retries: in a batch they do not block the other items.

The `forward` of some engines (Groq, OpenRouter, Cerebras) retries by `symai.core_ext.retry`, and
sleeps between attempts. It runs in the thread that drives the batch, so a real sleep would block
all items. The decorator and its delays stay unchanged; only the module that it knows as `time` is
replaced.
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
"""The package's own errors that another attempt would raise again."""


def let_waits_give_way() -> None:
    """Make the sleeps of symbolicai's `retry` let other items run. Allowed in any thread.

    A second call has no effect.
    """
    module = getattr(core_ext, "time", None)
    if module is not None and not isinstance(module, _Time):
        core_ext.time = _Time(module)


def let_waits_block() -> None:
    """Restore the module that `let_waits_give_way` replaced. Allowed in any thread.

    An item that starts to wait afterwards blocks its batch until the wait ends.
    """
    module: Any = getattr(core_ext, "time", None)
    while getattr(module, "is_stand_in_of_gptx_async", False):  # also from before a reload
        module = core_ext.time = module._module


class _Time:
    """The module `time` for `symai.core_ext`, with a `sleep` that does not block a batch.

    Args:
        module: The module that it replaces.
    """

    is_stand_in_of_gptx_async = True

    def __init__(self, module: Any = time) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def sleep(self, seconds: float) -> None:
        """Sleep. In an item of a batch, wait on the background loop while other items run.

        Raises:
            Exception: The error that is being handled, if another attempt would be useless.
        """
        failure = sys.exception()
        if isinstance(failure, Exception) and _is_final(failure):
            raise failure
        if is_item():
            wait_for(Call(lambda _scope: asyncio.sleep(seconds)))
        else:
            self._module.sleep(seconds)


def _is_final(failure: Exception) -> bool:
    # Without a remedy, forward raises a ValueError in place of the call's own error.
    return isinstance(failure, _FINAL) or isinstance(failure.__context__, _FINAL)
