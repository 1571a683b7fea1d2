"""How many calls go out at once, and how fast: one governor per base URL, key and model.

It runs on the loop's thread alone, so there are no locks; its figures may be read in any thread.
An attempt is admitted with a permit and gives it back with what came of it, which is all that the
governor learns from. It never tries again by itself: that is the business of who holds the ticket.

    ticket = governor.ticket(pacing)
    permit = await ticket.admit(patience)
    permit.succeeded(...)    # or refused, overloaded, failed, release

What bounds the admissions, each for its own reason:

- slots: how many are out at once; cut by overload (503, 529), grown back by successes;
- buckets: a configured `RateLimit`, the server's own as its headers tell it, and, where nobody
  tells, a rate that is learned from 429s;
- a hold: after a row of failures, or where a 429 says so, all wait together; single probes, of
  different tickets, go out at growing gaps, and the first that is answered ends it.

With no bad news nothing is held back but what `max_concurrency` and `RateLimit` say.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import random
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..checks import whole_numbers
from ..errors import ConfigurationError, RequestTooLargeError
from .buckets import LONGEST_DEBT, WAY_JITTER, Bucket, ServerBucket, read_told
from .controller import LearnedPace, Slots
from .rate_limit import RateLimit

__all__ = ["Governor", "Pace", "Pacing", "Permit", "StarvedError", "Ticket"]

ROW_OF_FAILURES = 8
"""How many failures without a success between hold all; as many as are at work, if they are fewer.

An item has three attempts as the SDK has them, so with fewer at work all would be spent before. One
call alone is never held for an outage: it fails after its attempts, as with the SDK.
"""

FIRST_GAP, LAST_GAP = 0.5, 8.0
"""Seconds before the first probe of a hold, and between two at most; doubled each time.

The SDK's own backoff (INITIAL_RETRY_DELAY and MAX_RETRY_DELAY of openai._constants).
"""

OUTAGE_PATIENCE = 60.0
"""Seconds for which a ticket waits for a server that does not answer at all, at most.

Retries were not meant to bridge an outage, so this is shorter than the patience with refusals.
"""

UNSENT_PATIENCE = 2.0
"""Seconds for which a ticket that was never sent waits at least, whatever its patience: it fails
for the refusals of others only if they go on.
"""

MEMORY_OF_FAILURES = 600.0
"""Seconds for which a failure counts as news that a governor is kept for, though nobody uses it."""

LONGEST_TRUST = 60.0
"""Seconds without a request after which a limit is tested again that only the server's headers or
refusals suggest: they may be wrong, or out of date."""

LONGEST_PAUSE = 10.0
"""Seconds that a Retry-After may hold all: the ticket that was told waits the rest for itself.

An hour told to one would freeze everyone (UKGovernmentBEIS/inspect_ai#5137).
"""

SHORT_RETRY_AFTER = 2.0
"""Seconds of Retry-After up to which a 429 between successes only slows down.

The header has whole seconds: a bucket of 20 a second says 1 where it means 0.05.
"""

REFUSAL_SECONDS = 1.0
"""After how long a probe that is not refused is taken for accepted; an answer may take minutes."""

FIRST_FEW, FIRST_ANSWER_SECONDS = 8, 0.25
"""How many requests go out before anything is known of a server, and for how many seconds at most
the others wait for the first answer: its headers may tell a limit.

Without this wait a first burst of 100 spends what a bucket of 20 has, and 80 are refused.
"""

RAMP_SECONDS = 2.0
"""Over how many seconds the slots are filled again after a hold, where no rate is known."""

GUESSED_ANSWER = 256.0
"""Tokens that an answer without a limit is reckoned with before the first has come."""

OUTLIER = 64
"""How many times the mean an answer counts at most in the mean: one `usage` that lies, or one very
long answer, says little of the next."""


@dataclass(frozen=True, eq=False)
class Pacing:
    """What one engine asks of the governor that it shares with others; one object per engine.

    Where engines meet in one governor, the lowest figures of those still alive hold, and it adapts
    if any of them does.

    Attributes:
        max_concurrency: How many requests may be out at once.
        rate_limit: What may be sent in a minute, or None.
        adaptive: Whether the answers move the limits. If not, only the two above hold.

    Raises:
        ConfigurationError: `max_concurrency` is not a positive whole number, or `rate_limit` no
            `RateLimit`.
    """

    max_concurrency: int = 256
    rate_limit: RateLimit | None = None
    adaptive: bool = True
    _governors: list[weakref.ref[Governor]] = field(default_factory=list, init=False, repr=False)
    _successor: Pacing | None = field(default=None, init=False, repr=False)

    def retire(self, successor: Pacing | None = None) -> None:
        """Stop applying the limits, until the next call that has them. Allowed in any thread.

        An engine that is no longer registered may live on for long: it is part of a reference
        cycle, which after `gc.freeze()` is never collected.

        Args:
            successor: The limits to apply instead, also to the calls that wait.
        """
        object.__setattr__(self, "_successor", successor)
        for reference in [*self._governors]:
            governor = reference()
            if governor is not None:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    governor._loop.call_soon_threadsafe(governor._replace, self, successor)

    def _count_for(self, governor: Governor) -> None:
        alive = [reference for reference in self._governors if reference() is not None]
        self._governors[:] = [*alive, weakref.ref(governor)]

    def __post_init__(self) -> None:
        count = whole_numbers("requests").check("max_concurrency", self.max_concurrency)
        object.__setattr__(self, "max_concurrency", count)
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):
            raise ConfigurationError(
                f"rate_limit is {self.rate_limit!r}. Give a gptx_async.RateLimit, or None."
            )


class StarvedError(Exception):
    """The server only refused, for as long as the ticket had patience.

    Attributes:
        error: What the server last refused with, to any ticket.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"nothing but refusals: {error!r}")
        self.error = error


