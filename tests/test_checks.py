"""One rule for the numbers that options allow, wherever an option is given."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import gptx_async
from gptx_async import testing
from gptx_async.checks import (
    SHARE,
    check_choice,
    check_switch,
    numbers,
    seconds,
    whole_numbers,
)
from gptx_async.cli.main import main
from gptx_async.errors import ConfigurationError
from gptx_async.pacing.settings import Pacing
from gptx_async.symbolicai.options import checked
from gptx_async.telemetry.recorder import Recorder


class Index:
    """A whole number of a class of its own, as numpy's are."""

    def __index__(self) -> int:
        return 3


class Unreadable:
    """A number that raises when it is read, and has no text either."""

    def __float__(self) -> float:
        raise LookupError

    def __repr__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("rule", "value", "number"),
    [
        (whole_numbers(), 1, 1),
        (whole_numbers(), Index(), 3),
        (whole_numbers(), 10**400, 10**400),
        (whole_numbers(allows_zero=True), 0, 0),
        (numbers(), Fraction(1, 2), 0.5),
        (numbers(), Index(), 3.0),
        (numbers(allows_zero=True), 0, 0.0),
        (seconds(), Decimal("2.5"), 2.5),
        (seconds(), math.inf, threading.TIMEOUT_MAX),
        (seconds(), 10**400, threading.TIMEOUT_MAX),
        (SHARE, 1, 1.0),
    ],
)
def test_reads_what_stands_for_an_allowed_number(rule: Any, value: Any, number: Any) -> None:
    assert rule.read(value) == number
    assert type(rule.read(value)) is type(number)


@pytest.mark.parametrize(
    "rule", [whole_numbers(allows_zero=True), numbers(allows_zero=True), seconds(), SHARE]
)
@pytest.mark.parametrize(
    "value", [True, False, "1", b"1", bytearray(b"1"), [1], 1j, math.nan, -1, None, Unreadable()]
)
def test_rejects_what_is_not_a_number_in_bounds(rule: Any, value: Any) -> None:
    assert rule.read(value) is None


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (whole_numbers(), 0),
        (whole_numbers(), 1.0),
        (numbers(), 0),
        (numbers(), math.inf),
        (numbers(), 10**400),
        (seconds(), 0),
        (SHARE, 1.5),
    ],
)
def test_rejects_numbers_out_of_bounds(rule: Any, value: Any) -> None:
    assert rule.read(value) is None


def test_messages_say_what_to_give() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: whole_numbers("items").check("window", 0), "window is 0. Give a whole number of "),
        (lambda: seconds().check_or_none("timeout", -1), "Give a number of seconds above 0, or N"),
        (
            lambda: seconds(allows_zero=True).check("wait", -1),
            "number of seconds, 0 or more.",
        ),
        (lambda: SHARE.check("share", 2), "share is 2. Give a share above 0 and up to 1."),
        (lambda: numbers().check("rate", Unreadable()), "rate is <Unreadable instance at "),
        (lambda: check_switch("adaptive", 1), "adaptive is 1. Give True or False."),
        (lambda: check_choice("reply", "loud", {"digest": 1, "echo": 2}), "one of digest, echo."),
        (lambda: check_choice("reply", None, ["echo"]), "reply is None. Give one of echo."),
    ]
    for call, message in cases:
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert message in str(caught.value)


def test_none_is_kept_where_it_is_allowed() -> None:
    assert numbers().check_or_none("rate", None) is None


@pytest.mark.parametrize("value", [True, -1, math.nan, "1"])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda value: checked("window", value), "window"),
        (lambda value: checked("deadline", value), "deadline"),
        (lambda value: checked("max_response_bytes", value), "max_response_bytes"),
        (lambda value: checked("client_max_retries", value), "client_max_retries"),
        (lambda value: gptx_async.RateLimit(value), "requests_per_minute"),
        (lambda value: Pacing(max_concurrency=value), "max_concurrency"),
        (lambda value: Recorder({"m": (value, 1)}), "A price of m"),
        (lambda value: Recorder({"m": (1, 1)}, value), "max_cost"),
        (lambda value: gptx_async.map(str, [], workers=value), "workers"),
        (lambda value: testing.BatchScheduler(value, 1), "num_workers"),
        (lambda value: testing.BatchScheduler(1, value), "batch_size"),
        (lambda value: testing.sometimes([(testing.Reset(), value)]), "The share of a fault"),
    ],
)
def test_the_rule_holds_in_every_place(
    place: Callable[[Any], object], name: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is .*Give a "):
        place(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--documents", "1.5"], "'1.5' is not a whole number above 0"),
        (["demo", "--documents", "1_0"], "'1_0' is not a whole number above 0"),
        (["serve", "--requests-per-minute", "inf"], "'inf' is not a number above 0"),
        (["serve", "--fault", "reset:nan"], "'reset:nan' is not KIND:SHARE"),
    ],
)
def test_the_rule_holds_on_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
