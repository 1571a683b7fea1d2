"""What answers and refusals show about the server; the controller acts on it.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments. A
request is identified by its number: the number of requests sent before it.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterator

__all__ = ["ConcurrencyTest", "Count", "Ledger", "OwnShare", "SentRequest"]

LEAST_GRACE = 0.1
"""Least seconds after which a request without an answer counts as accepted."""

GRACE = 2.0
"""A request counts as accepted after this many times the duration of the slowest recent refusal.

Answers may take minutes, and refusals as long as answers. A gateway that refuses after 2 s on
average (1 to 3) needs all of this factor; with less, late refusals pass for accepted requests.
"""

FORGET_SLOWEST = 1 / 50
"""The part by which each quicker refusal lowers the slowest known duration towards its own."""

LONGEST_GAP = 0.1
"""Most seconds between two requests that count as sending; the rest is the callers' own wait."""

DOUBT = 6.0
"""Log-likelihood ratio (about 400 to 1) from which the server's own share is lowered."""

LARGEST_OWN_SHARE = 0.5
"""The highest share that counts as the server's own."""

SURE_OWN_SHARE = 0.05
"""Share above which the estimate is unbiased; below, it is a lower bound.

The noise of a neighbour on the same limit must not count as the server's own share.
"""

OWN_SHARE_MEMORY = 60.0
"""Seconds after which refusals at low paces count for 1/e in the server's own share."""

DOUBTED = 100
"""Most requests that the estimate rests on after doubt has lowered it."""

PAIRS = 24
"""Comparisons of a refused request with accepted ones that are remembered."""

ENOUGH_PAIRS = 8
"""Comparisons that are enough to decide."""

PAIRS_SECONDS = 1.5
"""Least seconds that the comparisons span: one burst proves nothing."""

PAIRS_MEMORY = 60.0
"""Seconds after which a comparison is forgotten."""

MOSTLY = 0.8
"""The share of refused requests with more requests in flight from which concurrency is the limit.

By chance the share is a third, since each is compared with two others.
"""

PENDING = 4
"""Most requests refused in a row that are compared, so that a burst counts little."""


class SentRequest:
    """A request that was sent.

    Attributes:
        number: The number of requests sent before it.
        at: The time when it was sent.
        in_flight: The number of others in flight.
        is_answered: Whether its outcome is known.
        refused_at: The time when it was refused; None if it was not.
    """

    __slots__ = ("at", "in_flight", "is_answered", "number", "refused_at")

    def __init__(self, number: int, at: float, in_flight: int) -> None:
        self.number = number
        self.at = at
        self.in_flight = in_flight
        self.is_answered = False
        self.refused_at: float | None = None

    @property
    def is_refused(self) -> bool:
        """Whether the server answered 429."""
        return self.refused_at is not None


class Ledger:
    """The requests and their outcomes, in the order of sending.

    Refusals usually arrive sooner than answers, so in the order of arrival every burst looks as if
    all of it were refused. A request without an answer counts as accepted once it has been in
    flight for longer than refusals take.
    """

    def __init__(self) -> None:
        # A plain dictionary finds its first key by passing over all removed ones.
        self._sent: OrderedDict[int, SentRequest] = OrderedDict()
        self._slowest_refusal = math.inf

    @property
    def grace(self) -> float:
        """Seconds after which an unanswered request counts as accepted; inf before a refusal."""
        return max(LEAST_GRACE, GRACE * self._slowest_refusal)

    def send(self, number: int, in_flight: int, now: float) -> None:
        """Note a request that is sent now, with so many others in flight."""
        self._sent[number] = SentRequest(number, now, in_flight)

    def accept(self, number: int) -> None:
        """Note that a request was not refused."""
        if number in self._sent:
            self._sent[number].is_answered = True

    def forget(self, number: int) -> None:
        """Drop a request that shows nothing."""
        self._sent.pop(number, None)

    def refuse(self, number: int, sent_at: float, now: float) -> SentRequest | None:
        """Note a refusal; return the request if it counted as accepted until now."""
        age = now - sent_at
        slowest = self._slowest_refusal
        if slowest < age or slowest == math.inf:
            self._slowest_refusal = age
        else:
            self._slowest_refusal += FORGET_SLOWEST * (age - slowest)
        late = None if number in self._sent else SentRequest(number, sent_at, 0)
        request = late or self._sent[number]
        request.is_answered = True
        request.refused_at = now
        return late

    def settled(self, now: float) -> Iterator[SentRequest]:
        """Remove and return the requests with a known outcome, up to the first without."""
        grace = self.grace
        while self._sent:
            request = next(iter(self._sent.values()))
            if not request.is_answered and now - request.at < grace:
                return
            del self._sent[request.number]
            yield request


