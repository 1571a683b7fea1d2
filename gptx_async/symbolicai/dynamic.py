"""The twin of symbolicai's `DynamicEngine`: another model for a block of code, asynchronously."""

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
    """symbolicai's `DynamicEngine`, whose engine is an `AsyncBatchEngine`; see `dynamic_engine`.

    It has to be a `DynamicEngine`: symbolicai looks for such among its callers' local variables.
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
        if model in ENGINE_MAPPING:  # of any other DynamicEngine itself says what is wrong with it
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
    """Ask another model within a `with` block, as by symbolicai's `DynamicEngine`.

        with gptx_async.dynamic_engine("groq:openai/gpt-oss-20b", key) as engine:
            Symbol("Grey.").query("Which colour?")

    The queries of the block's thread and context go to an `AsyncBatchEngine` around the engine that
    `DynamicEngine` chooses; it is what the block is given. Blocks may be nested. Threads that the
    block starts do not see it, as with `DynamicEngine`, unless they run in a copy of its context.

    Args:
        model: One of the models that `DynamicEngine` knows by name.
        api_key: The provider's key.
        client_timeout: As for `AsyncGPTXBatchEngine`.
        client_max_retries: As for `AsyncGPTXBatchEngine`.
        **options: As for `AsyncBatchEngine`.

    Raises:
        UnsupportedClientError: The engine for the model cannot be asynchronous.
        ConfigurationError: The engine for the model does not take it for its own; or an option is
            wrong, which is seen when the block is entered at the latest.
        ValueError: When the block is entered, as `DynamicEngine` does: no engine is for the model.
    """
    return AsyncDynamicEngine(
        model,
        api_key,
        client_timeout=client_timeout,
        client_max_retries=client_max_retries,
        **options,
    )
