"""The API key of an engine that is pickled: it stays behind, and another one is found on waking up.

A pickle travels: to the workers of a cluster, into a cache, a message queue or a bug report.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from symai.backend.settings import SYMAI_CONFIG

from ..errors import ConfigurationError, GPTXAsyncError
from ..transport.environment import Environment
from .v1.engine_classes import engine_class_of

__all__ = ["with_key_of_this_process", "without_keys"]

KEY, MODEL = "NEUROSYMBOLIC_ENGINE_API_KEY", "NEUROSYMBOLIC_ENGINE_MODEL"

_VARIABLES: Mapping[str, str] = {
    "GroqEngine": "GROQ_API_KEY",
    "OpenRouterEngine": "OPENROUTER_API_KEY",
    "DeepSeekXReasoningEngine": "DEEPSEEK_API_KEY",
    "CerebrasEngine": "CEREBRAS_API_KEY",
}
"""The environment variable with the key of a provider, by the class of symbolicai's engine."""

_NO_ENVIRONMENT = Environment(ca_file=None, ca_folder=None, ca_state=None, proxies=())


def without_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an engine without its keys, and without what belongs to this process.

    symbolicai's configuration stays behind but for the model: it has the keys of other engines. So
    do the proxies of the environment, whose URLs may have passwords.

    Args:
        state: As `AsyncBatchEngine` makes it, with the key.
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
    """Return a state of `without_keys` with the key that this process has for the engine.

    That is the key of symbolicai's configuration, if the configured model is of the same provider;
    else that of the provider's environment variable.

    Raises:
        ConfigurationError: There is no key.
    """
    attributes, settings = dict(state["attributes"]), state["settings"]
    key = _find_key(state["class"], attributes["config"].get(MODEL))
    attributes.update(dict.fromkeys(state["without_key"], key))
    attributes["config"] = {**copy.deepcopy(SYMAI_CONFIG), **attributes["config"], KEY: key}
    if settings is not None:
        settings = dataclasses.replace(settings, api_key=key)
    return {**state, "attributes": attributes, "settings": settings}


def _find_key(engine_class: type[Any], model: str | None) -> str:
    variable = _variable_of(engine_class)
    configured = SYMAI_CONFIG.get(KEY)
    if configured and _configured_variable() in (variable, None):
        return str(configured)
    key = os.environ.get(variable)
    if not key:
        raise ConfigurationError(
            f"The engine for the model {model!r} was pickled without its key, and there is none "
            f"here. Set {KEY} in symbolicai's configuration (symai.config.json), with a model of "
            f"the same provider, or the environment variable {variable}; or pickle an engine that "
            "was built with pickle_key=True."
        )
    return key


def _configured_variable() -> str | None:
    """Return the variable of the provider whose model is configured; None if that is unknown."""
    model = SYMAI_CONFIG.get(MODEL)
    if not model:
        return None
    try:
        return _variable_of(engine_class_of(model))
    except GPTXAsyncError:  # another provider's, whose key is none of ours
        return ""


def _variable_of(engine_class: type[Any]) -> str:
    names = (_VARIABLES.get(kind.__name__) for kind in engine_class.__mro__)
    return next(filter(None, names), "OPENAI_API_KEY")
