"""The other engines of symbolicai that speak OpenAI's protocol, each beside its twin.

`test_differential.py` runs all cases on `GPTXChatEngine`. Here a part of the same cases is run on
each of the others: what is particular to one, and from each subject some of what is common.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from symai.backend.engines.neurosymbolic import (
    CerebrasEngine,
    DeepSeekXReasoningEngine,
    GPTXReasoningEngine,
    GroqEngine,
    OpenAIResponsesEngine,
    OpenRouterEngine,
)

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
from .harness import CASES, Case, Laboratory, Subject, World
from .outcomes import differences
from .test_batches import run

pytestmark = pytest.mark.slow  # the edit loop runs test_differential.py, of one provider

SUBJECTS = {
    "reasoning": Subject(GPTXReasoningEngine, "o3-mini"),
    "responses": Subject(OpenAIResponsesEngine, "responses:gpt-4o-mini"),
    "responses_reasoning": Subject(OpenAIResponsesEngine, "responses:gpt-5"),
    "groq": Subject(GroqEngine, "groq:openai/gpt-oss-20b"),
    "openrouter": Subject(OpenRouterEngine, "openrouter:moonshotai/kimi-k2.5"),
    "deepseek": Subject(DeepSeekXReasoningEngine, "deepseek-reasoner"),
    "cerebras": Subject(CerebrasEngine, "cerebras:gpt-oss-120b"),
}

COMMON = (
    "thinking*",
    "own_retries_*",
    "two_queries_in_a_row",
    "prompt_all_sections",
    "raw_input_of_conversation",
    "preview_of_metadata",
    "returned_type_dict",
    "returning_raw_output_and_metadata",
    "argument_after_max_tokens",
    "tool_called_*",
    "response_format_of_an_object",
    "handlers_called_of_both",
    "fallback_with_metadata",
    "three_trials_the_last_good",
    "failure_status_500",
    "failure_bad_json",
    "failure_reset_in_the_middle",
    "remedy_that_calls_back",
    "remedy_that_queries_again",
    "remedy_that_raises_its_own",
    "self_prompt_of_a_query",
    "tracker_of_queries",
    "twenty_threads_at_once",
    "missing_key_restored_from_config",
    "command_of_all_engines",
)
"""Which cases an engine is tried with, by patterns of their names."""

SHORT = (
    "thinking*",
    "own_retries_*",
    "two_queries_in_a_row",
    "returning_raw_output_and_metadata",
    "tool_called_*",
    "failure_status_500",
    "remedy_that_calls_back",
)
"""Those of an engine whose calls go the very way of two others: `AsyncBatchEngine`, `OpenAI`."""

ON_THE_WAY_OF_OTHERS = {"openrouter", "deepseek"}

PARTICULAR = {
    "reasoning": (
        "providers_parameter_reasoning*",
        "parameter_max*",
        "truncation_of_both_*",
        "vision_by_url",
        "answer_without_any_reasoning",
    ),
    "responses": (
        "providers_parameter_*",
        "remedy_that_calls_back_as_*",
        "refusal",
        "vision_by_*",
        "parameter_max*",
    ),
    "responses_reasoning": (
        "providers_parameter_*",
        "remedy_that_calls_back_as_*",
        "vision_by_url",
    ),
    "groq": ("providers_parameter_*", "answer_without_any_reasoning", "retried_twice_then_good"),
    "openrouter": ("parameter_max*", "answer_without_any_reasoning", "retried_twice_then_good"),
    "deepseek": ("answer_without_any_reasoning", "parameter_*", "null_content_as_str"),
    "cerebras": (
        "answer_without_any_reasoning",
        "command_of_*",
        "failure_closed_*",
        "failure_no_server",
        "failure_status_40*",
        "providers_parameter_*",
        "remedy_that_*",
        "retried_after_a_close",
        "retried_twice_then_good",
        "timeout_before_the_answer",
    ),
}
"""What else each is tried with."""


def names_of(subject: str) -> list[str]:
    patterns = (SHORT if subject in ON_THE_WAY_OF_OTHERS else COMMON) + PARTICULAR[subject]
    return [name for name in CASES if any(fnmatchcase(name, pattern) for pattern in patterns)]


PAIRS = [(subject, name) for subject in SUBJECTS for name in names_of(subject)]


@pytest.mark.parametrize(("subject", "name"), PAIRS)
def test_queried_directly(laboratory: Laboratory, subject: str, name: str) -> None:
    case = CASES[name]
    expected = laboratory.expected(case, SUBJECTS[subject])
    actual = laboratory.run_directly(case, "async", SUBJECTS[subject])
    assert expected.requests or case.silent
    assert [*differences(expected, actual)] == []


@pytest.mark.parametrize(("subject", "name"), [pair for pair in PAIRS if not CASES[pair[1]].silent])
def test_through_a_scheduler(laboratory: Laboratory, subject: str, name: str) -> None:
    case = CASES[name]
    expected = laboratory.expected(case, SUBJECTS[subject])
    actual = laboratory.run_by_scheduler(case, "async", SUBJECTS[subject])
    assert [*differences(expected, actual)] == []


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_batch_is_like_its_arguments_one_by_one(
    laboratory: Laboratory, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own retries wait in either case no longer than it takes to note it."""
    monkeypatch.setattr("gptx_async.symbolicai.v1.retry_sleep.is_item", lambda: False)
    expected, actual = (
        run(laboratory, name, "forward", prepared=False, subject=SUBJECTS[subject]).sorted()
        for name in ("sync", "async")
    )
    assert [*differences(expected, actual)] == []
    errors = [name for name, (seen, _) in expected.seen.items() if "error" in seen]
    assert len(errors) > 5
    assert len(expected.seen) - len(errors) > 5


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_engine_has_its_cases(subject: str) -> None:
    assert len(names_of(subject)) >= (20 if subject in ON_THE_WAY_OF_OTHERS else 40)
    for pattern in COMMON + PARTICULAR[subject]:
        assert any(fnmatchcase(name, pattern) for name in CASES), f"{pattern} is of no case"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_an_engine_that_answers_differently_is_told_apart(
    laboratory: Laboratory, subject: str
) -> None:
    engine_class = SUBJECTS[subject].engine_class

    def ask(world: World) -> object:
        world.reply = canned("grey" if type(world.engine) is engine_class else "red")
        return ask_by_hand(world, {})

    expected = laboratory.run_directly(Case(ask), "sync", SUBJECTS[subject])
    for actual in (
        laboratory.run_directly(Case(ask), "async", SUBJECTS[subject]),
        laboratory.run_by_scheduler(Case(ask), "async", SUBJECTS[subject]),
    ):
        assert "seen['returned']: 'grey' became 'red'" in [*differences(expected, actual)]


@pytest.mark.parametrize("subject", ["groq", "openrouter"])
def test_the_waits_of_an_engines_own_retries_are_seen(laboratory: Laboratory, subject: str) -> None:
    """Or the cases of them would compare nothing."""
    for engine_name in ("sync", "async"):
        case = CASES["own_retries_after_failing_seven_times"]
        outcome = laboratory.run_directly(case, engine_name, SUBJECTS[subject])
        assert outcome.notes.count(["waits"]) == 7
        assert len(outcome.requests) == 8
