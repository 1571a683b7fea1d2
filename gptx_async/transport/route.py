"""A POST sent by aiohttp itself, where the SDK would only pass it on: most of a call's time is its.

The SDK merges settings into a request, and httpx builds that and walks it through its layers, anew
for each call, to come to the same URL, headers and timeouts. Here they are taken from two requests
that the SDK was asked to build: a `Route`. An answer that is as it should be is made a model by
pydantic, from its bytes.

Everything else is the SDK's business: an error's status, a redirect, a cookie, a body that is not
quite what the API's description says, a connection that was lost. It gets what has come `InHand`:
its own path is then walked as if it had sent the request itself, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, get_args, get_origin

import aiohttp
import openai
import pydantic
import yarl
from multidict import CIMultiDict

from .body import LARGE_BYTES, decoded
from .exchange import Answered, Exchange, is_known
from .target import add_credentials, headers_of, problem_of, target_of

__all__ = [
    "PROBES",
    "InHand",
    "Machinery",
    "Route",
    "answer_of",
    "as_json",
    "is_of_its_package",
    "route_of",
    "session_of",
]

PROBES: tuple[Mapping[str, Any], ...] = (
    {"messages": [{"role": "user", "content": 'Ä "quoted"\n\u2028 \U0001f600'}], "n": 1},
    {"model": "", "top_p": 0.1, "temperature": 1e-7, "seed": None, "stream": False, "stop": ["\\"]},
)
"""Bodies for the SDK to build a request of: what they have in common is the route, and what its
JSON looks like is tried with them."""

_LENGTH, _RETRIES, _COOKIE = "content-length", "x-stainless-retry-count", "cookie"


_STEPS = {
    "post", "request", "build_request", "send", "handle_async_request", "_build_headers",
    "_build_request", "_prepare_options", "_prepare_request", "_process_response", "_request",
    "_process_response_data", "_send_handling_auth", "_send_handling_redirects", "_send_request",
    "_send_single_request", "_should_stream_response_body", "_transport_for_url",
}  # fmt: skip
"""The methods, of the SDK's client, httpx's, its transport and aiohttp's session, that are gone
round here."""


@dataclass(slots=True, eq=False)
class Route:
    """Where one kind of POST goes, and with what. On the loop that its client is of.

    Attributes:
        url: The URL.
        headers: The headers of a request, in the SDK's order; of its own are the length, the count
            of retries, and the cookies.
        timeout: Seconds for the connecting and for each read.
        cast_to: The class of the answer.
        request: One that the SDK has built.
        http_client: The httpx client that would send it.
        transport: The transport that it would send it by.
        listeners: What the SDK and httpx log a call to, and at which level.
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
        """Whether it may be used now: the client, too, and nobody listens to a call or its log."""
        if self.http_client.is_closed:
            return False
        session = session_of(self.transport)
        put_in = [*session.trace_configs, *getattr(session, "_middlewares", ())]
        if put_in:  # by a package that patches the session's constructor
            return False
        return not any(logger.isEnabledFor(level) for logger, level in self.listeners)

    async def send(
        self, content: bytes, retries: int, most: int | None = None
    ) -> tuple[Any, Mapping[str, str]] | InHand:
        """Send a request and read its answer.

        Args:
            content: The body.
            retries: How many attempts of the call were made before.
            most: How long the answer's body may be, in bytes, decoded; None for no bound.

        Returns:
            The answer and its headers; or, in hand, what the SDK has to see.

        Raises:
            ResponseTooLarge: The answer's body is longer than it may be.
        """
        changed = self._changed_headers(retries)
        try:
            answered = await self._exchange_now().post(content, changed, most)
        except Exception as error:
            return InHand(error=error)
        answer = None
        if answered.error is None and _is_plain(answered):
            answer = await self._answer_of(answered, most)
        if answer is None:
            return InHand(answered)
        answer._request_id = answered.headers.get("x-request-id")
        return answer, answered.headers

    def _exchange_now(self) -> Exchange:
        """Return the exchange over the session that the transport has."""
        session = session_of(self.transport)
        if self._exchange is None or self._exchange.session is not session:
            self._exchange = Exchange(session, self.url, self.headers, self.timeout)
        return self._exchange

    async def _answer_of(self, answered: Answered, most: int | None) -> Any:
        """Decode and parse a body, a large one in a thread; None if that is for the SDK to do."""
        content = answered.body
        if "content-encoding" in answered.headers:
            httpx = sys.modules[_package_of(type(self.request))]
            try:
                content = await decoded(httpx, answered.raw_headers, content, most)
            except Exception:  # which the SDK will come to as well
                return None
        if len(content) <= LARGE_BYTES:
            return answer_of(self.cast_to, content)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, answer_of, self.cast_to, content)

    def _changed_headers(self, retries: int) -> dict[str, str]:
        changed = {}
        if retries and self.headers.get(_RETRIES) == "0":
            changed[_RETRIES] = str(retries)
        if (cookies := self._cookies()) is not None:
            changed[_COOKIE.title()] = cookies
        return changed

    def _cookies(self) -> str | None:
        """Return the header of the cookies that servers have set, if there is one."""
        jar = self.http_client.cookies
        if not jar:
            return None
        self.request.headers.pop(_COOKIE, None)
        jar.set_cookie_header(self.request)
        cookies: str | None = self.request.headers.get(_COOKIE)
        return cookies


