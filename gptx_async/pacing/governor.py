"""How many calls go out at once, and how fast: one governor per base URL, key and model.

A governor runs on the loop's thread alone, so it has no locks; its figures may be read in any
thread. Each attempt is admitted with a permit, which is given back with the attempt's outcome. The
outcomes are all that the governor learns from. It never retries: the holder of the ticket does.

    ticket = governor.ticket(pacing)
    permit = await ticket.admit(patience)
    permit.succeeded(...)    # or refused, overloaded, failed, release

Three things limit the admissions:

- slots: the number of requests in flight; cut by overload (503, 529), and restored by successes;
- buckets: a configured `RateLimit`, the server's own limit as its headers describe it, and, where
  neither is known, a rate that is learned from 429s;
- a hold: after several failures in a row, or where a 429 asks for it, all tickets wait. Single
  probes of different tickets go out at growing intervals, and the first that is answered ends the
  hold.

As long as nothing fails, only `max_concurrency` and the `RateLimit` apply.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .controller import LearnedPace, Slots
from .hold import REFUSAL_SECONDS, Hold, SentAndRefused
from .limits import Limits
from .patience import MEMORY_OF_FAILURES, Failures
from .queue import Permit, Queue, StarvedError, Ticket
from .settings import Pacing, Pacings

__all__ = ["Governor", "Pace"]

ROW_OF_FAILURES = 8
"""Failures without a success between them that begin a hold; fewer if fewer calls are open.

An item has three attempts, as in the SDK, so with fewer calls open all would be used up before. A
single call is never held because of an outage: it fails after its attempts, as with the SDK.
"""

LONGEST_TRUST = 60.0
"""Seconds without a request after which a limit is tested again that only the server's headers or
refusals suggest: they may be wrong, or out of date."""

SHORT_RETRY_AFTER = 2.0
"""Seconds of Retry-After up to which a 429 between successes only slows down.

The header has whole seconds: a bucket of 20 a second says 1 where it means 0.05.
"""

FIRST_FEW, FIRST_ANSWER_SECONDS = 8, 0.25
"""Requests that go out before anything is known about a server, and the most seconds for which the
others wait for the first answer: its headers may describe a limit.

