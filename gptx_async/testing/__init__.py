"""For tests of programs that call OpenAI: a server that answers like it, and a scheduler.

`FakeOpenAI` stands in for the API on the loopback interface. `BatchScheduler` drives an engine as
symbolicai's public scheduler does. With pytest, the fixture `fake_openai` is there by itself.
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
    from .limits import RateLimits
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
    from .server import Answered, FakeOpenAI, serve

__all__ = [
    "HTML",
    "Answered",
    "BadJSON",
    "BatchScheduler",
    "EmptyBody",
    "EmptyChoices",
    "FakeOpenAI",
    "Fault",
    "HTTPFault",
    "NoChoices",
    "RateLimits",
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

_MODULES = ("faults", "limits", "replies", "scheduler", "server")


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
