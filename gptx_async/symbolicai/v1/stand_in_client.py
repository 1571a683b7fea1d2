"""The stand-in for `openai.OpenAI`: it looks like the client, and hands over its calls.

The stand-in records the resource path of a call (`chat.completions.create`) and turns the call into
a `Request` for the background loop. Its `ClientCalls` decide where the request goes. Cerebras's
client, which is a copy of OpenAI's, is replaced in the same way.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import openai
import openai.pagination
import openai.resources  # here, in the caller's thread: a lazy import on the loop could deadlock

from ...calls.request import Request, RequestOptions
from ...plain_json import SCALARS, is_plain_json
from ...transport.chat_post import capture_request, is_of_the_sdk, post_of
from ...transport.original_error import original_of
from ...transport.patched_sync_client import must_run_in_caller
from ...transport.settings import ClientSettings, check_supported, is_cerebras_client, settings_of

__all__ = ["ClientCalls", "StandInClient", "is_stand_in", "warn_of_double"]

logger = logging.getLogger(__name__)

_CLIENT_CALLS = frozenset({"delete", "get", "patch", "post", "put"})
"""The methods of the client itself that send a request."""

_STREAMS = frozenset({"connect", "create_and_stream", "stream", "with_streaming_response"})
"""Attributes that open a connection for the caller's thread to read: the sync client does it."""

_RAW = "with_raw_response"
"""Returns an unparsed response. With Cerebras's SDK the sync client does it."""

_COPIES = frozenset({"copy", "with_options"})


class ClientCalls(Protocol):
    """What a stand-in client asks about its calls, always in the thread that makes the call."""

    def begin(self) -> None:
        """Note that a call begins, before the stand-in does anything else."""

    def options(self, arguments: Mapping[str, Any]) -> RequestOptions:
        """Return the options of a call with these keyword arguments."""

    def dispatch(self, request: Request) -> Any:
        """Send a request; return its response or raise its error."""


class StandInClient:
    """Replace an `openai.OpenAI` client; its calls run on the background loop.

    Any resource path works: `chat.completions.create`, `responses.create`, `models.list`. All other
    attributes are read and set on the replaced client, whose settings at the moment of a call apply
    to it. Streams (`stream=True`) are opened by the replaced client, in the calling thread.

    Args:
        client: The client to replace, or a stand-in, whose client is then replaced.
        calls: Decides where the calls go, and with which options.
        settings: The client's settings when it was replaced; its settings now, by default.

    Raises:
        UnsupportedClientError: The client is not a plain `openai.OpenAI`.
    """

    is_stand_in_of_gptx_async = True

    def __init__(
        self,
        client: Any,
        calls: ClientCalls,
        settings: ClientSettings | None = None,
    ) -> None:
        if is_stand_in(client):
            settings = client._settings
            client = client._behind
        self.__dict__["_behind"] = check_supported(client)
        self.__dict__["_calls"] = calls
        # Read now: a client keeps the proxies and certificates that it was built with.
        self.__dict__["_settings"] = settings_of(self._behind, settings)
        self.__dict__["_faces"] = {}

    @property
    def settings(self) -> ClientSettings:
        """The settings that apply to the next call."""
        settings = self.__dict__["_settings"] = settings_of(self._behind, self._settings)
        return settings

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_behind" not in self.__dict__:
            raise AttributeError(name)  # copy and pickle ask before there is a client
        value = getattr(self._behind, name)
        if _is_resource(value):
            return _face(self._faces, _Resource, self, value, (name,))
        if name in _CLIENT_CALLS:
            return _face(self._faces, _Method, self, value, (name,))
        if name in _COPIES:
            return functools.partial(self._copy, value)
        return value

    def _copy(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> StandInClient:
        client = method(*args, **kwargs)
        return StandInClient(client, self._calls, self._settings)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._behind, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._behind, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._behind!r}>"


def is_stand_in(client: object) -> bool:
    """Return whether a client is a stand-in, also of a class from before a reload."""
    return getattr(type(client), "is_stand_in_of_gptx_async", False)


class _Resource:
    """A resource of the client, such as `chat.completions`, with its path."""

    def __init__(self, stand_in: StandInClient, resource: Any, path: tuple[str, ...]) -> None:
        self._stand_in = stand_in
        self._behind = resource
        self._path = path
        self._faces: dict[str, _Resource | _Method] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_behind" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self._behind, name)
        if name in _STREAMS or (name == _RAW and is_cerebras_client(self._stand_in._behind)):
            return value
        path = (*self._path, name)
        if _is_resource(value):
            return _face(self._faces, _Resource, self._stand_in, value, path)
        if callable(value) and not name.startswith("_"):
            return _face(self._faces, _Method, self._stand_in, value, path)
        return value

    def __repr__(self) -> str:
        return f"<{'.'.join(self._path)} of {self._stand_in!r}>"


