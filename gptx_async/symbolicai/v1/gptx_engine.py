"""`AsyncGPTXBatchEngine`: symbolicai's `GPTXChatEngine` with concurrent model calls."""

from __future__ import annotations

from typing import Self, Unpack

from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

from ...errors import ConfigurationError
from ..account import account_of
from ..engine import AsyncBatchEngine, explained
from ..options import EngineOptions
from .engine_classes import build_engine, client_options, engine_class_of

__all__ = ["AsyncGPTXBatchEngine", "async_class_of"]


class AsyncGPTXBatchEngine(AsyncBatchEngine):
    """Run the model calls of symbolicai's `GPTXChatEngine` concurrently; see `AsyncBatchEngine`.

    Args:
        api_key: As for `GPTXChatEngine`: used if `model` is given too. Otherwise symbolicai's
            configuration applies.
        model: As for `GPTXChatEngine`.
        client_timeout: As for `GPTXChatEngine`: seconds to connect, and for each read, of an
            attempt; the default is the SDK's 600.
        client_max_retries: Number of retries of a call after a fault (no connection, a timeout, or
            status 408, 409 or 5xx); the default is the SDK's 2. Status 429 has
            `rate_limit_patience` instead.
        **options: As for `AsyncBatchEngine`: window, deadline, timeout, max_concurrency,
            rate_limit, rate_limit_patience, max_response_bytes, fast_path,
            retry_error_bodies, idle_client_seconds, adaptive, prices, max_cost, log_content,
            pickle_key. `timeout`, for a whole attempt, replaces `client_timeout`.

    Raises:
        ValueError: As `GPTXChatEngine` does, for a missing key or an unknown model.
        ConfigurationError: An option is not a number or is too low, or the installed symbolicai
            does not accept `client_timeout` or `client_max_retries`.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """

    def __init__(
        self,
        api_key: str | None = None,
        model: str | None = None,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        for_client = client_options(client_timeout, client_max_retries)
        super().__init__(build_engine(GPTXChatEngine, api_key, model, for_client), **options)

    @classmethod
    def from_config(
        cls,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Build the engine for the key and the model of symbolicai's configuration.

        Like `AsyncBatchEngine.from_config`, but only for the models of `GPTXChatEngine`.
        """
        api_key, model = account_of(None, None, f"{cls.__name__}.from_config")
        engine_class = engine_class_of(model)
        if engine_class is not GPTXChatEngine:
            raise ConfigurationError(
                f"The configured model, {model!r}, belongs to {engine_class.__name__}, not to "
                "GPTXChatEngine. Use AsyncBatchEngine.from_config()."
            )
        with explained(engine_class, model):
            return cls(
                api_key,
                model,
                client_timeout=client_timeout,
                client_max_retries=client_max_retries,
                **options,
            )


def async_class_of(engine_class: type) -> type[AsyncGPTXBatchEngine] | None:
    """Return the class of this package that is named for an engine class; None if there is none."""
    return AsyncGPTXBatchEngine if engine_class is GPTXChatEngine else None