class Ticket:
    """One call's place in the queue, over all its attempts. Made by `Governor.ticket`.

    Attributes:
        waited: Seconds that it has waited for its admissions so far.
        attempts: How many times it was admitted.
    """

    def __init__(
        self, governor: Governor, pacing: Pacing, prompt_tokens: int, answer_tokens: int | None
    ) -> None:
        self.waited = 0.0
        self.attempts = 0
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self._governor = governor
        self._pacing = pacing  # held, or it would not count while its calls are under way
        self._number = math.inf  # of its first attempt: its place among those that try again
        self._faults = 0  # attempts that cost a retry
        self._arrived_at = math.inf
        self._patience = math.inf
        self._is_test = False  # its next attempt goes out though the server suggests to wait
        self._turn: asyncio.Future[Permit | StarvedError] | None = None

    def __lt__(self, other: Ticket) -> bool:
        return self._number < other._number

    async def admit(self, patience: float) -> Permit:
        """Wait for the turn of the next attempt. One at a time.

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
            RequestTooLargeError: The request alone is more than the minute's tokens.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._governor._sleeping.pop(self, None)
        self._arrived_at = min(self._arrived_at, now)
        self._patience = patience
        permit = self._governor._admit_at_once(self, now)
        if permit is not None:
            return permit
        self._turn = turn = loop.create_future()
        try:
            self._governor._enqueue(self, now)
            outcome = await turn
        except (Exception, asyncio.CancelledError):
            turn.cancel()
            self._governor._abandon(turn)
            raise
        finally:
            self.waited += loop.time() - now
            self._turn = None
        if isinstance(outcome, Permit):
            return outcome
        raise outcome

    def sleep(self, seconds: float) -> None:
        """Note that the call now waits for so many seconds, after a 429, before it asks again.

        On the loop's thread.
        """
        self._governor._sleeping[self] = self._governor._loop.time() + seconds

    def close(self) -> None:
        """Tell that the call has ended. On the loop's thread, once."""
        self._governor._sleeping.pop(self, None)
        self._governor._open_tickets -= 1

    @property
    def _waits(self) -> bool:
        return self._turn is not None and not self._turn.done()


class Permit:
    """The leave to send one attempt, given back by exactly one of its methods.

    Attributes:
        is_probe: Whether all others are held over an outage, and this attempt goes out to see if
            the server is back: that it is not says nothing of the call itself.
    """

    __slots__ = ("_crowd", "_given_back", "_governor", "_is_test", "_number", "_sent_at", "_ticket",
                 "_tokens", "_tokens_before", "is_probe")  # fmt: skip

    def __init__(
        self, governor: Governor, ticket: Ticket, tokens: float, now: float, is_probe: bool
    ) -> None:
        self.is_probe = is_probe
        self._governor = governor
        self._ticket = ticket
        self._number = governor._sent
        self._sent_at = now
        self._tokens = tokens
        self._tokens_before = governor._tokens_sent
        self._crowd = governor._crowd
        self._is_test = ticket._is_test
        self._given_back = False

    def succeeded(self, headers: Mapping[str, str], tokens: int | None) -> None:
        """Give back after an answer, with its headers and its `usage.total_tokens`, if it says."""
        self._settle(self._governor._succeeded, headers, tokens)

    def refused(
        self, error: Exception, headers: Mapping[str, str], retry_after: float | None
    ) -> None:
        """Give back after a 429 that time mends, with the seconds it said, if it did."""
        self._settle(self._governor._refused, error, headers, retry_after)

    def overloaded(
        self,
        error: Exception,
        headers: Mapping[str, str],  # noqa: ARG002 - as of `refused`
        retry_after: float | None,
    ) -> None:
        """Give back after a 503 or 529, with the seconds it said, if it did."""
        self._settle(self._governor._overloaded, error, retry_after)

    def failed(self, error: Exception, *, unreachable: bool) -> None:
        """Give back after another error; unreachable: no connection, 502, 504."""
        self._settle(self._governor._failed, error, unreachable)

    def release(self) -> None:
        """Give back and teach nothing, as after a cancel; no more than a no-op after another."""
        if not self._given_back:
            self._settle(self._governor._released)

    def _settle(self, learn: Callable[..., None], *args: Any) -> None:
        now = self._give_back()
        self._governor._first_answer_by = -math.inf
        if not self._governor._adaptive:  # it may have been when the request was sent
            self._governor._learned.forget(self._number)
        try:
            learn(self, *args, now)
        except BaseException:
            self._governor._pump(now)  # or nobody would admit the tickets that wait
            raise

    def _give_back(self) -> float:
        if self._given_back:
            raise RuntimeError("A permit was given back twice. Call one of its methods, once.")
        self._given_back = True
        self._governor._in_flight -= 1
        return asyncio.get_running_loop().time()


