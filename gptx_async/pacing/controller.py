"""What the governor learns from answers: a pace from 429s, and a concurrency from overload.

Arithmetic only: nothing here waits, and times (seconds of the loop's clock) are arguments. A
request is identified by its number: the number of requests sent before it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from .buckets import Bucket
from .evidence import ConcurrencyTest, Count, Ledger, OwnShare, SentRequest

__all__ = ["LearnedPace", "Slots"]

# Unless a source is named, the numbers below were chosen with `scripts/bench pace --simulate`.
# Each docstring says what becomes worse with another number.

SAFE = 0.98
"""A cut goes to this part of the accepted rate: the lower pace must be below the server's limit."""

PAUSE_SECONDS = 0.15
"""Seconds without requests after a cut, so that the server's empty bucket can fill a little."""

CAPACITY_SECONDS = 0.05
"""Seconds of the pace that may go out at once, because timers fire late."""

PAYMENT = 3.0
"""Requests that a refusal takes from the pace at once, in addition to the refused one.

A pace r above the limit C is then refused (r-C)/(r+3C) of the time in place of (r-C)/r.
"""

PAID_SHARE = 0.05
"""The server's own share of refusals above which a refusal costs nothing.

Such refusals say little about the pace.
"""

EXPECTED = 0.02
"""The share of refusals, above the server's own, that is tolerated."""

ALARMING, ALARMING_OWN = 0.08, 0.3
"""The share of refusals that the alarm tests for: `own + ALARMING + ALARMING_OWN * own`."""

ALARM, LEAST_ALARM, LEAST_ALARM_OPEN, MOST_ALARM = 5.0, 3.5, 5.5, 11.0
"""Log-likelihood ratio that cuts the pace at 20 requests a second, and its bounds.

It grows with the logarithm of the rate, so that false alarms are as rare per second at any pace.
The sum is Page's (Biometrika 41, 1954).
"""

ALARM_RATE = 20.0
"""Requests a second at which `ALARM` applies."""

FIRST_LOOK = 0.25
"""Seconds to measure before the first cut, or where more than half of the requests are refused."""

PRIOR = 5.0
"""Weight, in requests, of the rate of the last seconds against what the alarm saw.

Without it, a few refusals in a row that a neighbour causes cut the pace to a third.
"""

PART_OF_REFUSED = 0.7
"""A cut lowers the pace by at least this part of the share that was refused."""

MEMORY = 8.0
"""Seconds over which the rate of accepted requests is measured."""

LEAST_PACE = 0.1
"""The lowest pace, in requests a second: a limit is tested again within 10 s."""

BACK, BACK_OF_MANY = 4.5, 3.0
"""Log-likelihood ratio that shows that a lower pace does not help.

The second number applies where more than 35 % of the requests were refused.
"""

HELPS = -3.0
"""Log-likelihood ratio that shows that a lower pace helps."""

MANY, FEW = 0.35, 0.15
"""Shares of refusals before a cut above which a trial is shorter, and below which it is longer.

A small share was noticed because it was high by chance, so the next one is lower at any pace.
"""

LITTLE = 0.05
"""A share of refusals at the lower pace that is small enough to keep that pace."""

TRIAL, TRIAL_OF_FEW, TRIAL_SECONDS = 60, 120, 12.0
"""Requests, requests after a small share, and seconds after which a trial must be decided."""

FEW_SECONDS = 3.0
"""Least seconds of a trial after a small share, for a better estimate."""

DEEP = 0.5
"""The part of the pace at which the second trial is made.

Only then do refusals count as the server's own. Where several processes share a limit, a process
must slow down this far to notice a difference.
"""

SLOW_GROWTH, SLOW_GROWTH_RATE, SLOW_GROWTH_POWER = 0.008, 20.0, 0.7
"""Growth per second of a pace of 20 that is about right; a pace of 10 grows faster, 40 slower.

Growth in proportion to the pace would leave two processes as unequal as chance made them (Chiu and
Jain, Computer Networks 17, 1989, on additive increase).
"""

CATCH_UP_GROWTH = 0.15
"""Growth per second while the pace is below a rate that the server has accepted."""

FAST_GROWTH = 0.25
"""The highest growth per second; also the growth after refusals that the pace did not cause."""

