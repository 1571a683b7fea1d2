"""Send URL and headers of a request through aiohttp, byte for byte as httpx would.

aiohttp normalizes percent-encoding in URLs: it decodes `%3A` in a path and `%2F` in a query, which
breaks signed queries and strict gateways (aiohttp#4307, aiohttp#5512). httpx does not.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Self

import aiohttp
import yarl
from multidict import CIMultiDict

from .connector import connection_noted, may_go_again, new_connection
from .httpx_package import package_of

__all__ = ["SessionAsGiven", "add_credentials", "headers_of", "problem_of", "target_of"]


def target_of(url: Any) -> yarl.URL:
    """Convert a URL of httpx to aiohttp's, with the same bytes in the request line.

    User and password are left out, because aiohttp rejects them together with an Authorization
    header. `add_credentials` sends them as httpx does.

    Args:
        url: An absolute URL of httpx or httpx2.
    """
    authority = url.netloc.decode("ascii")
    address = _ipv4_of(url.raw_host.decode("ascii"))
    if address is not None:
        authority = address if url.port is None else f"{address}:{url.port}"
    # yarl drops a '?' at the end, so the query is passed as a part of the path.
    path = url.raw_path.decode("ascii")
    return yarl.URL.build(scheme=url.scheme, authority=authority, path=path, encoded=True)


def _ipv4_of(host: str) -> str | None:
    """Return the full form of an address such as `127.1`, which aiohttp rejects, or None."""
    if host.replace(".", "").isdigit():
        with contextlib.suppress(OSError):
            return socket.inet_ntoa(socket.inet_aton(host))
    return None


def problem_of(url: Any) -> tuple[str, str] | None:
    """Return why no request can be sent to a URL, with the text of the SDK's default client.

    Args:
        url: A URL of httpx or httpx2.

    Returns:
        The name of httpx's error class and its text; None if the URL is valid.
    """
    if not url.scheme:
        return (
            "UnsupportedProtocol",
            "Request URL is missing an 'http://' or 'https://' protocol.",
        )
    if url.scheme not in ("http", "https"):
        return (
            "UnsupportedProtocol",
            f"Request URL has an unsupported protocol '{url.scheme}://'.",
        )
    if not url.host:
        return "ConnectError", "[Errno -2] Name or service not known"
    return None


def headers_of(request: Any) -> CIMultiDict[str]:
    """Return the headers of httpx's request, with their order and case."""
    encoding = request.headers.encoding
    return CIMultiDict(
        (name.decode(encoding), value.decode(encoding)) for name, value in request.headers.raw
    )


def add_credentials(request: Any) -> None:
    """Move user and password from a request's URL to its Authorization header, as httpx does."""
    url = request.url
    if url.username or url.password:
        httpx = package_of(type(request))
        basic = httpx.BasicAuth(url.username, url.password)
        next(basic.sync_auth_flow(request))


class SessionAsGiven:
    """Sends one request of httpx by aiohttp's session, with its URL and headers unchanged.

    It stands in for the session in the SDK's aiohttp transport.

    Args:
        session: aiohttp's session.
        request: httpx's request.
    """

    def __init__(self, session: aiohttp.ClientSession, request: Any) -> None:
        self._session = session
        self._request = request
        self._options: dict[str, Any] = {}

    def request(self, **options: Any) -> Self:
        """Prepare the request, as `aiohttp.ClientSession.request` does; entering it sends it."""
        options["url"] = target = target_of(self._request.url)
        options["headers"] = headers = headers_of(self._request)
        if options.get("proxy") and target.scheme == "http":  # for https only the tunnel gets them
            headers.extend(options["proxy_headers"] or {})
        self._options = options
        return self

    async def __aenter__(self) -> aiohttp.ClientResponse:
        with connection_noted() as noted:
            try:
                return await self._session.request(**self._options)
            except aiohttp.ClientConnectionError as error:
                can_be_repeated = isinstance(self._options["data"], (bytes, type(None)))
                if not (can_be_repeated and noted and may_go_again(noted[-1], error)):
                    raise
        with new_connection():
            return await self._session.request(**self._options)
