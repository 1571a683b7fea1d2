"""A client on the background loop: one attempt of a call, by the SDK or by a faster route past it.

Each client is an `AsyncOpenAI` with the settings of the engine's sync client.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
from collections.abc import Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import openai

from ..errors import ResponseTooLargeError
from .attempt import Attempt, BuiltRequest, Replay, current_attempt, install_hooks
from .chat_post import Post
from .connections import Connections
from .error_translation import sync_error_of
from .exchange import MOST_BYTES, is_known
from .patching import PatchDetector
from .response_body import MAX_RESPONSE_BYTES, ResponseTooLarge, drive
from .route import PROBES, Route, as_json, route_of
from .settings import ClientSettings

__all__ = ["Client", "Completed", "build_client"]

T = TypeVar("T")

MOST_ROUTES = 64
"""The most routes that a client remembers: one for each path and timeout."""


class Completed(NamedTuple):
    """The result of an attempt that succeeded.

    Attributes:
        value: The return value of the SDK's method.
        headers: The response's headers.
        status: The response's HTTP status.
    """

    value: Any
    headers: Mapping[str, str]
    status: int


def build_client(settings: ClientSettings, connections: Connections) -> Client:
    """Build a client. Only on the loop that will own it.

    The client opens as many connections as there are requests in flight, and sends each request
    once.

    Args:
        settings: The client's settings.
        connections: The connections of the settings' environment.
    """
    http_client = connections.http_client()
    install_hooks(http_client)
    sdk = openai.AsyncOpenAI(**settings.arguments(), max_retries=0, http_client=http_client)
    return Client(sdk, http_client)


class Client:
    """An async client of an SDK, and the routes past it that were found. Of one loop.

    Args:
        sdk: The SDK's client.
        http_client: The SDK's httpx client.
    """

    def __init__(self, sdk: openai.AsyncOpenAI, http_client: Any) -> None:
        self.sdk = sdk
        self._http_client = http_client
        self._patches = PatchDetector(sdk, http_client)
        self._routes: dict[tuple[str, float | None], asyncio.Task[Route | None]] = {}

    async def close(self) -> None:
        """Close the client's connections."""
        for task in self._routes.values():
            task.cancel()
        await self.sdk.close()

    async def attempt(
        self,
        path: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,  # noqa: ASYNC109 - excludes the time of other tasks on the loop
        retries: int,
        post: Post | None = None,
        most_bytes: int | None = MAX_RESPONSE_BYTES,
    ) -> Completed:
        """Make one attempt of a call of the SDK, on the client's loop.

        Args:
            path: The attributes that lead to the method, such as `("models", "list")`.
            args: The method's positional arguments.
            kwargs: The method's keyword arguments.
            timeout: Seconds for the attempt, from when it is sent; None for the client's own.
            retries: How many attempts the call made before this one.
            post: The same call as a POST, if known, which is faster.
            most_bytes: The size limit of the decoded body; None for no limit.

        Raises:
            openai.OpenAIError: As the same method of the sync client would.
            gptx_async.errors.TimeoutError: The attempt took longer than `timeout`.
            ResponseTooLargeError: The body is longer than `most_bytes`.
        """
        try:
            return await self._attempt(path, args, kwargs, timeout, retries, post, most_bytes)
        except ResponseTooLarge:
            pass
        raise ResponseTooLargeError(
            f"The response is larger than max_response_bytes ({most_bytes:,} bytes), so it was "
            "not read to its end. Check what answers at this URL, or raise max_response_bytes."
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
        replay: Replay | None = None
        ends_at: float | None = None
        if post is not None:
            route = await self._route(post, timeout)
            content = None if route is None else as_json(post.body(kwargs))
            ends_at = _end_of(timeout)
            if route is not None and content is not None and len(content) <= MOST_BYTES:
                sending = route.send(content, retries, most_bytes)
                sent = await (sending if ends_at is None else _in_time(sending, ends_at))
                if not isinstance(sent, Replay):
                    return Completed(*sent, HTTPStatus.OK)
                replay = sent
        current = Attempt(retries, ends_at or _end_of(timeout), replay, most_bytes)
        current_attempt.set(current)  # in the context of this call's own task
        try:
            if post is not None:
                calling = self._post(post, post.body(kwargs), timeout)
            else:
                method = functools.reduce(getattr, path, self.sdk)
                calling = _awaited(method, args, {**kwargs, **_timeout_option(timeout)})
            answer = await drive(calling)
        except openai.APITimeoutError as error:
            failed = sync_error_of(error, timeout)
        else:
            return Completed(answer, current.headers, current.status)
        raise failed  # outside the `except`, so that the replaced error is not its context

    async def _route(self, post: Post, timeout: float | None) -> Route | None:  # noqa: ASYNC109
        """Return the route of a POST, if it has one that can be used now."""
        if not self._patches.are_none():  # nor may a patch see requests on trial
            return None
        key = post.path, timeout
        task = self._routes.get(key)
        if task is None:
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            task = self._routes[key] = asyncio.ensure_future(self._find_route(post, timeout))
        route = task.result() if task.done() else await asyncio.shield(task)
        return route if route and route.is_open else None

    async def _find_route(self, post: Post, timeout: float | None) -> Route | None:  # noqa: ASYNC109
        """Let the SDK build a request for each probe, and derive the route from the requests."""
        if not is_known():
            return None
        current_attempt.set(Attempt(is_trial=True))
        requests: list[Any] = []
        for body in PROBES:
            try:
                await self._post(post, body, timeout)
            except BuiltRequest as built:
                requests.append(built.request)
            except Exception:  # no request can be built with these settings; each call reports it
                return None
        return route_of(self._http_client, requests, post.cast_to)

    async def _post(self, post: Post, body: Mapping[str, Any], timeout: float | None) -> Any:  # noqa: ASYNC109
        options: Any = {**post.options, **_timeout_option(timeout)}
        return await self.sdk.post(post.path, body=body, cast_to=post.cast_to, options=options)


async def _awaited(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Await a call of the SDK. A `list` method returns an awaitable that is not a coroutine."""
    return await method(*args, **kwargs)


def _timeout_option(timeout: float | None) -> dict[str, float]:
    return {} if timeout is None else {"timeout": timeout}


def _end_of(timeout: float | None) -> float | None:
    return None if timeout is None else asyncio.get_running_loop().time() + timeout


async def _in_time(sending: Coroutine[Any, Any, T | Replay], ends_at: float) -> T | Replay:
    """Send on a route within the time of the attempt."""
    try:
        async with asyncio.timeout_at(ends_at):
            return await sending
    except builtins.TimeoutError as error:
        return Replay(error=error, is_late=True)
