"""What the governor learns from answers: a pace from 429s, and a concurrency from overload.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments. A
request is known by its number, which is the number of requests sent before it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from .buckets import Bucket
from .evidence import ConcurrencyTest, Count, Ledger, OwnShare, SentRequest

__all__ = ["LearnedPace", "Slots"]

# Unless a source is named, the numbers below were chosen with `scripts/bench pace --simulate`:
# the docstring says what becomes worse with another one.

SAFE = 0.98
"""How far below what was accepted a cut goes: the low pace has to be below the server's limit."""

PAUSE_SECONDS = 0.15
"""Seconds that a cut waits at first, so that the server's empty bucket is not taken for chance."""

CAPACITY_SECONDS = 0.05
"""How many seconds of the pace may go out at once, for timers that fire late."""

PAYMENT = 3.0
"""How many requests a refusal costs of the pace, at once and beside the one refused.

A pace r above the limit C is then refused (r-C)/(r+3C) of the time in place of (r-C)/r.
"""

PAID_SHARE = 0.05
"""From this share of the server's own on refusals cost nothing: they say little of the pace."""

EXPECTED = 0.02
"""How much more than the server's own share may be refused for ever."""

ALARMING, ALARMING_OWN = 0.08, 0.3
"""How much more, and which part of its own share more, is looked for by the alarm."""

ALARM, LEAST_ALARM, LEAST_ALARM_OPEN, MOST_ALARM = 5.0, 3.5, 5.5, 11.0
"""Log-likelihood ratio that cuts the pace, at 20 requests a second; by its logarithm more at more.

So false alarms are as rare in a second whatever the pace; the others are bounds. The sum is Page's
(Biometrika 41, 1954).
"""

ALARM_RATE = 20.0
"""Requests a second to which `ALARM` belongs."""

FIRST_LOOK = 0.25
"""Seconds to measure before the first cut, or where more than half is refused."""

PRIOR = 5.0
"""How many requests the rate of the last seconds counts for, against what the alarm saw.

With none, a few refusals in a row of a noisy neighbour cut the pace to a third.
"""

PART_OF_REFUSED = 0.7
"""A cut takes off at least this part of what was refused."""

MEMORY = 8.0
"""Seconds over which the rate of accepted requests is taken."""

LEAST_PACE = 0.1
"""Requests a second below which the pace never falls: a limit is tested again within 10 s."""

BACK, BACK_OF_MANY = 4.5, 3.0
"""Log-likelihood ratio for 'the lower pace is in vain'; the second where over 35 % is refused."""

HELPS = -3.0
"""Log-likelihood ratio for 'the lower pace helps'."""

MANY, FEW = 0.35, 0.15
"""Shares of refusals before a cut that are decided on sooner, and later, than others.

A small share was noticed because it was high by chance; the next one is lower whatever the pace.
"""

LITTLE = 0.05
"""A share that is left at the lower pace and not looked into further."""

TRIAL, TRIAL_OF_FEW, TRIAL_SECONDS = 60, 120, 12.0
"""After how many requests, or seconds, a trial of a lower pace is decided in any case."""

FEW_SECONDS = 3.0
"""Seconds of sending that a trial after a small share takes at least, for a better estimate."""

DEEP = 0.5
"""How far below the pace the second trial goes, before refusals are taken for the server's own.

Where several processes share a limit, one of them has to slow down by so much to notice.
"""

SLOW_GROWTH, SLOW_GROWTH_RATE, SLOW_GROWTH_POWER = 0.008, 20.0, 0.7
"""How much a pace of 20 grows in a second once it is about right; 10 grows faster, 40 slower.

A share that grew with the pace would leave two processes as unequal as chance made them (Chiu and
Jain, Computer Networks 17, 1989, for additive increase).
"""

CATCH_UP_GROWTH = 0.15
"""How much the pace grows in a second while it is below what the server was seen to accept."""

FAST_GROWTH = 0.25
"""How much the pace grows in a second at most, and after refusals it was not to blame for."""

GUESS_GROWTH = 0.5
"""The same after the first cut, whose pace was taken from the first burst and is a guess."""

DOUBLINGS = (2.0, 28.0, 4.0)
"""Growth doubles in 28 requests without bad news, but in 2 seconds at least and in 4 at most."""

WARNING = 1.5
"""Log-likelihood ratio at which the pace stops growing, before it is cut."""

UNBOUND_SECONDS = 2.0
"""Seconds in which nothing had to wait for the pace, after which there is none."""

UNBOUND = 1.25
"""How far above what the server was seen to accept the pace has to be for that."""

