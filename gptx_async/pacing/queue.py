"""The queue of a governor: tickets that wait for their turn, and the permits that they get."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from .settings import Pacing

__all__ = ["Crowd", "Permit", "Queue", "StarvedError", "Ticket"]


class StarvedError(Exception):
    """The server only refused, for as long as the ticket had patience.

    Attributes:
        error: The server's last refusal of any ticket.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"nothing but refusals: {error!r}")
        self.error = error


class Crowd(NamedTuple):
    """What had been sent when the current moment began; its requests may overtake each other.

    Attributes:
        at: The loop's time when the moment began.
        sent: The requests sent before.
        tokens: The tokens sent before.
    """

    at: float
    sent: int
    tokens: float


class Admitting(Protocol):
    """A governor, as far as its tickets and permits know it. All on the loop's thread."""

    def admit_at_once(self, ticket: Ticket, now: float) -> Permit | None:
        """Admit a ticket that need not wait."""

    def enqueue(self, ticket: Ticket, now: float) -> None:
        """Let a ticket wait for its turn."""

    def abandon(self, turn: asyncio.Future[Permit | StarvedError]) -> None:
        """Let go a ticket whose caller was cancelled."""

    def note_sleep(self, ticket: Ticket, seconds: float) -> None:
        """Note that a call waits by itself before it asks again."""

    def close_ticket(self, ticket: Ticket) -> None:
        """Note that a call has ended."""

    def settle_success(
        self, permit: Permit, headers: Mapping[str, str], tokens: int | None, now: float
    ) -> None:
        """Learn from an answer."""

    def settle_refusal(
        self,
        permit: Permit,
        error: Exception,
        headers: Mapping[str, str],
        retry_after: float | None,
        now: float,
    ) -> None:
        """Learn from a 429."""

    def settle_overload(
        self, permit: Permit, error: Exception, retry_after: float | None, now: float
    ) -> None:
        """Learn from a 503 or 529."""

    def settle_failure(
        self,
        permit: Permit,
        error: Exception,
        unreachable: bool,  # noqa: FBT001 - a permit passes all of these on by position
        now: float,
    ) -> None:
        """Learn from another error."""

    def settle_release(self, permit: Permit, now: float) -> None:
        """Learn nothing."""

    def take_back(self, permit: Permit) -> None:
        """Note that one request fewer is in flight."""

    def admit_waiting(self, now: float) -> None:
        """Admit the tickets whose turn it is."""


class Ticket:
    """One call's place in the queue, over all its attempts. Made by `Governor.ticket`.

    Attributes:
        waited: The seconds that the ticket has waited for its admissions so far.
        attempts: The number of times that the ticket was admitted.
        prompt_tokens: The tokens of the prompt.
        answer_tokens: The most tokens that the answer may have, or None.
        pacing: The engine's settings, kept alive so that they count while the call is under way.
        number: The number of the first attempt: the ticket's place among those that try again.
        faults: The number of attempts that cost a retry.
        arrived_at: The loop's time of the first `admit`.
        patience: The seconds after which a refusal ends the wait.
        is_test: Whether the next attempt goes out although the server suggests to wait.
        turn: The future that ends the current wait, or None.
    """

    def __init__(
        self, governor: Admitting, pacing: Pacing, prompt_tokens: int, answer_tokens: int | None
    ) -> None:
        self.waited = 0.0
        self.attempts = 0
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.pacing = pacing
        self.number = math.inf
        self.faults = 0
        self.arrived_at = math.inf
        self.patience = math.inf
        self.is_test = False
        self.turn: asyncio.Future[Permit | StarvedError] | None = None
        self._governor = governor

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number

    async def admit(self, patience: float) -> Permit:
        """Wait for the turn of the next attempt. Call it again only when it has returned.

        Args:
            patience: The seconds, counted from the ticket's first `admit` or the first failure
                since the last success, whichever is later, after which a further refusal of any
                ticket ends the wait; `OUTAGE_PATIENCE` for other failures, and at least
                `UNSENT_PATIENCE` before the first attempt. The wait also ends when refusals have
                kept the governor from admitting any ticket for so long. It does not end while
                tickets only wait for a configured limit or for slow answers.

        Returns:
            The permit, to be given back by one of its methods.

        Raises:
            StarvedError: The server only refused for as long.
            RequestTooLargeError: The request alone has more than the minute's tokens.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.arrived_at = min(self.arrived_at, now)
        self.patience = patience
        permit = self._governor.admit_at_once(self, now)
        if permit is not None:
            return permit
        self.turn = turn = loop.create_future()
        try:
            self._governor.enqueue(self, now)
            outcome = await turn
        except (Exception, asyncio.CancelledError):
            turn.cancel()
            self._governor.abandon(turn)
            raise
        finally:
            self.waited += loop.time() - now
            self.turn = None
        if isinstance(outcome, Permit):
            return outcome
        raise outcome

    def sleep(self, seconds: float) -> None:
        """Note that the call waits for so many seconds, after a 429, before it asks again.

        On the loop's thread.
        """
        self._governor.note_sleep(self, seconds)

    def close(self) -> None:
        """Note that the call has ended. On the loop's thread, once."""
        self._governor.close_ticket(self)

    @property
    def is_waiting(self) -> bool:
        """Whether the ticket waits for its turn."""
        return self.turn is not None and not self.turn.done()


