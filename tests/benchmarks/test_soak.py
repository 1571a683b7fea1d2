"""The soak of one minute, in a process of its own, and what it measures with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.environment import environment
from benchmarks.soak import KINDS, Ledger, Sample, answer_to, flatness
from gptx_async.testing import faults

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.serial
@pytest.mark.long
def test_a_minute_of_everything_at_once_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    picture = tmp_path / "soak.png"
    command = [sys.executable, "-m", "benchmarks.soak", "1", "--plot", str(picture)]
    child = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.endswith("all items are accounted for, and nothing grows\n")
    assert "lost 0" in child.stdout
    assert child.stderr == ""
    assert picture.read_bytes().startswith(PNG)


def test_every_fault_of_the_fake_server_is_in_it() -> None:
    tried = {type(kind.fault) for kind in KINDS.values()}
    known = {
        value
        for name in faults.__all__
        if isinstance(value := getattr(faults, name), type)
        and issubclass(value, faults.Fault)
        and value is not faults.Fault
    }
    assert known <= tried


def rises(by: float, over: int = 12, noise: float = 0.0) -> tuple[list[float], list[float]]:
    """Make a figure of about 100 that rises by so much in its second half, and up and down."""
    seconds = [10.0 * i for i in range(over)]
    half = seconds[-1] / 2
    return seconds, [
        100 + by * s / half + (noise if i % 2 else -noise) for i, s in enumerate(seconds)
    ]


@pytest.mark.parametrize(("by", "is_flat"), [(0, True), (0.9, True), (-50, True), (1.2, False)])
def test_a_rise_of_one_percent_is_the_limit(by: float, is_flat: bool) -> None:
    seconds, values = rises(by * 1.1)  # the half's rests do not span all of it
    assert flatness(seconds, values).is_flat is is_flat


def test_a_single_peak_and_the_warm_up_do_not_count() -> None:
    seconds, values = rises(0)
    values[-3] = 500
    values[:5] = [0, 20, 40, 60, 80]
    measured = flatness(seconds, values)
    assert measured.is_flat
    assert (measured.level, measured.rise, measured.percent) == (100, 0, 0)


def test_a_descriptor_that_is_lost_in_the_second_half_is_seen_and_half_of_one_is_none() -> None:
    seconds, values = rises(0)
    stairs = [value // 20 + i // 2 for i, value in enumerate(values)]
    assert not flatness(seconds, stairs, unit=1.0).is_flat
    assert flatness(seconds, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 11, 10], unit=1.0).is_flat


def test_too_few_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few for a slope"):
        flatness([0, 10, 20], [1, 1, 1])


def answered(ledger: Ledger, text: str) -> None:
    ledger.end(text, "answered", [answer_to(text)])


def test_a_ledger_in_which_all_is_right_has_no_wrongs() -> None:
    ledger = Ledger()
    answered(ledger, ledger.begin("fine", "a test"))
    ledger.end(ledger.begin("status400", "a test"), "failed", note="the error")
    ledger.end(ledger.begin("emptychoices", "a test"), "emptied")
    ledger.end(ledger.begin("never", "a test"), "cancelled")
    ledger.end(ledger.begin("fine", "a test"), "failed", note="The deadline of 0.5 s passed")
    assert (ledger.asked, ledger.ended.total(), ledger.lost, ledger.wrongs) == (5, 5, [], [])


def answered_twice(ledger: Ledger, text: str) -> None:
    answered(ledger, text)
    answered(ledger, text)


WRONGS: dict[str, tuple[Callable[[Ledger, str, str], None], str]] = {
    "the answer of another": (
        lambda ledger, one, other: ledger.end(one, "answered", [answer_to(other)]),
        "which is not its own",
    ),
    "two answers": (
        lambda ledger, one, _: ledger.end(one, "answered", [answer_to(one)] * 2),
        "which is not its own",
    ),
    "ended twice": (
        lambda ledger, one, _: answered_twice(ledger, one),
        "ended twice",
    ),
    "failed without a fault": (
        lambda ledger, one, _: ledger.end(one, "failed", note="an error"),
        "failed: an error",
    ),
    "an error that was an answer": (
        lambda ledger, _, other: answered(ledger, other),
        "was answered",
    ),
}


@pytest.mark.parametrize("name", WRONGS)
def test_a_ledger_sees_what_is_wrong(name: str) -> None:
    do, sentence = WRONGS[name]
    ledger = Ledger()
    do(ledger, ledger.begin("fine", "a test"), ledger.begin("status500", "a test"))
    assert len(ledger.wrongs) == 1
    assert sentence in ledger.wrongs[0]


def make_rests(descriptors: Callable[[int], float]) -> list[Sample]:
    return [Sample(10.0 * i, 900.0, 2300.0, 5.0, descriptors(i)) for i in range(12)]


def full_ledger() -> Ledger:
    ledger = Ledger()
    for name, kind in KINDS.items():
        text = ledger.begin(name, "a test")
        outputs = [answer_to(text)] if kind.fate == "answered" else []
        ledger.end(text, kind.fate, outputs)
    return ledger


def test_the_report_is_good_when_all_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.report(full_ledger(), make_rests(lambda _: 20))
    assert "WRONG" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["lost", "wrong", "not tried", "leaking"])
def test_the_report_names_what_is_not_good(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger() if what == "not tried" else full_ledger()
    lost = ledger.begin("fine", "a test") if what == "lost" else ""
    if what == "wrong":
        ledger.end("nobody's item", "answered")
    assert not soak.report(ledger, make_rests(lambda i: 20 + (i if what == "leaking" else 0)))
    said = {
        "lost": f"'{lost}' was asked and did not end",
        "wrong": "'nobody's item' ended twice",
        "not tried": "No item was fine",
        "leaking": "Not flat. descriptors",
    }
    assert f"WRONG: {said[what]}" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "is_good"), [(110, True), (600, False)])
def test_the_report_allows_memory_more_in_a_short_run(seconds: int, is_good: bool) -> None:
    """1.5 % of it in the second half."""
    rests = [Sample(seconds * i / 11, 900.0 + 2.7 * i, 2300.0, 5.0, 20.0) for i in range(12)]
    assert soak.report(full_ledger(), rests) is is_good


def test_the_report_sees_what_python_holds_where_resident_memory_does_not_show_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """4 % of the blocks in the second half: so it was while unwound batches were never freed."""
    rests = [Sample(50.0 * i, 1000.0, 2400.0 + 16 * i, 5.0, 20.0) for i in range(12)]
    assert not soak.report(full_ledger(), rests)
    assert "WRONG: Not flat. 1000 blocks" in capsys.readouterr().out


def test_what_is_left_after_closing_is_told() -> None:
    before = Sample(0, 900, 2300, 3, 10)
    assert soak.check_all_ends(before, before._replace(memory=990)) == []
    assert len(soak.check_all_ends(before, before._replace(threads=4, descriptors=11))) == 2
