"""Read from an error response how long the server asks to wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import openai

from ..checks import LONGEST_SECONDS, seconds_of
from ..pacing.buckets import parse_duration

__all__ = ["retry_after_seconds"]


def retry_after_seconds(error: BaseException) -> float | None:
    """Return how long the server asks to wait, in seconds above 0, or None.

    The first of these that gives a time counts: `retry-after-ms`, `retry-after` (seconds or a
    date), and for a 429 the `x-ratelimit-reset-*` of the limits that are exhausted.
    """
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    for seconds in (
        seconds_of(headers.get("retry-after-ms"), unit=0.001),
        seconds_of(headers.get("retry-after")),
        _until(headers.get("retry-after"), headers.get("date")),
        _reset(headers) if error.status_code == 429 else None,
    ):
        if seconds:  # 0 gives no time: the backoff applies then, as in the SDK
            return seconds
    return None


def _until(date: str | None, now: str | None) -> float | None:
    """Return the seconds until a date, by the clock of the server that sent the response."""
    when = _read_date(date)
    if when is None:
        return None
    seconds = (when - (_read_date(now) or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds <= LONGEST_SECONDS else None


def _read_date(date: str | None) -> datetime | None:
    try:
        when = parsedate_to_datetime(date or "")
        # RFC 9110, 5.6.7: a date without a time zone is UTC.
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except Exception:  # ValueError, OverflowError or others, depending on Python's version
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    """Return the time until the exhausted limits reset, or all limits if none is marked as such."""
    resets = {
        name: seconds
        for name in ("requests", "tokens")
        if (seconds := parse_duration(headers.get(f"x-ratelimit-reset-{name}", ""))) is not None
    }
    exhausted = {
        name: seconds
        for name, seconds in resets.items()
        if headers.get(f"x-ratelimit-remaining-{name}") == "0"
    }
    return max((exhausted or resets).values(), default=None)
