"""The settings of a client: what the sync client was built with, as it has them now.

Clients on the background loop are built from these settings, one client per distinct settings.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from dataclasses import dataclass, field
from typing import Any, cast

import openai

from ..errors import UnsupportedClientError
from .environment import Environment
from .httpx_package import httpx_of

__all__ = [
    "CerebrasSettings",
    "ClientSettings",
    "check_supported",
    "is_cerebras_client",
    "settings_of",
]


@dataclass(frozen=True)
class ClientSettings:
    """The settings in which one `openai.OpenAI` client can differ from another.

    Attributes:
        api_key: The bearer key.
        base_url: The base URL with a trailing slash, as the SDK keeps it.
        organization: The OpenAI-Organization header, or None.
        project: The OpenAI-Project header, or None.
        timeout: Seconds for one attempt, or the SDK's own timeout object, or None for no limit.
        max_retries: How often a failed attempt is repeated. The package retries; the SDK's own
            retries are off.
        default_headers: Headers of every request.
        default_query: Query parameters of every request.
        environment: The certificates and proxies that the sync client found when the engine took
            it over.
    """

    api_key: str = field(repr=False)
    base_url: str = field(repr=False)  # may contain a password
    organization: str | None
    project: str | None
    timeout: Any
    max_retries: int
    default_headers: dict[str, str] = field(repr=False)
    default_query: dict[str, object] = field(repr=False)
    environment: Environment

    @classmethod
    def of(cls, client: Any, last: ClientSettings | None = None) -> ClientSettings:
        """Read the current settings of a sync client. Allowed in any thread.

        Args:
            client: The client.
            last: The settings read before. They are returned if nothing has changed, so that many
                calls share one object; the environment is always taken from them.
        """
        environment = cls.read_environment() if last is None else last.environment
        if last is not None and last.max_retries == client.max_retries:
            now = _key(
                cls,
                client.api_key,
                str(client.base_url),
                getattr(client, "organization", None),
                getattr(client, "project", None),
                client.timeout,
                client._custom_headers,
                client._custom_query,
            )
            if now == last._parts:
                return last
        return cls(
            api_key=client.api_key,
            base_url=str(client.base_url),
            organization=getattr(client, "organization", None),  # Cerebras's client has none
            project=getattr(client, "project", None),
            timeout=client.timeout,
            max_retries=client.max_retries,
            default_headers=dict(client._custom_headers),
            default_query=dict(client._custom_query),
            environment=environment,
        )

    @staticmethod
    def read_environment() -> Environment:
        """Read certificates and proxies, as the SDK does when it builds a client."""
        return Environment.read(httpx_of(openai))

    @functools.cached_property
    def key(self) -> bytes:
        """A hash of all settings except `max_retries`; equal keys share a client."""
        return _digest((self._parts, self.environment.parts))

    @functools.cached_property
    def account(self) -> bytes:
        """A hash of the base URL and the API key."""
        return _digest((self.base_url, str(self.api_key)))

    @functools.cached_property
    def _parts(self) -> tuple[object, ...]:
        return _key(
            type(self),
            self.api_key,
            self.base_url,
            self.organization,
            self.project,
            self.timeout,
            self.default_headers,
            self.default_query,
        )

    def build_sync(self) -> Any:
        """Build a sync client with these settings, as unpickling an engine does."""
        return openai.OpenAI(**self.arguments(), max_retries=self.max_retries)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments, except `max_retries`, for the SDK's sync and async client."""
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "organization": self.organization,
            "project": self.project,
            "timeout": self.timeout,
            "default_headers": self.default_headers,
            "default_query": self.default_query,
        }


@dataclass(frozen=True)
class CerebrasSettings(ClientSettings):
    """The settings in which one `Cerebras` client can differ from another; see `ClientSettings`.

    Cerebras's SDK is imported only once there is a client of it.
    """

    @staticmethod
    def read_environment() -> Environment:
        """Read certificates and proxies, as the SDK does when it builds a client."""
        from cerebras.cloud import sdk

        return Environment.read(httpx_of(sdk))

    def build_sync(self) -> Any:
        """Build a sync client with these settings, as unpickling an engine does."""
        from cerebras.cloud import sdk

        return sdk.Cerebras(**self.arguments(), max_retries=self.max_retries)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments, except `max_retries`, for the SDK's sync and async client."""
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "timeout": self.timeout,
            "default_headers": self.default_headers,
            "default_query": self.default_query,
            "warm_tcp_connection": False,  # it would block for up to a second
        }


def settings_of(client: Any, last: ClientSettings | None = None) -> ClientSettings:
    """Read the current settings of a supported sync client. Allowed in any thread.

    Args:
        client: The client.
        last: The settings read before, as for `ClientSettings.of`.
    """
    kind = CerebrasSettings if is_cerebras_client(client) else ClientSettings
    return kind.of(client, last)


def is_cerebras_client(client: object) -> bool:
    """Return whether a client is an instance of Cerebras's own SDK."""
    sdk = sys.modules.get("cerebras.cloud.sdk")
    return sdk is not None and type(client) is sdk.Cerebras


def check_supported(client: object) -> openai.OpenAI:
    """Return the client if an `AsyncOpenAI` with the same settings can make its calls.

    Raises:
        UnsupportedClientError: The client is of another class, or was given something that only a
            sync client accepts.
    """
    if type(client) is not openai.OpenAI and not is_cerebras_client(client):
        raise UnsupportedClientError(
            f"The engine's client is {type(client)!r}, but only calls of an openai.OpenAI "
            "(openai.Client) can be made asynchronously. Use an engine with such a client."
        )
    for name in ("_api_key_provider", "workload_identity", "_provider"):
        if getattr(client, name, None) is not None:
            raise UnsupportedClientError(
                f"The engine's client has a {name.lstrip('_')}, which runs code of its own and "
                "may not run on the background loop. Build the client with a string as its key."
            )
    transport = getattr(client, "_client", None)
    if transport is not None and type(transport).__name__ != "SyncHttpxClientWrapper":
        raise UnsupportedClientError(
            "The engine's client has an http_client of its own, which cannot be used "
            "asynchronously. Build the client without one. Proxies and certificates named by the "
            "environment (HTTPS_PROXY, SSL_CERT_FILE) are used."
        )
    return cast(openai.OpenAI, client)


def _key(kind: type, api_key: str, base_url: str, *others: object) -> tuple[object, ...]:
    """Return a value that is equal for equal settings."""
    return kind, str(api_key), base_url, *map(repr, others)


_SALT = os.urandom(16)


def _digest(parts: tuple[object, ...]) -> bytes:
    """Hash parts that may contain an API key, so that the result may be kept.

    The hash is valid in this process only.

    Args:
        parts: Objects whose `repr` identifies them.
    """
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), key=_SALT).digest()
