"""The `AsyncOpenAI` clients on the background loop: like the sync engine's own, one per setting.

The transport is aiohttp's, whose pool does not look at every connection for every request as the
SDK's default one does. httpx is not imported by name: openai 3 stands on httpx2, 1 and 2 on httpx.
"""

from __future__ import annotations

import asyncio
import builtins
import copy
import functools
import hashlib
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar, cast

import aiohttp
import openai

from .. import errors
from .body import (
    LARGE_BYTES,
    MAX_RESPONSE_BYTES,
    ResponseTooLarge,
    drive,
    leave_loop,
    read_bounded,
    restore_headers,
)
from .chat_post import Post
from .connections import Connections, httpx_of
from .environment import Environment
from .exchange import MAX_HEADER_BYTES, MOST_BYTES, is_too_long
from .route import PROBES, InHand, Machinery, Route, as_json, route_of, session_of
from .target import SessionAsGiven, problem_of

__all__ = [
    "Client",
    "ClientSettings",
    "Completed",
    "check_supported",
    "digest_of",
    "is_of_cerebras",
    "read_response",
    "send_by_aiohttp",
    "send_in_time",
    "settings_of",
]

T = TypeVar("T")

MOST_ROUTES = 64
"""Of how many kinds of POST a client remembers the route: one for each path and timeout."""


@dataclass(slots=True)
class _Attempt:
    """What the SDK has no argument or result for.

    Attributes:
        retries: How many attempts of the call were made before it.
        ends_at: When the whole attempt is to be over, by the loop's clock; None for what the
            transport bounds by itself.
        in_hand: What has come of it already, on a route, for the SDK to see.
        most_bytes: How long the body of the answer may be, decoded; None for no bound.
        is_trial: Whether its request is only to be built, and shown.
        headers: Those of the answer, when it is there.
        status: The status of the answer.
    """

    retries: int = 0
    ends_at: float | None = None
    in_hand: InHand | None = None
    most_bytes: int | None = None
    is_trial: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = HTTPStatus.OK


class Completed(NamedTuple):
    """What became of an attempt that was answered.

    Attributes:
        value: What the awaited method of the SDK returned.
        headers: The headers of the answer.
        status: Its HTTP status.
    """

    value: Any
    headers: Mapping[str, str]
    status: int


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
        environment: The certificates and proxies of when the sync client was taken over.
    """

    api_key: str = field(repr=False)
    base_url: str = field(repr=False)  # it may hold a password
    organization: str | None
    project: str | None
    timeout: Any
    max_retries: int
    default_headers: dict[str, str] = field(repr=False)
    default_query: dict[str, object] = field(repr=False)
    environment: Environment

    @classmethod
    def of(cls, client: Any, last: ClientSettings | None = None) -> ClientSettings:
        """Read the settings that a sync client has now. Allowed in any thread.

        Args:
            client: The client.
            last: Those that it had before, which are returned again if they are the same: one
                object for many calls. A client keeps the environment that it has.
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
            organization=getattr(client, "organization", None),  # which Cerebras's has not
            project=getattr(client, "project", None),
            timeout=client.timeout,
            max_retries=client.max_retries,
            default_headers=dict(client._custom_headers),
            default_query=dict(client._custom_query),
            environment=environment,
        )

    @staticmethod
    def read_environment() -> Environment:
        """Read certificates and proxies, as a client does when it is built."""
        return Environment.read(httpx_of(openai))

    @functools.cached_property
    def key(self) -> bytes:
        """What tells the clients of these settings from others, as a hash; not `max_retries`."""
        return digest_of((self._parts, self.environment.parts))

    @functools.cached_property
    def account(self) -> bytes:
        """What tells a base URL with an API key from others, as a hash."""
        return digest_of((self.base_url, str(self.api_key)))

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

    def build_sync(self) -> openai.OpenAI:
        """Build a sync client with these settings, as after unpickling an engine."""
        return openai.OpenAI(**self._arguments(), max_retries=self.max_retries)

    def build_async(self, connections: Connections) -> Client:
        """Build an async client with these settings. Only on the loop that is to own it.

        It opens as many connections as there are requests out, and sends each of them once.

        Args:
            connections: Those of the settings' environment.
        """
        http_client = connections.http_client()
        http_client.event_hooks = {"response": [read_response]}
        http_client.send = functools.partial(send_in_time, http_client.send)
        sdk = openai.AsyncOpenAI(**self._arguments(), max_retries=0, http_client=http_client)
        return Client(sdk, http_client)

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


def settings_of(client: Any, last: ClientSettings | None = None) -> ClientSettings:
    """Read the settings that a supported sync client has now. Allowed in any thread.

    Args:
        client: The client.
        last: As for `ClientSettings.of`.
    """
    if not is_of_cerebras(client):
        return ClientSettings.of(client, last)
    from .cerebras import CerebrasSettings

    return CerebrasSettings.of(client, last)


