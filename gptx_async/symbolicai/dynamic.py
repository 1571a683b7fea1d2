"""Another model for a `with` block, like symbolicai's `DynamicEngine`, with concurrent calls."""

from __future__ import annotations

from typing import Any, Unpack

from symai.backend.engines.neurosymbolic import ENGINE_MAPPING
from symai.components import DynamicEngine

from . import process_wide
from .engine import AsyncBatchEngine
from .generation import engine_classes
from .install import retire_limits_of
from .options import EngineOptions
from .vocabularies import provide_vocabularies

__all__ = ["AsyncDynamicEngine", "dynamic_engine"]


class AsyncDynamicEngine(DynamicEngine):  # type: ignore[misc] # symbolicai ships no types
    """symbolicai's `DynamicEngine` around an `AsyncBatchEngine`; see `dynamic_engine`.

    It must be a subclass: symbolicai looks for instances among its callers' local variables.
    """

    def __init__(
        self,
        model: str,
        api_key: str,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        if model in ENGINE_MAPPING:  # for other models DynamicEngine raises its own error
            engine_classes.engine_class_of(model)
        super().__init__(
            model, api_key, **engine_classes.client_options(client_timeout, client_max_retries)
        )
        self._engine_options = options

    def __enter__(self) -> AsyncBatchEngine:
        engine: AsyncBatchEngine = super().__enter__()
        return engine

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        retire_limits_of(self.engine_instance)

    def _create_engine_instance(self) -> AsyncBatchEngine:
        provide_vocabularies()
        with process_wide.building():
            sync_engine = super()._create_engine_instance()
        return AsyncBatchEngine(sync_engine, **self._engine_options)


def dynamic_engine(
    model: str,
    api_key: str,
    *,
    client_timeout: float | None = None,
    client_max_retries: int | None = None,
    **options: Unpack[EngineOptions],
) -> AsyncDynamicEngine:
    """Use another model within a `with` block, as symbolicai's `DynamicEngine` does.

        with gptx_async.dynamic_engine("groq:openai/gpt-oss-20b", key) as engine:
            Symbol("Grey.").query("Which colour?")

    Queries of the block's thread and context go to an `AsyncBatchEngine` around the engine that
    `DynamicEngine` chooses. The `with` statement returns that engine. Blocks may be nested. As with
    `DynamicEngine`, threads started in the block do not use the engine, unless they run in a copy
    of its context.

    Args:
        model: A model that `DynamicEngine` knows by name.
        api_key: The provider's key.
        client_timeout: As for `AsyncGPTXBatchEngine`.
        client_max_retries: As for `AsyncGPTXBatchEngine`.
        **options: As for `AsyncBatchEngine`.

    Raises:
        UnsupportedClientError: The calls of the engine for the model cannot be asynchronous.
        ConfigurationError: No engine knows the model; or, at the latest on entering the block, an
            option has a wrong value.
        ValueError: On entering the block, as with `DynamicEngine`: no engine knows the model.
    """
    return AsyncDynamicEngine(
        model,
        api_key,
        client_timeout=client_timeout,
        client_max_retries=client_max_retries,
        **options,
    )
