"""Register an engine with symbolicai, and restore what was registered before."""

from __future__ import annotations

from typing import Any, Unpack

from symai.functional import EngineRepository

from . import process_wide
from .account import account_of
from .engine import AsyncBatchEngine, explained
from .generation import async_class_of, engine_classes, engine_lookup
from .options import EngineOptions

__all__ = ["install", "retire_limits_of", "uninstall"]


def install(
    api_key: str | None = None,
    model: str | None = None,
    *,
    client_timeout: float | None = None,
    client_max_retries: int | None = None,
    **options: Unpack[EngineOptions],
) -> AsyncBatchEngine:
    """Build the engine for a model, and register it as symbolicai's 'neurosymbolic' engine.

    It wraps the engine that symbolicai would choose for the model. Allowed in any thread.

    Args:
        api_key: The provider's key; the default is NEUROSYMBOLIC_ENGINE_API_KEY of symbolicai's
            configuration.
        model: The model's name, with its prefix if it has one ('groq:...'); the default is
            NEUROSYMBOLIC_ENGINE_MODEL of symbolicai's configuration.
        client_timeout: As for `AsyncGPTXBatchEngine`.
        client_max_retries: As for `AsyncGPTXBatchEngine`.
        **options: As for `AsyncBatchEngine`.

    Returns:
        The engine; an `AsyncGPTXBatchEngine` for a model of `GPTXChatEngine`. `uninstall` restores
        the engine that was registered before.

    Raises:
        ConfigurationError: The key or the model is missing; no engine knows the model, or the
            engine cannot be built for it; or an option has a wrong value.
        UnsupportedClientError: The calls of the engine for the model cannot be asynchronous.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """
    api_key, model = account_of(api_key, model, "gptx_async.install")
    engine_class = engine_classes.engine_class_of(model)
    for_client = engine_classes.client_options(client_timeout, client_max_retries)
    async_class = async_class_of(engine_class)
    engine: AsyncBatchEngine
    with explained(engine_class, model):
        if async_class is not None:
            engine = async_class(api_key, model, **for_client, **options)
        else:
            sync_engine = engine_classes.build_engine(engine_class, api_key, model, for_client)
            engine = AsyncBatchEngine(sync_engine, **options)
    registered = EngineRepository.list().get(engine_lookup.NEUROSYMBOLIC)
    if registered is not _installed.get("engine"):
        _installed["before"] = registered
    _installed["engine"] = engine
    retire_limits_of(registered)
    EngineRepository.register(engine_lookup.NEUROSYMBOLIC, engine, allow_engine_override=True)
    return engine


def uninstall() -> None:
    """Restore the 'neurosymbolic' engine that was registered before `install`, if there was one.

    The registry is left unchanged if nothing is installed or if another engine was registered
    since. Everything else that the package changes in the process is restored in any case: log
    levels and handlers, `symai.core_ext.time` and `openai.api_key`. An engine that is called
    afterwards changes them again, except for the root logger, until the next `uninstall`. Allowed
    in any thread.
    """
    process_wide.undo()
    engine, before = _installed.pop("engine", None), _installed.pop("before", None)
    if engine is None or EngineRepository.list().get(engine_lookup.NEUROSYMBOLIC) is not engine:
        return
    retire_limits_of(engine)
    if before is None:
        getattr(EngineRepository(), "_engines", {}).pop(engine_lookup.NEUROSYMBOLIC, None)
    else:
        EngineRepository.register(engine_lookup.NEUROSYMBOLIC, before, allow_engine_override=True)


def retire_limits_of(engine: Any) -> None:
    """Stop applying the limits of an engine, if it has any, until it is called again."""
    pacing = getattr(engine, "_pacing", None)  # not isinstance: the class may predate a reload
    if pacing is not None:
        pacing.retire()


_installed: dict[str, Any] = globals().get("_installed") or {}  # survives a reload
"""The engine that `install` registered, and the engine that was registered before it."""
