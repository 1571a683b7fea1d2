"""symbolicai's `GPTXChatEngine` with concurrent model calls, inside one Python process.

`install()` builds the engine and registers it with symbolicai. Only then is symbolicai imported,
which takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from ._version import __version__

if TYPE_CHECKING:
    from .batch.coroutine import acall
    from .mapping.map import AsyncMap, amap, map  # noqa: A004 - a public name
    from .mapping.results import Failed, Results
    from .pacing.rate_limit import RateLimit
    from .symbolicai.dynamic import AsyncDynamicEngine, dynamic_engine
    from .symbolicai.engine import AsyncBatchEngine
    from .symbolicai.install import install, uninstall
    from .symbolicai.v1.gptx_engine import AsyncGPTXBatchEngine
    from .telemetry.events import configure_logging
    from .telemetry.stats import Percentiles, Stats

_ROOMS = {
    "AsyncBatchEngine": "symbolicai.engine",
    "AsyncDynamicEngine": "symbolicai.dynamic",
    "AsyncGPTXBatchEngine": "symbolicai.v1.gptx_engine",
    "AsyncMap": "mapping.map",
    "Failed": "mapping.results",
    "Percentiles": "telemetry.stats",
    "RateLimit": "pacing.rate_limit",
    "Results": "mapping.results",
    "Stats": "telemetry.stats",
    "acall": "batch.coroutine",
    "amap": "mapping.map",
    "configure_logging": "telemetry.events",
    "dynamic_engine": "symbolicai.dynamic",
    "install": "symbolicai.install",
    "map": "mapping.map",
    "uninstall": "symbolicai.install",
}
"""The module of each public name, which is imported when the name is first used."""

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
    "acall",
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
