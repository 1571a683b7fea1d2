"""What is compared: values put into plain data that keeps their types, and the differences."""

from __future__ import annotations

import base64
import collections
import enum
import inspect
import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pydantic
from cerebras.cloud import sdk as cerebras
from symai import Symbol
from symai.backend.base import Engine
from symai.core import Argument
from symai.symbol import Metadata

from gptx_async.testing import RecordedRequest

__all__ = ["CannotCompareError", "Outcome", "differences", "error_of", "plain", "request_of"]

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")

INTENDED_HEADERS = frozenset(
    {
        "user-agent",  # says OpenAI/Python in the one case, AsyncOpenAI/Python in the other
        "x-stainless-async",
    }
)
"""The headers that are to differ, by DESIGN.md."""

CONNECTION_HEADERS = frozenset({"host", "connection", "accept-encoding", "content-length"})
"""The headers that speak of the connection, and not of what is asked."""


class CannotCompareError(BaseException):
    """A value is of a class that nothing is known about.

    No `Exception`: symbolicai would take it for an error of the query, on both engines alike.
    """


LOST_CONNECTION = frozenset({"ReadError", "RemoteProtocolError"})
"""httpx's errors for a connection that is reset, or closed: in a body, aiohttp has one for both."""


@dataclass
class Outcome:
    """What one run of a case led to, in plain data.

    Attributes:
        seen: What the caller got: `{'returned': ...}` or `{'raised': ...}`.
        requests: What the server received.
        notes: What happened on the way, noted by the case: handlers, remedies.
    """

    seen: Any
    requests: list[Any] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)

    def sorted(self) -> Outcome:
        """Return the same without the order of requests and notes."""
        return Outcome(self.seen, sorted(self.requests, key=_text), sorted(self.notes, key=_text))


def differences(expected: Any, actual: Any, path: str = "") -> Iterator[str]:
    """Tell each place where two outcomes, or parts of them in plain data, are not the same."""
    if isinstance(expected, Outcome) and isinstance(actual, Outcome):
        for name in ("seen", "requests", "notes"):
            yield from differences(getattr(expected, name), getattr(actual, name), name)
    elif type(expected) is not type(actual):
        yield f"{path}: {expected!r} became {actual!r}"
    elif isinstance(expected, dict):
        for key in [*expected, *(actual.keys() - expected.keys())]:
            if key not in actual:
                yield f"{path}[{key!r}]: {expected[key]!r} is missing"
            elif key not in expected:
                yield f"{path}[{key!r}]: {actual[key]!r} is too much"
            else:
                yield from differences(expected[key], actual[key], f"{path}[{key!r}]")
    elif isinstance(expected, list):
        if len(expected) != len(actual):
            yield f"{path}: {len(expected)} became {len(actual)}: {expected!r}, {actual!r}"
        for index, pair in enumerate(zip(expected, actual, strict=False)):
            yield from differences(*pair, f"{path}[{index}]")
    elif expected != actual:
        yield f"{path}: {expected!r} became {actual!r}"


