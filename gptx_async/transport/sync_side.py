"""Whether the sync side of an SDK is replaced by a test: then a call has to go that way.

The engine's calls run on the SDK's async side. A user's test that replaces a method of the sync
side expects every call there, as with symbolicai's own engine, and no paid request. A tracer
replaces both sides and sees a call on either.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import openai

from .client import is_of_cerebras
from .private_names import has_settings
from .route import is_of_its_package

__all__ = ["is_double", "must_run_in_caller"]

_SDK_STEPS = (
    "delete", "get", "patch", "post", "put", "request", "_build_request", "_prepare_options",
    "_prepare_request", "_process_response", "_request", "_send_request",
)  # fmt: skip

_HTTPX_STEPS = (
    "build_request", "send", "_send_handling_auth", "_send_handling_redirects",
    "_send_single_request", "_transport_for_url",
)  # fmt: skip

_POOLS = ("ConnectionPool", "HTTPConnection", "HTTPProxy")

_RAW = "with_raw_response"


class _Step(NamedTuple):
    """A method that each call of a sync client passes through, and its async twin.

    Attributes:
        kind: The class of the sync side.
        name: The method.
        twin: The class of the async side.
        twin_name: The method there.
        is_passed: Whether the package's own async calls pass through the twin.
    """

    kind: type[Any]
    name: str
    twin: type[Any]
    twin_name: str
    is_passed: bool = True


class _SyncSide:
    """The steps of one SDK's sync client.

    Args:
        client: A client of that SDK.
        async_client: The class of its async twin.
        uses_httpx: Whether the package's async calls with that SDK go through httpx's transport.
    """

    def __init__(self, client: Any, async_client: type[Any], *, uses_httpx: bool) -> None:
        http_client = type(client._client)
        self._async_client = async_client
        self._steps = [
            *_steps_between(type(client), async_client, _SDK_STEPS),
            *_httpx_steps(http_client, uses_httpx=uses_httpx),
        ]
        self._transport = _httpx_of(http_client).HTTPTransport
        self._names = frozenset(step.name for step in self._steps)
        self._original: list[Any] = []
        """The functions of the steps when they were last seen to be the SDK's own."""

    def is_replaced(self, client: Any, owner: Any, name: str) -> bool:
        """Tell whether a call would pass through a method that only the sync side has replaced.

        Args:
            client: The sync client.
            owner: What the called method is of: a resource, or the client itself.
            name: The method.
        """
        if not self._is_plain(client) or name in vars(owner) or self._has_own_post(owner):
            return True
        kind = type(owner)
        if owner is not client and not _is_original(kind, name):
            twin = getattr(sys.modules[kind.__module__], f"Async{kind.__name__}", kind)
            if not _is_replaced_too(twin, name, getattr(kind, name)):
                return True
        present = [getattr(step.kind, step.name) for step in self._steps]
        if present == self._original:
            return False
        replaced = [step for step in self._steps if not _is_original(step.kind, step.name)]
        if not replaced:
            self._original = present
        return not all(map(self._has_replaced_twin, replaced))

    def _has_replaced_twin(self, step: _Step) -> bool:
        """Tell whether our calls meet what has replaced the twin of a step.

        Tests replace both sides of httpx's transport by functions. A tracer wraps both; for its
        sake no call may be made one after the other.
        """
        replaced = getattr(step.kind, step.name)
        is_met = step.is_passed or type(replaced).__module__.startswith("wrapt")
        return is_met and _is_replaced_too(step.twin, step.twin_name, replaced)

    def _has_own_post(self, owner: Any) -> bool:
        """Tell whether a resource has a method to send by that is a test's.

        It keeps the method that its client had when the resource was first used.
        """
        post = vars(owner).get("_post")
        if post is None:
            return False
        function = getattr(post, "__func__", post)
        if function in self._original or is_of_its_package(self._async_client, function):
            return False
        return not _is_replaced_too(self._async_client, "post", function)

    def _is_plain(self, client: Any) -> bool:
        """Tell whether no method of the client and of its httpx client was set on the object."""
        http_client = client._client
        return (
            self._names.isdisjoint(vars(client))
            and self._names.isdisjoint(vars(http_client))
            and type(http_client._transport) is self._transport
        )


def must_run_in_caller(client: Any, path: Sequence[str]) -> bool:
    """Tell whether a call has to be made by the sync client, in the thread that makes it.

    Args:
        client: The sync client: OpenAI's, or Cerebras's.
        path: The attributes that lead to the method.
    """
    if not has_settings(client):
        return True
    *names, name = [each for each in path if each != _RAW]
    owner = functools.reduce(getattr, names, client)
    return _side_of(client).is_replaced(client, owner, name)


def is_double(client: object) -> bool:
    """Tell whether a client is a test's double, which makes no requests: a mock, or a namespace."""
    mock = sys.modules.get("unittest.mock")
    is_mock = mock is not None and isinstance(client, mock.NonCallableMock)
    return is_mock or type(client) is types.SimpleNamespace


def _side_of(client: Any) -> _SyncSide:
    kind = type(client)
    side = _sides.get(kind)
    if side is None:
        is_cerebras = is_of_cerebras(client)
        sdk = sys.modules["cerebras.cloud.sdk"] if is_cerebras else openai
        async_client = getattr(sdk, f"Async{kind.__name__}")
        side = _sides[kind] = _SyncSide(client, async_client, uses_httpx=is_cerebras)
    return side


_sides: dict[type[Any], _SyncSide] = {}


def _steps_between(kind: type[Any], twin: type[Any], names: Sequence[str]) -> list[_Step]:
    return [
        _Step(kind, name, twin, name)
        for name in names
        if hasattr(kind, name) and hasattr(twin, name)
    ]


def _httpx_steps(http_client: type[Any], *, uses_httpx: bool) -> list[_Step]:
    """Return the steps of httpx and of httpcore below it; of httpx2 and httpcore2 for openai 3."""
    httpx = _httpx_of(http_client)
    steps = _steps_between(http_client, httpx.AsyncClient, _HTTPX_STEPS)
    pairs = [(httpx.HTTPTransport, httpx.AsyncHTTPTransport)]
    if httpcore := sys.modules.get(httpx.__name__.replace("httpx", "httpcore")):
        pairs += [(getattr(httpcore, each), getattr(httpcore, f"Async{each}")) for each in _POOLS]
    for kind, twin in pairs:
        steps.append(_Step(kind, "handle_request", twin, "handle_async_request", uses_httpx))
    return steps


def _httpx_of(http_client: type[Any]) -> Any:
    """Return the httpx that a client's class is of."""
    base = next(base for base in http_client.__mro__ if base.__name__ == "Client")
    return sys.modules[base.__module__.partition(".")[0]]


def _is_original(kind: type[Any], name: str) -> bool:
    """Tell whether a method is its package's own; without looking again at the same function."""
    function = getattr(kind, name)
    if _known.get((kind, name)) is function:
        return True
    is_original = is_of_its_package(kind, function)
    if is_original:
        _known[kind, name] = function
    return is_original


_known: dict[tuple[type[Any], str], Any] = {}


def _is_replaced_too(kind: type[Any], name: str, replaced: Any) -> bool:
    """Tell whether a method of the async side is replaced as well, and by the same kind of thing.

    Beside a tracer, which replaces both sides, a mock on the sync side counts.
    """
    twin = getattr(kind, name)
    return not is_of_its_package(kind, twin) and is_double(replaced) == is_double(twin)
