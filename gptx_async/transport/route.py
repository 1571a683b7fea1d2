"""Send a POST by aiohttp directly, past the SDK, which takes most of a call's processor time.

For each call the SDK merges settings, and httpx builds a request and passes it through its layers,
always with the same URL, headers and timeouts. A `Route` takes these once, from requests that the
SDK built on trial. A usual response is parsed into the SDK's model by pydantic, from its bytes.

The SDK handles everything else: an error status, a redirect, a cookie, a body that does not match
the API's description, a lost connection. It gets the response or error as a `Replay` and runs as if
it had sent the request itself. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import yarl
from multidict import CIMultiDict

from .attempt import Replay
from .exchange import Exchange, RawResponse
from .httpx_package import package_of
from .openai_transport import session_of
from .response_body import LARGE_BYTES, decoded
from .response_model import can_parse, parse
from .target import add_credentials, headers_of, problem_of, target_of

__all__ = ["PROBES", "Route", "as_json", "route_of"]

PROBES: tuple[Mapping[str, Any], ...] = (
    {"messages": [{"role": "user", "content": 'Ä "quoted"\n\u2028 \U0001f600'}], "n": 1},
    {"model": "", "top_p": 0.1, "temperature": 1e-7, "seed": None, "stream": False, "stop": ["\\"]},
)
"""Bodies for requests that the SDK builds on trial. What the requests have in common is the route;
the bodies also show whether the SDK writes JSON as `as_json` does."""

_LENGTH, _RETRIES, _COOKIE = "content-length", "x-stainless-retry-count", "cookie"


@dataclass(slots=True, eq=False)
class Route:
    """Where and how one kind of POST is sent. On the loop of its client.

    Attributes:
        url: The URL.
        headers: The headers of each request, in the SDK's order. Length, retry count and cookies
            differ from request to request.
        timeout: Seconds for connecting and for each read.
        cast_to: The response's class.
        request: One request that the SDK built.
        http_client: The httpx client that would send it.
        transport: The transport that the client would use.
        listeners: The loggers to which the SDK and httpx log a call, with the levels.
    """

    url: yarl.URL
    headers: CIMultiDict[str] = field(repr=False)  # the key is one of them
    timeout: aiohttp.ClientTimeout
    cast_to: type[Any]
    request: Any
    http_client: Any
    transport: Any
    listeners: Sequence[tuple[logging.Logger, int]]
    _exchange: Exchange | None = field(default=None, init=False, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether the route can be used now.

        It cannot if the client is closed, or if a tracer or a log wants to see each call.
        """
        if self.http_client.is_closed:
            return False
        session = session_of(self.transport)
        put_in = [*session.trace_configs, *getattr(session, "_middlewares", ())]
        if put_in:  # by a package that patches the session's constructor
            return False
        return not any(logger.isEnabledFor(level) for logger, level in self.listeners)

    async def send(
        self, content: bytes, retries: int, most: int | None = None
    ) -> tuple[Any, Mapping[str, str]] | Replay:
        """Send a request and read its response.

        Args:
            content: The body.
            retries: How many attempts the call made before this one.
            most: The size limit of the decoded body, in bytes; None for no limit.

        Returns:
            The SDK's model and the headers; or what the SDK has to handle.

        Raises:
            ResponseTooLarge: The body is longer than `most`.
        """
        changed = self._changed_headers(retries)
        try:
            response = await self._current_exchange().post(content, changed, most)
        except Exception as error:
            return Replay(error=error)
        model = None
        if response.error is None and _is_usual(response):
            model = await self._model_of(response, most)
        if model is None:
            return Replay(response)
        model._request_id = response.headers.get("x-request-id")
        return model, response.headers

    def _current_exchange(self) -> Exchange:
        """Return an exchange over the transport's current session."""
        session = session_of(self.transport)
        if self._exchange is None or self._exchange.session is not session:
            self._exchange = Exchange(session, self.url, self.headers, self.timeout)
        return self._exchange

    async def _model_of(self, response: RawResponse, most: int | None) -> Any:
        """Decode and parse a body, a large one in a thread; None to leave it to the SDK."""
        content = response.body
        if "content-encoding" in response.headers:
            httpx = package_of(type(self.request))
            try:
                content = await decoded(httpx, response.raw_headers, content, most)
            except Exception:  # the SDK will raise it, too
                return None
        if len(content) <= LARGE_BYTES:
            return parse(self.cast_to, content)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, parse, self.cast_to, content)

    def _changed_headers(self, retries: int) -> dict[str, str]:
        changed = {}
        if retries and self.headers.get(_RETRIES) == "0":
            changed[_RETRIES] = str(retries)
        if (cookies := self._cookies()) is not None:
            changed[_COOKIE.title()] = cookies
        return changed

    def _cookies(self) -> str | None:
        """Return the Cookie header for the cookies that servers have set, if any."""
        jar = self.http_client.cookies
        if not jar:
            return None
        self.request.headers.pop(_COOKIE, None)
        jar.set_cookie_header(self.request)
        cookies: str | None = self.request.headers.get(_COOKIE)
        return cookies


def route_of(http_client: Any, requests: Sequence[Any], cast_to: type[Any]) -> Route | None:
    """Return the route of the requests that the SDK built from the probes, if there is one.

    There is none if the requests differ in more than their bodies, if the SDK writes JSON
    differently, or if only httpx can handle the request: through a proxy, with a Cookie header of
    the caller's, or with a raw response as its result.

    Args:
        http_client: The httpx client that would send the requests.
        requests: One request for each probe.
        cast_to: The response's class.
    """
    if not can_parse(cast_to):
        return None
    first = requests[0]
    transport = http_client._transport_for_url(first.url)
    headers = {name: value for name, value in first.headers.items() if name != _LENGTH}
    for request, probe in zip(requests, PROBES, strict=True):
        if request.method != "POST" or request.content != as_json(probe):
            return None
        length = {_LENGTH: str(len(request.content))}
        if (request.url, dict(request.headers)) != (first.url, headers | length):
            return None
    is_direct = hasattr(transport, "client") and not (transport.proxy or transport.uds)
    if not is_direct or http_client.auth or problem_of(first.url):
        return None
    if "x-stainless-raw-response" in headers or (_COOKIE in headers and not http_client.cookies):
        return None
    limits = first.extensions["timeout"]
    add_credentials(first)
    sent_headers = headers_of(first)
    sent_headers.popall(_COOKIE, None)
    return Route(
        url=target_of(first.url),
        headers=sent_headers,
        timeout=aiohttp.ClientTimeout(
            sock_connect=limits["connect"], sock_read=limits["read"], connect=limits["pool"]
        ),
        cast_to=cast_to,
        request=first,
        http_client=http_client,
        transport=transport,
        listeners=(
            (logging.getLogger("openai._base_client"), logging.DEBUG),
            (logging.getLogger(package_of(type(first)).__name__), logging.INFO),
        ),
    )


def as_json(body: Mapping[str, Any]) -> bytes | None:
    """Return a body as the SDK writes it; None if it cannot be written, which the SDK reports."""
    try:
        return _encode(body).encode()
    except (ValueError, RecursionError):
        return None


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _is_usual(response: RawResponse) -> bool:
    """Return whether a response's head has nothing for the SDK to handle."""
    headers = response.headers
    if response.status != HTTPStatus.OK or "set-cookie" in headers:
        return False
    content_type, *_ = headers.get("content-type", "").split(";")
    return content_type.endswith("json") and not response.is_too_long
