"""Certificates and proxies, which a client reads from the environment when it is built.

The SDK's sync client reads them once and keeps them. The async client is built later, on the
background loop, and shared by engines. So they are read when an engine takes over a sync client,
and they are part of the key by which clients are shared.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Self, TypeVar

__all__ = ["Environment"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Environment:
    """The settings that httpx reads from the environment.

    Attributes:
        ca_file: Path of the file with trusted certificates, from SSL_CERT_FILE.
        ca_folder: Path of the folder with trusted certificates, from SSL_CERT_DIR.
        ca_state: Size in bytes and modification time in nanoseconds of `ca_file`, because its
            content may change.
        proxies: httpx's URL patterns, each with the URL of its proxy, or None for no proxy.
    """

    ca_file: str | None
    ca_folder: str | None
    ca_state: tuple[int, int] | None
    proxies: tuple[tuple[str, str | None], ...] = field(repr=False)  # may contain a password

    @classmethod
    def read(cls, httpx: ModuleType) -> Self:
        """Read the current environment. Allowed in any thread.

        Args:
            httpx: The package httpx or httpx2, whose rules apply.
        """
        ca_file = os.environ.get("SSL_CERT_FILE") or None
        state = None
        if ca_file is not None:
            with contextlib.suppress(
                OSError
            ):  # building a client reports it, as the sync client does
                status = os.stat(ca_file)
                state = status.st_size, status.st_mtime_ns
        return cls(
            ca_file=ca_file,
            ca_folder=os.environ.get("SSL_CERT_DIR") or None,
            ca_state=state,
            proxies=tuple(_proxies(httpx).items()),
        )

    @property
    def parts(self) -> tuple[object, ...]:
        """All fields, including the passwords of proxies, which the `repr` omits."""
        return self.ca_file, self.ca_folder, self.ca_state, self.proxies

    def tls_context(self, httpx: ModuleType) -> ssl.SSLContext:
        """Build the TLS context, as httpx does.

        Args:
            httpx: The package httpx or httpx2.

        Raises:
            OSError: The certificates cannot be read.
        """
        if self.ca_file is not None:
            return ssl.create_default_context(cafile=self.ca_file)
        if self.ca_folder is not None:
            return ssl.create_default_context(capath=self.ca_folder)
        context: ssl.SSLContext = httpx.create_ssl_context(trust_env=False)
        return context

    def mounts(self, httpx: ModuleType, build: Callable[[Any], T]) -> dict[str, T | None]:
        """Return the argument `mounts` for httpx's client.

        Args:
            httpx: The package httpx or httpx2.
            build: Returns the transport for a proxy of httpx.
        """
        return {
            pattern: None if url is None else build(httpx.Proxy(url))
            for pattern, url in self.proxies
        }


def _proxies(httpx: ModuleType) -> Mapping[str, str | None]:
    """Return the environment's proxies by httpx's private function, or by urllib without it.

    The rules for NO_PROXY differ between versions of httpx.
    """
    read = getattr(getattr(httpx, "_utils", None), "get_environment_proxies", None)
    if read is not None:
        proxies: Mapping[str, str | None] = read()
        return proxies
    found = urllib.request.getproxies()
    return {
        f"{scheme}://": url if "://" in url else f"http://{url}"
        for scheme, url in found.items()
        if scheme in ("http", "https", "all")
    }
