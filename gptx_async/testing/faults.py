"""Faults of answers, as clients see them from real servers."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from aiohttp import web

from ..checks import SHARE
from ..errors import ConfigurationError
from .replies import RecordedRequest

__all__ = [
    "HTML",
    "BadJSON",
    "EmptyBody",
    "EmptyChoices",
    "Fault",
    "HTTPFault",
    "NoChoices",
    "PendingRequest",
    "Reset",
    "Stall",
    "TruncatedJSON",
    "error_body",
    "fault_named",
    "sometimes",
]


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that is not answered yet.

    Attributes:
        request: The recorded request.
        http: The aiohttp request; its transport is the connection.
        regular_body: Makes the body of the answer without the fault.
    """

    request: RecordedRequest
    http: web.Request
    regular_body: Callable[[], dict[str, Any]]


class Fault:
    """A fault of one answer. Override `respond` to define your own fault."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Return the faulty answer. Called on the server's loop, which it must not block."""
        raise NotImplementedError


class _Error(NamedTuple):
    """The parts of OpenAI's error body, in the words of its API reference and its servers."""

    message: str
    type: str
    code: str | None = None


_ERRORS: dict[int | str, _Error] = {
    400: _Error("The request could not be processed.", "invalid_request_error"),
    401: _Error(
        "Incorrect API key provided. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        "invalid_request_error",
        "invalid_api_key",
    ),
    403: _Error(
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    404: _Error(
        "The model does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    429: _Error(
        "Rate limit reached for requests. Please try again later.",
        "requests",
        "rate_limit_exceeded",
    ),
    500: _Error(
        "The server had an error while processing your request. Sorry about that!", "server_error"
    ),
    503: _Error("The engine is currently overloaded, please try again later.", "server_error"),
    "insufficient_quota": _Error(
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
}


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Make the body of an error in OpenAI's format; `kind` becomes its `type`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class HTTPFault(Fault):
    """An answer with an error status, by default with OpenAI's body for that error.

    Attributes:
        status: The HTTP status.
        message: The error's message; None for OpenAI's own.
        type: The error's type; None for OpenAI's own.
        code: The error's code; None for OpenAI's own. 'insufficient_quota' changes the default
            message and type.
        param: The name of the wrong parameter.
        retry_after: The `retry-after` header: seconds, or an HTTP date.
        retry_after_ms: The `retry-after-ms` header, in milliseconds.
        headers: More headers.
        body: A body in place of OpenAI's; values other than str and bytes are sent as JSON.
        content_type: The media type of the body.
    """

    status: int
    message: str | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after: float | str | None = None
    retry_after_ms: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = "application/json"

    async def respond(self, _pending: PendingRequest, /) -> web.StreamResponse:
        """Return an answer with the status, the headers and the body."""
        headers = {"content-type": self.content_type, **self.headers}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.retry_after_ms is not None:
            headers["retry-after-ms"] = str(self.retry_after_ms)
        return web.Response(body=self._content(), status=self.status, headers=headers)

    def _default_body(self) -> dict[str, Any]:
        known = _ERRORS.get(self.code or "") or _ERRORS.get(self.status)
        known = known or _ERRORS[500 if self.status >= 500 else 400]
        return error_body(
            known.message if self.message is None else self.message,
            known.type if self.type is None else self.type,
            self.param,
            known.code if self.code is None else self.code,
        )

    def _content(self) -> bytes:
        body = self._default_body() if self.body is None else self.body
        if isinstance(body, bytes):
            return body
        return (body if isinstance(body, str) else json.dumps(body)).encode()


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """The connection is reset (RST).

    Attributes:
        when: 'before' the answer, or in its 'middle', after the headers and half the body.
    """

    when: Literal["before", "middle"] = "before"

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Reset the connection. The returned answer is not sent."""
        response = web.StreamResponse()
        if self.when == "middle":
            content = json.dumps(pending.regular_body()).encode()
            response.content_type = "application/json"
            response.content_length = len(content)
            await response.prepare(pending.http)
            await response.write(content[: len(content) // 2])
        transport = pending.http.transport
        if transport is not None:  # None if the client has already disconnected
            # A linger time of 0 makes the kernel send RST in place of FIN.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return response


@dataclass(frozen=True, slots=True)
class Stall(Fault):
    """An answer that is late, or never comes.

    Attributes:
        seconds: The delay of the regular answer; None to wait until the client disconnects or the
            server closes.
    """

    seconds: float | None = None

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Wait, then return the regular answer."""
        if self.seconds is None:
            await asyncio.Event().wait()
        else:
            await asyncio.sleep(self.seconds)
        return web.json_response(pending.regular_body())


class _FixedContent(Fault):
    """An answer with status 200 and a fixed body."""

    content: ClassVar[bytes]
    content_type: ClassVar[str] = "application/json"

    async def respond(self, _pending: PendingRequest, /) -> web.StreamResponse:
        """Return the fixed body."""
        return web.Response(body=self.content, content_type=self.content_type)


class BadJSON(_FixedContent):
    """A body that is not JSON, although the headers say so."""

    content = b"{this is not JSON}"


class EmptyBody(_FixedContent):
    """An empty body, although the headers say that it is JSON."""

    content = b""


class HTML(_FixedContent):
    """An HTML page with status 200, as a login page of a proxy."""

    content = b"<!doctype html><title>Welcome</title><p>Please log in to the network."
    content_type = "text/html"


class TruncatedJSON(Fault):
    """The first half of the regular body; its length agrees with the headers."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Return the first half of the regular body."""
        content = json.dumps(pending.regular_body()).encode()
        return web.Response(body=content[: len(content) // 2], content_type="application/json")


class EmptyChoices(Fault):
    """A regular answer with an empty list of choices (outputs or data at other endpoints)."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Return the regular body with an empty list."""
        body = pending.regular_body()
        return web.json_response(body | {name: [] for name in _LISTS & body.keys()})


class NoChoices(Fault):
    """A regular answer without its list of choices (outputs or data at other endpoints)."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Return the regular body without the list."""
        body = pending.regular_body()
        return web.json_response({name: body[name] for name in body.keys() - _LISTS})


_LISTS = frozenset({"choices", "output", "data"})


_NAMED: Mapping[str, Callable[[], Fault]] = {
    "bad-json": BadJSON,
    "empty-body": EmptyBody,
    "empty-choices": EmptyChoices,
    "html": HTML,
    "insufficient-quota": lambda: HTTPFault(429, code="insufficient_quota"),
    "no-choices": NoChoices,
    "reset": Reset,
    "reset-middle": lambda: Reset("middle"),
    "stall": Stall,
    "truncated-json": TruncatedJSON,
}


def fault_named(name: str) -> Fault:
    """Return the fault with a name such as 'reset' or 'bad-json', or with an HTTP status.

    Raises:
        ConfigurationError: There is no such fault; the message lists the names. It is a
            ValueError, too.
    """
    if name in _NAMED:
        return _NAMED[name]()
    if name.isascii() and name.isdecimal() and 400 <= int(name) <= 599:
        return HTTPFault(int(name))
    raise ConfigurationError(
        f"There is no fault {name!r}. Choose a status from 400 to 599, or one of "
        f"{', '.join(_NAMED)}."
    )


def sometimes(
    faults: Sequence[tuple[Fault, float]], seed: int = 0
) -> Callable[[RecordedRequest], Fault | None]:
    """Make a function for `FakeOpenAI.faults` that returns faults at random.

    Args:
        faults: Pairs of a fault and its share of the requests, above 0 and up to 1.
        seed: Determines, with the order of arrival, which requests fail.

    Raises:
        ConfigurationError: A share is out of bounds, or the shares add up to more than 1; it is a
            ValueError, too.
    """
    kinds, shares = [fault for fault, _ in faults], [share for _, share in faults]
    for share in shares:
        SHARE.check("The share of a fault", share)
    if sum(shares) > 1 + 1e-9:
        raise ConfigurationError(f"The shares of the faults are {shares}. Give at most 1 in all.")
    choose = random.Random(seed)
    choices, weights = [*kinds, None], [*shares, max(0.0, 1 - sum(shares))]
    return lambda _request: choose.choices(choices, weights)[0]
