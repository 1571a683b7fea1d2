"""Which failed attempt is made again, and when: the one layer of retries, on tenacity.

The SDK's own retries are off. They cannot be seen, they keep a permit while they wait, and they
would multiply these.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import openai
import tenacity

from .. import clock, errors
from ..checks import LONGEST_SECONDS, seconds_of
from ..pacing.buckets import parse_duration
from ..pacing.queue import Permit

__all__ = [
    "PATIENCE",
    "Budget",
    "Cause",
    "cause_of",
    "is_tried_again",
    "run_again",
    "settle",
    "settling",
    "told_seconds",
]

T = TypeVar("T")

PATIENCE = 300.0
"""For how many seconds a call answered 429 is tried again, when its engine does not say."""

FIRST_WAIT = 0.5
LONGEST_WAIT = 8.0
"""The waits after faults, in seconds, doubling from the first: the SDK's own figures."""

LONGEST_FAULT_TOLD = 120.0
"""A fault whose Retry-After is longer, in seconds, is not tried again: as the SDK does."""

JITTER = 0.25
"""How much of a wait is added to it at random, at most, so that not all wake at once."""

OVERLOADED = frozenset({503, 529})
UNREACHABLE = frozenset({502, 504})


class Cause(enum.Enum):
    """Why an attempt failed, as far as it decides what to do next."""

    FAULT = "something went wrong: tried again, `max_retries` times"
    RATE_LIMIT = "too many requests: tried again for as long as the patience lasts"
    REFUSAL = "the key is refused, or has no quota: every other call with it would be, too"
    REJECTION = "the prompt is rejected, or perhaps the key: never tried again"
    FINAL = "the request is refused, or the failure is not one of a request: never tried again"


def cause_of(error: BaseException) -> Cause:
    """Tell why an attempt failed. What is not listed here is final: a cancellation passes."""
    if isinstance(error, openai.APIStatusError):
        return _cause_of_status(error)
    if isinstance(error, (openai.APIConnectionError, errors.TimeoutError)):  # the SDK's, too
        return Cause.FAULT
    if type(error) is RuntimeError and "closed" in str(error):  # a transport's, over its loop
        return Cause.FAULT
    return Cause.FINAL


_TRIED_AGAIN = frozenset({Cause.FAULT, Cause.RATE_LIMIT})


def _cause_of_status(error: openai.APIStatusError) -> Cause:
    status = error.status_code
    if status == 401 or (400 <= status < 500 and _concerns_key(error)):
        return Cause.REFUSAL
    if status == 403:
        return Cause.REJECTION
    should_retry = error.response.headers.get("x-should-retry")
    if should_retry == "false":
        return Cause.FINAL
    if status == 429:
        return Cause.RATE_LIMIT
    if should_retry != "true" and status not in (408, 409) and status < 500:
        return Cause.FINAL
    return Cause.FINAL if (told_seconds(error) or 0) > LONGEST_FAULT_TOLD else Cause.FAULT


_OF_THE_KEY = (
    "access_terminated",
    "account_deactivated",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_quota",
    "invalid_api_key",
)
"""The codes and types of errors that concern a key or its account, whatever the status."""


def _concerns_key(error: openai.APIStatusError) -> bool:
    return error.code in _OF_THE_KEY or error.type in _OF_THE_KEY


def told_seconds(error: BaseException) -> float | None:
    """Return how long the server says to wait, in seconds above 0, or None if it does not.

    By `retry-after-ms`, or `retry-after` (seconds, or a date), or, for a 429, the
    `x-ratelimit-reset-*` of what has run out.
    """
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    for told in (
        seconds_of(headers.get("retry-after-ms"), unit=0.001),
        seconds_of(headers.get("retry-after")),
        _until(headers.get("retry-after"), headers.get("date")),
        _reset(headers) if error.status_code == 429 else None,
    ):
        if told:  # to come back at once is no answer: then the backoff counts, as in the SDK
            return told
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
        # RFC 9110, 5.6.7: without a zone it is UTC.
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except Exception:  # ValueError, OverflowError and others, by the version of Python
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    """Return when what has run out is there again; when that is not told, when all is."""
    resets = {
        name: seconds
        for name in ("requests", "tokens")
        if (seconds := parse_duration(headers.get(f"x-ratelimit-reset-{name}", ""))) is not None
    }
    run_out = {
        name: seconds
        for name, seconds in resets.items()
        if headers.get(f"x-ratelimit-remaining-{name}") == "0"
    }
    return max((run_out or resets).values(), default=None)