class Pace(NamedTuple):
    """What bounds the requests of a governor.

    Attributes:
        rate: Requests a second; None where nothing bounds them.
        rate_source: 'configured', 'told' (by the server's headers) or 'learned'; None likewise.
        limit_source: What bounds the requests in flight: 'configured' or 'learned'.
        last_cut: The error that led to the last cut or pause.
        next_call_in: Seconds until the next request goes out, as far as a timer decides it.
        token_rate: Tokens a second; None where nothing bounds them.
        token_rate_source: 'configured' or 'told'; None likewise.
    """

    rate: float | None
    rate_source: str | None
    limit_source: str
    last_cut: Exception | None
    next_call_in: float | None
    token_rate: float | None = None
    token_rate_source: str | None = None


class _Mark(NamedTuple):
    """How many had been sent, and how many of them refused, at a time."""

    at: float
    sent: int
    refused: int


class _Crowd(NamedTuple):
    """What had been sent before a moment, in which requests may overtake each other, began."""

    at: float
    sent: int
    tokens: float


@dataclass
class _Hold:
    """All wait but for probes."""

    began_at: float
    number: int  # of the first request sent after it began
    by_refusals: bool  # or else by an outage
    until: float  # when the next probe goes
    mark: _Mark  # of one to two seconds before
    gap: float = FIRST_GAP
    probe: Permit | None = None  # the last one, until it is answered


def _ignore(event: str, fields: Mapping[str, object]) -> None:
    """Take no notice."""