class InHand:
    """What has come of a request that was sent: the SDK's transport finds it in aiohttp's place.

    Args:
        answered: The answer.
        error: The failure, if it is one.
        is_late: Whether that is the end of the time which the attempt had.
    """

    def __init__(
        self,
        answered: Answered | None = None,
        error: Exception | None = None,
        *,
        is_late: bool = False,
    ) -> None:
        self._answered = answered
        self.error = error
        self.is_late = is_late

    def request(self, **_: Any) -> InHand:
        """Answer as `aiohttp.ClientSession.request` does."""
        return self

    async def __aenter__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self._answered


def route_of(http_client: Any, requests: Sequence[Any], cast_to: type[Any]) -> Route | None:
    """Return the route of the requests that the SDK has built of the probes, if they have one.

    It has none where the requests differ by more than their bodies, the SDK writes JSON in another
    way, or something is in play that only httpx knows: a proxy, cookies that were given by hand, an
    answer that is to be handed out raw.

    Args:
        http_client: The httpx client that would send them.
        requests: As many as there are probes.
        cast_to: The class of the answer.
    """
    try:
        _models_in(cast_to)  # type: ignore[arg-type] # a class is hashable
    except (AttributeError, TypeError):
        return None
    if not is_known():
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
            (logging.getLogger(_package_of(type(first))), logging.INFO),
        ),
    )


def as_json(body: Mapping[str, Any]) -> bytes | None:
    """Return a body as the SDK writes it; None if it cannot be written, as the SDK is to say."""
    try:
        return _encode(body).encode()
    except (ValueError, RecursionError):
        return None


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Machinery:
    """The methods of a client that are gone round here, to see that nobody has put in others.

    A package that instruments the SDK, httpx or aiohttp by patching one of them has to see each
    call.

    Args:
        client: The SDK's client.
        http_client: The httpx client that it sends by.
    """

    def __init__(self, client: openai.AsyncOpenAI, http_client: Any) -> None:
        kinds = [type(each) for each in (client, http_client, http_client._transport)]
        kinds.append(aiohttp.ClientSession)
        self._steps = [(kind, name) for kind in kinds for name in _STEPS if hasattr(kind, name)]
        are_original = all(
            is_of_its_package(kind, getattr(kind, name)) for kind, name in self._steps
        )
        self._original = self._present() if are_original else None

    def is_original(self) -> bool:
        """Tell whether each is now what its package has made."""
        return self._present() == self._original

    def _present(self) -> list[Any]:
        return [getattr(kind, name) for kind, name in self._steps]


def is_of_its_package(kind: type, function: Any) -> bool:
    """Tell whether a method of a class is a function of the package that the class comes from."""
    folders = tuple(
        os.path.dirname(file) + os.sep
        for base in kind.__mro__
        if (file := getattr(sys.modules[_package_of(base)], "__file__", None))
    )
    is_function = type(function) is types.FunctionType
    return is_function and function.__code__.co_filename.startswith(folders)


def _package_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def session_of(transport: Any) -> aiohttp.ClientSession:
    """Return the session of the SDK's aiohttp transport, which makes it when it first sends."""
    session: Any = transport.client
    if not isinstance(session, aiohttp.ClientSession):
        session = transport.client = transport.get_client()
    return session  # type: ignore[no-any-return]


def _is_plain(answered: Answered) -> bool:
    """Tell whether an answer has nothing to its head that the SDK would have to look at."""
    headers = answered.headers
    if answered.status != HTTPStatus.OK or "set-cookie" in headers:
        return False
    content_type, *_ = headers.get("content-type", "").split(";")
    return content_type.endswith("json") and not answered.is_too_long


def answer_of(cast_to: type[Any], body: bytes) -> Any:
    """Make an answer of its bytes, as the SDK would; None if that is for the SDK to do.

    The SDK takes what comes, so here nothing is made to fit: what is not quite as the class says
    goes by the SDK.

    Args:
        cast_to: The class of the answer.
        body: JSON.
    """
    try:
        answer = cast_to.model_validate_json(body, strict=True)
    except ValueError:
        return None
    _forget_extras(answer)
    return answer


def _forget_extras(model: pydantic.BaseModel) -> None:
    """Count what a class does not know to none of the fields that are set: so does the SDK.

    But not below a field that may be something else, None say: those it has made by pydantic, too.
    """
    if model.__pydantic_extra__:
        model.__pydantic_fields_set__.difference_update(model.__pydantic_extra__)
    for name in _models_in(type(model)):
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            _forget_extras(each)


@functools.cache
def _models_in(kind: type[pydantic.BaseModel]) -> Sequence[str]:
    """Return the names of the fields that are a model, or a list of models.

    Raises:
        TypeError: One is a float: where it comes as a whole number the SDK leaves it so, and
            pydantic does not.
    """
    found = []
    for name, field_info in kind.model_fields.items():
        annotation = field_info.annotation
        if get_origin(annotation) is list:
            [annotation] = get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            found.append(name)
            _models_in(annotation)
        if annotation is float:
            raise TypeError(name)
    return found
