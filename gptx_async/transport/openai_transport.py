"""The aiohttp transport of OpenAI's SDK, and what the package changes in it.

The SDK's transport over aiohttp does not scan every pooled connection for each request, as httpx's
own transport does. Each transport here is changed as an object; no class is patched.
"""

from __future__ import annotations

import copy
import functools
import ssl
from types import ModuleType
from typing import Any

import aiohttp
import openai

from ..private_names import are_there
from .attempt import BuiltRequest, Replay, current_attempt
from .connector import Connector
from .error_translation import httpx_error
from .exchange import MAX_HEADER_BYTES, is_too_long
from .httpx_package import httpx_of
from .private_names import POOL
from .target import SessionAsGiven, problem_of

__all__ = ["build_transport", "session_of"]


def build_transport(tls_context: ssl.SSLContext, proxy: Any) -> Any:
    """Build a transport whose session and way of sending are the package's own.

    Args:
        tls_context: The TLS context for connections.
        proxy: httpx's proxy, which is not a SOCKS proxy; None for direct connections.
    """
    transport = _transport_class()(
        verify=tls_context,
        limits=openai.DEFAULT_CONNECTION_LIMITS,
        proxy=proxy and _with_auth_as_header(httpx_of(openai), proxy),
    )
    transport.client = functools.partial(_build_session, transport)
    transport.handle_async_request = functools.partial(_send, transport)
    return transport


def session_of(transport: Any) -> aiohttp.ClientSession:
    """Return the session of a transport, which builds it when it first sends."""
    session: Any = transport.client
    if not isinstance(session, aiohttp.ClientSession):
        session = transport.client = transport.get_client()
    return session  # type: ignore[no-any-return]


@functools.cache
def _transport_class() -> type[Any]:
    """Return the class of the SDK's aiohttp transport, which has no public name."""
    return type(openai.DefaultAioHttpClient(verify=False, trust_env=False)._transport)


def _with_auth_as_header(httpx: ModuleType, proxy: Any) -> Any:
    """Return httpx's proxy with its user and password as a header, as httpx sends them.

    The SDK's transport would build an `aiohttp.BasicAuth`, which aiohttp warns about.
    """
    if proxy.auth is None:
        return proxy
    request = httpx.Request("GET", proxy.url)
    next(httpx.BasicAuth(*proxy.auth).sync_auth_flow(request))
    headers = {"Proxy-Authorization": request.headers["authorization"], **proxy.headers}
    return httpx.Proxy(proxy.url, headers=headers, ssl_context=proxy.ssl_context)


def _build_session(transport: Any) -> aiohttp.ClientSession:
    """Build aiohttp's session as the transport does, except for its pool, limits and cookies.

    The pool is unlimited: requests that wait inside a pool use up their own timeouts
    (openai/openai-python#821), so the package limits them before. Headers may be as long as the
    sync client accepts. Cookies are kept once, by the SDK's httpx client.
    """
    connector: aiohttp.TCPConnector
    if are_there(POOL):
        keepalive = transport.limits.keepalive_expiry
        connector = Connector(limit=0, keepalive_timeout=keepalive, ssl=transport.ssl_context)
    else:  # this pool cannot detect data that nobody asked for, so no connection is reused
        connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=transport.ssl_context)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADER_BYTES,
    )


async def _send(transport: Any, request: Any) -> Any:
    """Send a request as the transport does, or replay what has already come for it.

    A violation of HTTP on either side raises an error that the SDK knows.
    """
    current = current_attempt.get()
    if current.is_trial:  # an SDK that does not call the httpx client's `send` comes here
        raise BuiltRequest(request)
    if (problem := problem_of(request.url)) is not None:
        raise httpx_error(type(request), *problem)
    session: Replay | SessionAsGiven | None = current.replay
    if session is None:
        session = SessionAsGiven(session_of(transport), request)
    current.replay = None  # a redirect is a new request
    transport = copy.copy(transport)
    transport.client = lambda: session
    try:
        response = await type(transport).handle_async_request(transport, request)
    except aiohttp.ClientResponseError as error:
        raise httpx_error(type(request), "RemoteProtocolError", error) from error
    except ValueError as error:  # for example a key that contains a line break
        raise httpx_error(type(request), "LocalProtocolError", error) from error
    if is_too_long(response.headers.raw):
        await response.aclose()
        too_long = ValueError(f"The response's headers are longer than {MAX_HEADER_BYTES} bytes.")
        raise httpx_error(type(request), "RemoteProtocolError", too_long)
    return response