class Governor:
    """Admit the attempts of all who share a base URL, a key and a model.

    It belongs to the loop that its tickets are admitted on, and is built anew with it.

    Args:
        name: What its events name it by.
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
        self._pacings: dict[int, weakref.ref[Pacing]] = {}
        self._pacing_died = False
        self._loop: asyncio.AbstractEventLoop
        self._adaptive = True

        self._slots = Slots(Pacing.max_concurrency)
        self._configured: dict[str, Bucket] = {}
        self._told: dict[str, ServerBucket] = {}
        self._first_answer_by = math.inf  # or else the first burst goes out; -inf: it is there
        self._told_from = 0  # the first request sent since the server has told its limits
        self._learned = LearnedPace()
        self._reported_pace = math.inf
        self._by_requests: list[Bucket] = []  # all of these, by what a request costs in them
        self._by_tokens: list[Bucket] = []
        self._hold: _Hold | None = None

        self._fresh: deque[Ticket] = deque()  # not admitted yet, first come first
        self._again: list[Ticket] = []  # a heap of those that were: they all came earlier
        self._sleeping: dict[Ticket, float] = {}  # those that wait after a 429, and until when
        self._open_tickets = 0
        self._waiting = 0
        self._in_flight = 0
        self._timer: asyncio.TimerHandle | None = None

        self._sent = 0
        self._tokens_sent = 0.0
        self._crowd = _Crowd(-math.inf, 0, 0.0)
        self._refused_in_all = 0
        self._marks = (_Mark(-math.inf, 0, 0), _Mark(-math.inf, 0, 0))
        self._answer_tokens: float | None = None
        self._has_succeeded = False
        self._failures_in_row = 0
        self._is_refusing = False  # or else it fails otherwise
        self._failing_since: float | None = None  # the first failure since the last success
        self._failed_at = -math.inf
        self._swept_at = -math.inf
        self._last_cut: Exception | None = None
        self._granted_at = -math.inf
        self._blocked_since: float | None = None  # since when refusals alone let nothing through
        self._patience = math.inf
        self._watcher: asyncio.TimerHandle | None = None
        self._last_error: Exception | None = None

    @property
    def in_flight(self) -> int:
        """How many permits are out. Allowed in any thread."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """How many tickets wait for their turn. Allowed in any thread."""
        return self._waiting

    @property
    def limit(self) -> int:
        """How many permits may be out now. Allowed in any thread."""
        return self._slots.allowed

    @property
    def rate(self) -> float | None:
        """How many requests a second are sent at most; None for no limit. Allowed in any thread."""
        rate = min([self._learned.pace, *(bucket.rate for bucket in self._by_requests)])
        return rate if rate < math.inf else None

    @property
    def pace(self) -> Pace:
        """What bounds the requests now, and why. Allowed in any thread."""
        return Pace(
            *self._lowest("requests", self._learned.pace),
            "configured" if self._slots.allowed >= self._slots.most else "learned",
            self._last_cut,
            self._next_call_in(),
            *self._lowest("tokens"),
        )

    def _lowest(self, kind: str, learned: float = math.inf) -> tuple[float | None, str | None]:
        """Return the lowest rate of a kind, and its source; None for both without a limit."""
        rates = {"learned": learned}
        for source, buckets in (("told", self._told), ("configured", self._configured)):
            if (bucket := buckets.get(kind)) is not None:
                rates[source] = bucket.rate
        source = min(rates, key=lambda each: (rates[each], each != "configured"))
        return (rates[source], source) if rates[source] < math.inf else (None, None)

    def _next_call_in(self) -> float | None:
        """Return the seconds until a timer, or the end of a call's own wait, sends a request."""
        timer, wakes_at = self._timer, None
        if self._waiting:
            wakes_at = None if timer is None else timer.when()
        elif not self._in_flight:
            wakes_at = min([*self._sleeping.values()], default=None)
        return None if wakes_at is None else max(0.0, wakes_at - self._loop.time())

    def is_at_rest(self) -> bool:
        """Tell whether nothing would be lost if another governor took its place.

        That is when no call is open, no failure is recent, and no limit is used up even in part.
        On the loop's thread.
        """
        now = asyncio.get_running_loop().time()
        if self._open_tickets or now - self._failed_at < MEMORY_OF_FAILURES:
            return False
        return all(
            bucket.is_full(now)
            for known in (self._configured, self._told)
            for bucket in known.values()
        )

    def close(self) -> None:
        """Forget the pacings, whose references would keep the governor for the garbage collector.

        On the loop's thread, when no call is open.
        """
        self._pacings.clear()

    def ticket(
        self, pacing: Pacing, prompt_tokens: int = 0, answer_tokens: int | None = None
    ) -> Ticket:
        """Return a ticket for one call and all its attempts, to be closed at the call's end.

        On the loop's thread.

        Args:
            pacing: The engine's; it counts as long as it is alive.
            prompt_tokens: What the engine counts.
            answer_tokens: The most that the answer may have; None where nothing limits it.
        """
        while pacing._successor is not None:  # the options changed while the call was on its way
            pacing = pacing._successor
        if not self._knows(pacing):
            self._loop = asyncio.get_running_loop()
            self._register(pacing)
            self._merge(self._loop.time())
        self._open_tickets += 1
        return Ticket(self, pacing, prompt_tokens, answer_tokens)

    # What the pacings ask for.

    def _note_death(self, _reference: object) -> None:
        self._pacing_died = True  # no more: it may be any thread that collects garbage

    def _knows(self, pacing: Pacing) -> bool:
        known = self._pacings.get(id(pacing))
        return known is not None and known() is pacing

    def _register(self, pacing: Pacing) -> None:
        self._pacings[id(pacing)] = weakref.ref(pacing, self._note_death)
        pacing._count_for(self)

    def _replace(self, pacing: Pacing, successor: Pacing | None) -> None:
        if not self._knows(pacing):
            return
        del self._pacings[id(pacing)]
        if successor is not None:
            self._register(successor)
        now = self._loop.time()
        self._merge(now)
        self._pump(now)

    def _merge(self, now: float) -> None:
        """Take the lowest figures of the pacings that are alive."""
        self._pacing_died = False
        alive = [pacing for reference in self._pacings.values() if (pacing := reference())]
        self._pacings = {key: value for key, value in self._pacings.items() if value() is not None}
        if not alive:
            return
        self._slots.most = min(pacing.max_concurrency for pacing in alive)
        self._adaptive = any(pacing.adaptive for pacing in alive)
        limits = [pacing.rate_limit for pacing in alive if pacing.rate_limit]
        self._configure("requests", [limit.requests_per_minute for limit in limits], now)
        self._configure("tokens", [limit.tokens_per_minute for limit in limits], now)
        self._list_buckets()

    def _configure(self, kind: str, limits: list[float | None], now: float) -> None:
        rate = min((limit / 60 for limit in limits if limit is not None), default=None)
        if rate is None:
            self._configured.pop(kind, None)
        elif kind in self._configured:
            self._configured[kind].change(rate, max(1.0, rate), now)
        else:
            self._configured[kind] = Bucket(rate, max(1.0, rate), now)

    def _list_buckets(self) -> None:
        known = (self._configured, self._told)
        self._by_tokens = [buckets["tokens"] for buckets in known if "tokens" in buckets]
        self._by_requests = [buckets["requests"] for buckets in known if "requests" in buckets]

    # The queue.

    def _admit_at_once(self, ticket: Ticket, now: float) -> Permit | None:
        """Admit a ticket that need not wait."""
        if self._pacing_died:
            self._merge(now)
        self._check_size(ticket)
        if self._is_starved(ticket, now) and self._last_error is not None:
            raise StarvedError(self._last_error)
        self._note_patience(ticket)
        if self._waiting or self._until_test(self._held(now), now) or self._wait_of(ticket, now):
            return None
        return self._grant(ticket, now)

    def _check_size(self, ticket: Ticket) -> None:
        bucket = self._configured.get("tokens")
        tokens = ticket.prompt_tokens + (ticket.answer_tokens or 0)
        if bucket is not None and tokens > bucket.rate * 60 + 1e-6:
            raise RequestTooLargeError(
                f"One request has {tokens} tokens (prompt {ticket.prompt_tokens}, answer up to "
                f"{ticket.answer_tokens or 0}), more than the tokens_per_minute of "
                f"{bucket.rate * 60:.0f}. Shorten it, limit its answer, or raise the RateLimit."
            )

    def _enqueue(self, ticket: Ticket, now: float) -> None:
        if ticket.attempts:
            heapq.heappush(self._again, ticket)
        else:
            self._fresh.append(ticket)
        self._waiting += 1
        self._pump(now)
        self._watch(now)

    def _abandon(self, turn: asyncio.Future[Permit | StarvedError]) -> None:
        """Let a cancelled ticket go, and pass on the permit that it may have got meanwhile."""
        if turn.cancelled():
            self._waiting -= 1
            self._pump(asyncio.get_running_loop().time())
        elif isinstance(permit := turn.result(), Permit):
            permit.release()

    def _pump(self, now: float) -> None:
        """Admit all whose turn it is, and come back when it is the next one's."""
        self._report_cut()
        if self._pacing_died:
            self._merge(now)
        while self._waiting:
            delay = self._until_test(self._held(now), now)
            if not delay:
                ticket = self._next()
                if ticket is None or ticket._turn is None:
                    return
                delay = self._wait_of(ticket, now)
                if not delay:
                    self._waiting -= 1
                    ticket._turn.set_result(self._grant(ticket, now))
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
        self._pump(asyncio.get_running_loop().time())

    def _next(self) -> Ticket | None:
        """Return whose turn it is: first come, first served, but for probes."""
        while self._again and not self._again[0]._waits:
            heapq.heappop(self._again)
        while self._fresh and (self._fresh[0].attempts or not self._fresh[0]._waits):
            self._fresh.popleft()
        if self._again and (self._hold is None or not self._fresh):
            if self._hold is None:
                return self._again[0]
            # A probe may cost its call one of its retries: the turn of who has lost the fewest.
            return min(
                (ticket for ticket in self._again if ticket._waits),
                key=lambda ticket: (ticket._faults, ticket._number),
            )
        return self._fresh[0] if self._fresh else None

    def _delay(self, ticket: Ticket, now: float) -> float:
        """Return the seconds until slots and buckets allow it; inf: until one is given back."""
        if self._in_flight >= self._slots.allowed:
            return math.inf
        delay = 0.0
        if self._adaptive:
            delay = self._learned.delay(now)
            self._report_cut()
            if self._sent >= FIRST_FEW:
                delay = max(delay, self._first_answer_by - now)
        for bucket in self._by_requests:
            delay = max(delay, bucket.delay(1, now))
        for bucket in self._by_tokens:
            delay = max(delay, bucket.delay(self._reserve(ticket), now))
        return delay

    def _reserve(self, ticket: Ticket) -> float:
        """Return the tokens that a request is reckoned with until its answer tells."""
        answer: float | None = ticket.answer_tokens
        if answer is None:
            answer = GUESSED_ANSWER if self._answer_tokens is None else self._answer_tokens
        tokens = ticket.prompt_tokens + answer
        configured = self._configured.get("tokens")
        return tokens if configured is None else min(tokens, configured.rate * LONGEST_DEBT)

    def _grant(self, ticket: Ticket, now: float) -> Permit:
        self._granted_at, self._blocked_since = now, None
        if now - self._marks[1].at >= 1:
            mark = _Mark(now, self._sent, self._refused_in_all)
            self._marks = (self._marks[1] if self._sent else mark, mark)
        if now - self._crowd.at >= WAY_JITTER:
            self._crowd = _Crowd(now, self._sent, self._tokens_sent)
        tokens = self._reserve(ticket)
        for bucket in self._by_requests:
            bucket.take(1)
        for bucket in self._by_tokens:
            bucket.take(tokens)
        is_probe = self._hold is not None and not self._hold.by_refusals
        permit = Permit(self, ticket, tokens, now, is_probe)
        if not ticket.attempts:
            ticket._number = self._sent
        ticket.attempts += 1
        if not self._sent:
            self._first_answer_by = now + FIRST_ANSWER_SECONDS
        if self._adaptive:
            self._learned.send(self._sent, self._in_flight, now)
        self._sent += 1
        self._tokens_sent += tokens
        self._in_flight += 1
        if self._hold is not None:
            self._hold.probe = permit
            self._hold.gap = min(2 * self._hold.gap, LAST_GAP)
            wait = self._learned.grace if self._hold.by_refusals else self._hold.gap
            self._hold.until = now + max(wait, REFUSAL_SECONDS)
        return permit

    # What came of an attempt.

    def _succeeded(
        self, permit: Permit, headers: Mapping[str, str], tokens: int | None, now: float
    ) -> None:
        self._has_succeeded = True
        self._failures_in_row = 0
        self._failing_since = self._blocked_since = None
        if tokens is not None:
            self._settle(permit, tokens)
        if self._adaptive:
            self._hear(permit, headers, 1, now)
            self._believe_test(permit, headers)
            self._speed_up(permit, now)
        self._pump(now)

    def _speed_up(self, permit: Permit, now: float) -> None:
        before, rate_before = self.limit, self.rate
        was_limited = self._learned.concurrency.is_limited
        self._learned.accept(permit._number, now)
        if was_limited and not self._learned.concurrency.is_limited:
            self._slots.forget()
        grew = self._slots.grow(permit._number, self._in_flight + 1)
        if self._hold is not None and permit._number >= self._hold.number:
            self._resume(self._hold, now)
        elif rate_before is not None and self.rate is None:
            grew = True
        if grew:
            self._tell("governor_grew", before=before, rate_before=rate_before)

    def _settle(self, permit: Permit, tokens: float) -> None:
        """Book what was used in place of what was reserved, and learn how long answers are.

        The server's own bucket is followed by what it says alone: OpenAI's does not give back what
        an answer left of its limit (https://platform.openai.com/docs/guides/rate-limits).
        """
        if "tokens" in self._configured:
            self._configured["tokens"].take(tokens - permit._tokens)
        usual = GUESSED_ANSWER if self._answer_tokens is None else self._answer_tokens
        answer = min(max(0.0, tokens - permit._ticket.prompt_tokens), OUTLIER * usual)
        mean = answer if self._answer_tokens is None else self._answer_tokens
        self._answer_tokens = max(1.0, mean + (answer - mean) / 20)

    def _hear(self, permit: Permit, headers: Mapping[str, str], took: int, now: float) -> bool:
        """Follow what the headers say of the server's buckets; tell if they say anything."""
        heard = False
        for kind in ("requests", "tokens"):
            told = read_told(headers, kind)
            if told is None:
                continue
            heard = True
            if kind not in self._told:
                self._told_from = self._told_from if self._told else self._sent
                self._told[kind] = ServerBucket(told.rate, now)
                self._list_buckets()
            if kind == "requests":
                cost, before, until_now = 1.0, float(permit._number), float(self._sent)
                crowd = float(permit._crowd.sent)
            else:
                cost, before, until_now = permit._tokens, permit._tokens_before, self._tokens_sent
                crowd = permit._crowd.tokens
            later, beside = until_now - before - cost, took * (before - crowd)
            age = now - permit._sent_at
            self._told[kind].hear(told, permit._number, age, later, beside, took * cost, now)
        return heard

    def _refused(
        self,
        permit: Permit,
        error: Exception,
        headers: Mapping[str, str],
        retry_after: float | None,
        now: float,
    ) -> None:
        self._note_failure(error, now, is_refusal=True)
        self._settle_unused(permit)
        if self._adaptive:
            told = self._hear(permit, headers, 0, now)
            if told and not ("retry-after" in headers or "retry-after-ms" in headers):
                retry_after = None  # made of a reset, when all is back: the bucket knows better
            # One sent before the server had told its limits teaches no more than they do.
            if told and permit._number < self._told_from:
                self._learned.forget(permit._number)
            else:
                self._slow_down(permit, retry_after or 0.0, now)
        self._after_failure(now)

    def _slow_down(self, permit: Permit, retry_after: float, now: float) -> None:
        hold = self._hold
        if hold is None or permit._number < hold.number:
            self._refused_in_all += 1
        if hold is not None:
            self._learned.forget(permit._number)
            self._put_off(hold, permit, retry_after, now)
            return
        before = self.rate
        # The rate of a longer window than a minute, such as a day's, is no pace to begin with.
        if before and before * LONGEST_TRUST >= 1 and self._learned.pace == math.inf:
            self._learned.start(before, now)  # what was told is too much
        limit = self.limit
        if self._learned.concurrency.is_limited and self._slots.overload(
            permit._number, self._sent, self._in_flight
        ):
            self._tell("governor_cut", before=limit, rate_before=self.rate)
        self._learned.refuse(permit._number, permit._sent_at, now)
        if self._learned.is_blocked:
            self._begin_hold(retry_after, now, by_refusals=True)

    def _overloaded(
        self, permit: Permit, error: Exception, retry_after: float | None, now: float
    ) -> None:
        permit._ticket._faults += 1
        self._note_failure(error, now)
        self._settle_unused(permit)
        if self._adaptive:
            before = self.limit
            if self._slots.overload(permit._number, self._sent, self._in_flight):
                self._tell("governor_cut", before=before, rate_before=self.rate)
            self._lengthen_row(permit, retry_after or 0.0, now)
        self._after_failure(now)

    def _failed(self, permit: Permit, error: Exception, unreachable: bool, now: float) -> None:
        permit._ticket._faults += 1
        if not unreachable:
            self._learned.accept(permit._number, now)
        if unreachable:
            self._note_failure(error, now)
            self._settle_unused(permit)
            if self._adaptive:
                self._lengthen_row(permit, 0.0, now)
        elif self._hold is not None and self._hold.probe is permit:
            self._resume(self._hold, now)  # the server answers; the next such failure holds again
        self._after_failure(now)

    def _released(self, permit: Permit, now: float) -> None:
        self._learned.forget(permit._number)
        if self._hold is not None and self._hold.probe is permit:
            self._hold.probe = None
            self._hold.until = now  # another one, then
        self._pump(now)

    def _settle_unused(self, permit: Permit) -> None:
        if "tokens" in self._configured:
            self._configured["tokens"].take(-permit._tokens)

    # Holding all, and going on.

    def _lengthen_row(self, permit: Permit, retry_after: float, now: float) -> None:
        """Count a failure in a row; hold all if it is one too many, or says so."""
        self._failures_in_row += 1
        self._learned.forget(permit._number)
        if self._hold is not None:
            self._put_off(self._hold, permit, retry_after, now)
            return
        enough = min(ROW_OF_FAILURES, max(2, self._open_tickets))
        may_hold = self._has_succeeded and self._open_tickets > 1
        row = self._failures_in_row >= enough and may_hold
        if row or retry_after > SHORT_RETRY_AFTER:
            self._begin_hold(retry_after, now, by_refusals=False)

    def _begin_hold(self, retry_after: float, now: float, *, by_refusals: bool) -> None:
        pause = min(retry_after, LONGEST_PAUSE)
        until = now + self._jittered(max(pause, FIRST_GAP))
        self._hold = _Hold(now, self._sent, by_refusals, until, self._marks[0])
        self._learned.interrupt(now)
        self._tell("governor_paused", seconds=until - now)

    def _put_off(self, hold: _Hold, permit: Permit, retry_after: float, now: float) -> None:
        """Put off the next probe, after a failure during a hold."""
        pause = min(retry_after, LONGEST_PAUSE)
        if permit._number < hold.number:
            hold.until = max(hold.until, now + pause)
        else:
            hold.until = max(hold.until, now + self._jittered(max(pause, hold.gap)))
            hold.probe = None

    def _held(self, now: float) -> float:
        """Return the seconds for which all are held."""
        hold = self._hold
        if hold is None:
            return 0.0
        if not hold.by_refusals and self._open_tickets <= 1:
            self._hold = None  # one call alone finds out by itself
            return 0.0
        if hold.until <= now and hold.by_refusals and hold.probe is not None:
            self._resume(hold, now)
            return 0.0
        return max(0.0, hold.until - now)

    def _resume(self, hold: _Hold, now: float) -> None:
        """Let all go on, spread out."""
        self._hold = None
        rate = math.inf
        if hold.by_refusals:
            sent = hold.number - hold.mark.sent
            accepted = sent - (self._refused_in_all - hold.mark.refused)
            if accepted > 0:
                rate = accepted / max(1.0, hold.began_at - hold.mark.at)
        if rate == math.inf and self._learned.pace == math.inf:
            rate = max(1.0, self._slots.allowed / RAMP_SECONDS)
        self._learned.resume(rate, now)

    def _jittered(self, pause: float) -> float:
        """Lengthen a pause by up to a tenth: other processes were told the same."""
        return pause * (1 + self._rng.random() / 10)

    # Patience.

    def _note_failure(self, error: Exception, now: float, *, is_refusal: bool = False) -> None:
        if self._failing_since is None:
            self._failing_since = now
        self._is_refusing = is_refusal
        self._failed_at = now
        self._last_error = error

    def _after_failure(self, now: float) -> None:
        """End the tickets whose patience is over, at most once a second, and admit others."""
        if now - self._swept_at >= 1:
            self._swept_at = now
            self._end_starved(now)
        self._pump(now)
        self._watch(now)

    def _watch(self, now: float) -> None:
        """Look at the patience of the tickets each second, for as long as there are failures."""
        if self._watcher is None and self._waiting and self._failing_since is not None:
            self._watcher = asyncio.get_running_loop().call_at(now + 1, self._look)

    def _look(self) -> None:
        self._watcher = None
        now = asyncio.get_running_loop().time()
        if not self._is_blocked(now):
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now
        self._end_starved(now)
        self._watch(now)

    def _is_blocked(self, now: float) -> bool:
        """Tell whether tickets wait, and refusals or the server's headers are the only reason."""
        if not self._is_refusing or self._in_flight >= self._slots.allowed:
            return False
        ticket = self._next()
        return ticket is not None and not self._configured_delay(ticket, now)

    def _end_starved(self, now: float) -> None:
        if self._last_error is None:
            return
        for ticket in [*self._again, *self._fresh]:
            if ticket._waits and ticket._turn is not None and self._is_starved(ticket, now):
                self._waiting -= 1
                ticket._turn.set_result(StarvedError(self._last_error))

    def _is_starved(self, ticket: Ticket, now: float) -> bool:
        """Tell whether failures have held up the ticket for as long as its patience.

        That is so when a failure came that late after the ticket; or, while refusals block the
        queue, when all attempts were refused for as long, or none was admitted.
        """
        if self._failing_since is None:
            return False
        patience = ticket._patience if self._is_refusing else OUTAGE_PATIENCE
        if not ticket.attempts:
            patience = max(patience, UNSENT_PATIENCE)
        since = max(ticket._arrived_at, self._failing_since)
        if self._failed_at - since >= patience:
            return True
        if self._blocked_since is None:
            return False
        return now - (max(since, self._blocked_since) if self._in_flight else since) >= patience

    # A suspected limit is tested again.

    def _note_patience(self, ticket: Ticket) -> None:
        """Keep the shortest patience since the queue was last empty."""
        is_only = not self._waiting
        self._patience = ticket._patience if is_only else min(self._patience, ticket._patience)

    def _until_test(self, delay: float, now: float) -> float:
        """Shorten a delay that the server suggests, so that the next test is not late.

        A test comes a minute after the last request at the latest. Where the server refuses
        requests it comes within half of the tickets' patience, so that they learn by requests of
        their own whether it still does.
        """
        if self._hold is not None and not self._hold.by_refusals:
            return delay
        seconds = LONGEST_TRUST
        if self._is_refusing and self._failing_since is not None:
            seconds = min(seconds, max(REFUSAL_SECONDS, self._patience / 2))
        return max(0.0, min(delay, self._granted_at + seconds - now))

    def _wait_of(self, ticket: Ticket, now: float) -> float:
        """Return the seconds until slots and buckets admit a ticket, or it is due as a test."""
        delay = self._delay(ticket, now)
        ticket._is_test = 0 < delay < math.inf
        if not ticket._is_test:
            return delay
        return max(self._configured_delay(ticket, now), self._until_test(delay, now))

    def _believe_test(self, permit: Permit, headers: Mapping[str, str]) -> None:
        """Forget the limits that an answered test contradicts, unless the server repeats them."""
        if permit._is_test:
            for kind in [*self._told]:
                if read_told(headers, kind) is None:
                    del self._told[kind]
            self._list_buckets()

    def _configured_delay(self, ticket: Ticket, now: float) -> float:
        costs = {"requests": 1.0, "tokens": self._reserve(ticket)}
        delays = (bucket.delay(costs[kind], now) for kind, bucket in self._configured.items())
        return max(delays, default=0.0)

    def _report_cut(self) -> None:
        """Report that the learned pace fell, unless a bucket is lower anyway.

        Refusals count in the order of sending, so an answer or a timer may complete the evidence.
        """
        before, self._reported_pace = self._reported_pace, self._learned.pace
        if self._reported_pace < before:
            before = min([before, *(bucket.rate for bucket in self._by_requests)])
            if self._reported_pace < before:
                rate_before = before if before < math.inf else None
                self._tell("governor_cut", before=self.limit, rate_before=rate_before)

    def _tell(self, event: str, **fields: object) -> None:
        if event != "governor_grew":
            self._last_cut = self._last_error
        self._notify(
            event,
            {
                "governor": self.name,
                "limit": self.limit,
                "rate": self.rate,
                "in_flight": self._in_flight,
                "waiting": self._waiting,
                "error": self._last_error,
                **fields,
            },
        )
