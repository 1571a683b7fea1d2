"""Translate errors of aiohttp and httpx into those that the sync client would raise."""

from __future__ import annotations

import aiohttp
import openai

from .. import errors
from .httpx_package import package_of

__all__ = ["httpx_error", "sync_error_of"]


def sync_error_of(error: openai.APITimeoutError, timeout: float | None) -> Exception:
    """Return the error that the sync client would raise in place of the SDK's timeout.

    The SDK's aiohttp transport translates every `ClientConnectionError` into a connect timeout,
    including 'Server disconnected'.

    Args:
        error: The SDK's timeout.
        timeout: The time limit of the attempt in seconds, or None.

    Returns:
        A connection error if the connection was lost; else our TimeoutError if the attempt had a
        time limit; else the error itself.
    """
    lost = error.__cause__ and error.__cause__.__cause__
    if isinstance(lost, aiohttp.ClientConnectionError) and not isinstance(
        lost, aiohttp.ServerTimeoutError
    ):
        connection_error = openai.APIConnectionError(request=error.request)
        connection_error.__cause__ = _transport_error(type(error.__cause__), lost)
        return connection_error
    if timeout is None:
        return error
    timeout_error = errors.TimeoutError(
        f"An attempt took longer than its timeout of {timeout} s. Allow more time with timeout=."
    )
    timeout_error.__cause__ = error
    return timeout_error


def _transport_error(sibling: type, lost: aiohttp.ClientConnectionError) -> Exception:
    """Build the error that the sync client's transport raises for a lost connection."""
    name = "ReadError"
    if isinstance(lost, aiohttp.ClientConnectorError):
        name = "ConnectError"
    elif isinstance(lost, aiohttp.ServerDisconnectedError):
        name = "RemoteProtocolError"
    return httpx_error(sibling, name, lost)


def httpx_error(sibling: type, name: str, cause: Exception | str | None) -> Exception:
    """Build an error of httpx or httpx2.

    Args:
        sibling: Any class of the package whose error is needed.
        name: Name of the error's class.
        cause: The cause, whose text becomes the error's text; or that text.
    """
    error: Exception = getattr(package_of(sibling), name)(str(cause))
    if isinstance(cause, Exception):
        error.__cause__ = cause
    return error
