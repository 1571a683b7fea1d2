"""Detect methods of the SDK, httpx and aiohttp that another package has patched.

A package that instruments one of them, such as a tracer, must see each call. A fast path around a
patched method would hide calls from it.
"""

from __future__ import annotations

import os
import types
from typing import Any

import aiohttp
import openai

from .httpx_package import package_of

__all__ = ["PatchDetector", "is_original"]

_BYPASSED = {
    "post", "request", "build_request", "send", "handle_async_request", "_build_headers",
    "_build_request", "_prepare_options", "_prepare_request", "_process_response", "_request",
    "_process_response_data", "_send_handling_auth", "_send_handling_redirects", "_send_request",
    "_send_single_request", "_should_stream_response_body", "_transport_for_url",
}  # fmt: skip
"""The methods that a route bypasses: of the SDK's client, httpx's client, its transport and
aiohttp's session."""


class PatchDetector:
    """Detects patches of the methods that a route bypasses.

    Args:
        client: The SDK's client.
        http_client: The SDK's httpx client.
    """

    def __init__(self, client: openai.AsyncOpenAI, http_client: Any) -> None:
        kinds = [type(each) for each in (client, http_client, http_client._transport)]
        kinds.append(aiohttp.ClientSession)
        self._methods = [
            (kind, name) for kind in kinds for name in _BYPASSED if hasattr(kind, name)
        ]
        are_original = all(is_original(kind, getattr(kind, name)) for kind, name in self._methods)
        self._original = self._present() if are_original else None

    def are_none(self) -> bool:
        """Return whether no method is patched now, nor was when the client was built."""
        return self._present() == self._original

    def _present(self) -> list[Any]:
        return [getattr(kind, name) for kind, name in self._methods]


def is_original(kind: type, function: Any) -> bool:
    """Return whether a method is a function of a package that defines its class or a base."""
    folders = tuple(
        os.path.dirname(file) + os.sep
        for base in kind.__mro__
        if (file := getattr(package_of(base), "__file__", None))
    )
    is_function = type(function) is types.FunctionType
    return is_function and function.__code__.co_filename.startswith(folders)
