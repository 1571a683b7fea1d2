"""The figures of `scripts/bench pace`, with room to spare: a shared machine is not a quiet one.

The trials run a few side by side, each with a server of its own; the tests look at what came of
them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.pace import TRIALS, Account, Trial, account_for, is_well, row, run_trial
from gptx_async.testing.limits import FakeRateLimits
from gptx_async.testing.record import RecordedAnswer

OUTAGE_SECONDS = 10.0

HERE = {
    trial.name: replace(trial, outage=trial.outage and (50, OUTAGE_SECONDS)) for trial in TRIALS
}

USE = {name: 0.9 if name == "headers tell of the limits" else 0.85 for name in HERE}
"""Which share of its limit each trial is to use."""


GROUPS = (
    ("headers tell of the limits", "headers hidden", "an outage of 30 s"),
    ("not even retry-after", "two models on one key"),
    ("limited by tokens", "429 for ever, 10 s of patience"),
)
"""Trials that run side by side; all but the first group only by `scripts/test --long`."""


class Accounts:
    """The accounts of the trials. A group runs when the first of its accounts is asked for."""

    def __init__(self) -> None:
        self._found: dict[str, Account] = {}

    def __getitem__(self, name: str) -> Account:
        if name not in self._found:
            [group] = [group for group in GROUPS if name in group]
            with ThreadPoolExecutor(len(group)) as pool:
                found = zip(group, pool.map(run_trial, map(HERE.__getitem__, group)), strict=True)
                self._found.update(found)
            for each in group:
                self._try_again(each)
        return self._found[name]

    def _try_again(self, name: str) -> None:
        """Run a trial alone for which the machine had no time: it says nothing of the limit."""
        account = self._found[name]
        if is_well(HERE[name], account) and account.use is not None and account.use <= USE[name]:
            print(f"once more, for the first time it was {account}")
            self._found[name] = run_trial(HERE[name])


@pytest.fixture(scope="module")
def accounts() -> Accounts:
    return Accounts()


pytestmark = pytest.mark.serial


def in_groups(names: Iterable[str]) -> list[Any]:
    """Mark the trials that take a push too long."""
    return [
        name if name in GROUPS[0] else pytest.param(name, marks=pytest.mark.long) for name in names
    ]


def test_each_trial_is_in_a_group() -> None:
    assert sorted(HERE) == sorted(itertools.chain(*GROUPS))


@pytest.mark.parametrize("name", in_groups(HERE))
def test_no_item_is_lost_and_each_has_its_own_outcome(accounts: Accounts, name: str) -> None:
    assert accounts[name].lost == accounts[name].wrong == 0
    assert is_well(HERE[name], accounts[name]), accounts[name]


def test_headers_make_full_use_of_the_limits_without_refusals(accounts: Accounts) -> None:
    account = accounts["headers tell of the limits"]
    assert account.use is not None
    assert account.refused is not None
    assert account.use > USE["headers tell of the limits"]
    assert account.refused < 0.03


@pytest.mark.parametrize("name", in_groups(["headers hidden", "not even retry-after"]))
def test_without_headers_the_limit_is_learned(accounts: Accounts, name: str) -> None:
    account = accounts[name]
    assert account.use is not None
    assert account.refused is not None
    assert account.use > USE[name]
    assert account.refused < 0.12


@pytest.mark.long
def test_each_models_limit_is_used_for_itself(accounts: Accounts) -> None:
    account = accounts["two models on one key"]
    assert account.use is not None
    assert account.use > USE["two models on one key"]
    assert account.seconds < 0.75 * accounts["headers tell of the limits"].seconds


def test_an_outage_costs_no_item(accounts: Accounts) -> None:
    account = accounts["an outage of 30 s"]
    assert account.answered == account.asked
    assert account.seconds > OUTAGE_SECONDS


LIMITED = Trial("limited", FakeRateLimits(60, burst_seconds=1), items=12)


def test_the_account_sees_what_is_lost_wrong_unused_and_refused() -> None:
    """10 s of one a second: half of them used, and as many refused, after the first window."""
    book = [RecordedAnswer(at, "m", 200 if at % 2 else 429) for at in range(1, 14)]
    outcomes = [*["answered"] * 8, "wrong", "TimeoutError"]
    account = account_for(LIMITED, outcomes, book, {"m": 13.0}, 13.0)
    assert (account.answered, account.wrong, account.errors) == (8, 1, Counter(TimeoutError=1))
    assert account.lost == 2
    assert account.use == pytest.approx(0.5, abs=0.15)
    assert account.refused == pytest.approx(0.5, abs=0.15)
    assert not is_well(LIMITED, account)
    assert "1 TimeoutError" in row(LIMITED, account)