GUESS_GROWTH = 0.5
"""Growth per second after the first cut, which takes its pace from the first burst: a guess."""

DOUBLINGS = (2.0, 28.0, 4.0)
"""Growth doubles within 28 requests without an alarm, but within 2 to 4 seconds."""

WARNING = 1.5
"""Log-likelihood ratio at which the pace stops growing, before it is cut."""

UNBOUND_SECONDS = 2.0
"""Seconds in which no request had to wait for the pace, after which the pace is dropped."""

UNBOUND = 1.25
"""The pace is dropped only if it is this many times the rate that the server has accepted."""

TOLD = 0.95
"""The part of a rate in the server's headers that becomes the pace after a refusal at that rate."""

ROW = 24.0
"""Negative logarithm of the probability of a row of refusals that means that all are refused.

That is eight in a row; 15 where 20 % are refused at any pace.
"""

ROW_SECONDS = 0.4
"""Seconds after the first request, and after the last accepted one, from which refusals count in
the row: in a burst, all but a few may be refused.

It is less than the first wait of a refused call, so that the first retries count.
"""


class LearnedPace:
    """The pace, in requests a second, that refusals and answers suggest.

    A refusal says something about the pace only if a lower pace lowers the share of refusals. So a
    cut is an experiment: the pace falls to just below the accepted rate, and the remaining share of
    refusals decides. If it is small, the pace stays there and grows slowly until the next alarm. If
    it is not, the pace returns to where it was, and the share is remembered as the server's own:
    from then on only refusals above it count.

    PCC Allegro (Dong et al., NSDI 2015) compares two paces in this way. The adaptive mode of the
    AWS SDKs and additive increase with multiplicative decrease do not, and slow down for as long as
    the server refuses a fixed share of all requests.

    Attributes:
        pace: Requests a second; inf for no limit.
        own: The share that is refused at any pace.
        concurrency: Whether refusals depend on the number of requests in flight. If so, `Slots`
            learns from them, and the pace does not.
    """

    def __init__(self) -> None:
        self.pace = math.inf
        self.own = OwnShare()
        self.concurrency = ConcurrencyTest()
        self._bucket = Bucket(1.0, 1.0, 0.0)
        self._ledger = Ledger()
        self._phase: Literal["open", "low", "high"] = "open"
        self._next_number = 0
        self._first_number = 0  # the first sent at the present pace: earlier requests teach nothing
        self._first_sent_at = math.inf
        self._accepted: deque[float] = deque()  # the times of sending, of the last seconds
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
        self._all_trials = (0, 0)  # sent and refused in earlier trials since the cut
        self._deep_trials = 0
        self._ratio = 0.0
        self._times_back = 0
        # High: growth.
        self._ceiling = math.inf  # a rate that the server has accepted; 0 if it was a guess
        self._growth = FAST_GROWTH
        self._grown_at = 0.0

    @property
    def grace(self) -> float:
        """Seconds after which an unanswered request counts as accepted."""
        return self._ledger.grace

    @property
    def is_blocked(self) -> bool:
        """Whether everything is refused, so that no pace can be learned and all should wait."""
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
            number: The number of requests sent before.
            in_flight: The number of those in flight.
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
            sent_at: The time when it was sent.
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
        """Pace requests from now on, without a cut.

        Args:
            rate: Requests a second in the server's headers; a refusal shows that it is too high.
            now: The time.
        """
        self._ceiling = rate
        self._begin("high", TOLD * rate, now)
        self._growth = self._slow_growth

    def interrupt(self, now: float) -> None:
        """Drop the current measurement: during a hold, refusals say nothing about the pace."""
        self._begin(self._phase, self.pace, now)

    def resume(self, rate: float, now: float) -> None:
        """Resume after a hold.

        Args:
            rate: The highest pace to resume at; inf for the pace before the hold.
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
        """Return the accepted requests a second, of the last seconds."""
        seconds = min(MEMORY, max(1.0, now - self._first_sent_at))
        return len(self._accepted) / seconds

    # Open and high: are too many refused?

    def _watch(self, request: SentRequest, now: float) -> None:
        """Add up the evidence for more refusals than expected, and cut the pace at an alarm."""
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
        if watched.refused < watched.sent:  # where everything is refused, no pace can be learned
            self._cut(now)

    def _cut(self, now: float) -> None:
        """Begin a trial of a pace just below the accepted rate."""
        watched, own = self._watched, self.own.value
        share = watched.share
        seconds = watched.last_refused - watched.began
        recent = self._recent_rate(now)
        if self.pace == math.inf:
            # The callers' own waits do not count, or a caller that waits for a Retry-After of 1 s
            # would look slow. A bucket's first burst is not its rate, so at least 1 s counts.
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
        """Begin a trial of a lower pace. First a pause lets the server's bucket fill a little."""
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
        """Compare the share of refusals with the share before, and decide."""
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
            return  # everything is refused, so no pace can be learned
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
        """Begin a trial of an even lower pace: at most this part of the present one."""
        sent, refused = self._all_trials
        trial, own = self._trial, self.own.value
        self._all_trials = (sent + trial.sent, refused + trial.refused)
        left = trial.refused / (trial.sent + 4)
        self._share_looked_for = max(left, own + 0.03)
        self._ceiling = self.pace
        self._try(self.pace * min(most, SAFE * (1 - left) / (1 - own)), now)

    def _stay(self, now: float) -> None:
        """Keep the lower pace, since it helped, and grow from there."""
        self.own.learn(self._trial.sent, self._trial.refused, now)
        self._times_back = 0
        self._begin("high", self.pace, now)
        self._growth = self._slow_growth
        if self._deep_trials:  # the limit is somewhere between the paces of the trials
            self._growth, self._ceiling = FAST_GROWTH, 0.0
        if self._before == math.inf:
            self._growth = GUESS_GROWTH

    def _go_back(self, now: float) -> None:
        """Return to the pace before the cut, or a higher one, since the lower one did not help."""
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
        """Raise the pace with time, whether there were answers or not."""
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
"""Factor of a cut while the server's limit is unknown: CUBIC's beta (RFC 9438, 4.6)."""

