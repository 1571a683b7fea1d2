"""Which generation of symbolicai this package runs on: the one place that chooses its room.

Shared modules import the parts that differ between generations from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .v1 import engine_classes, engine_lookup, retry_sleep, stand_in_client

if TYPE_CHECKING:
    from .engine import AsyncBatchEngine

__all__ = [
    "async_class_of",
    "engine_classes",
    "engine_lookup",
    "retry_sleep",
    "stand_in_client",
]


def async_class_of(engine_class: type) -> Callable[..., AsyncBatchEngine] | None:
    """Return the class of this package that is named for an engine class; None if there is none."""
    from .v1 import gptx_engine  # late: it imports the shared modules, which import this one

    return gptx_engine.async_class_of(engine_class)