class _Method:
    """A method at the end of a resource path."""

    def __init__(
        self, stand_in: StandInClient, sync_method: Callable[..., Any], path: tuple[str, ...]
    ) -> None:
        functools.update_wrapper(self, sync_method)
        self._stand_in = stand_in
        self._behind = sync_method
        self._path = path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stand_in = self._stand_in
        calls = stand_in._calls
        calls.begin()
        if kwargs.get("stream"):
            return self._behind(*args, **kwargs)
        if must_run_in_caller(stand_in._behind, self._path):
            warn_of_double("The openai client's sync side is replaced")
            return self._behind(*args, **kwargs)
        is_openais = not is_cerebras_client(stand_in._behind)
        post = post_of(self._path, args, kwargs) if is_openais else None
        if post is None:
            args, kwargs = _made_plain(self._behind, args, kwargs)
        options = calls.options(kwargs)
        if not options.fast_path:
            post = None
        try:
            request = Request(stand_in.settings, self._path, args, kwargs, options, post)
            result = calls.dispatch(request)
        except TypeError as error:
            _name_sync_class(error)
            raise
        except openai.OpenAIError as error:
            failed = original_of(error)
            if failed is error:
                raise
        else:
            return _as_sync(result, stand_in._behind)
        raise failed  # outside the `except`, so that the replaced error is not its context

    def __repr__(self) -> str:
        return f"<{'.'.join(self._path)} of {self._stand_in!r}>"


def warn_of_double(what: str) -> None:
    """Log, once per process, that calls run one after another because a test replaced a part."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        logger.warning(
            "%s, by a test or a tool: each model call runs in the calling thread, as with "
            "symbolicai's own engine, without gptx_async's retries, limits and statistics. This "
            "message is logged once.",
            what,
        )


_has_warned = False


def _face(
    faces: dict[str, Any],
    kind: type[Any],
    stand_in: StandInClient,
    behind: Any,
    path: tuple[str, ...],
) -> Any:
    """Return the last stand-in of a resource or method, unless the original has changed."""
    face = faces.get(path[-1])
    if face is None or face._behind != behind:
        face = faces[path[-1]] = kind(stand_in, behind, path)
    return face


def _made_plain(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read here, not on the loop, the arguments that run code when they are read.

    A generator of tools, for example, may be slow or query the engine. The SDK's own sync method
    reads it, so that it rejects what it would always reject.
    """
    with contextlib.suppress(RecursionError):  # a value that contains itself: the SDK rejects it
        if not all(_is_plain(value) for value in (*args, *kwargs.values())):
            body = _body_of(method, args, kwargs)
            kwargs = {name: _plain(body.get(name, value)) for name, value in kwargs.items()}
            args = tuple(_plain(value) for value in args)
    return args, kwargs


def _is_plain(value: object) -> bool:
    return is_plain_json(value, _is_plain_argument)


def _is_plain_argument(value: Any) -> bool:
    """Return whether reading a value that is neither a dictionary nor a list runs no other code."""
    kind = type(value)
    if kind is tuple:
        return all(map(_is_plain, value))
    return kind in SCALARS or kind.__module__.partition(".")[0] == "openai"


def _plain(value: Any) -> Any:
    """Copy what JSON can represent; leave anything else for the SDK to reject."""
    if _is_plain(value):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):  # stays a tuple: files are given as tuples
        return tuple(_plain(each) for each in value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def _body_of(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Mapping[str, Any]:
    """Return the body that a method of a sync resource would send; {} if it is not known.

    Raises:
        Exception: What the method raises for its arguments.
    """
    resource = getattr(method, "__self__", None)
    # The SDK's own function, not that of a package that patches it: nothing is sent here.
    function = inspect.unwrap(getattr(method, "__func__", method), stop=is_of_the_sdk)
    if not _is_resource(resource) or not is_of_the_sdk(function):
        return {}
    call = capture_request(function, resource, args, kwargs)
    return call.body if call is not None and isinstance(call.body, Mapping) else {}


def _is_resource(value: object) -> bool:
    return type(value).__module__.startswith(("openai.resources", "cerebras.cloud.sdk.resources"))


def _name_sync_class(error: TypeError) -> None:
    """Replace the async class with the sync class in the error of a wrong parameter."""
    if error.args and str(error.args[0]).startswith("Async"):
        error.args = (str(error.args[0]).removeprefix("Async"), *error.args[1:])


def _as_sync(result: Any, client: openai.OpenAI) -> Any:
    """Turn an async page of a list into a sync page, whose next pages the sync client fetches."""
    name = type(result).__name__.partition("[")[0]
    if not name.startswith("Async"):
        return result
    sync_class = getattr(openai.pagination, f"Sync{name.removeprefix('Async')}", None)
    if sync_class is None or not hasattr(sync_class, "_set_private_attributes"):
        return result
    fields = {field: getattr(result, field) for field in result.model_fields_set}
    page = sync_class[result._model].construct(**fields)
    page._set_private_attributes(client=client, model=result._model, options=result._options)
    return page