def is_of_cerebras(client: object) -> bool:
    """Tell whether a client is Cerebras's own, whose SDK is then there."""
    sdk = sys.modules.get("cerebras.cloud.sdk")
    return sdk is not None and type(client) is sdk.Cerebras


def _key(kind: type, api_key: str, base_url: str, *others: object) -> tuple[object, ...]:
    """Return what tells settings from others."""
    return kind, str(api_key), base_url, *map(repr, others)


_SALT = os.urandom(16)


def digest_of(parts: tuple[object, ...]) -> bytes:
    """Return a hash of what may hold an API key, for what outlives its use. Of this process only.

    Args:
        parts: Whatever has a `repr` that tells it from others.
    """
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), key=_SALT).digest()


class Client:
    """An `AsyncOpenAI` client, with the routes past it that it has shown. Of one loop.

    Args:
        sdk: The SDK's client.
        http_client: The httpx client that it sends by.
    """

    def __init__(self, sdk: openai.AsyncOpenAI, http_client: Any) -> None:
        self.sdk = sdk
        self._http_client = http_client
        self._machinery = Machinery(sdk, http_client)
        self._routes: dict[tuple[str, float | None], asyncio.Task[Route | None]] = {}

    async def close(self) -> None:
        """Close its connections."""
        for task in self._routes.values():
            task.cancel()
        await self.sdk.close()

    async def attempt(
        self,
        path: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,  # noqa: ASYNC109 - without the time that others take on the loop
        retries: int,
        post: Post | None = None,
        most_bytes: int | None = MAX_RESPONSE_BYTES,
    ) -> Completed:
        """Make one attempt of a call of the SDK, on the loop that the client is of.

        Args:
            path: The attributes that lead to the method, `("chat", "completions", "create")` say.
            args: The method's positional arguments.
            kwargs: The method's keyword arguments.
            timeout: Seconds for the attempt, from when it is sent; None for the client's own.
            retries: How many attempts were made before this one.
            post: The same call as a POST, where it is known: it is faster.
            most_bytes: How long the body of the answer may be, decoded; None for no bound.

        Raises:
            openai.OpenAIError: As the same method of the sync client would.
            gptx_async.errors.TimeoutError: The attempt took longer than `timeout`.
            ResponseTooLargeError: The body of the answer is longer than `most_bytes`.
        """
        try:
            return await self._attempt(path, args, kwargs, timeout, retries, post, most_bytes)
        except ResponseTooLarge:
            pass
        raise errors.ResponseTooLargeError(
            f"The response is larger than max_response_bytes ({most_bytes:,} bytes), and was not "
            "read to its end. See what answers at this URL, or set max_response_bytes higher."
        )

    async def _attempt(
        self,
        path: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,  # noqa: ASYNC109
        retries: int,
        post: Post | None,
        most_bytes: int | None,
    ) -> Completed:
        in_hand: InHand | None = None
        ends_at: float | None = None
        if post is not None:
            route = await self._route(post, timeout)
            content = None if route is None else as_json(post.body(kwargs))
            ends_at = _end_of(timeout)
            if route is not None and content is not None and len(content) <= MOST_BYTES:
                sending = route.send(content, retries, most_bytes)
                sent = await (sending if ends_at is None else _in_time(sending, ends_at))
                if not isinstance(sent, InHand):
                    return Completed(*sent, HTTPStatus.OK)
                in_hand = sent
        current = _Attempt(retries, ends_at or _end_of(timeout), in_hand, most_bytes)
        _current.set(current)  # in the context of this call's own task
        try:
            if post is not None:
                calling = self._post(post, post.body(kwargs), timeout)
            else:
                method = functools.reduce(getattr, path, self.sdk)
                calling = _awaited(method, args, {**kwargs, **_own(timeout)})
            answer = await drive(calling)
        except openai.APITimeoutError as error:
            failed = _true_error(error, timeout)
        else:
            return Completed(answer, current.headers, current.status)
        raise failed  # out of the `except`, or the error that it corrects would be its context

    async def _route(self, post: Post, timeout: float | None) -> Route | None:  # noqa: ASYNC109
        """Return the route of a POST, if it has one that may be used now."""
        key = post.path, timeout
        task = self._routes.get(key)
        if task is None:
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            task = self._routes[key] = asyncio.ensure_future(self._find_route(post, timeout))
        route = task.result() if task.done() else await asyncio.shield(task)
        return route if route and route.is_open and self._machinery.is_original() else None

    async def _find_route(self, post: Post, timeout: float | None) -> Route | None:  # noqa: ASYNC109
        """Let the SDK build a request for each of the probes, and read the route off them."""
        _current.set(_Attempt(is_trial=True))
        requests: list[Any] = []
        for body in PROBES:
            try:
                await self._post(post, body, timeout)
            except _BuiltRequest as built:
                requests.append(built.request)
            except Exception:  # settings that no request can be built of, as each call will tell
                return None
        return route_of(self._http_client, requests, post.cast_to)

    async def _post(self, post: Post, body: Mapping[str, Any], timeout: float | None) -> Any:  # noqa: ASYNC109
        options: Any = {**post.options, **_own(timeout)}
        return await self.sdk.post(post.path, body=body, cast_to=post.cast_to, options=options)