def request_of(request: RecordedRequest) -> dict[str, Any]:
    """Put a request into plain data, with the headers that speak of what is asked."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    return {
        "method": request.method,
        "path": request.path,
        "body": request.body,
        "raw": request.raw.decode(errors="replace"),
        "headers": {
            name: value
            for name, value in sorted(headers.items())
            if name not in INTENDED_HEADERS | CONNECTION_HEADERS
        },
    }


def plain(value: Any) -> Any:
    """Put a value into plain data: None, bool, numbers, str, lists, dicts with str keys.

    The types stay visible; addresses, seconds and the frames of tracebacks go.

    Raises:
        CannotCompareError: Nothing is known about the value's class.
    """
    match value:
        case None | bool() | int() | float() | str():
            return _ADDRESS.sub("0x", value) if type(value) is str else value
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case BaseException():
            return error_of(value)
        case Argument():  # a Symbol of its own kind, whose parts are noted where they matter
            return "an Argument"
        case Engine():  # ours answers to the name and the id of the sync engine
            return {"engine": str(value), "id": value.id()}
        case Symbol():
            return {_name(type(value)): plain(value.value)}
        case Metadata() | types.SimpleNamespace():
            return {_name(type(value)): plain(vars(value))}
        case openai.Timeout() | cerebras.Timeout():
            return {"Timeout": plain(value.as_dict())}
        case pydantic.BaseModel():
            return {_name(type(value)): plain(value.model_dump())}
        case dict():
            return {_name(type(value)): {_key(key): _entry(key, value[key]) for key in value}}
        case list() if type(value) is list:
            return [plain(each) for each in value]
        case list() | tuple() | collections.deque():
            return {_name(type(value)): [plain(each) for each in value]}
        case set() | frozenset():
            return {_name(type(value)): sorted((plain(each) for each in value), key=_text)}
        case type() | enum.Enum() | inspect.Signature() | types.GenericAlias() | Path():
            return {_name(type(value)): _ADDRESS.sub("0x", str(value))}
    if callable(value):
        return {"callable": getattr(value, "__name__", _name(type(value)))}
    raise CannotCompareError(f"plain() does not know how to compare a {type(value)!r}: teach it.")


def error_of(error: BaseException | None) -> Any:
    """Put an exception into plain data: its type, its text, and what it was raised from.

    An error of the SDK comes with what it says of the answer, which a remedy may look at, and with
    the class of its cause, an error of httpx. What lies below is the transport's own, and differs.
    """
    if error is None:
        return None
    plain_error: dict[str, Any] = {
        "type": _name(type(error)),
        "text": _ADDRESS.sub("0x", str(error)),
        "suppress_context": error.__suppress_context__,
    }
    if isinstance(error, (openai.OpenAIError, cerebras.CerebrasError)):
        plain_error |= _sdk_error_of(error)
        cause = error.__cause__ and _name(type(error.__cause__))
        plain_error["cause"] = "a lost connection" if cause in LOST_CONNECTION else cause
        plain_error["context"] = error_of(_beyond_transport(error.__context__))
    else:
        plain_error["cause"] = error_of(error.__cause__)
        plain_error["context"] = error_of(error.__context__)
    return plain_error


def _sdk_error_of(error: BaseException) -> dict[str, Any]:
    names = ("message", "code", "param", "type", "status_code", "body")
    said = {f"its {name}": plain(getattr(error, name, None)) for name in names}
    response = getattr(error, "response", None)
    if response is not None:
        said["response"] = {
            "content": response.text,
            "status": response.status_code,
            "reason": response.reason_phrase,
            "headers": {
                name: value
                for name, value in sorted(response.headers.items())
                if name not in ("date", "x-request-id")
            },
        }
    request = getattr(error, "request", None)
    if request is not None:
        said["request"] = {
            "method": request.method,
            "url": str(request.url),
            "content": request.content.decode(errors="replace"),
            "authorization": request.headers.get("authorization"),
        }
    return said


def _beyond_transport(error: BaseException | None) -> BaseException | None:
    """Return the next exception in the chain that is not one of the HTTP library."""
    while error is not None and _is_of_transport(error):
        error = error.__context__
    return error


def _is_of_transport(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in {
        "aiohttp",
        "anyio",
        "asyncio",
        "h11",
        "httpcore",
        "httpcore2",
        "httpx",
        "httpx2",
    }


def _entry(key: Any, value: Any) -> Any:
    """Put a dict's value into plain data: of the seconds, the type; of a traceback, the last line.

    The frames of a traceback cannot be the same.
    """
    if key == "time":
        return _name(type(value))
    if key == "stack_trace" and isinstance(value, str):
        return value.strip().splitlines()[-1]
    return plain(value)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else repr(key)


def _name(kind: type) -> str:
    return kind.__qualname__.rpartition("<locals>.")[2]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
