"""Remove the API key from errors, which are returned, pickled, logged and kept.

The SDK's errors hold the failed request with its headers. This module imports no SDK.
"""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["hide_key"]


def hide_key(error: BaseException) -> None:
    """Remove the key from the requests of an error, its cause and its context.

    Allowed in any thread, after the call.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        left += [each.__cause__, each.__context__]
        with contextlib.suppress(Exception):  # an error built by a remedy may lack anything
            for request in _requests_of(each):
                request.headers["authorization"] = "[secure]"


def _requests_of(error: Any) -> list[Any]:
    """Return the requests of an error of OpenAI's SDK, or of one generated like it."""
    if not isinstance(getattr(error, "message", None), str) or not hasattr(error, "body"):
        return []
    response = getattr(error, "response", None)
    responses = [] if response is None else [response, *response.history]
    return [error.request, *(response.request for response in responses)]
