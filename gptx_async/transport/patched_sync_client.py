"""Detect a sync client that a test has patched: its calls must go through it.

The engine's calls use the SDK's async client. A user's test that patches a method of the sync
client expects every call there, as with symbolicai's own engine, and no paid request. A tracer
patches both clients, and sees a call on either.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import openai

from .httpx_package import package_of
from .patching import is_original
from .private_names import has_settings
from .settings import is_cerebras_client

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
    """A method that each call of a sync client runs through, and its async counterpart.

    Attributes:
        kind: The sync class.
        name: The method's name.
        twin: The async class.
        twin_name: The method's name there.
        is_used: Whether the package's own async calls run through the async method.
    """

    kind: type[Any]
    name: str
    twin: type[Any]
    twin_name: str
    is_used: bool = True


class _SyncClientSteps:
    """The methods that a call of one SDK's sync client runs through.

    Args:
        client: A client of the SDK.
        async_client: The SDK's async class.
        uses_httpx: Whether the package's async calls with the SDK run through httpx's transport.
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
        """The functions of the steps when they were last found to be unpatched."""

    def are_patched(self, client: Any, owner: Any, name: str) -> bool:
        """Return whether a call would run through a method patched on the sync client only.

        Args:
            client: The sync client.
            owner: The object that has the called method: a resource, or the client itself.
            name: The method's name.
        """
        if not self._has_class_methods_only(client):
            return True
        if name in vars(owner) or self._has_own_post(owner):
            return True
        kind = type(owner)
        if owner is not client and not _is_unpatched(kind, name):
            twin = getattr(sys.modules[kind.__module__], f"Async{kind.__name__}", kind)
            if not _has_same_patch(twin, name, getattr(kind, name)):
                return True
        present = [getattr(step.kind, step.name) for step in self._steps]
        if present == self._original:
            return False
        patched = [step for step in self._steps if not _is_unpatched(step.kind, step.name)]
        if not patched:
            self._original = present
        return not all(map(self._is_patched_on_both, patched))

    def _is_patched_on_both(self, step: _Step) -> bool:
        """Return whether the package's async calls run through the patch of a patched step.

        Tests patch both of httpx's transports with functions. A tracer wraps both with wrapt; its
        presence must not make calls run one after the other.
        """
        patch = getattr(step.kind, step.name)
        is_met = step.is_used or type(patch).__module__.startswith("wrapt")
        return is_met and _has_same_patch(step.twin, step.twin_name, patch)

    def _has_own_post(self, owner: Any) -> bool:
        """Return whether a resource sends through a method from a test.

        A resource keeps the method that its client had when the resource was first used.
        """
        post = vars(owner).get("_post")
        if post is None:
            return False
        function = getattr(post, "__func__", post)
        if function in self._original or is_original(self._async_client, function):
            return False
        return not _has_same_patch(self._async_client, "post", function)

    def _has_class_methods_only(self, client: Any) -> bool:
        """Return whether no method was set on the client or on its httpx client as an object."""
        http_client = client._client
        return (
            self._names.isdisjoint(vars(client))
            and self._names.isdisjoint(vars(http_client))
            and type(http_client._transport) is self._transport
        )


def must_run_in_caller(client: Any, path: Sequence[str]) -> bool:
    """Return whether the sync client must make a call, in the calling thread.

    Args:
        client: The sync client of OpenAI's or Cerebras's SDK.
        path: The attributes that lead to the method.
    """
    if not has_settings(client):
        return True
    *names, name = [each for each in path if each != _RAW]
    owner = functools.reduce(getattr, names, client)
    return _steps_of(client).are_patched(client, owner, name)


def is_double(client: object) -> bool:
    """Return whether a client is a test double that sends nothing: a mock or a SimpleNamespace."""
    mock = sys.modules.get("unittest.mock")
    is_mock = mock is not None and isinstance(client, mock.NonCallableMock)
    return is_mock or type(client) is types.SimpleNamespace


def _steps_of(client: Any) -> _SyncClientSteps:
    kind = type(client)
    steps = _steps_by_class.get(kind)
    if steps is None:
        is_cerebras = is_cerebras_client(client)
        sdk = sys.modules["cerebras.cloud.sdk"] if is_cerebras else openai
        async_client = getattr(sdk, f"Async{kind.__name__}")
        steps = _SyncClientSteps(client, async_client, uses_httpx=is_cerebras)
        _steps_by_class[kind] = steps
    return steps


_steps_by_class: dict[type[Any], _SyncClientSteps] = {}


def _steps_between(kind: type[Any], twin: type[Any], names: Sequence[str]) -> list[_Step]:
    return [
        _Step(kind, name, twin, name)
        for name in names
        if hasattr(kind, name) and hasattr(twin, name)
    ]


def _httpx_steps(http_client: type[Any], *, uses_httpx: bool) -> list[_Step]:
    """Return the steps in httpx and httpcore, or in httpx2 and httpcore2 for openai 3."""
    httpx = _httpx_of(http_client)
    steps = _steps_between(http_client, httpx.AsyncClient, _HTTPX_STEPS)
    pairs = [(httpx.HTTPTransport, httpx.AsyncHTTPTransport)]
    if httpcore := sys.modules.get(httpx.__name__.replace("httpx", "httpcore")):
        pairs += [(getattr(httpcore, each), getattr(httpcore, f"Async{each}")) for each in _POOLS]
    for kind, twin in pairs:
        steps.append(_Step(kind, "handle_request", twin, "handle_async_request", uses_httpx))
    return steps


def _httpx_of(http_client: type[Any]) -> Any:
    """Return the httpx package of a client's class, which may be a subclass in the SDK."""
    base = next(base for base in http_client.__mro__ if base.__name__ == "Client")
    return package_of(base)


def _is_unpatched(kind: type[Any], name: str) -> bool:
    """Return whether a method is unpatched; a function that was checked is not checked again."""
    function = getattr(kind, name)
    if _known.get((kind, name)) is function:
        return True
    if not is_original(kind, function):
        return False
    _known[kind, name] = function
    return True


_known: dict[tuple[type[Any], str], Any] = {}


def _has_same_patch(kind: type[Any], name: str, patch: Any) -> bool:
    """Return whether an async method is patched, too, and with the same kind of patch.

    With a tracer on both clients, a mock on the sync client still counts as a patch of its own.
    """
    twin = getattr(kind, name)
    return not is_original(kind, twin) and is_double(patch) == is_double(twin)
