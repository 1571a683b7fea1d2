"""Responses of status 200 without a completion: a login page, or an error in JSON.

symbolicai's engines raise a TypeError or an AttributeError for them, which does not mention the
server. A note on the exception quotes the response. OpenRouter sends errors in this way, even 429.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import openai
import pydantic

from .httpx_package import httpx_of

__all__ = ["error_in", "note_of"]

MOST_CHARACTERS = 200
"""The most characters of a body that a note quotes."""

_STATUS_OF_CODE = {"rate_limit_exceeded": 429, "server_error": 500}
"""Error codes of the Responses API, which are words, and their statuses
(https://platform.openai.com/docs/api-reference/responses/object)."""


def note_of(response: Any, status: int) -> str | None:
    """Return a note that quotes a response without a completion; None for a completion.

    Args:
        response: The return value of the SDK's method.
        status: The HTTP status.
    """
    if isinstance(response, pydantic.BaseModel):
        has_none = any(
            name in type(response).model_fields and getattr(response, name, None) is None
            for name in ("choices", "output")
        )
        if not has_none and _error_of(response) is None:
            return None
        text = response.model_dump_json(exclude_unset=True)
    else:
        text = response if isinstance(response, str) else json.dumps(response, default=repr)
    words = " ".join(text[: 10 * MOST_CHARACTERS].split())
    if len(words) > MOST_CHARACTERS:
        words = f"{words[:MOST_CHARACTERS].rstrip()}..."
    return f"The server answered HTTP {status} without a completion: {words}"


def error_in(
    response: Any, headers: Mapping[str, str], base_url: str
) -> openai.APIStatusError | None:
    """Return the 429 or 5xx error that a response of status 200 reports, or None.

    Args:
        response: The return value of the SDK's method.
        headers: The headers of the response.
        base_url: The base URL of the request.
    """
    error = _error_of(response)
    status = _status_of(error)
    if error is None or status is None:
        return None
    httpx = httpx_of(openai)
    failed = openai.RateLimitError if status == 429 else openai.InternalServerError
    return failed(
        f"Error code: {status}, in the body of a response of status 200",
        response=httpx.Response(
            status, headers=dict(headers), request=httpx.Request("POST", base_url)
        ),
        body=dict(error),
    )


def _error_of(response: Any) -> Mapping[str, Any] | None:
    """Return the error in a response or in one of its choices, or None."""
    if not isinstance(response, pydantic.BaseModel):
        return None
    for each in (response, *(getattr(response, "choices", None) or ())):
        error = getattr(each, "error", None)
        if isinstance(error, pydantic.BaseModel):  # of the Responses API
            error = error.model_dump()
        if isinstance(error, Mapping):
            return error
    return None


def _status_of(error: Mapping[str, Any] | None) -> int | None:
    """Return the status of an error that may be retried, else None."""
    code = None if error is None else error.get("code", error.get("status"))
    if not isinstance(code, int):
        text = str(code)
        code = int(text) if text.isdecimal() else _STATUS_OF_CODE.get(text, 0)
    return code if code == 429 or 500 <= code < 600 else None