class Budget:
    """What a call may still spend on further attempts: tenacity asks it after each failure.

    Args:
        max_retries: How often an attempt is made again after a fault.
        patience: For how many seconds, from the call's first 429 on, a 429 is tried again.
        clock: Returns the present, in seconds.
    """

    def __init__(
        self, max_retries: int, patience: float, clock: Callable[[], float] = clock.seconds
    ) -> None:
        self._retries_left = max_retries
        self._patience = patience
        self._clock = clock
        self._first_429: float | None = None
        self.is_free = False
        """Whether the failure of the last attempt is to cost none of the retries."""
        self._waits: dict[Cause, int] = {}

    @property
    def patience_left(self) -> float:
        """Return for how many seconds the call may still be held up by a rate limit."""
        if self._first_429 is None:
            return self._patience
        return max(0.0, self._first_429 + self._patience - self._clock())

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Return how long to wait after a failure that may be tried again, in seconds."""
        error = _failure_of(state)
        cause = cause_of(error)
        if cause is Cause.RATE_LIMIT and self._first_429 is None:
            self._first_429 = self._clock()
        seconds = told_seconds(error)
        if seconds is None:
            seconds = min(FIRST_WAIT * 2 ** min(self._waits.get(cause, 0), 16), LONGEST_WAIT)
        self._waits[cause] = self._waits.get(cause, 0) + 1
        return seconds * (1 + JITTER * random.random())

    def is_spent(self, state: tenacity.RetryCallState) -> bool:
        """Tell whether the failure is the last; a wait longer than the patience is not begun."""
        if cause_of(_failure_of(state)) is Cause.RATE_LIMIT:
            return state.upcoming_sleep > self.patience_left
        if not self.is_free:
            self._retries_left -= 1
        return self._retries_left < 0


def _failure_of(state: tenacity.RetryCallState) -> Exception:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, Exception)
    return error


def is_tried_again(error: BaseException) -> bool:
    """Tell whether the failure of an attempt is one after which another may be made."""
    return cause_of(error) in _TRIED_AGAIN


async def run_again(
    attempt: Callable[[], Awaitable[T]],
    first: Exception,
    budget: Budget,
    on_retry: Callable[[Exception, float], None],
) -> T:
    """Make attempts until one succeeds, or fails for good, after the first has failed. On the loop.

    The first is made without this, and so without the 30 us that tenacity takes.

    Args:
        attempt: Makes one.
        first: What the first raised.
        budget: What the call may spend.
        on_retry: Told of each failure that is tried again, and after how many seconds.

    Raises:
        Exception: What the last attempt raised.
    """
    made: Exception | None = first

    async def attempt_again() -> T:
        nonlocal made
        if made is None:
            return await attempt()
        failed, made = made, None
        raise failed

    def tell(state: tenacity.RetryCallState) -> None:
        on_retry(_failure_of(state), state.upcoming_sleep)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_tried_again),
        wait=budget.wait,
        stop=budget.is_spent,
        before_sleep=tell,
        reraise=True,
    )
    return await retrying(attempt_again)


@contextlib.contextmanager
def settling(permit: Permit) -> Iterator[None]:
    """Give a permit back at the end of the block at the latest, whatever fails there.

    An error in the block is a bug of this package. It is reported to the loop's exception handler,
    for it must cost neither a paid answer nor the server's own error.
    """
    try:
        yield
    except Exception as failure:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "gptx_async could not learn from a response", "exception": failure}
        )
    finally:
        permit.release()


def settle(permit: Permit, error: BaseException) -> None:
    """Give a permit back after a failed attempt, with what the failure says of the server."""
    with settling(permit):
        _settle(permit, error)


def _settle(permit: Permit, error: BaseException) -> None:
    if isinstance(error, openai.APIStatusError):
        cause, headers = cause_of(error), error.response.headers
        if cause is Cause.RATE_LIMIT:
            permit.refused(error, headers, told_seconds(error))
        elif error.status_code in OVERLOADED:
            permit.overloaded(error, headers, told_seconds(error))
        else:
            permit.failed(error, unreachable=error.status_code in UNREACHABLE)
    elif isinstance(error, Exception):
        permit.failed(error, unreachable=is_of_outage(error))
    else:
        permit.release()


def is_of_outage(error: BaseException) -> bool:
    """Tell whether a failure is that of a server which is gone, or can do nothing at the time."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in OVERLOADED | UNREACHABLE
    lost = isinstance(error, openai.APIConnectionError)
    return lost and not isinstance(error, openai.APITimeoutError)
