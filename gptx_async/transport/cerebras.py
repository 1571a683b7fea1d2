"""The client of Cerebras's own SDK, a twin of OpenAI's by the same generator (Stainless).

It is imported only where such a client is met. The rooms above know OpenAI's exceptions alone, by
which they try again, keep the pace and tell: on the loop each error is one of those, and carries
the SDK's own, which the thread that asked gets to see.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import openai
from cerebras.cloud import sdk

from .client import Client, ClientSettings, read_response, send_in_time
from .connections import Connections, httpx_of
from .environment import Environment
from .original_error import carry_original

__all__ = ["CerebrasSettings"]


@dataclass(frozen=True)
class CerebrasSettings(ClientSettings):
    """What makes one `Cerebras` client differ from another; see `ClientSettings`."""

    def build_sync(self) -> Any:
        """Build a sync client with these settings, as after unpickling an engine."""
        return sdk.Cerebras(**self._arguments(), max_retries=self.max_retries)

    @staticmethod
    def read_environment() -> Environment:
        """Read certificates and proxies, as a client does when it is built."""
        return Environment.read(httpx_of(sdk))

    def build_async(self, connections: Connections) -> Client:
        """Build an async client with these settings. Only on the loop that is to own it.

        It opens as many connections as there are requests out, and sends each of them once.

        Args:
            connections: Those of the settings' environment; for their certificates and proxies.
        """
        http_client = sdk.DefaultAsyncHttpxClient(**connections.limitless(sdk))
        http_client.event_hooks = {"response": [read_response]}
        http_client.send = functools.partial(  # type: ignore[method-assign]
            send_in_time, http_client.send
        )
        client: Any = _AsyncCerebras(**self._arguments(), max_retries=0, http_client=http_client)
        return Client(client, http_client)

    def _arguments(self) -> dict[str, Any]:
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "timeout": self.timeout,
            "default_headers": self.default_headers,
            "default_query": self.default_query,
            "warm_tcp_connection": False,  # which blocks, for up to a second
        }


class _AsyncCerebras(sdk.AsyncCerebras):
    """A client that raises OpenAI's exceptions in the place of its own."""

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().request(*args, **kwargs)
        except sdk.APIError as error:
            failed = carry_original(_in_openais_terms(error), error)
        raise failed from failed.__cause__


def _in_openais_terms(error: sdk.APIError) -> openai.APIError:
    said: Any = error  # whose request is of httpx: as good here as one of openai 3's httpx2
    request = said.request
    if isinstance(error, sdk.APITimeoutError):
        return openai.APITimeoutError(request)
    if isinstance(error, sdk.APIConnectionError):
        return openai.APIConnectionError(message=error.message, request=request)
    if isinstance(error, sdk.APIStatusError):
        kind = getattr(openai, type(error).__name__, openai.APIStatusError)
        failed: openai.APIError = kind(error.message, response=said.response, body=error.body)
        return failed
    return openai.APIError(error.message, request, body=error.body)
