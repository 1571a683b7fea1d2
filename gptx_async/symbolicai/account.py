"""The API key and the model of an engine: from arguments, configuration or environment.

The key stays out of a pickled engine, because pickles travel: to workers of a cluster, into caches,
message queues and bug reports. The process that unpickles the engine supplies its own key.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any

from symai.backend.settings import SYMAI_CONFIG

from ..errors import ConfigurationError, GPTXAsyncError
from ..transport.environment import Environment
from .configuration import FILE_NAME, KEY, MODEL
from .generation import engine_classes

__all__ = ["account_of", "with_key_of_this_process", "without_keys"]

_NO_ENVIRONMENT = Environment(ca_file=None, ca_folder=None, ca_state=None, proxies=())


def account_of(api_key: str | None, model: str | None, caller: str) -> tuple[str, str]:
    """Return the key and the model; symbolicai's configuration supplies what is not given.

    Args:
        api_key: The key, or None.
        model: The model, or None.
        caller: Name of the function that needs them, for the error message.

    Raises:
        ConfigurationError: The configuration has no key or no model either.
    """
    return (
        _setting("api_key", api_key, KEY, caller),
        _setting("model", model, MODEL, caller),
    )


def _setting(name: str, given: str | None, setting: str, caller: str) -> str:
    value = given or SYMAI_CONFIG.get(setting)
    if not value:
        raise ConfigurationError(
            f"No {name} is given. Pass {name}=... to gptx_async.install, or set {setting} in "
            f"symbolicai's configuration ({FILE_NAME}), where {caller} looks for it."
        )
    return str(value)


def without_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an engine without its keys and without what belongs to this process.

    Of symbolicai's configuration only the model is kept, because it contains the keys of other
    engines. Proxies of the environment are removed, because their URLs may contain passwords.

    Args:
        state: The state with the key, as `EngineProxy` builds it.
    """
    attributes, settings = dict(state["attributes"]), state["settings"]
    config = attributes.get("config") or {}
    keys = {config.get(KEY), getattr(settings, "api_key", None)} - {None, ""}
    names = [name for name, value in attributes.items() if isinstance(value, str) and value in keys]
    for name in names:
        del attributes[name]
    attributes["config"] = {name: config[name] for name in (MODEL,) if name in config}
    if settings is not None:
        settings = dataclasses.replace(settings, api_key="", environment=_NO_ENVIRONMENT)
    return {**state, "attributes": attributes, "settings": settings, "without_key": names}


def with_key_of_this_process(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state from `without_keys` with the key that this process has for the engine.

    The key is symbolicai's configured key if the configured model has the same provider, otherwise
    that of the provider's environment variable.

    Raises:
        ConfigurationError: This process has no key.
    """
    attributes, settings = dict(state["attributes"]), state["settings"]
    key = _find_key(state["class"], attributes["config"].get(MODEL))
    attributes.update(dict.fromkeys(state["without_key"], key))
    attributes["config"] = {**copy.deepcopy(SYMAI_CONFIG), **attributes["config"], KEY: key}
    if settings is not None:
        settings = dataclasses.replace(settings, api_key=key)
    return {**state, "attributes": attributes, "settings": settings}


def _find_key(engine_class: type[Any], model: str | None) -> str:
    variable = engine_classes.key_variable_of(engine_class)
    configured = SYMAI_CONFIG.get(KEY)
    if configured and _configured_variable() in (variable, None):
        return str(configured)
    key = os.environ.get(variable)
    if not key:
        raise ConfigurationError(
            f"The engine for the model {model!r} was pickled without its key, and this process has "
            f"none. Set {KEY} in symbolicai's configuration ({FILE_NAME}), with a model of the "
            f"same provider, or the environment variable {variable}; or pickle an engine that was "
            "built with pickle_key=True."
        )
    return key


def _configured_variable() -> str | None:
    """Return the key variable of the configured model; None if no model is configured."""
    model = SYMAI_CONFIG.get(MODEL)
    if not model:
        return None
    try:
        return engine_classes.key_variable_of(engine_classes.engine_class_of(model))
    except GPTXAsyncError:  # a provider that this package does not support
        return ""
