"""The requests and answers that a `FakeOpenAI` records."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

from .replies import RecordedRequest

__all__ = ["RecordedAnswer", "TrafficRecord"]


class RecordedAnswer(NamedTuple):
    """An answer that the server began to send.

    Attributes:
        at: The time, in seconds of `gptx_async.clock`.
        model: The model that the request names, or None.
        status: The HTTP status.
    """

    at: float
    model: str | None
    status: int


class TrafficRecord:
    """Records the requests and answers of a server. Its methods are allowed in any thread.

    Args:
        keep: How many of the latest requests, and of the latest answers, to keep; None for all.
    """

    def __init__(self, keep: int | None) -> None:
        # Guards the attributes below, and notifies waiting threads when one of them changes.
        self._changed = threading.Condition()
        self._requests: deque[RecordedRequest] = deque(maxlen=keep)
        self._answers: deque[RecordedAnswer] = deque(maxlen=keep)
        self._statuses: Counter[int] = Counter()
        self._in_flight = 0
        self._max_in_flight = 0
        self._disconnected = 0

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests in the order of arrival; the list is a copy."""
        with self._changed:
            return list(self._requests)

    @property
    def answers(self) -> list[RecordedAnswer]:
        """The answers in the order in which the server began them; the list is a copy.

        A request whose connection was lost, by a fault or by the client, has no answer.
        """
        with self._changed:
            return list(self._answers)

    @property
    def statuses(self) -> Counter[int]:
        """How many answers had each HTTP status since `clear`; a copy.

        It counts all answers, however few are kept. A lost connection has no status.
        """
        with self._changed:
            return self._statuses.copy()

    @property
    def in_flight(self) -> int:
        """How many requests have arrived and are not answered yet."""
        with self._changed:
            return self._in_flight

    @property
    def max_in_flight(self) -> int:
        """The highest number of requests that were in flight at the same time."""
        with self._changed:
            return self._max_in_flight

    @property
    def disconnected(self) -> int:
        """How many requests the client abandoned before the answer."""
        with self._changed:
            return self._disconnected

    def clear(self) -> None:
        """Remove the recorded requests and answers, and reset the counters.

        The buckets of `rate_limits` do not change.
        """
        with self._changed:
            self._requests.clear()
            self._answers.clear()
            self._statuses.clear()
            self._max_in_flight = self._in_flight
            self._disconnected = 0
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[Self], bool], timeout: float = 10.0) -> None:
        """Block the calling thread until the predicate is true, without polling.

            server.wait_for(lambda server: server.in_flight == 2)

        Args:
            predicate: Called with the server now and after each change of a counter. The server
                waits for it, so it must not block.
            timeout: How long to wait, in seconds.

        Raises:
            TimeoutError: The predicate was not true in time; the message has the counters.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(
                    f"The fake server was not as expected within {timeout} s. Requests recorded: "
                    f"{len(self._requests)}, in flight: {self._in_flight}, most in flight at once: "
                    f"{self._max_in_flight}, disconnected: {self._disconnected}, answered by "
                    f"status: {dict(self._statuses)}."
                )

    @contextlib.contextmanager
    def _counted(self, request: RecordedRequest, is_running: Callable[[], bool]) -> Iterator[None]:
        """Record the request, and count it as in flight until the block ends.

        Args:
            request: The request.
            is_running: Tells whether the server runs. A closing server cancels handlers as well as
                a client that disconnects.
        """
        with self._changed:
            self._requests.append(request)
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            self._changed.notify_all()
        gone = False
        try:
            yield
        except asyncio.CancelledError:  # aiohttp cancels the handler when the connection is lost
            gone = is_running()
            raise
        finally:
            with self._changed:
                self._in_flight -= 1
                self._disconnected += gone
                self._changed.notify_all()

    def _record_answer(self, answer: RecordedAnswer) -> None:
        """Record an answer. `_counted`, which is about to end, notifies waiting threads."""
        with self._changed:
            self._answers.append(answer)
            self._statuses[answer.status] += 1
