"""A pytest plugin: closes the connections of the sync side that a test leaves open.

symbolicai's engines never close their client. Usually reference counting closes it, but in a
reference cycle the garbage collector may reach the socket first, and then warns in whichever test
is running.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest

TRANSPORTS = (httpx.HTTPTransport, httpx2.HTTPTransport)

_made: list[weakref.ref[Any]] = []
"""The transports made since the running test began."""


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def record(transport: Any, *args: Any, **kwargs: Any) -> None:
        init(transport, *args, **kwargs)
        _made.append(weakref.ref(transport))

    return record


@pytest.fixture(autouse=True, scope="session")
def _transports_are_recorded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for kind in TRANSPORTS:
            patch.setattr(kind, "__init__", _recording(kind.__init__))
        yield


@pytest.fixture(autouse=True)
def _connections_are_closed() -> Iterator[None]:
    _made.clear()
    yield
    for reference in _made:
        if (transport := reference()) is not None:
            transport.close()  # one that a cached engine keeps opens a new connection when it sends
