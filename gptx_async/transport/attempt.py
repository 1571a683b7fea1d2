"""One attempt inside the SDK: hooks that carry what the SDK has no argument or result for.

The SDK's methods accept no time limit for a whole attempt, no limit for the response's size and no
count of earlier attempts, and they do not return the response's headers. `current_attempt` holds
these for the task that makes the attempt; hooks in the SDK's httpx client read and set them.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import types
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .error_translation import httpx_error
from .response_body import LARGE_BYTES, leave_loop, read_bounded, restore_headers

if TYPE_CHECKING:
    from .exchange import RawResponse

__all__ = ["Attempt", "BuiltRequest", "Replay", "current_attempt", "install_hooks"]


class Replay:
    """A response or error that has already come; the SDK's transport replays it.

    It takes the place of aiohttp's session in the transport, so that nothing is sent again.

    Args:
        response: The response.
        error: The error, if there is no response.
        is_late: Whether the error is the end of the time that the attempt had.
    """

    def __init__(
        self,
        response: RawResponse | None = None,
        error: Exception | None = None,
        *,
        is_late: bool = False,
    ) -> None:
        self._response = response
        self.error = error
        self.is_late = is_late

    def request(self, **_: Any) -> Replay:
        """Stand in for `aiohttp.ClientSession.request`."""
        return self

    async def __aenter__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self._response


@dataclass(slots=True)
class Attempt:
    """What one attempt passes to the hooks inside the SDK, and gets from them.

    Attributes:
        retries: How many attempts the call made before this one.
        ends_at: When the attempt must end, by the loop's clock; None if only the transport's own
            timeouts apply.
        replay: The response or error that has already come, if any.
        most_bytes: The size limit of the decoded body; None for no limit.
        is_trial: Whether the request is only built, to be inspected.
        headers: The response's headers, once it is there.
        status: The response's status.
    """

    retries: int = 0
    ends_at: float | None = None
    replay: Replay | None = None
    most_bytes: int | None = None
    is_trial: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = HTTPStatus.OK


current_attempt: ContextVar[Attempt] = ContextVar("current_attempt")
"""The attempt that the running task makes, on the loop."""


class BuiltRequest(BaseException):
    """Carry a request that is only built out of the SDK, which retries an `Exception`.

    Attributes:
        request: The request of httpx.
    """

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


def install_hooks(http_client: Any) -> None:
    """Let an SDK's httpx client apply the current attempt to each request.

    Args:
        http_client: The httpx client, not used yet.
    """
    http_client.event_hooks = {"response": [_read_response]}
    http_client.send = functools.partial(_send_in_time, http_client)


async def _send_in_time(http_client: Any, request: Any, **options: Any) -> Any:
    """Send a request and read its response within the time of the attempt.

    httpx's and aiohttp's timeouts bound each read, so a response that drips would never end.
    """
    current = current_attempt.get()
    if current.is_trial:
        raise BuiltRequest(request)
    if current.replay is not None and current.replay.is_late:
        raise httpx_error(type(request), "ReadTimeout", current.replay.error)
    if current.retries and request.headers.get("x-stainless-retry-count") == "0":
        request.headers["x-stainless-retry-count"] = str(current.retries)
    try:
        async with asyncio.timeout_at(current.ends_at) as clock:
            response = await _send_of(http_client)(request, **options)
    except builtins.TimeoutError as error:
        if not clock.expired():  # the operating system's, of a connection
            raise
        raise httpx_error(type(request), "ReadTimeout", error) from error
    restore_headers(response)
    current.headers, current.status = response.headers, response.status_code
    if response.is_closed and len(response.content) > LARGE_BYTES:
        await leave_loop()  # the SDK parses the body next
    return response


def _send_of(http_client: Any) -> Any:
    """Return the client's own `send`, looked up now: a tracer may have patched its class since."""
    send = type(http_client).send
    return types.MethodType(send, http_client) if hasattr(send, "__get__") else send


async def _read_response(response: Any) -> None:
    """Read a response's body within the size limit of the attempt: an event hook of httpx."""
    await read_bounded(response, current_attempt.get().most_bytes)
