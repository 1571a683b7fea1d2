"""The learned pace without a governor: how it reacts to refusals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from gptx_async.pacing.controller import LEAST_PACE, LearnedPace, Slots


def drive(
    pace: LearnedPace,
    is_refused: Callable[[float], bool],
    seconds: float,
    *,
    start: float = 0.0,
    most: float = 1000.0,
    refusal_after: float = 0.04,
    answer_after: float = 0.5,
) -> list[float]:
    """Send as fast as the pace allows; return when requests were sent."""
    now, number, sent = start, pace._next_number, []
    due: list[tuple[float, int, float, bool]] = []
    while now < start + seconds:
        while due and min(due)[0] <= now:
            at, which, sent_at, refused = min(due)
            due.remove((at, which, sent_at, refused))
            if refused:
                pace.refuse(which, sent_at, now)
            else:
                pace.accept(which, now)
        if pace.delay(now) == 0:
            pace.send(number, len(due), now)
            refused = is_refused(now)
            due.append((now + (refusal_after if refused else answer_after), number, now, refused))
            sent.append(now)
            number += 1
        now += 1 / most
    return sent


class TokenBucket:
    def __init__(self, rate: float) -> None:
        self.rate = self.level = rate
        self.at = 0.0

    def __call__(self, now: float) -> bool:
        self.level = min(self.rate, self.level + self.rate * (now - self.at))
        self.at = now
        if self.level < 1:
            return True
        self.level -= 1
        return False


def test_there_is_no_pace_without_refusals() -> None:
    pace = LearnedPace()

    sent = drive(pace, lambda _: False, 2.0, most=200.0)

    assert len(sent) >= 399
    assert pace.pace == math.inf


@pytest.mark.parametrize("rate", [5.0, 20.0, 100.0])
def test_the_pace_comes_down_to_what_a_bucket_gives(rate: float) -> None:
    pace = LearnedPace()

    drive(pace, TokenBucket(rate), 60.0, most=400.0)

    assert 0.8 * rate < pace.pace < 1.5 * rate
    assert pace.own.value < 0.02


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.2])
def test_the_pace_is_kept_where_the_same_share_is_refused_at_any_pace(share: float) -> None:
    rng = random.Random(1)
    pace = LearnedPace()

    sent = drive(pace, lambda _: rng.random() < share, 60.0, most=100.0)

    assert len(sent) > 0.8 * 6000


def test_a_burst_cuts_once() -> None:
    # 100 requests are in flight when the first is refused; half of them will be refused.
    pace = LearnedPace()
    for number in range(100):
        pace.send(number, number, 0.01 * number)

    cuts = 0
    for number in range(100):
        before = pace.pace
        if number % 2:
            pace.refuse(number, 0.01 * number, 1.0)
        else:
            pace.accept(number, 1.0)
        for later in range(100 + 3 * number, 103 + 3 * number):
            pace.send(later, 100, 1.0)
            pace.accept(later, 1.0)
        cuts += pace.pace < before

    assert cuts == 1
    assert 5 < pace.pace < 100


def test_the_pace_never_falls_below_one_request_in_ten_seconds() -> None:
    pace, rng = LearnedPace(), random.Random(2)

    drive(pace, lambda _: rng.random() < 0.97, 3600.0, most=20.0)

    assert pace.pace >= LEAST_PACE


def test_only_a_row_of_refusals_means_that_everything_is_refused() -> None:
    pace, rng = LearnedPace(), random.Random(3)
    drive(pace, lambda _: rng.random() < 0.2, 60.0, most=50.0)
    assert not pace.is_blocked

    drive(pace, lambda _: True, 3.0, start=60.0, most=50.0)

    assert pace.is_blocked


def test_a_refusal_that_comes_late_is_counted() -> None:
    # Refusals arrive after 40 ms at first. Those that later take 2 s count as accepted until then.
    pace, bucket = LearnedPace(), TokenBucket(20.0)
    drive(pace, bucket, 30.0, most=200.0)

    drive(pace, bucket, 60.0, start=30.0, most=200.0, refusal_after=2.0, answer_after=2.0)

    assert pace.pace < 30.0


def test_growth_depends_on_time_and_needs_no_answers() -> None:
    pace = LearnedPace()
    drive(pace, TokenBucket(10.0), 30.0, most=100.0)
    pace.resume(2.0, 30.0)

    for second in range(300, 400):
        pace.delay(second / 10)
        pace.send(pace._next_number, 0, second / 10)

    assert pace.pace > 3.0


def test_a_limit_of_the_headers_sets_the_pace_after_a_refusal() -> None:
    pace = LearnedPace()

    pace.start(20.0, 0.0)

    assert pace.pace == pytest.approx(19.0)


def test_a_limit_on_concurrency_is_distinguished_from_a_pace() -> None:
    # The server takes 10 concurrent requests, for a second each; 12 a second are sent, unevenly.
    pace, rng = LearnedPace(), random.Random(4)
    now, number = 0.0, 0
    out: list[tuple[float, int]] = []
    while now < 60:
        now += rng.choice([0.01, 0.15])
        for end, which in [each for each in out if each[0] <= now]:
            pace.accept(which, now)
            out.remove((end, which))
        pace.send(number, len(out), now)
        if len(out) >= 10:
            pace.refuse(number, now, now + 0.001)
        else:
            out.append((now + 1.0, number))
        number += 1

    assert pace.concurrency.is_limited
    assert not pace.is_blocked


def test_slots_can_be_forgotten() -> None:
    slots = Slots(100)
    slots.overload(50, 60, 50)
    assert slots.allowed < 100

    slots.forget()

    assert slots.allowed == 100