TOLD = 0.95
"""Which part of the rate that a server told is the pace after a refusal that contradicts it."""

ROW = 24.0
"""How unlikely a row of refusals has to be to mean that everything is refused, as a logarithm.

Eight in a row; 15 where 20 % are refused at any pace.
"""

ROW_SECONDS = 0.4
"""Seconds after the first request, and after the last accepted one, from which refused ones count
for that: in a burst, all but a few may be refused.

It is less than the first wait of a call that was refused, so that the first of those count.
"""


class LearnedPace:
    """Requests a second, as refusals and answers teach it, where nobody tells.

    A refusal says something of the pace only if a lower pace lowers the share that is refused. So a
    cut is an experiment: the pace falls to just below what was accepted, and the share that is left
    decides. If it is small, the pace stays there and grows slowly until the next alarm. If it is
    not, the pace goes to where it was, and the share is remembered as the server's own: only what
    exceeds it counts from then on.

    PCC Allegro (Dong et al., NSDI 2015) compares two paces in this way. The adaptive mode of the
    AWS SDKs and additive increase with multiplicative decrease do not, and shrink for as long as
    the server refuses a fixed share of all requests.

    Attributes:
        pace: Requests a second; inf for no limit.
        own: The share that is refused at any pace.
        concurrency: Whether refusals go by how many requests are out. If so, `Slots` is to learn
            from them, and the pace is not.
    """

    def __init__(self) -> None:
        self.pace = math.inf
        self.own = OwnShare()
        self.concurrency = ConcurrencyTest()
        self._bucket = Bucket(1.0, 1.0, 0.0)
        self._ledger = Ledger()
        self._phase: Literal["open", "low", "high"] = "open"
        self._next_number = 0
        self._first_number = 0  # of those sent at the present pace: earlier ones teach nothing
        self._first_sent_at = math.inf
        self._accepted: deque[float] = deque()  # when those of the last seconds were sent
        self._last_accepted_at = 0.0
        self._row = 0
        self._short_at = -math.inf  # when a request last had to wait
        # Open and high: the alarm.
        self._alarm = 0.0
        self._watched = Count(0.0)
        # Low: the trial.
        self._before = math.inf  # the pace before the cut
        self._share_before = 0.0
        self._share_looked_for = 0.0  # if the lower pace does not help
        self._trial = Count(0.0)
        self._all_trials = (0, 0)  # sent and refused in those before, since the cut
        self._deep_trials = 0
        self._ratio = 0.0
        self._times_back = 0
        # High: growth.
        self._ceiling = math.inf  # what the server was seen to accept; 0 if that was a guess
        self._growth = FAST_GROWTH
        self._grown_at = 0.0

    @property
    def grace(self) -> float:
        """Seconds after which an unanswered request counts as accepted."""
        return self._ledger.grace

    @property
    def is_blocked(self) -> bool:
        """Whether everything is refused: then a pace cannot be learned, and all should wait."""
        return self._row * -math.log(max(self.own.value, PAID_SHARE)) >= ROW

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent."""
        self._settle(now)
        if self._phase == "high":
            self._grow(now)
        if self.pace == math.inf:
            return 0.0
        delay = self._bucket.delay(1, now)
        if delay > 0:
            self._short_at = now
        return delay

    def send(self, number: int, in_flight: int, now: float) -> None:
        """Note a request that is sent now.

        Args:
            number: How many were sent before.
            in_flight: How many of those are out.
            now: The time.
        """
        self._ledger.send(number, in_flight, now)
        self._next_number = number + 1
        if self._first_sent_at == math.inf:
            self._first_sent_at = self._last_accepted_at = now
        self._bucket.take(1)

    def accept(self, number: int, now: float) -> None:
        """Learn that a request was not refused."""
        self._ledger.accept(number)
        self._settle(now)

    def forget(self, number: int) -> None:
        """Learn nothing from a request."""
        self._ledger.forget(number)

    def refuse(self, number: int, sent_at: float, now: float) -> None:
        """Learn from a 429.

        Args:
            number: The refused request's number.
            sent_at: When it was sent.
            now: The time.
        """
        late = self._ledger.refuse(number, sent_at, now)
        if self.pace < math.inf and not self.concurrency.is_limited:
            payment = PAYMENT * max(0.0, 1 - self.own.value / PAID_SHARE)
            self._bucket.level = max(-self.pace, self._bucket.level - payment)
        if late is not None:
            if number >= self._first_number:  # it is counted twice: as accepted, and now
                self._trial.sent -= 1
                self._watched.sent -= 1
            self._learn(late, now)
        self._settle(now)

    def start(self, rate: float, now: float) -> None:
        """Pace requests from now on, although no cut was called for.

        Args:
            rate: What the server told, in requests a second; a refusal shows that it is too much.
            now: The time.
        """
        self._ceiling = rate
        self._begin("high", TOLD * rate, now)
        self._growth = self._slow_growth

    def interrupt(self, now: float) -> None:
        """Forget what is under way, for all are held: what was refused says nothing of the pace."""
        self._begin(self._phase, self.pace, now)

    def resume(self, rate: float, now: float) -> None:
        """Go on after all was held.

        Args:
            rate: The highest pace to go on at; inf for the one from before.
            now: The time.
        """
        self._row = 0
        self._last_accepted_at = now
        pace = min(rate, self.pace)
        self._ceiling = min(self._ceiling, pace)
        self._begin("high", pace, now)
        self._bucket.level = 0.0
        self._growth = FAST_GROWTH

    def _settle(self, now: float) -> None:
        for request in self._ledger.settled(now):
            self._learn(request, now)

    def _learn(self, request: SentRequest, now: float) -> None:
        if request.is_refused:
            self._row += request.at - self._last_accepted_at >= ROW_SECONDS
        else:
            self._row = 0
            self._last_accepted_at = max(self._last_accepted_at, request.at)
            self._accepted.append(request.at)
        while self._accepted and request.at - self._accepted[0] > MEMORY:
            self._accepted.popleft()
        was_limited = self.concurrency.is_limited
        if self.concurrency.add(request):
            self._ceiling = 0.0
            self._begin("high", 1.1 * self._recent_rate(now), now)
            self._growth = FAST_GROWTH
        elif self.concurrency.is_limited > was_limited:
            self.own.reset()
        if request.number < self._first_number:
            return
        if request.is_refused and self.concurrency.is_limited:
            return
        self.own.doubt(request)
        if self._phase == "low":
            self._judge(request, now)
        elif self._phase == "high" or request.in_flight:
            self._watch(request, now)  # one call at a time is paced by its own waits

    def _recent_rate(self, now: float) -> float:
        """Return how many were accepted in a second of late."""
        seconds = min(MEMORY, max(1.0, now - self._first_sent_at))
        return len(self._accepted) / seconds

    # Open and high: is too much refused?

    def _watch(self, request: SentRequest, now: float) -> None:
        """Sum up what speaks for more refusals than expected, and cut the pace by an alarm."""
        if self._alarm <= 0:
            if not request.is_refused:
                return
            self._watched = Count(request.at)
        self._watched.add(request)
        own = self.own.value
        expected = own + EXPECTED
        alarming = min(0.95, own + ALARMING + ALARMING_OWN * own)
        odds = alarming / expected if request.is_refused else (1 - alarming) / (1 - expected)
        self._alarm = max(0.0, self._alarm + math.log(odds))
        is_open = self.pace == math.inf
        rate = max(0.5, self._recent_rate(now))
        least = LEAST_ALARM_OPEN if is_open else LEAST_ALARM
        enough = min(MOST_ALARM, max(least, ALARM + math.log(rate / ALARM_RATE)))
        watched = self._watched
        if self._alarm < enough or watched.sent < (8 if is_open else 4):
            return
        short = request.at - watched.began < FIRST_LOOK and watched.sent < 400
        if short and (is_open or watched.share > 0.5):
            return
        if watched.refused < watched.sent:  # or everything is refused: of that no pace is learned
            self._cut(now)

    def _cut(self, now: float) -> None:
        """Go to just below what was accepted, and begin a trial."""
        watched, own = self._watched, self.own.value
        share = watched.share
        seconds = watched.last_refused - watched.began
        recent = self._recent_rate(now)
        if self.pace == math.inf:
            # The callers' own waits are left out, or one that honours a Retry-After of 1 s would be
            # taken for slow. A bucket's first burst is not its rate, so a second counts at least.
            spent = max(1.0, seconds) if share >= 0.5 else max(FIRST_LOOK, watched.sending)
            accepted = max(0.5, watched.accepted / spent, recent)
            accepted /= 1 - own
            self._ceiling = 0.0
        else:
            prior = PRIOR / max(recent, 0.05)
            accepted = (watched.accepted + PRIOR) / (seconds + prior)
            accepted = min(accepted, self.pace * (1 - PART_OF_REFUSED * share))
            accepted = min(accepted / (1 - own), 0.97 * self.pace)
            self._ceiling = max(accepted, 0.95 * recent if share < MANY else 0.0)
        self._before = self.pace
        self._share_before = share
        self._share_looked_for = max(share * watched.sent / (watched.sent + 4), own + 0.03)
        self._deep_trials = 0
        self._all_trials = (0, 0)
        self._try(accepted * SAFE, now)

    def _try(self, pace: float, now: float) -> None:
        """Begin a trial of a lower pace; first the server's bucket may fill a little."""
        self._begin("low", pace, now)
        self._bucket.level = min(self._bucket.level, -max(0.5, PAUSE_SECONDS * self.pace))

    def _begin(self, phase: Literal["open", "low", "high"], pace: float, now: float) -> None:
        self._phase = phase
        pace = max(pace, LEAST_PACE)
        if pace < math.inf:
            if self.pace == math.inf:
                self._bucket.level = 0.0
            self._bucket.change(pace, 1 + CAPACITY_SECONDS * pace, now)
        self.pace = pace
        self._first_number = self._next_number
        self._alarm = 0.0
        self._ratio = 0.0
        self._trial = Count(now)
        self._grown_at = self._short_at = now

    # Low: did the lower pace help?

    def _judge(self, request: SentRequest, now: float) -> None:
        """Compare what is left with the share before, and decide."""
        trial, own = self._trial, self.own.value
        trial.add(request)
        helped = min(0.5, max(own, self._share_looked_for / 4, 0.01))
        in_vain = max(0.85 * self._share_looked_for, 1.3 * helped + 0.02)
        odds = in_vain / helped if request.is_refused else (1 - in_vain) / (1 - helped)
        self._ratio += math.log(odds)
        seconds = request.at - trial.began
        is_vain = self._ratio >= BACK and trial.sent >= 12
        if self._share_looked_for > MANY:
            is_vain = is_vain or (self._ratio >= BACK_OF_MANY and trial.sent >= 8)
        is_over = seconds >= TRIAL_SECONDS and trial.sent >= 8
        if trial.refused == trial.sent:
            return  # everything is refused: of that no pace is learned
        if is_vain or is_over or self._is_long_enough(seconds):
            self._decide(now, is_vain=is_vain, is_over=is_over)

    def _is_long_enough(self, seconds: float) -> bool:
        sent = self._trial.sent
        if self._share_before < FEW and sent < max(TRIAL_OF_FEW, FEW_SECONDS * self.pace):
            return False
        if sent >= TRIAL and seconds > 1.0:
            return True
        return self._ratio <= HELPS and sent >= (10 if self.own.value < EXPECTED else 20)

    def _decide(self, now: float, *, is_vain: bool, is_over: bool) -> None:
        left = self._trial.share
        fewer = left < 0.5 * self._share_looked_for
        if not is_vain and (left <= LITTLE or self._trial.refused < (2 if is_over else 3)):
            self._stay(now)
            return
        if not is_vain and fewer and not is_over:
            self._try_again(1.0, now)
            return
        overrun = self._before == math.inf and self._share_before > 0.5
        most = 2 if self._share_before > MANY else 1
        if self._deep_trials < most or (overrun and left > self.own.value + 0.05):
            self._deep_trials += 1
            self._try_again(DEEP, now)
        else:
            self._go_back(now)

    def _try_again(self, most: float, now: float) -> None:
        """Begin a trial of a still lower pace, of at most this part of the present one."""
        sent, refused = self._all_trials
        trial, own = self._trial, self.own.value
        self._all_trials = (sent + trial.sent, refused + trial.refused)
        left = trial.refused / (trial.sent + 4)
        self._share_looked_for = max(left, own + 0.03)
        self._ceiling = self.pace
        self._try(self.pace * min(most, SAFE * (1 - left) / (1 - own)), now)

    def _stay(self, now: float) -> None:
        """Keep the lower pace, which helped, and grow from there."""
        self.own.learn(self._trial.sent, self._trial.refused, now)
        self._times_back = 0
        self._begin("high", self.pace, now)
        self._growth = self._slow_growth
        if self._deep_trials:  # the limit is somewhere between the paces of the trials
            self._growth, self._ceiling = FAST_GROWTH, 0.0
        if self._before == math.inf:
            self._growth = GUESS_GROWTH

    def _go_back(self, now: float) -> None:
        """Return to the pace before, or above, for the lower one did not help."""
        sent, refused = self._all_trials
        self.own.set_to(sent + self._trial.sent, refused + self._trial.refused, now)
        self._times_back += 1
        pace = self._before
        if self._share_before <= 0.5:
            pace *= min(4, self._times_back)
        self._begin("open" if pace == math.inf else "high", pace, now)
        self._growth = FAST_GROWTH

    # High: growth.

    @property
    def _slow_growth(self) -> float:
        slower = math.pow(SLOW_GROWTH_RATE / self.pace, SLOW_GROWTH_POWER)
        return SLOW_GROWTH * min(5.0, max(0.3, slower))

    def _grow(self, now: float) -> None:
        """Raise the pace by the time that has passed, whether there were answers or not."""
        seconds = min(now - self._grown_at, 0.5)
        if seconds < 0.05:
            return
        self._grown_at = now
        if self.concurrency.is_limited:
            most = max(self.pace, 1.3 * self._recent_rate(now))
            self._change(min(most, self.pace * (1 + CATCH_UP_GROWTH * seconds)), now)
        elif now - self._short_at > max(UNBOUND_SECONDS, 3 / self.pace):
            if self.pace > UNBOUND * self._ceiling:
                self._ceiling = math.inf
                self._begin("open", math.inf, now)
        elif self._alarm >= WARNING:
            self._growth = max(self._slow_growth, self._growth * 0.5**seconds)
        else:
            self._change(self.pace * (1 + self._next_growth(seconds) * seconds), now)

    def _next_growth(self, seconds: float) -> float:
        if self.pace < 0.97 * self._ceiling:
            return max(CATCH_UP_GROWTH, self._growth)
        if self.pace < self._ceiling:
            self._growth = self._slow_growth
        else:
            least, requests, most = DOUBLINGS
            doubling = min(most, max(least, requests / self.pace))
            faster = min(FAST_GROWTH, self._growth * 2 ** (seconds / doubling))
            self._growth = max(self._growth, faster)
        return self._growth

    def _change(self, pace: float, now: float) -> None:
        self.pace = pace
        self._bucket.change(pace, 1 + CAPACITY_SECONDS * pace, now)


