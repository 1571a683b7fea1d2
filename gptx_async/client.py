"""The `AsyncOpenAI` clients on the background loop: like the sync engine's own, one per setting.

The transport is aiohttp's, whose pool does not look at every connection for every request as the
SDK's default one does. httpx is not imported by name: openai 3 stands on httpx2, 1 and 2 on httpx.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai

from .direct import Post
from .errors import TimeoutError, UnsupportedClientError  # noqa: A004 - ours is meant

__all__ = ["ClientSettings", "attempt", "check_supported"]

MAX_HEADER_BYTES = 100 * 1024
"""How long, and how many, an answer's headers may be: httpcore's limit, so the sync client's."""


@dataclass(slots=True)
class _Attempt:
    """What the SDK has no argument or result for.

    Attributes:
        timeout: Seconds for the whole attempt, or None for what the transport bounds by itself.
        retries: How many attempts of the call were made before it.
        headers: Those of the answer, when it is there.
    """

    timeout: float | None
    retries: int
    headers: Mapping[str, str] = field(default_factory=dict)


_current: ContextVar[_Attempt] = ContextVar("_current")
"""The attempt that the running task makes, on the loop."""


@dataclass(frozen=True)
class ClientSettings:
    """What makes one client differ from another: the fields that `openai.OpenAI` was built with.

    Attributes:
        api_key: The bearer key.
        base_url: With the slash at its end, as the SDK keeps it.
        organization: The OpenAI-Organization header, or None.
        project: The OpenAI-Project header, or None.
        timeout: Seconds for one attempt, or the SDK's own timeout object, or None for no limit.
        max_retries: How often a failed attempt is made again; not by the SDK, whose own retries
            are off.
        default_headers: Headers of every request.
        default_query: Query parameters of every request.
    """

    api_key: str = field(repr=False)
    base_url: str = field(repr=False)  # it may hold a password
    organization: str | None
    project: str | None
    timeout: Any
    max_retries: int
    default_headers: dict[str, str] = field(repr=False)
    default_query: dict[str, object] = field(repr=False)

    @classmethod
    def of(cls, client: openai.OpenAI) -> ClientSettings:
        """Read the settings that a sync client has now. Allowed in any thread."""
        return cls(
            api_key=client.api_key,
            base_url=str(client.base_url),
            organization=client.organization,
            project=client.project,
            timeout=client.timeout,
            max_retries=client.max_retries,
            default_headers=dict(client._custom_headers),
            default_query=dict(client._custom_query),
        )

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """What tells the clients of these settings from others.

        Hashable, as timeouts and mappings are not; without `max_retries`, which no client needs.
        """
        return (
            ClientSettings,
            str(self.api_key),  # whatever it was built with: a list is not hashable
            self.base_url,
            self.organization,
            self.project,
            repr(self.timeout),
            repr(self.default_headers),
            repr(self.default_query),
        )

    def build_sync(self) -> openai.OpenAI:
        """Build a sync client with these settings, as after unpickling an engine."""
        return openai.OpenAI(**self._arguments(), max_retries=self.max_retries)

    def build_async(self) -> openai.AsyncOpenAI:
        """Build an async client with these settings. Only on the loop that is to own it.

        It opens as many connections as there are requests out, and sends each of them once.
        """
        http_client = openai.DefaultAioHttpClient()
        http_client.send = functools.partial(_send, http_client.send)  # type: ignore[method-assign]
        for transport in [http_client._transport, *http_client._mounts.values()]:
            if transport is not None:  # None where a proxy is not to be used
                _liken_to_sync(transport)
        return openai.AsyncOpenAI(**self._arguments(), max_retries=0, http_client=http_client)

    def _arguments(self) -> dict[str, Any]:
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "organization": self.organization,
            "project": self.project,
            "timeout": self.timeout,
            "default_headers": self.default_headers,
            "default_query": self.default_query,
        }


def _liken_to_sync(transport: Any) -> None:
    """Let the SDK's aiohttp transport bear, and raise, what the sync client's does."""
    transport.client = functools.partial(_build_session, transport)
    transport.handle_async_request = functools.partial(_handle, transport.handle_async_request)


def _build_session(transport: Any) -> aiohttp.ClientSession:
    """Build aiohttp's session as the transport does, but for its pool, headers and cookies.

    How many requests are out is for others to say: those that wait inside a pool run down their own
    timeouts (openai/openai-python#821). An answer's headers may be as long and as many as the sync
    client takes; the cookies are kept by the SDK's own client, and not a second time.
    """
    connector = _Connector(
        limit=0,
        keepalive_timeout=transport.limits.keepalive_expiry,
        ssl=transport.ssl_context,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADER_BYTES,
    )


