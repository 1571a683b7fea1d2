"""The package's events: their names, levels and fields, and where they are logged.

If the application has configured structlog, events go through its processors. Otherwise they go to
`logging`, to loggers below "gptx_async", whose level is WARNING unless the application changes it.
This is decided for each event, because an application may configure structlog late. The package
does not import structlog, which takes 90 ms: an application that has not imported it has not
configured it.

Events are logged in the thread where they happen. For attempts that is the background loop's
thread, so a handler or processor that blocks delays all calls. One that raises does no harm.
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

from .failures import request_id_of, status_of

__all__ = [
    "EVENTS",
    "Burst",
    "configure_logging",
    "emit",
    "governor_changed",
    "is_enabled",
    "service_closed",
    "service_restarted",
    "service_started",
    "without_keys",
]

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
"""The level of each event, and its fields. Unknown values are left out.

No field has the name of an attribute of `logging.LogRecord`, such as "thread": `logging` rejects
those. After the first of a burst, `attempt.failed` and `attempt.retried` are DEBUG.
"""

QUIET_SECONDS = 30.0
"""Seconds without an event after which the next one starts a new burst: half of the longest pause
that servers usually ask for."""

MAX_TEXT = 200
"""The longest text from outside in a field, for example a request id, in characters."""

_PLAIN = re.compile(r"[\w.:/@+-]+")
_KEYS = re.compile(r"((?<![A-Za-z0-9])(?:sk-|gsk_|Bearer )\s*)[\w.~+/=-]+")
_handler: logging.Handler | None = None
_broken: set[type[BaseException]] = set()


def emit(event: str, fields: Mapping[str, Any], level: int | None = None) -> None:
    """Log an event. Allowed in any thread; errors of handlers and processors are not raised.

    Nothing is logged after the main thread has ended, because failures at that time are expected.

    Args:
        event: A name in `EVENTS`.
        fields: The event's fields. Fields that are None are left out.
        level: A level to use instead of the event's own.
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
        _report_broken_handler(error)
    except BaseException as error:
        # A `DropEvent` in a configuration whose logger does not catch it.
        if type(error).__module__ != "structlog.exceptions":
            raise


def is_enabled(event: str) -> bool:
    """Return whether an event may be logged anywhere. structlog's filters are not consulted."""
    if _configured_structlog() is not None:
        return True
    return _logger(event).isEnabledFor(EVENTS[event][0])


def configure_logging(*, json: bool = False, level: int | str = "INFO") -> None:
    """Show the package's events on standard error, for scripts without their own logging.

    It configures only the logger "gptx_async", whose records then no longer reach the root logger's
    handlers. Another call replaces the first one's configuration. If the application has configured
    structlog, events still go there.

    Args:
        json: Whether to write one JSON object per line instead of text.
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
    """Return a text with keys removed: a server may repeat the key that it rejects."""
    return _KEYS.sub(r"\1...", text)


def governor_changed(event: str, fields: Mapping[str, Any]) -> None:
    """Log that a governor sends more or fewer requests than before, or pauses.

    Args:
        event: `governor_cut`, `governor_grew` or `governor_paused`.
        fields: The fields from `Governor`, with the model's name.
    """
    error = fields.get("error") if event != "governor_grew" else None
    logged = {
        "model": fields["governor"] or None,
        "before": fields.get("before"),
        "limit": fields["limit"],
        "rate_before": fields.get("rate_before"),
        "rate": fields["rate"],
        "seconds": fields.get("seconds"),
        "status": None if error is None else status_of(error),
        "request_id": None if error is None else request_id_of(error),
    }
    emit(event.replace("_", ".", 1), logged)


def service_started(thread: str) -> None:
    """Log that the background thread of this name has started."""
    emit("service.started", {"loop_thread": thread})


def service_closed(thread: str, in_flight: int) -> None:
    """Log that the background thread has ended, with this number of calls in flight."""
    emit("service.closed", {"loop_thread": thread, "in_flight": in_flight})


def service_restarted(thread: str, cause: BaseException | str | None) -> None:
    """Log that a new background thread has replaced one that died.

    Args:
        thread: The new thread's name.
        cause: Why the old thread died. Only the class of an exception is logged.
    """
    name = type(cause).__qualname__ if isinstance(cause, BaseException) else cause
    emit("service.restarted", {"loop_thread": thread, "cause": name})


class Burst:
    """Distinguishes the first event of a burst from later ones.

    Not thread-safe: its owner has a lock.

    Args:
        event: The event.
        quiet: Seconds without the event that end a burst.
    """

    __slots__ = ("_began", "_event", "_last", "_quiet", "suppressed")

    def __init__(self, event: str, quiet: float = QUIET_SECONDS) -> None:
        self.suppressed = 0
        self._event = event
        self._quiet = quiet
        self._began = self._last = float("-inf")

    def note(self, now: float) -> tuple[bool, dict[str, Any] | None]:
        """Count an event that happens now.

        Returns:
            Whether the event is the first of a burst; and the fields of `burst.ended` for the
            previous burst, if that was not logged yet.
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
        """Return the fields of `burst.ended`, once, if a burst with suppressed events is over."""
        if not self.suppressed or now - self._last < self._quiet:
            return None
        fields = {
            "of": self._event,
            "suppressed": self.suppressed,
            "took": self._last - self._began,
        }
        self.suppressed = 0
        return fields


# symbolicai sets the root logger to DEBUG, and adds a handler that prints INFO for each engine.
if not logging.getLogger("gptx_async").level:
    logging.getLogger("gptx_async").setLevel(logging.WARNING)

_CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class _StandardErrorHandler(logging.StreamHandler[Any]):
    """Writes to the current `sys.stderr`, which notebooks and tests replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Ignore the assignment in `StreamHandler`."""


class _JSONFormatter(logging.Formatter):
    """Formats a record as one JSON object, with the fields of the event."""

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
    # Another thread may be importing structlog right now.
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
    """Return a line of text. Values from outside can neither break the line nor imitate a field."""
    return " ".join([event, *(f"{name}={_shown(value)}" for name, value in fields.items())])


def _shown(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else repr(value)


def _report_broken_handler(error: Exception) -> None:
    """Report an error of a handler, once per class, without its text, which may contain content."""
    if type(error) in _broken or not logging.raiseExceptions or sys.stderr is None:
        return
    _broken.add(type(error))
    with contextlib.suppress(Exception):  # there is nowhere left to report it
        sys.stderr.write(
            f"gptx_async: a log handler or processor raised {type(error).__qualname__}; the event "
            "is lost, but the model call is not affected. This is reported once.\n"
        )
