"""How symbolicai finds its engine, and a shortcut for the start of a `forward`.

`Symbol.tokens` asks the repository for the engine, twice for each prompt. The repository first
looks at a context variable, where a `DynamicEngine` puts its engine. Then it searches every local
variable of every caller, up to the first frame, for a `DynamicEngine` that was entered in another
context. For a short prompt this search took 40 % of symbolicai's `forward`, and left a dictionary
of variables on each caller's frame while the call was in flight.

So the search runs once per `forward`, or once per batch, and its result is put into the context
variable. The shortcut lasts only while symbolicai's own code runs: from the start of a `forward`
to its call of the client. Other code may enter a `DynamicEngine` or ask for a search engine, and
the repository would return the engine in the context variable instead.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any, Self

import symai.context
from symai.components import DynamicEngine
from symai.functional import EngineRepository

__all__ = ["NEUROSYMBOLIC", "LookupShortcut", "entered_dynamic_engine"]

NEUROSYMBOLIC = "neurosymbolic"
"""The id of the engines that answer queries."""


def entered_dynamic_engine() -> Any:
    """Return the `DynamicEngine` whose block contains this code, found as symbolicai finds it.

    It may have been entered in another context, so the local variables of all callers are searched.
    The search ends where a greenlet begins. The code that starts a greenlet therefore searches
    first, and keeps the result in a local variable of the greenlet.
    """
    frame = sys._getframe(1)
    while frame is not None:
        for value in [*frame.f_locals.values()]:
            if isinstance(value, DynamicEngine) and getattr(value, "_entered", False):
                return value
        frame = frame.f_back  # type: ignore[assignment]
    return None


class LookupShortcut:
    """Context manager in which symbolicai finds the current engine at its first look.

    It applies to the thread and context of the block. If no engine is registered it does nothing,
    and symbolicai registers its own.

    Args:
        argument: The argument of the `forward` in the block.
    """

    __slots__ = ("_argument",)

    def __init__(self, argument: Any) -> None:
        self._argument = argument

    @staticmethod
    def prepare(argument: Any, found: Any) -> None:
        """Save the search for the next shortcut of this thread, if it is for the same argument.

        Args:
            argument: The argument of an item.
            found: The result of `entered_dynamic_engine` for the item's batch.
        """
        _thread.found = weakref.ref(argument), found

    def __enter__(self) -> Self:
        found, _thread.found = _thread.found, None
        if _CURRENT is None or _CURRENT.get() is not None:
            return self
        engine = EngineRepository.list().get(NEUROSYMBOLIC)
        if engine is None:
            return self
        # For another argument, such as a query of an item's handler, the search runs again.
        if found is None or found[0]() is not self._argument:
            engine = EngineRepository.get(NEUROSYMBOLIC)
        elif found[1] is not None:
            engine = found[1].engine_instance
        _thread.is_active = True  # first: an interrupt may come between the two lines
        _CURRENT.set(engine)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @staticmethod
    def end() -> None:
        """End the shortcut of this thread, if it has one, before the end of its block."""
        if _thread.is_active and _CURRENT is not None:
            _CURRENT.set(None)
            _thread.is_active = False


_CURRENT: Any = getattr(symai.context, "CURRENT_ENGINE_VAR", None)
"""The context variable; None if the installed symbolicai does not have it."""


class _ThreadLookup(threading.local):
    """The state of a thread's shortcut.

    Attributes:
        found: The argument and the result of a search that has already run; None without one.
        is_active: Whether the thread's shortcut has set the context variable.
    """

    found: tuple[weakref.ref[Any], Any] | None = None
    is_active = False


_thread = _ThreadLookup()