Without this wait a first burst of 100 uses up a bucket of 20, and 80 are refused.
"""

RAMP_SECONDS = 2.0
"""Seconds over which the slots are filled again after a hold, where no rate is known."""


class Pace(NamedTuple):
    """What limits the requests of a governor.

    Attributes:
        rate: Requests a second; None where nothing limits them.
        rate_source: 'configured', 'told' (by the server's headers) or 'learned'; None likewise.
        limit_source: What limits the requests in flight: 'configured' or 'learned'.
        last_cut: The error that led to the last cut or pause.
        next_call_in: Seconds until the next request goes out, as far as a timer decides it.
        token_rate: Tokens a second; None where nothing limits them.
        token_rate_source: 'configured' or 'told'; None likewise.
    """

    rate: float | None
    rate_source: str | None
    limit_source: str
    last_cut: Exception | None
    next_call_in: float | None
    token_rate: float | None = None
    token_rate_source: str | None = None


def _ignore(event: str, fields: Mapping[str, object]) -> None:
    """Report nothing."""


class Governor:
    """Admit the attempts of all engines that share a base URL, a key and a model.

    A governor belongs to the loop on which its tickets are admitted; a new loop gets new governors.

    Args:
        name: The governor's name in events.
        notify: Called on the loop's thread, once per change of state and not per call, with
            `governor_cut`, `governor_grew` (a cut is undone) or `governor_paused`, and a mapping:
            `governor` (the name), `limit`, `rate`, `in_flight`, `waiting`, `error` (the last
            failure), for a change `before` and `rate_before`, for a pause its `seconds`.
        rng: For the jitter of pauses.
    """

    def __init__(
        self,
        name: str = "",
        notify: Callable[[str, Mapping[str, object]], None] = _ignore,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._notify = notify
        self._rng = rng or random.Random()
        self._loop: asyncio.AbstractEventLoop
        self._pacings = Pacings()
        self._adaptive = True

        self._slots = Slots(Pacing.max_concurrency)
        self._limits = Limits()
        self._learned = LearnedPace()
        self._reported_pace = math.inf
        self._hold: Hold | None = None
        self._sent_and_refused = SentAndRefused()

        self._queue = Queue()
        self._sleeping: dict[Ticket, float] = {}  # those that wait after a 429, and until when
        self._open_tickets = 0
        self._in_flight = 0
        self._first_answer_by = math.inf  # when the first burst goes out; -inf after an answer
        self._granted_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

        self._failures = Failures()
        self._shortest_patience = math.inf  # of the tickets since the queue was last empty
        self._swept_at = -math.inf
        self._watcher: asyncio.TimerHandle | None = None
        self._last_cut: Exception | None = None

    @property
    def in_flight(self) -> int:
        """The number of permits that are out. Allowed in any thread."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """The number of tickets that wait for their turn. Allowed in any thread."""
        return self._queue.waiting

    @property
    def limit(self) -> int:
        """The number of permits that may be out now. Allowed in any thread."""
        return self._slots.allowed

    @property
    def rate(self) -> float | None:
        """The most requests a second; None for no limit. Allowed in any thread."""
        rate = min(self._learned.pace, self._limits.request_rate)
        return rate if rate < math.inf else None

    @property
    def pace(self) -> Pace:
        """What limits the requests now, and why. Allowed in any thread."""
        return Pace(
            *self._limits.lowest("requests", self._learned.pace),
            "configured" if self._slots.allowed >= self._slots.most else "learned",
            self._last_cut,
            self._next_call_in(),
            *self._limits.lowest("tokens"),
        )

    def _next_call_in(self) -> float | None:
        """Return the seconds until a timer, or the end of a call's own wait, sends a request."""
        timer, wakes_at = self._timer, None
        if self._queue.waiting:
            wakes_at = None if timer is None else timer.when()
        elif not self._in_flight:
            wakes_at = min([*self._sleeping.values()], default=None)
        return None if wakes_at is None else max(0.0, wakes_at - self._loop.time())

    def is_at_rest(self) -> bool:
        """Tell whether another governor could take this one's place without a loss.

        That is so when no call is open, no failure is recent, and no limit is used up even in part.
        On the loop's thread.
        """
        now = asyncio.get_running_loop().time()
        if self._open_tickets or now - self._failures.failed_at < MEMORY_OF_FAILURES:
            return False
        return self._limits.are_unused(now)

    def close(self) -> None:
        """Forget the settings of engines, whose references would keep the governor in memory.

        On the loop's thread, when no call is open.
        """
        self._pacings.clear()

    def ticket(
        self, pacing: Pacing, prompt_tokens: int = 0, answer_tokens: int | None = None
    ) -> Ticket:
        """Return a ticket for one call and all its attempts, to be closed at the call's end.

        On the loop's thread.

        Args:
            pacing: The engine's settings; they count as long as they are alive.
            prompt_tokens: The prompt's tokens, as the engine counts them.
            answer_tokens: The most tokens that the answer may have; None without a limit.
        """
        pacing = pacing.current  # the options may have changed while the call was on its way
        if pacing not in self._pacings:
            self._loop = asyncio.get_running_loop()
            self._register(pacing)
            self._merge(self._loop.time())
        self._open_tickets += 1
        return Ticket(self, pacing, prompt_tokens, answer_tokens)

    def note_sleep(self, ticket: Ticket, seconds: float) -> None:
        """Note that a call waits by itself before it asks again. On the loop's thread."""
        self._sleeping[ticket] = self._loop.time() + seconds

    def close_ticket(self, ticket: Ticket) -> None:
        """Note that a call has ended. On the loop's thread."""
        self._sleeping.pop(ticket, None)
        self._open_tickets -= 1

    # The settings of engines.

    def replace_soon(self, pacing: Pacing, successor: Pacing | None) -> None:
        """Apply other settings in place of these, or none. Allowed in any thread."""
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self._replace, pacing, successor)

    def _register(self, pacing: Pacing) -> None:
        self._pacings.add(pacing)
        pacing.count_for(self)

    def _replace(self, pacing: Pacing, successor: Pacing | None) -> None:
        if pacing not in self._pacings:
            return
        self._pacings.remove(pacing)
        if successor is not None:
            self._register(successor)
        now = self._loop.time()
        self._merge(now)
        self.admit_waiting(now)

    def _merge(self, now: float) -> None:
        """Take the lowest limits of the engines that are alive."""
        alive = [*self._pacings]
        if not alive:
            return
        self._slots.most = min(pacing.max_concurrency for pacing in alive)
        self._adaptive = any(pacing.adaptive for pacing in alive)
        self._limits.configure(alive, now)

    # Admission.

    def admit_at_once(self, ticket: Ticket, now: float) -> Permit | None:
        """Admit a ticket that need not wait. On the loop's thread.

        Raises:
            StarvedError: The ticket's patience is over already.
            RequestTooLargeError: The request alone has more than the minute's tokens.
        """
        self._sleeping.pop(ticket, None)
        if self._pacings.has_lost:
            self._merge(now)
        self._limits.check_size(ticket)
        error = self._failures.last_error
        if error is not None and self._failures.have_starved(ticket, now, self._in_flight):
            raise StarvedError(error)
        is_only = not self._queue.waiting
        shortest = ticket.patience if is_only else min(self._shortest_patience, ticket.patience)
        self._shortest_patience = shortest
        if not is_only or self._until_test(self._held(now), now) or self._wait_of(ticket, now):
            return None
        return self._grant(ticket, now)

    def enqueue(self, ticket: Ticket, now: float) -> None:
        """Let a ticket wait for its turn. On the loop's thread."""
        self._queue.push(ticket)
        self.admit_waiting(now)
        self._watch(now)

    def abandon(self, turn: asyncio.Future[Permit | StarvedError]) -> None:
        """Let a cancelled ticket go, and pass on the permit that it may have got meanwhile."""
        if turn.cancelled():
            self._queue.waiting -= 1
            self.admit_waiting(asyncio.get_running_loop().time())
        elif isinstance(permit := turn.result(), Permit):
            permit.release()

    def admit_waiting(self, now: float) -> None:
        """Admit all whose turn it is, and come back when it is the next one's."""
        self._report_cut()
        if self._pacings.has_lost:
            self._merge(now)
        while self._queue.waiting:
            delay = self._until_test(self._held(now), now)
            if not delay:
                ticket = self._queue.next(is_probe=self._hold is not None)
                if ticket is None:
                    return
                delay = self._wait_of(ticket, now)
                if not delay:
                    self._queue.end(ticket, self._grant(ticket, now))
                    continue
            if delay < math.inf:
                self._wake_at(now + max(delay, 1e-4))  # or a rounded time would not move on
            return

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= at:
                return  # it will look again
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.admit_waiting(asyncio.get_running_loop().time())

    def _wait_of(self, ticket: Ticket, now: float) -> float:
        """Return the seconds until slots and buckets admit a ticket, or it is due as a test."""
        delay = self._delay(ticket, now)
        ticket.is_test = 0 < delay < math.inf
        if not ticket.is_test:
            return delay
        return max(self._limits.configured_delay(ticket, now), self._until_test(delay, now))

    def _delay(self, ticket: Ticket, now: float) -> float:
        """Return the seconds until slots and buckets allow it; inf: until one is given back."""
        if self._in_flight >= self._slots.allowed:
            return math.inf
        delay = 0.0
        if self._adaptive:
            delay = self._learned.delay(now)
            self._report_cut()
            if self._limits.server.sent >= FIRST_FEW:
                delay = max(delay, self._first_answer_by - now)
        return max(delay, self._limits.delay(ticket, now))

    def _until_test(self, delay: float, now: float) -> float:
        """Shorten a delay that the server suggests, so that the next test is not late.

        A test comes a minute after the last request at the latest. Where the server refuses
        requests it comes within half of the tickets' patience, so that they learn by requests of
        their own whether it still does.
        """
        if self._hold is not None and not self._hold.by_refusals:
            return delay
        seconds = LONGEST_TRUST
        if self._failures.is_refusing and self._failures.since is not None:
            seconds = min(seconds, max(REFUSAL_SECONDS, self._shortest_patience / 2))
        return max(0.0, min(delay, self._granted_at + seconds - now))

    def _grant(self, ticket: Ticket, now: float) -> Permit:
        self._granted_at, self._failures.blocked_since = now, None
        server = self._limits.server
        self._sent_and_refused.send(server.sent, now)
        crowd = server.crowd(now)
        tokens = self._limits.reserve(ticket)
        self._limits.take(tokens)
        is_probe = self._hold is not None and not self._hold.by_refusals
        permit = Permit(
            self, ticket, server.sent, tokens, server.tokens_sent, crowd, now, is_probe=is_probe
        )
        if not ticket.attempts:
            ticket.number = server.sent
        ticket.attempts += 1
        if not server.sent:
            self._first_answer_by = now + FIRST_ANSWER_SECONDS
        if self._adaptive:
            self._learned.send(server.sent, self._in_flight, now)
        server.send(tokens)
        self._in_flight += 1
        if self._hold is not None:
            self._hold.send_probe(permit, self._learned.grace, now)
        return permit

    # The outcome of an attempt.

    def take_back(self, permit: Permit) -> None:
        """Note that one request fewer is in flight. On the loop's thread, as all that follows."""
        self._in_flight -= 1
        self._first_answer_by = -math.inf
        if not self._adaptive:  # it may have been when the request was sent
            self._learned.forget(permit.number)

    def settle_success(
        self, permit: Permit, headers: Mapping[str, str], tokens: int | None, now: float
    ) -> None:
        """Learn from an answer."""
        self._failures.note_success()
        if tokens is not None:
            self._limits.settle(permit, tokens)
        if self._adaptive:
            self._limits.hear(permit, headers, now, took=1)
            if permit.is_test:
                self._limits.forget_unless_repeated(headers)
            self._speed_up(permit, now)
        self.admit_waiting(now)

    def _speed_up(self, permit: Permit, now: float) -> None:
        before, rate_before = self.limit, self.rate
        was_limited = self._learned.concurrency.is_limited
        self._learned.accept(permit.number, now)
        if was_limited and not self._learned.concurrency.is_limited:
            self._slots.forget()
        grew = self._slots.grow(permit.number, self._in_flight + 1)
        if self._hold is not None and permit.number >= self._hold.number:
            self._resume(self._hold, now)
        elif rate_before is not None and self.rate is None:
            grew = True
        if grew:
            self._tell("governor_grew", before=before, rate_before=rate_before)

    def settle_refusal(
        self,
        permit: Permit,
        error: Exception,
        headers: Mapping[str, str],
        retry_after: float | None,
        now: float,
    ) -> None:
        """Learn from a 429."""
        self._failures.note(error, now, is_refusal=True)
        self._limits.give_back(permit)
        if self._adaptive:
            told = self._limits.hear(permit, headers, now, took=0)
            if told and not ("retry-after" in headers or "retry-after-ms" in headers):
                retry_after = None  # derived from a reset: the bucket knows better
            # A request sent before the limits were known teaches no more than they do.
            if told and permit.number < self._limits.server.known_from:
                self._learned.forget(permit.number)
            else:
                self._slow_down(permit, retry_after or 0.0, now)
        self._after_failure(now)

    def _slow_down(self, permit: Permit, retry_after: float, now: float) -> None:
        hold = self._hold
        if hold is None or permit.number < hold.number:
            self._sent_and_refused.refused += 1
        if hold is not None:
            self._learned.forget(permit.number)
            hold.put_off(permit, retry_after, self._rng, now)
            return
        before = self.rate
        # The rate of a longer window than a minute, such as a day's, is no pace to begin with.
        if before and before * LONGEST_TRUST >= 1 and self._learned.pace == math.inf:
            self._learned.start(before, now)  # the server described too high a rate
        limit = self.limit
        if self._learned.concurrency.is_limited and self._slots.overload(
            permit.number, self._limits.server.sent, self._in_flight
        ):
            self._tell("governor_cut", before=limit, rate_before=self.rate)
        self._learned.refuse(permit.number, permit.sent_at, now)
        if self._learned.is_blocked:
            self._begin_hold(retry_after, now, by_refusals=True)

    def settle_overload(
        self, permit: Permit, error: Exception, retry_after: float | None, now: float
    ) -> None:
        """Learn from a 503 or 529."""
        permit.ticket.faults += 1
        self._failures.note(error, now)
        self._limits.give_back(permit)
        if self._adaptive:
            before = self.limit
            if self._slots.overload(permit.number, self._limits.server.sent, self._in_flight):
                self._tell("governor_cut", before=before, rate_before=self.rate)
            self._lengthen_row(permit, retry_after or 0.0, now)
        self._after_failure(now)

    def settle_failure(
        self,
        permit: Permit,
        error: Exception,
        unreachable: bool,  # noqa: FBT001 - a permit passes all of these on by position
        now: float,
    ) -> None:
        """Learn from another error; unreachable: no connection, 502, 504."""
        permit.ticket.faults += 1
        if not unreachable:
            self._learned.accept(permit.number, now)
        if unreachable:
            self._failures.note(error, now)
            self._limits.give_back(permit)
            if self._adaptive:
                self._lengthen_row(permit, 0.0, now)
        elif self._hold is not None and self._hold.probe is permit:
            self._resume(self._hold, now)  # the server answers; the next such failure holds again
        self._after_failure(now)

    def settle_release(self, permit: Permit, now: float) -> None:
        """Learn nothing."""
        self._learned.forget(permit.number)
        if self._hold is not None and self._hold.probe is permit:
            self._hold.drop_probe(now)
        self.admit_waiting(now)

    # Holding all, and resuming.

    def _lengthen_row(self, permit: Permit, retry_after: float, now: float) -> None:
        """Count a failure in a row; hold all if it is one too many, or asks for it."""
        self._failures.in_row += 1
        self._learned.forget(permit.number)
        if self._hold is not None:
            self._hold.put_off(permit, retry_after, self._rng, now)
            return
        enough = min(ROW_OF_FAILURES, max(2, self._open_tickets))
        may_hold = self._failures.has_succeeded and self._open_tickets > 1
        row = self._failures.in_row >= enough and may_hold
        if row or retry_after > SHORT_RETRY_AFTER:
            self._begin_hold(retry_after, now, by_refusals=False)

    def _begin_hold(self, retry_after: float, now: float, *, by_refusals: bool) -> None:
        mark = self._sent_and_refused.mark
        self._hold = Hold.begin(
            retry_after, self._limits.server.sent, mark, self._rng, now, by_refusals=by_refusals
        )
        self._learned.interrupt(now)
        self._tell("governor_paused", seconds=self._hold.until - now)

    def _held(self, now: float) -> float:
        """Return the seconds for which all are held."""
        hold = self._hold
        if hold is None:
            return 0.0
        if not hold.by_refusals and self._open_tickets <= 1:
            self._hold = None  # a single call finds out by itself
            return 0.0
        if hold.until <= now and hold.by_refusals and hold.probe is not None:
            self._resume(hold, now)
            return 0.0
        return max(0.0, hold.until - now)

    def _resume(self, hold: Hold, now: float) -> None:
        """Let all go on, spread out."""
        self._hold = None
        rate = hold.accepted_rate(self._sent_and_refused.refused)
        if rate == math.inf and self._learned.pace == math.inf:
            rate = max(1.0, self._slots.allowed / RAMP_SECONDS)
        self._learned.resume(rate, now)

    # Patience.

    def _after_failure(self, now: float) -> None:
        """End the tickets whose patience is over, at most once a second, and admit others."""
        if now - self._swept_at >= 1:
            self._swept_at = now
            self._end_starved(now)
        self.admit_waiting(now)
        self._watch(now)

    def _watch(self, now: float) -> None:
        """Look at the patience of the tickets each second, for as long as there are failures."""
        if self._watcher is None and self._queue.waiting and self._failures.since is not None:
            self._watcher = asyncio.get_running_loop().call_at(now + 1, self._look)

    def _look(self) -> None:
        self._watcher = None
        now = asyncio.get_running_loop().time()
        self._failures.note_blocked(now, is_blocked=self._is_blocked(now))
        self._end_starved(now)
        self._watch(now)

    def _is_blocked(self, now: float) -> bool:
        """Tell whether tickets wait, and refusals or the server's headers are the only reason."""
        if not self._failures.is_refusing or self._in_flight >= self._slots.allowed:
            return False
        ticket = self._queue.next(is_probe=self._hold is not None)
        return ticket is not None and not self._limits.configured_delay(ticket, now)

    def _end_starved(self, now: float) -> None:
        error = self._failures.last_error
        if error is None:
            return
        for ticket in self._queue:
            if self._failures.have_starved(ticket, now, self._in_flight):
                self._queue.end(ticket, StarvedError(error))

    def _report_cut(self) -> None:
        """Report that the learned pace fell, unless a bucket is lower anyway.

        Refusals count in the order of sending, so an answer or a timer may complete the evidence.
        """
        before, self._reported_pace = self._reported_pace, self._learned.pace
        if self._reported_pace < before:
            before = min(before, self._limits.request_rate)
            if self._reported_pace < before:
                rate_before = before if before < math.inf else None
                self._tell("governor_cut", before=self.limit, rate_before=rate_before)

    def _tell(self, event: str, **fields: object) -> None:
        if event != "governor_grew":
            self._last_cut = self._failures.last_error
        self._notify(
            event,
            {
                "governor": self.name,
                "limit": self.limit,
                "rate": self.rate,
                "in_flight": self._in_flight,
                "waiting": self._queue.waiting,
                "error": self._failures.last_error,
                **fields,
            },
        )