COARSE_CUT = 0.7
"""How far a limit falls while what the server takes is unknown: CUBIC's beta (RFC 9438, 4.6)."""

FORGET_CEILING = 1.25
"""How far above the remembered ceiling a limit has to come by successes to grow fast again."""

CONVEX_GROWTH = 0.02
"""How much faster a limit grows above its ceiling with each round: by one after ten rounds.

A 503 costs its call one of two retries, so it is tried seldom, and then ever more (as CUBIC does).
"""


class Slots:
    """How many requests may be out at once, as overload and successes teach it.

    Additive growth and multiplicative cut (Chiu and Jain 1989), but for two things: the ceiling is
    remembered, and a burst of refusals tells how many the server took: those out but not refused.

    Attributes:
        most: What is configured.
        limit: What is learned; inf when nothing was, or all was grown back.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = math.inf
        self._ceiling = math.inf
        self._cut_number = 0
        self._burst = 0.0  # how many were out when the last burst began
        self._taken = 0.0  # and how many of those were not refused
        self._rounds = 0.0  # since then, each as many successes as the limit

    @property
    def allowed(self) -> int:
        """How many may be out now, at least one."""
        return int(min(self.most, self.limit))

    def overload(self, number: int, next_number: int, in_flight: int) -> bool:
        """Learn from a 503 or 529; tell whether a new burst began, which cuts once.

        Args:
            number: The refused request's number.
            next_number: The number that the next request will have.
            in_flight: How many are out, this one not counted.
        """
        begins = number >= self._cut_number
        if begins:
            self._cut_number = next_number
            self._burst = min(self.allowed, in_flight + 1)
            self._taken = in_flight + 1
            self._rounds = 0.0
        self._taken -= 1
        cut = max(1.0, self._burst * COARSE_CUT)
        # Nothing taken at all is an outage, of which a concurrency cannot be learned.
        self._ceiling = self._taken if self._taken >= 1 else cut
        self.limit = min(cut, self._ceiling)
        return begins

    def forget(self) -> None:
        """Drop what was learned."""
        self.limit = self._ceiling = math.inf

    def grow(self, number: int, in_flight: int) -> bool:
        """Learn from a success; tell whether the last cut is undone by it.

        Args:
            number: The request's number: one sent before the cut says nothing of the time after.
            in_flight: How many were out, this one counted: fewer than allowed say nothing of more.
        """
        if self.limit == math.inf or number < self._cut_number or in_flight < self.allowed:
            return False
        self._rounds += 1 / self.limit
        fast = self.limit < self._ceiling
        self.limit += 1.0 if fast else CONVEX_GROWTH * self._rounds / self.limit
        if self.limit > max(self._ceiling + 1, self._ceiling * FORGET_CEILING):
            self._ceiling = math.inf
        if self.limit < self.most:
            return False
        self.limit = self._ceiling = math.inf
        return True
