"""Errors without the API key: they are returned, pickled, logged and kept.

The SDK's errors hold the request that failed, and its headers. No SDK is imported for it.
"""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["hide_key"]


def hide_key(error: BaseException) -> None:
    """Remove the key from the requests that an error, its cause and its context hold.

    Allowed in any thread, when the call is over.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        left += [each.__cause__, each.__context__]
        with contextlib.suppress(Exception):  # one that a remedy made by hand may lack anything
            for request in _requests_of(each):
                request.headers["authorization"] = "[secure]"


def _requests_of(error: Any) -> list[Any]:
    """Return the requests that an error of an SDK holds: OpenAI's, or one of its twins."""
    if not isinstance(getattr(error, "message", None), str) or not hasattr(error, "body"):
        return []
    response = getattr(error, "response", None)
    responses = [] if response is None else [response, *response.history]
    return [error.request, *(response.request for response in responses)]