async def _awaited(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Make a call of the SDK as a coroutine: a list's is none, but can be awaited."""
    return await method(*args, **kwargs)


class _BuiltRequest(BaseException):
    """Takes a request that was to be built only out of the SDK."""

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


def _own(timeout: float | None) -> dict[str, float]:
    return {} if timeout is None else {"timeout": timeout}


def _end_of(timeout: float | None) -> float | None:
    return None if timeout is None else asyncio.get_running_loop().time() + timeout


async def _in_time(sending: Coroutine[Any, Any, T | InHand], ends_at: float) -> T | InHand:
    """Bound the sending on a route by the time that an attempt may take."""
    try:
        async with asyncio.timeout_at(ends_at):
            return await sending
    except builtins.TimeoutError as error:
        return InHand(error=error, is_late=True)


async def send_in_time(send: Callable[..., Awaitable[Any]], request: Any, **options: Any) -> Any:
    """Send a request and read the answer within the time that an attempt may take.

    The transports bound each read alone, so that an answer that drips would never end.
    """
    current = _current.get()
    if current.is_trial:
        raise _BuiltRequest(request)
    if current.in_hand is not None and current.in_hand.is_late:
        raise _httpx_error(type(request), "ReadTimeout", current.in_hand.error)
    if current.retries and request.headers.get("x-stainless-retry-count") == "0":
        request.headers["x-stainless-retry-count"] = str(current.retries)
    try:
        async with asyncio.timeout_at(current.ends_at) as clock:
            response = await send(request, **options)
    except builtins.TimeoutError as error:
        if not clock.expired():  # the system's own, of a connection
            raise
        raise _httpx_error(type(request), "ReadTimeout", error) from error
    restore_headers(response)
    current.headers, current.status = response.headers, response.status_code
    if response.is_closed and len(response.content) > LARGE_BYTES:
        await leave_loop()  # for what the SDK makes of it
    return response


async def read_response(response: Any) -> None:
    """Read the body of a response within the bound of its attempt: an event hook of httpx."""
    await read_bounded(response, _current.get().most_bytes)


async def send_by_aiohttp(transport: Any, request: Any) -> Any:
    """Send a request, or take what has come of it already, as the transport itself does.

    What is not HTTP, here or there, is an error that the SDK knows.
    """
    current = _current.get()
    if (problem := problem_of(request.url)) is not None:
        raise _httpx_error(type(request), *problem)
    in_place: InHand | SessionAsGiven | None = current.in_hand
    if in_place is None:
        in_place = SessionAsGiven(session_of(transport), request)
    current.in_hand = None  # a redirect is sent
    transport = copy.copy(transport)
    transport.client = lambda: in_place
    try:
        response = await type(transport).handle_async_request(transport, request)
    except aiohttp.ClientResponseError as error:
        raise _httpx_error(type(request), "RemoteProtocolError", error) from error
    except ValueError as error:  # a key with a line's end in it, say
        raise _httpx_error(type(request), "LocalProtocolError", error) from error
    if is_too_long(response.headers.raw):
        await response.aclose()
        too_long = ValueError(f"The answer's headers are longer than {MAX_HEADER_BYTES} bytes.")
        raise _httpx_error(type(request), "RemoteProtocolError", too_long)
    return response


def check_supported(client: object) -> openai.OpenAI:
    """Return the client if its calls can be made by an `AsyncOpenAI` with the same settings.

    Raises:
        UnsupportedClientError: It is of another class, or was given what only a sync client takes.
    """
    if type(client) is not openai.OpenAI and not is_of_cerebras(client):
        raise errors.UnsupportedClientError(
            f"The engine's client is {type(client)!r}, but only the calls of an openai.OpenAI "
            "(openai.Client) can be made asynchronously. Give an engine that calls one."
        )
    for name in ("_api_key_provider", "workload_identity", "_provider"):
        if getattr(client, name, None) is not None:
            raise errors.UnsupportedClientError(
                f"The engine's client has a {name.lstrip('_')}, which is code of its own and may "
                "not run on the background loop. Build the client with a key that is a string."
            )
    transport = getattr(client, "_client", None)
    if transport is not None and type(transport).__name__ != "SyncHttpxClientWrapper":
        raise errors.UnsupportedClientError(
            "The engine's client has an http_client of its own, which cannot be used "
            "asynchronously. Build it without one; proxies and certificates that the environment "
            "names (HTTPS_PROXY, SSL_CERT_FILE) are used."
        )
    return cast(openai.OpenAI, client)


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
    timeout_error = errors.TimeoutError(
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


def _httpx_error(sibling: type, name: str, cause: Exception | str | None) -> Exception:
    """Make an error of the httpx that another class is of, which is httpx2 for openai 3."""
    httpx = sys.modules[sibling.__module__.partition(".")[0]]
    error: Exception = getattr(httpx, name)(str(cause))
    if isinstance(cause, Exception):
        error.__cause__ = cause
    return error