class Permit:
    """The permission to send one attempt, to be given back by exactly one of its methods.

    Attributes:
        is_probe: Whether all others are held because of an outage, and this attempt tests whether
            the server is back. Its failure says nothing about the call itself.
        ticket: The ticket that got it.
        number: The number of requests sent before.
        sent_at: The loop's time when the permit was given.
        tokens: The tokens reserved for the request.
        tokens_before: The tokens of all requests sent before.
        crowd: What had been sent before the moment of this request.
        is_test: Whether the request was sent although the server suggested to wait.
    """

    __slots__ = ("_given_back", "_governor", "crowd", "is_probe", "is_test", "number", "sent_at",
                 "ticket", "tokens", "tokens_before")  # fmt: skip

    def __init__(
        self,
        governor: Admitting,
        ticket: Ticket,
        number: int,
        tokens: float,
        tokens_before: float,
        crowd: Crowd,
        now: float,
        *,
        is_probe: bool,
    ) -> None:
        self.is_probe = is_probe
        self.ticket = ticket
        self.number = number
        self.sent_at = now
        self.tokens = tokens
        self.tokens_before = tokens_before
        self.crowd = crowd
        self.is_test = ticket.is_test
        self._governor = governor
        self._given_back = False

    def succeeded(self, headers: Mapping[str, str], tokens: int | None) -> None:
        """Give back after an answer, with its headers and its `usage.total_tokens`, or None."""
        self._settle(self._governor.settle_success, headers, tokens)

    def refused(
        self, error: Exception, headers: Mapping[str, str], retry_after: float | None
    ) -> None:
        """Give back after a 429 that is worth a retry, with the seconds it asks for, or None."""
        self._settle(self._governor.settle_refusal, error, headers, retry_after)

    def overloaded(
        self,
        error: Exception,
        headers: Mapping[str, str],  # noqa: ARG002 - the same arguments as `refused`
        retry_after: float | None,
    ) -> None:
        """Give back after a 503 or 529, with the seconds it asks for, or None."""
        self._settle(self._governor.settle_overload, error, retry_after)

    def failed(self, error: Exception, *, unreachable: bool) -> None:
        """Give back after another error; unreachable: no connection, 502, 504."""
        self._settle(self._governor.settle_failure, error, unreachable)

    def release(self) -> None:
        """Give back without an outcome, as after a cancellation. Does nothing after another."""
        if not self._given_back:
            self._settle(self._governor.settle_release)

    def _settle(self, learn: Callable[..., None], *args: Any) -> None:
        if self._given_back:
            raise RuntimeError("A permit was given back twice. Call one of its methods, once.")
        self._given_back = True
        self._governor.take_back(self)
        now = asyncio.get_running_loop().time()
        try:
            learn(self, *args, now)
        except BaseException:
            self._governor.admit_waiting(now)  # or nobody would admit the tickets that wait
            raise


class Queue:
    """The tickets that wait: first come, first served. All on the loop's thread.

    Attributes:
        waiting: The number of tickets that wait. May be read in any thread.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._fresh: deque[Ticket] = deque()  # not admitted yet, in the order of their arrival
        self._again: list[Ticket] = []  # a heap of those that were admitted: they arrived earlier

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over the tickets that wait. The wait of each may be ended during the loop."""
        for ticket in [*self._again, *self._fresh]:  # a ticket may be in the heap more than once
            if ticket.is_waiting:
                yield ticket

    def push(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        if ticket.attempts:
            heapq.heappush(self._again, ticket)
        else:
            self._fresh.append(ticket)
        self.waiting += 1

    def end(self, ticket: Ticket, outcome: Permit | StarvedError) -> None:
        """End the wait of a ticket with its permit, or with an error."""
        assert ticket.turn is not None
        self.waiting -= 1
        ticket.turn.set_result(outcome)

    def next(self, *, is_probe: bool) -> Ticket | None:
        """Return the ticket whose turn it is, or None.

        Args:
            is_probe: Whether the next attempt is a probe. A probe may cost its call one of its
                retries: a ticket that was never sent goes first, then the one with the fewest
                faults.
        """
        while self._again and not self._again[0].is_waiting:
            heapq.heappop(self._again)
        while self._fresh and (self._fresh[0].attempts or not self._fresh[0].is_waiting):
            self._fresh.popleft()
        if self._again and not is_probe:
            return self._again[0]
        if self._fresh:
            return self._fresh[0]
        return min(
            (ticket for ticket in self._again if ticket.is_waiting),
            key=lambda ticket: (ticket.faults, ticket.number),
            default=None,
        )
