"""How symbolicai finds the engine, and how it finds it in less time while a `forward` begins.

`Symbol.tokens` asks the repository for the engine, twice for a prompt. The repository first looks
into a context variable, where a `DynamicEngine` puts its own; then into every local variable of
every caller, up to the first frame, for a `DynamicEngine` that was entered in another context. For
a short prompt that second look was 40 % of the time of symbolicai's `forward`, and left each
caller's frame with a dictionary of its variables for as long as the call was out.

So it is done once, for a batch once for all items, and what it has found is put into that context
variable. Only where nothing but symbolicai's own code runs, from the beginning of a `forward` to
its call of the client: what runs then may enter a `DynamicEngine`, or ask for a search engine,
which the repository would answer with the engine that stands there.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import symai.context
from symai.components import DynamicEngine
from symai.functional import EngineRepository

__all__ = [
    "NEUROSYMBOLIC",
    "entered_dynamic_engine",
    "note_found",
    "put_engine",
    "take_engine_away",
]

NEUROSYMBOLIC = "neurosymbolic"
"""The id of the engines that answer queries."""


def entered_dynamic_engine() -> Any:
    """Return the `DynamicEngine` whose block this code is in by the callers' local variables.

    So symbolicai finds one that was entered in another context. Where frames end, in a greenlet,
    who begins it has to look, and to keep what is found in a local variable there.
    """
    frame = sys._getframe(1)
    while frame is not None:
        for value in [*frame.f_locals.values()]:
            if isinstance(value, DynamicEngine) and getattr(value, "_entered", False):
                return value
        frame = frame.f_back  # type: ignore[assignment]
    return None


def note_found(argument: Any, found: Any) -> None:
    """Tell what looking through the callers finds, just before an item's argument is asked for.

    Args:
        argument: The item's.
        found: What `entered_dynamic_engine` has found for its batch.
    """
    _thread.found = weakref.ref(argument), found


def put_engine(argument: Any) -> None:
    """Put the engine that symbolicai would find, in this thread, where it looks first.

    Until `take_engine_away`, in the same thread and context. Does nothing where no engine is
    registered, and symbolicai would register its own.

    Args:
        argument: What a `forward` begins for.
    """
    found, _thread.found = _thread.found, None
    if _CURRENT is None or _CURRENT.get() is not None:
        return
    engine = EngineRepository.list().get(NEUROSYMBOLIC)
    if engine is None:
        return
    if found is None or found[0]() is not argument:  # an item's handler may ask as well, say
        engine = EngineRepository.get(NEUROSYMBOLIC)
    elif found[1] is not None:
        engine = found[1].engine_instance
    _thread.has_put = True  # first: it may be interrupted between the two
    _CURRENT.set(engine)


def take_engine_away() -> None:
    """Take the engine away again, if it was put there in this thread. Costs next to nothing."""
    if _thread.has_put and _CURRENT is not None:
        _CURRENT.set(None)
        _thread.has_put = False


_CURRENT: Any = getattr(symai.context, "CURRENT_ENGINE_VAR", None)
"""The context variable; None where the installed symbolicai has it no more."""


class _Thread(threading.local):
    found: tuple[weakref.ref[Any], Any] | None = None
    has_put = False


_thread = _Thread()
