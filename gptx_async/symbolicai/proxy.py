"""An engine that stands for a sync engine: attributes pass through, and copies and pickles work."""

from __future__ import annotations

import copy
import difflib
import sys
from typing import Any, Self

import openai

from .. import errors
from ..transport.patched_sync_client import is_double
from ..transport.settings import ClientSettings
from .account import with_key_of_this_process, without_keys
from .engine_calls import EngineCalls
from .generation import stand_in_client
from .options import EngineOptions, checked

__all__ = ["EngineProxy"]

_OPTIONS = EngineOptions.__annotations__.keys()

_OWN_ATTRIBUTES = {f"_{name}" for name in _OPTIONS} | {
    "_callback",
    "_calls",
    "_pacing",
    "_recorder",
    "_sync_engine",
}


class EngineProxy:
    """Reads and sets on the sync engine every attribute that the class itself does not define.

    A client that is set becomes a stand-in client. A pickle contains the options and the sync
    engine's attributes, without connections and scheduler, and by default without the API key.
    """

    _sync_engine: Any
    _calls: EngineCalls

    def _take_over(self, sync_engine: Any, options: EngineOptions) -> None:
        """Initialise a copy around a sync engine."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_sync_engine" not in self.__dict__:
            raise AttributeError(name)  # copy and pickle ask before there is a sync engine
        return getattr(self._sync_engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN_ATTRIBUTES or hasattr(type(self), name):
            object.__setattr__(self, name, value)
            return
        if name == "client" and is_double(value):
            stand_in_client.warn_of_double("The engine's client is a mock")
        elif name == "client":
            value = stand_in_client.StandInClient(value, self._calls)
        elif not hasattr(self._sync_engine, name):
            _check_name(name)
        setattr(self._sync_engine, name, checked(name, value))

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__ or hasattr(type(self), name):
            object.__delattr__(self, name)
        else:
            delattr(self._sync_engine, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._sync_engine)})

    def __str__(self) -> str:
        # symbolicai prints the engine in its verbose mode.
        return str(self._sync_engine)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle stores: no connections, no scheduler, and by default no key."""
        state = self._state()
        return state if self.pickle_key else without_keys(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "without_key" in state:
            state = with_key_of_this_process(state)
        sync_engine = state["class"].__new__(state["class"])
        vars(sync_engine).update(state["attributes"])
        settings: ClientSettings | None = state["settings"]
        if settings is not None:
            sync_engine.client = settings.build_sync()
        self._take_over(sync_engine, state["options"])

    def __copy__(self) -> Self:
        return self._twin(self._state())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._twin(copy.deepcopy(self._state(), memo))

    def _state(self) -> dict[str, Any]:
        attributes = dict(vars(self._sync_engine))
        client = attributes.pop("client", None)
        return {
            "class": type(self._sync_engine),
            "attributes": attributes,
            "settings": client.settings if stand_in_client.is_stand_in(client) else None,
            "options": {name: getattr(self, name) for name in _OPTIONS},
        }

    def _twin(self, state: dict[str, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__setstate__(state)
        return twin

    @property
    def _api_key(self) -> str | None:
        """The client's key if the sync engine's module reads `openai.api_key`, otherwise None."""
        modules = [sys.modules.get(base.__module__) for base in type(self._sync_engine).__mro__]
        if not any(getattr(module, "openai", None) is openai for module in modules):
            return None
        key = getattr(getattr(self._sync_engine, "client", None), "api_key", None)
        return key if isinstance(key, str) else None

    def _take_client(self) -> None:
        """Take over a client that the sync engine has rebuilt, as Cerebras's does for a new key."""
        client = getattr(self._sync_engine, "client", None)
        if client is not None and not stand_in_client.is_stand_in(client) and not is_double(client):
            self.client = client


def _check_name(name: str) -> None:
    """Check that an attribute that no engine has is not a misspelled option.

    Raises:
        ConfigurationError: The name is close to that of an option.
    """
    alike = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.8)
    if alike:
        raise errors.ConfigurationError(
            f"The engine has no option {name!r}. Did you mean {alike[0]!r}?"
        )