class _Connector(aiohttp.TCPConnector):
    """A pool that gives out no connection on which something came that nobody asked for.

    aiohttp would take it for the answer of the next request.
    """

    async def _get(self, *args: Any) -> Any:
        while (connection := await super()._get(*args)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        return None


async def _send(send: Callable[..., Awaitable[Any]], request: Any, **options: Any) -> Any:
    """Send a request and read the answer within the time that an attempt may take.

    The transports bound each read alone, so that an answer that drips would never end.
    """
    current = _current.get()
    if current.retries and request.headers.get("x-stainless-retry-count") == "0":
        request.headers["x-stainless-retry-count"] = str(current.retries)
    try:
        async with asyncio.timeout(current.timeout) as clock:
            response = await send(request, **options)
    except builtins.TimeoutError as error:
        if not clock.expired():  # the system's own, of a connection
            raise
        raise _httpx_error(type(request), "ReadTimeout", error) from error
    current.headers = response.headers
    return response


async def _handle(handle: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Send a request; what is not HTTP, here or there, is an error that the SDK knows."""
    try:
        response = await handle(request)
    except aiohttp.ClientResponseError as error:
        raise _httpx_error(type(request), "RemoteProtocolError", error) from error
    except ValueError as error:  # a key with a line's end in it, say
        raise _httpx_error(type(request), "LocalProtocolError", error) from error
    if sum(len(name) + len(value) for name, value in response.headers.raw) > MAX_HEADER_BYTES:
        await response.aclose()
        too_long = ValueError(f"The answer's headers are longer than {MAX_HEADER_BYTES} bytes.")
        raise _httpx_error(type(request), "RemoteProtocolError", too_long)
    return response


def check_supported(client: object) -> openai.OpenAI:
    """Return the client if its calls can be made by an `AsyncOpenAI` with the same settings.

    Raises:
        UnsupportedClientError: It is of another class, or was given what only a sync client takes.
    """
    if type(client) is not openai.OpenAI:
        raise UnsupportedClientError(
            f"The engine's client is {type(client)!r}, but only the calls of an openai.OpenAI "
            "(openai.Client) can be made asynchronously. Give an engine that calls one."
        )
    for name in ("_api_key_provider", "workload_identity", "_provider"):
        if getattr(client, name, None) is not None:
            raise UnsupportedClientError(
                f"The engine's client has a {name.lstrip('_')}, which is code of its own and may "
                "not run on the background loop. Build the client with a key that is a string."
            )
    transport = getattr(client, "_client", None)
    if transport is not None and type(transport).__name__ != "SyncHttpxClientWrapper":
        raise UnsupportedClientError(
            "The engine's client has an http_client of its own, which cannot be used "
            "asynchronously. Build it without one; proxies and certificates that the environment "
            "names (HTTPS_PROXY, SSL_CERT_FILE) are used."
        )
    return client


async def attempt(
    client: openai.AsyncOpenAI,
    path: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,  # noqa: ASYNC109 - without the time that others take on the loop
    retries: int,
    post: Post | None = None,
) -> tuple[Any, Mapping[str, str]]:
    """Make one attempt of a call of the SDK, on the loop that the client is of.

    Args:
        client: One of `ClientSettings.build_async`.
        path: The attributes that lead to the method, `("chat", "completions", "create")` say.
        args: The method's positional arguments.
        kwargs: The method's keyword arguments.
        timeout: Seconds for the attempt, from when it is sent; None for the client's own.
        retries: How many attempts were made before this one.
        post: The same call as a POST, where it is known: it is faster.

    Returns:
        What the awaited method returns, and the headers of the answer.

    Raises:
        openai.OpenAIError: As the same method of the sync client would.
        gptx_async.errors.TimeoutError: The attempt took longer than `timeout`.
    """
    own_timeout = {} if timeout is None else {"timeout": timeout}
    current = _Attempt(timeout, retries)
    _current.set(current)  # in the context of this call's own task
    try:
        if post is not None:
            options: Any = {**post.options, **own_timeout}
            answer = await client.post(
                post.path, body=post.body, cast_to=post.cast_to, options=options
            )
        else:
            method = functools.reduce(getattr, path, client)
            answer = await method(*args, **{**kwargs, **own_timeout})  # type: ignore[operator]
    except openai.APITimeoutError as error:
        failed = _true_error(error, timeout)
    else:
        return answer, current.headers
    raise failed  # out of the `except`, or the error that it corrects would be its context


def _true_error(error: openai.APITimeoutError, timeout: float | None) -> Exception:
    """Tell a lost connection from a timeout, as the sync client does.

    The SDK's aiohttp transport translates every `ClientConnectionError` into a connect timeout,
    also 'Server disconnected'.
    """
    lost = error.__cause__ and error.__cause__.__cause__
    if isinstance(lost, aiohttp.ClientConnectionError) and not isinstance(
        lost, aiohttp.ServerTimeoutError
    ):
        connection_error = openai.APIConnectionError(request=error.request)
        connection_error.__cause__ = _transport_error(type(error.__cause__), lost)
        return connection_error
    if timeout is None:
        return error
    timeout_error = TimeoutError(
        f"An attempt took longer than its timeout of {timeout} s. Give it more time (timeout=)."
    )
    timeout_error.__cause__ = error
    return timeout_error


def _transport_error(sibling: type, lost: aiohttp.ClientConnectionError) -> Exception:
    """Make the error that the sync client's transport raises for a lost connection."""
    name = "ReadError"
    if isinstance(lost, aiohttp.ClientConnectorError):
        name = "ConnectError"
    elif isinstance(lost, aiohttp.ServerDisconnectedError):
        name = "RemoteProtocolError"
    return _httpx_error(sibling, name, lost)


def _httpx_error(sibling: type, name: str, cause: Exception) -> Exception:
    """Make an error of the httpx that another class is of, which is httpx2 for openai 3."""
    httpx = sys.modules[sibling.__module__.partition(".")[0]]
    error: Exception = getattr(httpx, name)(str(cause))
    error.__cause__ = cause
    return error
