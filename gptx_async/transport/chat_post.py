"""A chat call as the one POST that it is, where the SDK's own method would change nothing.

`create` walks every argument along its type annotations, in search of what has to be renamed or
formatted: with symbolicai's payload that is most of a call's time, and for arguments that are plain
JSON it finds nothing. The path, the order of the fields, the options and the answer's class are not
stated here: the SDK's own sync `create` is asked for them once, with placeholders, and sends
nothing.

A package that instruments the SDK by patching `create` has to see each call: then there is no plan.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
from openai.resources.chat import AsyncCompletions, Completions

__all__ = ["SCALARS", "Post", "is_of_the_sdk", "overheard", "post_of"]

_SDK_FOLDER = os.path.dirname(openai.__file__) + os.sep

_NOT_IN_BODY = frozenset({"extra_body", "extra_headers", "extra_query", "timeout"})

SCALARS = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Post:
    """What a method of the SDK's client comes to: one for all its calls.

    Attributes:
        path: The path, below the base URL.
        fields: The names of what is sent as JSON, in their order; those that a call gives.
        options: The SDK's options of a request.
        cast_to: The class of the answer.
    """

    path: str
    fields: Sequence[str]
    options: Mapping[str, Any]
    cast_to: type[Any]

    def body(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is sent as JSON for the keyword arguments of a call."""
        return {name: kwargs[name] for name in self.fields if name in kwargs}


def post_of(path: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Post | None:
    """Return the POST that a call comes to; None if only its method knows. Allowed in any thread.

    Args:
        path: The attributes that lead to the method.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    if path != ("chat", "completions", "create") or args or not _is_untouched(AsyncCompletions):
        return None
    post = _chat_post()
    if post is None or not {"messages", "model"} <= kwargs.keys() or kwargs.keys() - post.fields:
        return None
    try:
        return post if _is_json(kwargs) else None
    except RecursionError:  # it holds itself, as the SDK will find
        return None


@functools.cache
def _chat_post() -> Post | None:
    """Ask the SDK's `create` for its POST, with each of its parameters given."""
    create = Completions.__dict__.get("create")
    if create is None or not _is_untouched(Completions):
        return None
    names = [*inspect.signature(create).parameters][1:]
    placeholders: dict[str, Any] = {name: None for name in names if name not in _NOT_IN_BODY}
    placeholders |= {"messages": [], "model": "", "stream": False}
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")
    call = overheard(create, client.chat.completions, (), placeholders)
    client.close()
    if call is None or not isinstance(call.body, Mapping):
        return None
    return Post(call.path, tuple(call.body), call.options, call.cast_to)


class Overheard(BaseException):
    """Takes a request out of the method that would send it.

    Attributes:
        path: The path, below the base URL.
        body: The body, or None.
        options: The SDK's options of a request.
        cast_to: The class of the answer.
    """

    def __init__(
        self, path: str, body: Any = None, options: Any = None, cast_to: Any = None, **_: Any
    ) -> None:
        super().__init__()
        self.path = path
        self.body = body
        self.options: Mapping[str, Any] = options or {}
        self.cast_to = cast_to


def overheard(
    function: Callable[..., Any], resource: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Overheard | None:
    """Return the request that a method of a sync resource would send; nothing is sent.

    Args:
        function: The method's function.
        resource: What it is a method of.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        Exception: What the method raises over its arguments.
    """
    resource = copy.copy(resource)
    for name, value in [*vars(resource).items()]:
        if inspect.ismethod(value):  # _post, _get and their like
            setattr(resource, name, _overhear)
    try:
        function(resource, *args, **kwargs)
    except Overheard as call:
        return call
    return None


def _overhear(path: str, **options: Any) -> None:
    raise Overheard(path, **options)


def is_of_the_sdk(function: Any) -> bool:
    """Tell whether the code of a function is the SDK's."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_SDK_FOLDER)


def _is_untouched(resource_class: type) -> bool:
    """Tell whether `create` is the SDK's own; a proxy has its code, too, but not its type."""
    create = resource_class.__dict__.get("create")
    return type(create) is types.FunctionType and is_of_the_sdk(create)


def _is_json(value: dict[str, Any] | list[Any]) -> bool:
    """Tell whether what a dictionary or a list holds is JSON, and of no class of its own."""
    if type(value) is dict:
        if not all(type(name) is str for name in value):
            return False
        held: Iterable[Any] = value.values()
    else:
        held = value
    for each in held:
        kind = type(each)
        if kind not in SCALARS and not ((kind is dict or kind is list) and _is_json(each)):
            return False
    return True
