"""What the package changes in the process outside itself, and how all of it is undone.

- `symai.core_ext.time`: see `waits.py`.
- The levels of the loggers `httpx2` and `httpcore2`, the transport of openai 3: ERROR, as
  symbolicai sets those of `httpx` and `httpcore`.
- `openai.api_key`, the root logger's level and its handlers, which the constructor of symbolicai's
  engines changes. It adds a handler for each engine; one is kept.

Engines make the changes, `uninstall` undoes them, and an engine that is called after that makes
them again, except for the root logger's. All functions are allowed in any thread.
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
    """What was there before the changes.

    Attributes:
        is_changed: Whether the changes are made.
        levels: The levels of loggers, by their names; '' is the root logger.
        handlers: The root logger's handlers that were not there.
        api_key: The value of `openai.api_key`.
        api_key_since: The value that an engine has set since.
    """

    is_changed: bool = False
    levels: dict[str, int] = field(default_factory=dict)
    handlers: list[logging.Handler] = field(default_factory=list)
    api_key: str | None = None
    api_key_since: str | None = None


_before: _Before = globals().get("_before") or _Before()  # which outlives a reload


def are_made() -> bool:
    """Tell whether the changes are made. Costs next to nothing."""
    return _before.is_changed


def make(api_key: str | None) -> None:
    """Make the changes that are not made yet.

    Args:
        api_key: What `openai.api_key` becomes where it is empty. The engine's forward blames any
            error on an empty one.
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
    """Undo the changes; what somebody else has changed since stays as it is."""
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
    """Note what one of symbolicai's engines changes that is built in the block."""
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
    """Note what becomes of `openai.api_key` in the block."""
    before = openai.api_key
    try:
        yield
    finally:
        if openai.api_key is not before:  # a key may be anything here, also what cannot be compared
            if before is not _before.api_key_since:
                _before.api_key = before
            _before.api_key_since = openai.api_key


def _is_like_symbolicais(handler: logging.Handler) -> bool:
    """Tell whether a handler prints on standard error, with the time and from INFO on."""
    return (
        type(handler) is logging.StreamHandler
        and handler.level == logging.INFO
        and handler.formatter is not None
        and handler.formatter.usesTime()
    )
