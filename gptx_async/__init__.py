"""symbolicai's `GPTXChatEngine` for many model calls at once, from inside one Python process.

`install()` builds the engine and registers it with symbolicai, which is imported only then: that
takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from ._version import __version__

if TYPE_CHECKING:
    from .mapping.map import AsyncMap, amap, map  # noqa: A004 - ours is meant
    from .mapping.results import Failed, Results
    from .pacing.rate_limit import RateLimit
    from .symbolicai.dynamic import AsyncDynamicEngine, dynamic_engine
    from .symbolicai.engine import AsyncBatchEngine, AsyncGPTXBatchEngine, install, uninstall
    from .telemetry.recorder import Percentiles, Stats, configure_logging

_ROOMS = {
    "AsyncBatchEngine": "symbolicai.engine",
    "AsyncDynamicEngine": "symbolicai.dynamic",
    "AsyncGPTXBatchEngine": "symbolicai.engine",
    "AsyncMap": "mapping.map",
    "Failed": "mapping.results",
    "Percentiles": "telemetry.recorder",
    "RateLimit": "pacing.rate_limit",
    "Results": "mapping.results",
    "Stats": "telemetry.recorder",
    "amap": "mapping.map",
    "configure_logging": "telemetry.recorder",
    "dynamic_engine": "symbolicai.dynamic",
    "install": "symbolicai.engine",
    "map": "mapping.map",
    "uninstall": "symbolicai.engine",
}
"""Where each public name is found, when it is first asked for."""

__all__ = [
    "AsyncBatchEngine",
    "AsyncDynamicEngine",
    "AsyncGPTXBatchEngine",
    "AsyncMap",
    "Failed",
    "Percentiles",
    "RateLimit",
    "Results",
    "Stats",
    "__version__",
    "amap",
    "configure_logging",
    "dynamic_engine",
    "errors",
    "install",
    "map",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
