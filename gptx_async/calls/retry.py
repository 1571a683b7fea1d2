"""Decide whether and when a failed attempt is retried: the only layer of retries, with tenacity.

The SDK's own retries are turned off. They are invisible, hold a permit while they wait, and would
multiply with these.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import openai
import tenacity

from .. import clock, errors
from ..pacing.queue import Permit
from .retry_after import retry_after_seconds

__all__ = [
    "PATIENCE",
    "Budget",
    "Cause",
    "cause_of",
    "is_retryable",
    "run_retries",
    "settle",
    "settling",
]

T = TypeVar("T")

PATIENCE = 300.0
"""How long a call is retried after its first 429, in seconds, unless the engine says otherwise."""

FIRST_WAIT = 0.5
LONGEST_WAIT = 8.0
"""Seconds of backoff after faults, doubling from the first value to the last, as in the SDK."""

LONGEST_RETRY_AFTER = 120.0
"""A fault with a longer Retry-After, in seconds, is not retried, as in the SDK."""

JITTER = 0.25
"""The largest random part that is added to a wait, so that not all calls wake at once."""

OVERLOADED = frozenset({503, 529})
UNREACHABLE = frozenset({502, 504})


class Cause(enum.Enum):
    """Why an attempt failed, which decides what happens next."""

    FAULT = "a temporary failure: retried up to `max_retries` times"
    RATE_LIMIT = "too many requests: retried for as long as the patience lasts"
    REFUSAL = "the key is refused or has no quota, as for all other calls: never retried"
    REJECTION = "the prompt, or perhaps the key, is rejected: never retried"
    FINAL = "the request is refused, or no request failed: never retried"


def cause_of(error: BaseException) -> Cause:
    """Return why an attempt failed. Unknown errors, such as a cancellation, are final."""
    if isinstance(error, openai.APIStatusError):
        return _cause_of_status(error)
    if isinstance(error, (openai.APIConnectionError, errors.TimeoutError)):  # the SDK's, too
        return Cause.FAULT
    if type(error) is RuntimeError and "closed" in str(error):  # the transport of a closed loop
        return Cause.FAULT
    return Cause.FINAL


_RETRYABLE = frozenset({Cause.FAULT, Cause.RATE_LIMIT})


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
    return Cause.FINAL if (retry_after_seconds(error) or 0) > LONGEST_RETRY_AFTER else Cause.FAULT


_OF_THE_KEY = (
    "access_terminated",
    "account_deactivated",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_quota",
    "invalid_api_key",
)
"""Codes and types of errors that concern the key or its account, whatever the status."""


def _concerns_key(error: openai.APIStatusError) -> bool:
    return error.code in _OF_THE_KEY or error.type in _OF_THE_KEY


class Budget:
    """The retries and the time that a call has left. Tenacity asks it after each failure.

    Args:
        max_retries: The number of retries after faults.
        patience: How long 429s are retried, in seconds from the call's first 429.
        clock: Returns the current time in seconds.
    """

    def __init__(
        self, max_retries: int, patience: float, clock: Callable[[], float] = clock.seconds
    ) -> None:
        self._retries_left = max_retries
        self._patience = patience
        self._clock = clock
        self._first_429: float | None = None
        self.is_free = False
        """Whether the last attempt's failure does not count as a retry."""
        self._waits: dict[Cause, int] = {}

    @property
    def patience_left(self) -> float:
        """The seconds for which a rate limit may still delay the call."""
        if self._first_429 is None:
            return self._patience
        return max(0.0, self._first_429 + self._patience - self._clock())

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds to wait after a failure that may be retried."""
        error = _failure_of(state)
        cause = cause_of(error)
        if cause is Cause.RATE_LIMIT and self._first_429 is None:
            self._first_429 = self._clock()
        seconds = retry_after_seconds(error)
        if seconds is None:
            seconds = min(FIRST_WAIT * 2 ** min(self._waits.get(cause, 0), 16), LONGEST_WAIT)
        self._waits[cause] = self._waits.get(cause, 0) + 1
        return seconds * (1 + JITTER * random.random())

    def is_spent(self, state: tenacity.RetryCallState) -> bool:
        """Return whether to give up. A wait that would exceed the patience is not started."""
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


def is_retryable(error: BaseException) -> bool:
    """Return whether an attempt that failed with this error may be retried."""
    return cause_of(error) in _RETRYABLE


async def run_retries(
    attempt: Callable[[], Awaitable[T]],
    first: Exception,
    budget: Budget,
    on_retry: Callable[[Exception, float], None],
) -> T:
    """Retry a call until it succeeds or its budget is spent. Only on the loop.

    The caller makes the first attempt itself, to save the 30 us that tenacity takes.

    Args:
        attempt: Makes one attempt.
        first: The error of the first attempt.
        budget: The retries and the time that the call has left.
        on_retry: Called before each retry with the error and the seconds until the retry.

    Raises:
        Exception: The error of the last attempt.
    """
    failure: Exception | None = first

    async def attempt_again() -> T:
        nonlocal failure
        if failure is None:
            return await attempt()
        error, failure = failure, None
        raise error

    def before_sleep(state: tenacity.RetryCallState) -> None:
        on_retry(_failure_of(state), state.upcoming_sleep)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_retryable),
        wait=budget.wait,
        stop=budget.is_spent,
        before_sleep=before_sleep,
        reraise=True,
    )
    return await retrying(attempt_again)


@contextlib.contextmanager
def settling(permit: Permit) -> Iterator[None]:
    """Release a permit at the end of the block, even if the block fails.

    An error in the block is a bug of this package. It goes to the loop's exception handler, because
    it must replace neither a paid answer nor the server's own error.
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
    """Release a permit after a failed attempt, and report the kind of failure to the governor."""
    with settling(permit):
        _settle(permit, error)


def _settle(permit: Permit, error: BaseException) -> None:
    if isinstance(error, openai.APIStatusError):
        cause, headers = cause_of(error), error.response.headers
        if cause is Cause.RATE_LIMIT:
            permit.refused(error, headers, retry_after_seconds(error))
        elif error.status_code in OVERLOADED:
            permit.overloaded(error, headers, retry_after_seconds(error))
        else:
            permit.failed(error, unreachable=error.status_code in UNREACHABLE)
    elif isinstance(error, Exception):
        permit.failed(error, unreachable=is_of_outage(error))
    else:
        permit.release()


def is_of_outage(error: BaseException) -> bool:
    """Return whether a failure shows that the server is unreachable or overloaded."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in OVERLOADED | UNREACHABLE
    lost = isinstance(error, openai.APIConnectionError)
    return lost and not isinstance(error, openai.APITimeoutError)
