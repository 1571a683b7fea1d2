"""What can go wrong with an answer, each as the client sees it from a real server."""

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
    """A request that is being answered.

    Attributes:
        request: The request, as it was recorded.
        http: The same for the web server; its transport is the connection.
        regular_body: Makes the body that answers the request if nothing goes wrong.
    """

    request: RecordedRequest
    http: web.Request
    regular_body: Callable[[], dict[str, Any]]


class Fault:
    """Something that goes wrong with one answer; a test's own kind overrides `respond`."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Give the faulty answer. Called on the server's loop, which it must not block."""
        raise NotImplementedError


class _Error(NamedTuple):
    """The parts of OpenAI's error body, as its API reference and its servers word them."""

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
    """Make the body of an error in OpenAI's form; its `type` is the kind."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class HTTPFault(Fault):
    """An answer with a status of its own, by default with OpenAI's body for that error.

    Attributes:
        status: The HTTP status.
        message: The error's message; None, as for `type` and `code`, for OpenAI's own.
        type: The error's type.
        code: The error's code; 'insufficient_quota' has a message and a type of its own.
        param: The name of the parameter at fault.
        retry_after: The `retry-after` header: seconds, or an HTTP date.
        retry_after_ms: The `retry-after-ms` header, in milliseconds.
        headers: Further headers.
        body: A whole body in place of OpenAI's; anything but str and bytes is sent as JSON.
        content_type: The body's media type.
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
        """Answer with the status, the headers and the body."""
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
        when: 'before' the answer, or in its 'middle', when the headers and half the body are sent.
    """

    when: Literal["before", "middle"] = "before"

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Reset the connection; what is returned can no longer be sent."""
        response = web.StreamResponse()
        if self.when == "middle":
            content = json.dumps(pending.regular_body()).encode()
            response.content_type = "application/json"
            response.content_length = len(content)
            await response.prepare(pending.http)
            await response.write(content[: len(content) // 2])
        transport = pending.http.transport
        if transport is not None:  # else the client has gone away by itself
            # To linger for no time makes the kernel send RST in place of FIN.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return response


@dataclass(frozen=True, slots=True)
class Stall(Fault):
    """An answer that is late, or never comes.

    Attributes:
        seconds: How late the regular answer is; None to wait until the client goes away or the
            server closes.
    """

    seconds: float | None = None

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Wait, then answer regularly."""
        if self.seconds is None:
            await asyncio.Event().wait()
        else:
            await asyncio.sleep(self.seconds)
        return web.json_response(pending.regular_body())


class _FixedContent(Fault):
    """An answer with status 200 and a body that has nothing to do with the request."""

    content: ClassVar[bytes]
    content_type: ClassVar[str] = "application/json"

    async def respond(self, _pending: PendingRequest, /) -> web.StreamResponse:
        """Answer with the body."""
        return web.Response(body=self.content, content_type=self.content_type)


class BadJSON(_FixedContent):
    """A body that is said to be JSON, and is not."""

    content = b"{this is not JSON}"


class EmptyBody(_FixedContent):
    """No body, though the headers promise JSON."""

    content = b""


class HTML(_FixedContent):
    """A page in HTML with status 200, as a proxy gives it."""

    content = b"<!doctype html><title>Welcome</title><p>Please log in to the network."
    content_type = "text/html"


class TruncatedJSON(Fault):
    """Half of the regular body, of which the length agrees with the headers."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Answer with the first half."""
        content = json.dumps(pending.regular_body()).encode()
        return web.Response(body=content[: len(content) // 2], content_type="application/json")


class EmptyChoices(Fault):
    """A regular answer with an empty list of choices; of outputs or data at other endpoints."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Answer with the regular body, its list emptied."""
        body = pending.regular_body()
        return web.json_response(body | {name: [] for name in _LISTS & body.keys()})


class NoChoices(Fault):
    """A regular answer without its list of choices; of outputs or data at other endpoints."""

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        """Answer with the regular body, its list left out."""
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
    """Return the fault of a name, for a command line: 'reset', 'bad-json' ..., or an HTTP status.

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
    """Make `FakeOpenAI.faults` of faults that come by chance, at most one to a request.

    Args:
        faults: Each with the share of the requests that it comes to, above 0 and up to 1.
        seed: Chooses other requests. With the same seed the same ones, by their order of arrival.

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
