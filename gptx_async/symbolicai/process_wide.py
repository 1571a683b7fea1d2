"""Everything that the package changes in the process outside itself, and how it is undone.

- `symai.core_ext.time`: see `retry_sleep`.
- The levels of the loggers `httpx2` and `httpcore2`, the transport of openai 3: ERROR, which is
  what symbolicai sets for `httpx` and `httpcore`.
- `openai.api_key`, and the root logger's level and handlers, which the constructors of symbolicai's
  engines change. Each constructor adds a handler; only one is kept.

Engines make the changes and `uninstall` undoes them. An engine that is called afterwards makes them
again, except for the root logger's. All functions are allowed in any thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import openai

from . import generation  # the module: it may be only partly imported here

__all__ = ["are_made", "building", "make", "setting_key", "undo"]

_TRANSPORT_LOGGERS = ("httpx2", "httpcore2")


@dataclass
class _Before:
    """The state before the changes.

    Attributes:
        is_changed: Whether the changes are in effect.
        levels: Levels of loggers by name; '' is the root logger.
        handlers: The handlers that were added to the root logger.
        api_key: The previous value of `openai.api_key`.
        api_key_since: The value that an engine has set.
    """

    is_changed: bool = False
    levels: dict[str, int] = field(default_factory=dict)
    handlers: list[logging.Handler] = field(default_factory=list)
    api_key: str | None = None
    api_key_since: str | None = None


_before: _Before = globals().get("_before") or _Before()  # survives a reload


def are_made() -> bool:
    """Return whether the changes are in effect. Fast enough for every query."""
    return _before.is_changed


def make(api_key: str | None) -> None:
    """Make the changes that are not in effect.

    Args:
        api_key: New value of `openai.api_key` if it is empty: the engine's forward attributes any
            error to an empty key.
    """
    generation.retry_sleep.let_waits_give_way()
    for name in _TRANSPORT_LOGGERS:
        if name not in _before.levels:
            _before.levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.ERROR)
    if api_key and not openai.api_key:
        with setting_key():
            openai.api_key = api_key
    _before.is_changed = True


def undo() -> None:
    """Undo the changes, except where other code has changed the same setting since."""
    _before.is_changed = False
    generation.retry_sleep.let_waits_block()
    for name in [*_before.levels]:
        level = _before.levels.pop(name)
        if logging.getLogger(name).level == (logging.ERROR if name else logging.DEBUG):
            logging.getLogger(name).setLevel(level)
    while _before.handlers:
        handler = _before.handlers.pop()
        logging.getLogger().removeHandler(handler)
        handler.close()
    if _before.api_key_since is not None and openai.api_key is _before.api_key_since:
        openai.api_key = _before.api_key
    _before.api_key = _before.api_key_since = None


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Record what the constructor of a symbolicai engine changes in the block."""
    root = logging.getLogger()
    handlers = [*root.handlers]
    _before.levels.setdefault("", root.level)
    try:
        with setting_key():
            yield
    finally:
        for handler in [each for each in root.handlers if each not in handlers]:
            if _is_like_symbolicais(handler) and any(map(_is_like_symbolicais, handlers)):
                root.removeHandler(handler)
            elif _is_like_symbolicais(handler) or isinstance(handler, logging.FileHandler):
                _before.handlers.append(handler)


@contextlib.contextmanager
def setting_key() -> Iterator[None]:
    """Record a change of `openai.api_key` in the block."""
    before = openai.api_key
    try:
        yield
    finally:
        if openai.api_key is not before:  # not `!=`: a key may be any object
            if before is not _before.api_key_since:
                _before.api_key = before
            _before.api_key_since = openai.api_key


def _is_like_symbolicais(handler: logging.Handler) -> bool:
    """Return whether a handler looks like symbolicai's: a stream, INFO, and times in the format."""
    return (
        type(handler) is logging.StreamHandler
        and handler.level == logging.INFO
        and handler.formatter is not None
        and handler.formatter.usesTime()
    )