class Count:
    """The numbers of requests sent and refused since a time.

    Attributes:
        began: The time when the count began.
        sent: The number of requests sent.
        refused: The number of those that were refused.
        last_refused: The time when the last refused request was sent.
        sending: Seconds of sending, without the callers' own waits.
    """

    __slots__ = ("_last", "_up_to_refusal", "began", "last_refused", "refused", "sending", "sent")

    def __init__(self, began: float) -> None:
        self.began = self.last_refused = self._last = began
        self.sent = self.refused = self._up_to_refusal = 0
        self.sending = 0.0

    def add(self, request: SentRequest) -> None:
        """Count a request."""
        self.sent += 1
        self.sending += min(max(0.0, request.at - self._last), LONGEST_GAP)
        self._last = request.at
        if request.is_refused:
            self.refused += 1
            self.last_refused = request.at
            self._up_to_refusal = self.sent

    @property
    def share(self) -> float:
        """The share of requests that was refused."""
        return self.refused / max(1, self.sent)

    @property
    def accepted(self) -> int:
        """The number accepted up to the last refusal, when the server had no more to give."""
        return max(0, self._up_to_refusal - self.refused)


class OwnShare:
    """The share of requests that the server refuses at any pace.

    Attributes:
        value: The estimate.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._sent = 0.0
        self._refused = 0.0
        self._at = 0.0
        self._doubt = 0.0
        self._doubted = Count(0.0)

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def set_to(self, sent: float, refused: float, now: float) -> None:
        """Set the share from requests at paces that made no difference."""
        self._at = now
        self._sent, self._refused = sent, refused
        self.value = min(LARGEST_OWN_SHARE, refused / sent)

    def learn(self, sent: int, refused: int, now: float) -> None:
        """Learn from a pace that was low enough: the remaining refusals are the server's own."""
        keep = math.exp((self._at - now) / OWN_SHARE_MEMORY)
        self._at = now
        self._sent = self._sent * keep + sent
        self._refused = self._refused * keep + refused
        bias = 0.0 if self.value > SURE_OWN_SHARE else 1 + math.sqrt(self._refused)
        value = max(min(self.value, refused / sent), (self._refused - bias) / self._sent)
        self.value = min(LARGEST_OWN_SHARE, value)

    def doubt(self, request: SentRequest) -> None:
        """Lower the share when far fewer are refused: a sequential test for half of the share."""
        share = self.value
        if share < 0.005:
            self.value = 0.0
            return
        if self._doubt <= 0:
            self._doubted = Count(request.at)
        self._doubted.add(request)
        odds = 0.5 if request.is_refused else (1 - share / 2) / (1 - share)
        self._doubt = max(0.0, self._doubt + math.log(odds))
        if self._doubt >= DOUBT:
            self._doubt = 0.0
            self.value = (share + min(share, self._doubted.share)) / 2
            self._sent = min(self._sent, DOUBTED)
            self._refused = self._sent * self.value


class ConcurrencyTest:
    """Whether refusals depend on the number of requests in flight, and not on the pace.

    Each refused request is compared with the last accepted one before it and the first after it, in
    the order of sending. If it nearly always had more requests beside it than both, the server
    limits the number of concurrent requests.

    Attributes:
        is_limited: Whether the server limits concurrency, as far as known.
    """

    def __init__(self) -> None:
        self.is_limited = False
        self._refused_at: list[
            float
        ] = []  # a heap of the times when requests in flight were refused
        self._pending: list[
            tuple[int, int]
        ] = []  # requests beside a refused one, and beside the accepted one before
        self._last_accepted = 0
        self._pairs: deque[tuple[float, bool]] = deque(maxlen=PAIRS)

    def add(self, request: SentRequest) -> bool:
        """Compare a request; return whether a limit that was found no longer holds."""
        while self._refused_at and self._refused_at[0] <= request.at:
            heapq.heappop(self._refused_at)
        beside = request.in_flight - len(self._refused_at)  # the server does not count refused ones
        if request.refused_at is not None:
            heapq.heappush(self._refused_at, request.refused_at)
            if len(self._pending) < PENDING:
                self._pending.append((beside, self._last_accepted))
            return False
        for refused, before in self._pending:
            self._pairs.append((request.at, refused > before and refused > beside))
        self._last_accepted = beside
        if not self._pending:
            return False
        self._pending.clear()
        return self._decide(request.at)

    def _decide(self, now: float) -> bool:
        pairs = self._pairs
        while now - pairs[0][0] > PAIRS_MEMORY:
            pairs.popleft()
        if len(pairs) < ENOUGH_PAIRS:
            return False
        if self.is_limited:
            last = list(pairs)[-ENOUGH_PAIRS:]
            self.is_limited = 2 * sum(more for _, more in last) >= ENOUGH_PAIRS
            if not self.is_limited:
                pairs.clear()
            return not self.is_limited
        spans = now - pairs[0][0] >= PAIRS_SECONDS
        self.is_limited = spans and sum(more for _, more in pairs) >= MOSTLY * len(pairs)
        return False