FORGET_CEILING = 1.25
"""Multiple of the remembered ceiling from which a limit grows fast again."""

CONVEX_GROWTH = 0.02
"""Increase of growth per round, above the ceiling: the limit is one higher after ten rounds.

A 503 costs its call one of two retries, so growth begins slowly and accelerates, as CUBIC's does.
"""


class Slots:
    """The number of requests that may be in flight, learned from overload and successes.

    Additive growth and multiplicative cuts (Chiu and Jain 1989), with two additions: the ceiling is
    remembered, and a burst of refusals shows how many requests the server took: those that were in
    flight and not refused.

    Attributes:
        most: The configured limit.
        limit: The learned limit; inf before the first cut, and after all cuts are undone.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = math.inf
        self._ceiling = math.inf
        self._cut_number = 0
        self._burst = 0.0  # in flight when the last burst began
        self._taken = 0.0  # the number of those that were not refused
        self._rounds = 0.0  # since then; a round has as many successes as the limit

    @property
    def allowed(self) -> int:
        """The number of requests that may be in flight now; at least one."""
        return int(min(self.most, self.limit))

    def overload(self, number: int, next_number: int, in_flight: int) -> bool:
        """Learn from a 503 or 529; return whether a new burst began, which cuts once.

        Args:
            number: The refused request's number.
            next_number: The number that the next request will have.
            in_flight: The number in flight, without this one.
        """
        begins = number >= self._cut_number
        if begins:
            self._cut_number = next_number
            self._burst = min(self.allowed, in_flight + 1)
            self._taken = in_flight + 1
            self._rounds = 0.0
        self._taken -= 1
        cut = max(1.0, self._burst * COARSE_CUT)
        # If the server took nothing at all, it is an outage, and no limit can be learned.
        self._ceiling = self._taken if self._taken >= 1 else cut
        self.limit = min(cut, self._ceiling)
        return begins

    def forget(self) -> None:
        """Forget what was learned."""
        self.limit = self._ceiling = math.inf

    def grow(self, number: int, in_flight: int) -> bool:
        """Learn from a success; return whether it undoes the last cut.

        Args:
            number: The request's number: one that was sent before the cut does not count.
            in_flight: The number in flight, with this one: fewer than allowed do not count.
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
