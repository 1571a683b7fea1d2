"""Test programs that call OpenAI: a fake server and a scheduler.

`FakeOpenAI` replaces the API on the loopback interface. `BatchScheduler` drives an engine as
symbolicai's public scheduler does. pytest finds the fixture `fake_openai` without an import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults import (
        HTML,
        BadJSON,
        EmptyBody,
        EmptyChoices,
        Fault,
        HTTPFault,
        NoChoices,
        Reset,
        Stall,
        TruncatedJSON,
        fault_named,
        sometimes,
    )
    from .foreground import serve
    from .limits import FakeRateLimits
    from .record import RecordedAnswer
    from .replies import (
        RecordedRequest,
        Reply,
        ToolCall,
        call_tool,
        canned,
        digest,
        echo,
        lognormal,
    )
    from .scheduler import BatchScheduler
    from .server import FakeOpenAI

__all__ = [
    "HTML",
    "BadJSON",
    "BatchScheduler",
    "EmptyBody",
    "EmptyChoices",
    "FakeOpenAI",
    "FakeRateLimits",
    "Fault",
    "HTTPFault",
    "NoChoices",
    "RecordedAnswer",
    "RecordedRequest",
    "Reply",
    "Reset",
    "Stall",
    "ToolCall",
    "TruncatedJSON",
    "call_tool",
    "canned",
    "digest",
    "echo",
    "fault_named",
    "lognormal",
    "serve",
    "sometimes",
]

_MODULES = ("faults", "foreground", "limits", "record", "replies", "scheduler", "server")


def __getattr__(name: str) -> Any:
    # Imported at the first use of a name: pytest imports this package in every run, by the plugin.
    if name in __all__:
        for module_name in _MODULES:
            module = importlib.import_module(f".{module_name}", __name__)
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
