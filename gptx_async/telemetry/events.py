"""The events that the package tells of: their names, their levels, and where they go.

Where an application has configured structlog they go through its processors. Where it has not, they
go to `logging`, to the loggers below "gptx_async", whose level is WARNING unless the application
sets another. Which of the two is looked up at each event, for an application may configure late.
structlog, which takes 90 ms to import, is not imported for that: an application that has not
imported it has not configured it.

An event is told in the thread in which it happens, which for the attempts of calls is the
background loop's: a handler or processor that blocks holds up every call. One that raises harms
none.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json as json_module
import logging
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["EVENTS", "Burst", "configure_logging", "emit", "is_enabled", "without_keys"]

_PACE = ("model", "limit", "rate")

EVENTS: Final[Mapping[str, tuple[int, tuple[str, ...]]]] = {
    "batch.started": (logging.INFO, ("batch", "items", "window", "model")),
    "batch.ended": (
        logging.INFO,
        ("batch", "items", "answered", "failed", "cancelled", "took", "model"),
    ),
    "attempt.failed": (
        logging.WARNING,
        (
            *("batch", "index", "model", "attempt", "kind", "status", "request_id"),
            *("waited", "took", "tokens_in", "tokens_out", "prompt", "error"),
        ),
    ),
    "attempt.retried": (
        logging.WARNING,
        (
            *("batch", "index", "model", "attempt", "kind", "status", "request_id"),
            *("waited", "took", "tokens_in", "tokens_out", "retry_in", "prompt", "error"),
        ),
    ),
    "call.answered": (
        logging.DEBUG,
        (
            *("batch", "index", "model", "attempt", "request_id"),
            *("waited", "took", "tokens_in", "tokens_out", "prompt", "answer"),
        ),
    ),
    "burst.ended": (logging.INFO, ("of", "suppressed", "took")),
    "governor.cut": (logging.INFO, (*_PACE, "before", "rate_before", "status", "request_id")),
    "governor.grew": (logging.DEBUG, (*_PACE, "before", "rate_before")),
    "governor.paused": (logging.INFO, (*_PACE, "seconds", "status", "request_id")),
    "service.started": (logging.INFO, ("loop_thread",)),
    "service.closed": (logging.INFO, ("loop_thread", "in_flight")),
    "service.restarted": (logging.WARNING, ("loop_thread", "cause")),
}
"""Of each event: its level, and the fields that it may have. One that is not known is left out.
None is called as what `logging` gives a record of its own ("thread"), which it would refuse.

The later ones of a burst of `attempt.failed` or `attempt.retried` are DEBUG.
"""

QUIET_SECONDS = 30.0
"""How long there is none before the next one begins a new burst: half of the longest usual pause
that a server asks for."""

MAX_TEXT = 200
"""How long a field may be that comes from outside, a request id say, where no content is wanted."""

_PLAIN = re.compile(r"[\w.:/@+-]+")
_KEYS = re.compile(r"((?<![A-Za-z0-9])(?:sk-|gsk_|Bearer )\s*)[\w.~+/=-]+")
_handler: logging.Handler | None = None
_broken: set[type[BaseException]] = set()


def emit(event: str, fields: Mapping[str, Any], level: int | None = None) -> None:
    """Tell of an event. Allowed in any thread; never raises what a handler or processor raises.

    Nothing is told any more when the main thread has ended: what then fails, fails for that.

    Args:
        event: A name of `EVENTS`.
        fields: Its fields; those that are None are left out.
        level: Another level than the event's own.
    """
    if not threading.main_thread().is_alive():
        return
    level = EVENTS[event][0] if level is None else level
    try:
        known = {name: _clean(value) for name, value in fields.items() if value is not None}
        structlog = _configured_structlog()
        if structlog is None:
            logger = _logger(event)
            if logger.isEnabledFor(level):
                logger.log(level, _line(event, known), extra=known | {"event": event})
        else:
            method = logging.getLevelName(level).lower()
            getattr(structlog.get_logger(_logger_name(event)), method)(event, **known)
    except Exception as error:
        _tell_of_broken_handler(error)
    except BaseException as error:
        # A `DropEvent`, in a configuration whose logger does not catch it.
        if type(error).__module__ != "structlog.exceptions":
            raise


def is_enabled(event: str) -> bool:
    """Tell whether anybody may want an event; structlog's own filter is not asked."""
    if _configured_structlog() is not None:
        return True
    return _logger(event).isEnabledFor(EVENTS[event][0])


