"""Every case on both engines: queried directly, and through a scheduler."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptx_async.testing import canned

from . import (  # noqa: F401 # they fill CASES
    cases_answers,
    cases_engine,
    cases_failures,
    cases_prompts,
    cases_providers,
    cases_remedies,
    cases_requests,
)
from .asking import ask_by_hand
from .harness import CASES, Case, Laboratory, World
from .outcomes import CannotCompareError, Outcome, differences

EXCEPT: dict[str, str] = {}
"""The cases that cannot be equal, each with the reason."""

NAMES = sorted(CASES.keys() - EXCEPT.keys())


@pytest.mark.parametrize("name", NAMES)
def test_queried_directly(laboratory: Laboratory, name: str) -> None:
    case = CASES[name]
    expected = laboratory.expected(case)
    actual = laboratory.run_directly(case, "async")
    assert bool(expected.requests) != case.silent
    assert [*differences(expected, actual)] == []


@pytest.mark.parametrize("name", [name for name in NAMES if not CASES[name].silent])
def test_through_a_scheduler(laboratory: Laboratory, name: str) -> None:
    """Not where no request is sent: what a scheduler would change begins with a request."""
    case = CASES[name]
    expected = laboratory.expected(case)
    actual = laboratory.run_by_scheduler(case)
    assert [*differences(expected, actual)] == []


def test_no_case_is_lost() -> None:
    """Counted when this was written: 313, of which 26 send no request."""
    assert len(NAMES) >= 310
    assert sum(CASES[name].silent for name in NAMES) <= 30
    modules = {path.stem for path in Path(__file__).parent.glob("cases_*.py")}
    assert {_module_of(CASES[name]).rpartition(".")[2] for name in NAMES} == modules
    assert EXCEPT.keys() <= CASES.keys()


def _module_of(case: Case) -> str:
    function: Any = case.function
    if isinstance(function, functools.partial):
        function = function.args[0]
    return str(function.__module__)


CALLING = Case(lambda world: ask_by_hand(world, {"temperature": 0.5, "return_metadata": True}))
FAILING = Case(lambda world: ask_by_hand(world, {"logit_bias": {"1": object}}))


def change_body(outcome: Outcome) -> None:
    outcome.requests[0]["body"]["temperature"] = 0.25


def change_key(outcome: Outcome) -> None:
    outcome.requests[0]["headers"]["authorization"] = "Bearer sk-of-another"


def change_path(outcome: Outcome) -> None:
    outcome.requests[0]["path"] = "/v1/responses"


def repeat_request(outcome: Outcome) -> None:
    outcome.requests *= 2


def change_value(outcome: Outcome) -> None:
    outcome.seen["returned"]["tuple"][0] = "another"


def change_type_of_value(outcome: Outcome) -> None:
    outcome.seen["returned"]["list"] = outcome.seen["returned"].pop("tuple")


def drop_metadata_key(outcome: Outcome) -> None:
    del outcome.seen["returned"]["tuple"][1]["dict"]["time"]


def add_metadata_key(outcome: Outcome) -> None:
    outcome.seen["returned"]["tuple"][1]["dict"]["error"] = True


def change_usage(outcome: Outcome) -> None:
    response = outcome.seen["returned"]["tuple"][1]["dict"]["raw_output"]
    response["ChatCompletion"]["dict"]["usage"]["dict"]["total_tokens"] += 1


def drop_note(outcome: Outcome) -> None:
    del outcome.notes[0]


def change_argument(outcome: Outcome) -> None:
    outcome.notes[0][1]["dict"]["model"] = "gpt-4o-mini"


def leave_private_property(outcome: Outcome) -> None:
    outcome.notes[0][2]["dict"]["_gptx_async_query"] = None


@pytest.mark.parametrize(
    "change",
    [
        change_body,
        change_key,
        change_path,
        repeat_request,
        change_value,
        change_type_of_value,
        drop_metadata_key,
        add_metadata_key,
        change_usage,
        drop_note,
        change_argument,
        leave_private_property,
    ],
)
def test_a_difference_is_reported(
    laboratory: Laboratory, change: Callable[[Outcome], None]
) -> None:
    expected = laboratory.run_directly(CALLING, "sync")
    actual = copy.deepcopy(expected)
    assert [*differences(expected, actual)] == []
    change(actual)
    assert [*differences(expected, actual)] != []
    assert [*differences(actual, expected)] != []


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("type", "TypeError"),
        ("text", "Error during generation. Caused by: something else"),
        ("suppress_context", False),
        ("cause", {"type": "TypeError"}),
        ("context", None),
    ],
)
def test_a_difference_of_an_error_is_reported(
    laboratory: Laboratory, part: str, other: object
) -> None:
    expected = laboratory.run_directly(FAILING, "sync")
    actual = copy.deepcopy(expected)
    actual.seen["raised"][part] = other
    [difference] = differences(expected, actual)
    assert difference.startswith(f"seen['raised'][{part!r}]: ")


def test_engines_that_answer_differently_are_told_apart(laboratory: Laboratory) -> None:
    """The whole way, from the engines to the report: the one server says one thing, and another."""

    def ask(world: World) -> object:
        world.reply = canned("grey" if type(world.engine).__name__ == "GPTXChatEngine" else "red")
        return ask_by_hand(world, {})

    expected = laboratory.run_directly(Case(ask), "sync")
    for actual in (
        laboratory.run_directly(Case(ask), "async"),
        laboratory.run_by_scheduler(Case(ask)),
    ):
        assert "seen['returned']: 'grey' became 'red'" in [*differences(expected, actual)]


def test_an_engine_with_another_setting_is_told_apart(laboratory: Laboratory) -> None:
    case = CASES["prompt_plain"]
    other = dataclasses.replace(case, options={"model": "gpt-4o"})
    expected = laboratory.run_directly(case, "sync")
    report = [*differences(expected, laboratory.run_directly(other, "async"))]
    assert "requests[0]['body']['model']: 'gpt-4o-mini' became 'gpt-4o'" in report


@pytest.mark.parametrize("mode", ["run_directly", "run_by_scheduler"])
def test_what_cannot_be_compared_is_told(laboratory: Laboratory, mode: str) -> None:
    case = Case(lambda world: ask_by_hand(world, {"payload": memoryview(b"")}))
    with pytest.raises(CannotCompareError, match="memoryview"):
        getattr(laboratory, mode)(case, "async")


def test_a_case_that_misses_the_scheduler_is_told(laboratory: Laboratory) -> None:
    def ask(world: World) -> object:
        world.engine.executor_callback = None
        return ask_by_hand(world, {})

    with pytest.raises(AssertionError, match="sends them by the scheduler"):
        laboratory.run_by_scheduler(Case(ask, alone=True))
