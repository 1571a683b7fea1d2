"""Plan a chat completion as a single POST, skipping the SDK's argument transform.

`create` walks every argument along its type annotations, to rename or format parts of it. With
symbolicai's payload that takes most of a call's time, and it changes nothing in plain JSON. The
path, the order of the fields, the options and the response's class come from the SDK: its sync
`create` is called once with placeholders, and its request is captured instead of sent.

There is no plan while `create` is patched: the package that instruments it must see each call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
from openai.resources.chat import AsyncCompletions, Completions

from ..plain_json import is_plain_json

__all__ = ["Post", "capture_request", "is_of_the_sdk", "post_of"]

_SDK_FOLDER = os.path.dirname(openai.__file__) + os.sep

_NOT_IN_BODY = frozenset({"extra_body", "extra_headers", "extra_query", "timeout"})


@dataclass(frozen=True, slots=True)
class Post:
    """How a method of the SDK's client sends its calls; one object for all calls.

    Attributes:
        path: The path below the base URL.
        fields: The names of the JSON body's fields, in order. A call sends those it was given.
        options: The SDK's request options.
        cast_to: The response's class.
    """

    path: str
    fields: Sequence[str]
    options: Mapping[str, Any]
    cast_to: type[Any]

    def body(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON body for the keyword arguments of a call."""
        return {name: kwargs[name] for name in self.fields if name in kwargs}


def post_of(path: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Post | None:
    """Return the POST of a call, or None if the SDK has to build it. Allowed in any thread.

    Args:
        path: The attributes that lead to the method.
        args: The method's positional arguments.
        kwargs: The method's keyword arguments.
    """
    if path != ("chat", "completions", "create") or args or not _is_unpatched(AsyncCompletions):
        return None
    post = _chat_post()
    if post is None or not {"messages", "model"} <= kwargs.keys() or kwargs.keys() - post.fields:
        return None
    try:
        return post if is_plain_json(kwargs) else None
    except RecursionError:  # an argument contains itself; the SDK reports it
        return None


@functools.cache
def _chat_post() -> Post | None:
    """Return the POST of the SDK's `create`, captured from a call with every parameter."""
    create = Completions.__dict__.get("create")
    if create is None or not _is_unpatched(Completions):
        return None
    names = [*inspect.signature(create).parameters][1:]
    placeholders: dict[str, Any] = {name: None for name in names if name not in _NOT_IN_BODY}
    placeholders |= {"messages": [], "model": "", "stream": False}
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")
    call = capture_request(create, client.chat.completions, (), placeholders)
    client.close()
    if call is None or not isinstance(call.body, Mapping):
        return None
    return Post(call.path, tuple(call.body), call.options, call.cast_to)


class CapturedRequest(BaseException):
    """Carries a request out of the method that would send it.

    Attributes:
        path: The path below the base URL.
        body: The body, or None.
        options: The SDK's request options.
        cast_to: The response's class.
    """

    def __init__(
        self, path: str, body: Any = None, options: Any = None, cast_to: Any = None, **_: Any
    ) -> None:
        super().__init__()
        self.path = path
        self.body = body
        self.options: Mapping[str, Any] = options or {}
        self.cast_to = cast_to


def capture_request(
    function: Callable[..., Any], resource: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CapturedRequest | None:
    """Return the request that a method of a sync resource would send, without sending it.

    Args:
        function: The method's function.
        resource: The resource that has the method.
        args: The method's positional arguments.
        kwargs: The method's keyword arguments.

    Raises:
        Exception: The method rejects its arguments.
    """
    resource = copy.copy(resource)
    for name, value in [*vars(resource).items()]:
        if inspect.ismethod(value):  # _post, _get and so on
            setattr(resource, name, _capture)
    try:
        function(resource, *args, **kwargs)
    except CapturedRequest as call:
        return call
    return None


def _capture(path: str, **options: Any) -> None:
    raise CapturedRequest(path, **options)


def is_of_the_sdk(function: Any) -> bool:
    """Return whether a function's code is the SDK's."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_SDK_FOLDER)


def _is_unpatched(resource_class: type) -> bool:
    """Return whether `create` is the SDK's own: a wrapt proxy has its code, but not its type."""
    create = resource_class.__dict__.get("create")
    return type(create) is types.FunctionType and is_of_the_sdk(create)
