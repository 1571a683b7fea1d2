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
from collections.abc import Callable, Mapping
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
    """A POST of the SDK's client.

    Attributes:
        path: The path, below the base URL.
        body: What is sent as JSON.
        options: The SDK's options of a request.
        cast_to: The class of the answer.
    """

    path: str
    body: Mapping[str, Any]
    options: Mapping[str, Any]
    cast_to: type[Any]


def post_of(path: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Post | None:
    """Return the POST that a call comes to; None if only its method knows. Allowed in any thread.

    Args:
        path: The attributes that lead to the method.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    if path != ("chat", "completions", "create") or args or not _is_untouched(AsyncCompletions):
        return None
    plan = _plan_of_chat()
    if plan is None or not {"messages", "model"} <= kwargs.keys() <= plan.body.keys():
        return None
    try:
        if not _is_json(kwargs):
            return None
    except RecursionError:  # it holds itself, as the SDK will find
        return None
    body = {name: kwargs[name] for name in plan.body if name in kwargs}
    return Post(plan.path, body, plan.options, plan.cast_to)


@functools.cache
def _plan_of_chat() -> Post | None:
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
    return Post(call.path, call.body, call.options, call.cast_to)


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


def _is_json(value: object) -> bool:
    kind = type(value)
    if kind in SCALARS:
        return True
    if kind is dict:
        return all(type(name) is str and _is_json(each) for name, each in value.items())  # type: ignore[attr-defined]
    return kind is list and all(map(_is_json, value))  # type: ignore[call-overload]
