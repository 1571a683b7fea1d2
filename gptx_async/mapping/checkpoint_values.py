"""How a checkpoint stores a value: as JSON, as JSON with tagged Symbols, or with pickle.

Reading JSON runs no code, whoever wrote the file. Unpickling runs whatever the file says, so pickle
is used only if the caller allows it, for writing as well as for reading.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import pickle
from typing import Any

from ..errors import CheckpointError
from ..plain_json import SCALARS, is_plain_json
from .dataset import is_symbol
from .identity import declared_class

__all__ = [
    "LARGEST_INTEGER",
    "CheckpointValueError",
    "NotJSONError",
    "PickledValueError",
    "decode",
    "encode",
]

JSON, SYMBOLS, PICKLE = "json", "symbols", "pickle"
"""The formats: plain JSON, JSON with tagged objects (those with a key of `_TAGS`), and pickle."""

LARGEST_INTEGER = 10**640
"""Integers closer to zero than this are stored as JSON.

Python limits how many digits it converts from text, and 640 is the lowest limit that can be set
(https://docs.python.org/3/library/stdtypes.html#int-max-str-digits).
"""

_OBJECT = "$object"
_CLASSES = {"$symbol": "Symbol", "$expression": "Expression"}
"""The classes of symbolicai that are stored as tagged JSON; `Expression.prompt` returns one."""

_TAGS = frozenset({_OBJECT, *_CLASSES})
_OPTIONS = ("static_context", "semantic")
"""The constructor arguments of a Symbol that are stored."""


class CheckpointValueError(CheckpointError):
    """A value cannot be stored in a checkpoint, even with pickle."""


class NotJSONError(CheckpointError):
    """A value is not JSON, and `checkpoint_pickle=True` was not given."""


class PickledValueError(CheckpointError):
    """A stored value is pickled, and `checkpoint_pickle=True` was not given."""


def encode(value: object, *, with_pickle: bool) -> tuple[str, str | bytes]:
    """Return the format of a value and the form in which it is stored.

    Args:
        value: Any value.
        with_pickle: Whether a value that is not JSON is pickled.

    Raises:
        NotJSONError: The value is not JSON, and `with_pickle` is False.
        Exception: The value cannot be pickled, or cannot be unpickled again.
    """
    with contextlib.suppress(RecursionError):  # the value contains itself; pickle can store it
        if _is_stored_as_json(value):
            return JSON, _to_json(value)
        if _is_stored_as_json(value, symbols=True):
            return SYMBOLS, _to_json(_tagged(value))
    if not with_pickle:
        raise NotJSONError
    file = io.BytesIO()
    _Pickler(file).dump(value)
    pickle.loads(file.getvalue())  # some cannot be unpickled: fail now, not in the next run
    return PICKLE, file.getvalue()


def decode(form: str, stored: str | bytes, *, with_pickle: bool) -> Any:
    """Return the value that `encode` was given.

    Args:
        form: The format.
        stored: The stored form.
        with_pickle: Whether a pickled value is unpickled, which may run any code.

    Raises:
        PickledValueError: The value is pickled, and `with_pickle` is False.
        Exception: The stored form is damaged.
    """
    if form == JSON:
        return json.loads(stored)
    if form == SYMBOLS:
        return _untagged(json.loads(stored))
    if form != PICKLE:
        raise ValueError(f"unknown format {form!r}")
    if not with_pickle:
        raise PickledValueError
    assert isinstance(stored, bytes)
    return pickle.loads(stored)


class _Pickler(pickle.Pickler):
    """Pickles Symbols that a query returned.

    symbolicai creates a class for each of these Symbols, which pickle cannot find by name.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and (kind := declared_class(value)) is not value:
            return _itself, (kind,)
        return NotImplemented


def _itself(kind: type) -> type:
    return kind


def _to_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot encode
        return json.dumps(value)
    return text


def _is_stored_as_json(value: Any, *, symbols: bool = False) -> bool:
    """Return whether JSON, or JSON with tagged Symbols, preserves a value and its types."""

    def is_preserved(value: Any) -> bool:
        kind = type(value)
        if kind is int:
            return bool(-LARGEST_INTEGER < value < LARGEST_INTEGER)
        if kind is float:
            return bool(math.isfinite(value))
        if symbols and is_symbol(value):
            return _is_plain_symbol(value)
        return kind in SCALARS

    return is_plain_json(value, is_preserved)


def _is_plain_symbol(symbol: Any) -> bool:
    """Return whether a Symbol consists of a JSON value and options that are stored."""
    tag = _tag_of(symbol)
    if tag is None:
        return False
    value, options = symbol.value, _options_of(symbol)
    if not (_is_stored_as_json(value) and _is_stored_as_json(options)):
        return False
    rebuilt = _class_of(tag)(value, **options)
    return bool(_state_of(symbol) == _state_of(rebuilt))


def _tag_of(symbol: Any) -> str | None:
    kind = declared_class(type(symbol))
    return next((tag for tag in _CLASSES if kind is _class_of(tag)), None)


def _class_of(tag: str) -> Any:
    return getattr(importlib.import_module("symai"), _CLASSES[tag])


def _state_of(symbol: Any) -> dict[str, Any]:
    """Return the attributes of a Symbol, without the process-wide context."""
    state: dict[str, Any] = symbol.__getstate__()
    return {name: each for name, each in state.items() if name != "_dynamic_context"}


def _options_of(symbol: Any) -> dict[str, Any]:
    return {name: symbol._kwargs[name] for name in _OPTIONS if symbol._kwargs.get(name)}


def _tagged(value: Any) -> Any:
    """Return a value with its Symbols replaced by tagged objects."""
    if is_symbol(value):
        return {_tag_of(value): value.value, **_options_of(value)}
    if isinstance(value, list):
        return [_tagged(each) for each in value]
    if isinstance(value, dict):
        tagged = {name: _tagged(each) for name, each in value.items()}
        return {_OBJECT: tagged} if _TAGS & tagged.keys() else tagged
    return value


def _untagged(parsed: Any) -> Any:
    """Reverse `_tagged`, from the outside in: an inner key that looks like a tag may be data."""
    if isinstance(parsed, list):
        return [_untagged(each) for each in parsed]
    if not isinstance(parsed, dict):
        return parsed
    for tag in _CLASSES.keys() & parsed.keys():
        options = {name: parsed[name] for name in _OPTIONS if name in parsed}
        return _class_of(tag)(parsed[tag], **options)
    return {name: _untagged(each) for name, each in parsed.get(_OBJECT, parsed).items()}
