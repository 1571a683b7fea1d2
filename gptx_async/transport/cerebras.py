"""A client of Cerebras's own SDK, which is generated like OpenAI's, by Stainless.

Import this module only for such a client: the SDK is optional. The rooms above know only OpenAI's
exceptions, so an OpenAI error replaces each error of Cerebras's SDK. It carries the original error,
which the calling thread raises.
"""

from __future__ import annotations

from typing import Any

import openai
from cerebras.cloud import sdk

from .attempt import install_hooks
from .client import Client
from .connections import Connections
from .original_error import carry_original
from .settings import ClientSettings

__all__ = ["build_cerebras_client"]


def build_cerebras_client(settings: ClientSettings, connections: Connections) -> Client:
    """Build a client. Only on the loop that will own it.

    The client opens as many connections as there are requests in flight, and sends each request
    once.

    Args:
        settings: The client's settings.
        connections: The connections of the settings' environment. Only their certificates and
            proxies are used.
    """
    http_client = sdk.DefaultAsyncHttpxClient(**connections.httpx_options(sdk))
    install_hooks(http_client)
    client: Any = _AsyncCerebras(**settings.arguments(), max_retries=0, http_client=http_client)
    return Client(client, http_client)


class _AsyncCerebras(sdk.AsyncCerebras):
    """A client that raises OpenAI's exceptions in place of its own."""

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().request(*args, **kwargs)
        except sdk.APIError as error:
            failed = carry_original(_as_openai_error(error), error)
        raise failed from failed.__cause__


def _as_openai_error(error: sdk.APIError) -> openai.APIError:
    untyped: Any = error  # its request is of httpx, but openai 3's errors are typed with httpx2
    request = untyped.request
    if isinstance(error, sdk.APITimeoutError):
        return openai.APITimeoutError(request)
    if isinstance(error, sdk.APIConnectionError):
        return openai.APIConnectionError(message=error.message, request=request)
    if isinstance(error, sdk.APIStatusError):
        kind = getattr(openai, type(error).__name__, openai.APIStatusError)
        failed: openai.APIError = kind(error.message, response=untyped.response, body=error.body)
        return failed
    return openai.APIError(error.message, request, body=error.body)