def configure_logging(json: bool = False, level: int | str = "INFO") -> None:
    """Show the package's events on standard error: for scripts, and others that have no logging.

    It sets up the logger "gptx_async" alone, whose records then no longer go to the root logger's
    handlers too. Calling it again changes what the first call set up. In an application that has
    configured structlog the events go on going there.

    Args:
        json: One JSON object a line, in place of text for people.
        level: The lowest level that is shown.

    Raises:
        ValueError: There is no such level.
    """
    global _handler
    logger = logging.getLogger("gptx_async")
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    handler = _StandardErrorHandler()
    handler.setFormatter(_JSONFormatter() if json else logging.Formatter(_CONSOLE_FORMAT))
    if _handler is not None:
        logger.removeHandler(_handler)
    logger.addHandler(handler)
    logger.propagate = False
    _handler = handler


def without_keys(text: str) -> str:
    """Take out of a text what looks like a key: a server may say back the one it refuses."""
    return _KEYS.sub(r"\1...", text)


class Burst:
    """Tells the first of a burst from the others, which come before it was quiet for a while.

    Not for several threads at once: its owner has a lock.

    Args:
        event: The event that comes in bursts.
        quiet: Seconds without one that end a burst.
    """

    __slots__ = ("_began", "_event", "_last", "_quiet", "suppressed")

    def __init__(self, event: str, quiet: float = QUIET_SECONDS) -> None:
        self.suppressed = 0
        self._event = event
        self._quiet = quiet
        self._began = self._last = float("-inf")

    def note(self, now: float) -> tuple[bool, dict[str, Any] | None]:
        """Count one that happens now.

        Returns:
            Whether it is the first of a burst; and, if the burst before has not been told of yet,
            the fields of its `burst.ended`.
        """
        is_first = now - self._last >= self._quiet
        ended = self.end(now)
        if is_first:
            self._began = now
        else:
            self.suppressed += 1
        self._last = now
        return is_first, ended

    def end(self, now: float) -> dict[str, Any] | None:
        """Return the fields of `burst.ended`, once, if a burst is over that hid something."""
        if not self.suppressed or now - self._last < self._quiet:
            return None
        fields = {
            "of": self._event,
            "suppressed": self.suppressed,
            "took": self._last - self._began,
        }
        self.suppressed = 0
        return fields


# symbolicai sets the root logger to DEBUG, with a handler that prints INFO for each of its engines.
if not logging.getLogger("gptx_async").level:
    logging.getLogger("gptx_async").setLevel(logging.WARNING)

_CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class _StandardErrorHandler(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is at the time: notebooks and tests put another in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Refuse another one, as `StreamHandler` does not."""


class _JSONFormatter(logging.Formatter):
    """One JSON object for a record: when, how grave, what, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        event: str | None = getattr(record, "event", None)
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        members = {
            "timestamp": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event or record.getMessage(),
        }
        for name in EVENTS[event][1] if event is not None and event in EVENTS else ():
            if hasattr(record, name):
                members[name] = getattr(record, name)
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json_module.dumps(members, default=repr)


def _configured_structlog() -> Any:
    structlog = sys.modules.get("structlog")
    if structlog is None:
        return None
    # Another thread may be importing it at this moment.
    is_configured = getattr(structlog, "is_configured", None)
    return structlog if is_configured is not None and is_configured() else None


@functools.cache  # `logging.getLogger` takes a lock of the whole process
def _logger(event: str) -> logging.Logger:
    return logging.getLogger(_logger_name(event))


def _logger_name(event: str) -> str:
    return f"gptx_async.{event.partition('.')[0]}"


def _clean(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _line(event: str, fields: Mapping[str, Any]) -> str:
    """Make the line for people; a value from outside can neither end it nor feign a field."""
    return " ".join([event, *(f"{name}={_shown(value)}" for name, value in fields.items())])


def _shown(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else repr(value)


def _tell_of_broken_handler(error: Exception) -> None:
    """Say once for each class of error that a handler raises; not its text, which may say more."""
    if type(error) in _broken or not logging.raiseExceptions or sys.stderr is None:
        return
    _broken.add(type(error))
    with contextlib.suppress(Exception):  # nowhere left to say it
        sys.stderr.write(
            f"gptx_async: a log handler or processor raised {type(error).__qualname__}; the event "
            "is lost, the model call is not. This is said once.\n"
        )
