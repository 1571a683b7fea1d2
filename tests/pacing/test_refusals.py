"""A rejected prompt fails alone; a refused key fails all calls that are not sent yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from symai import Symbol
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

import gptx_async
from gptx_async.calls.refusals import REJECTIONS_IN_ROW, Refusals
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault, RecordedRequest
from support.hostile import make_argument, outcome_of
from support.pacing_engines import KEY, MODEL, arguments, errors_of, make_engine

FLAGGED = HTTPFault(403, "Your input was flagged.", "forbidden", "")


def flag(*texts: str) -> Callable[[RecordedRequest], HTTPFault | None]:
    """Imitate a firewall that rejects every prompt that contains one of the texts."""
    return lambda request: FLAGGED if any(text in request.user_text for text in texts) else None


@pytest.fixture
def installed(fake_openai: FakeOpenAI, engine_repository: Any) -> Iterator[None]:
    gptx_async.install(KEY, MODEL)
    yield
    gptx_async.uninstall()


def ask(text: str) -> str:
    try:
        return str(Symbol(text).query("Answer."))
    except Exception as error:
        return f"failed: {type(error.__context__).__name__}"


class TestRejectedPrompt:
    @pytest.mark.slow
    def test_it_fails_alone_in_a_batch_as_with_the_sync_engine(
        self, fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.faults = flag("text 7 ")
        fake_openai.latency = lambda request: 0.0 if "text 7 " in request.user_text else 0.05
        sync = GPTXChatEngine(KEY, MODEL)

        def ask_sync(number: int) -> Any:
            argument = make_argument(f"text {number} ")
            sync.prepare(argument)
            return outcome_of(lambda: sync.forward(argument))

        with ThreadPoolExecutor(20) as pool:
            expected = list(pool.map(ask_sync, range(200)))
        outputs, metadatas = make_engine().forward(
            [make_argument(f"text {number} ") for number in range(200)]
        )

        failed = [number for number, metadata in enumerate(metadatas) if "exception" in metadata]
        assert failed == [7]
        assert [number for number, each in enumerate(expected) if each[0] == "raised"] == [7]
        assert str(metadatas[7]["exception"]) == expected[7][2]
        assert [each for each in outputs if each != outputs[7]] == [
            outcome[1] for outcome in expected if outcome[0] == "returned"
        ]

    def test_it_fails_alone_under_a_scheduler(
        self, fake_openai: FakeOpenAI, installed: None
    ) -> None:
        fake_openai.faults = flag("text 7.")
        fake_openai.latency = lambda request: 0.0 if "text 7." in request.user_text else 0.05
        scheduler = BatchScheduler(num_workers=50, batch_size=50)

        answers = scheduler.forward(ask, [f"text {number}." for number in range(100)])

        failed = [n for n, each in enumerate(answers) if str(each).startswith("failed")]
        assert failed == [7]

    def test_it_fails_alone_in_a_run(self, fake_openai: FakeOpenAI, installed: None) -> None:
        fake_openai.faults = flag("text 7.")
        texts = [f"text {number}." for number in range(100)]
        assert Counter(each.startswith("failed") for each in gptx_async.map(ask, texts)) == {
            False: 99,
            True: 1,
        }

    def test_many_that_are_rejected_before_the_first_answer_fail_alone(
        self, fake_openai: FakeOpenAI
    ) -> None:
        """A firewall is faster than a model: half of the prompts fail before the first answer."""
        fake_openai.faults = flag(*(f"text {number} " for number in range(0, 100, 2)))
        fake_openai.latency = lambda request: 0.0 if fake_openai.faults(request) else 0.3  # type: ignore[misc]
        engine = make_engine(max_concurrency=40)

        answers = engine.forward([make_argument(f"text {number} ") for number in range(100)])

        failed = [number for number, error in enumerate(errors_of(answers)) if error]
        assert failed == [*range(0, 100, 2)]

    def test_rejections_of_one_repeated_text_do_not_blame_the_key(
        self, fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.faults = flag("bad")
        asked = [make_argument("bad") for _ in range(40)] + arguments(10)

        errors = errors_of(make_engine(max_concurrency=1).forward(asked))

        assert [error is None for error in errors] == [False] * 40 + [True] * 10


class TestRefusedKey:
    def test_different_prompts_that_are_rejected_in_a_row_end_the_batch(
        self, fake_openai: FakeOpenAI
    ) -> None:
        fake_openai.faults = lambda _request: FLAGGED
        errors = errors_of(make_engine(max_concurrency=2).forward(arguments(100)))
        assert {type(error) for error in errors} == {openai.PermissionDeniedError}
        assert REJECTIONS_IN_ROW <= len(fake_openai.requests) <= REJECTIONS_IN_ROW + 4

    @pytest.mark.parametrize(
        "fault",
        [
            HTTPFault(401),
            HTTPFault(403, code="invalid_api_key"),
            HTTPFault(429, code="insufficient_quota"),
        ],
        ids=["401", "code", "quota"],
    )
    def test_it_ends_a_run(
        self, fake_openai: FakeOpenAI, installed: None, fault: HTTPFault
    ) -> None:
        fake_openai.faults = lambda _request: fault
        answers = gptx_async.map(ask, [f"text {n}" for n in range(60)], workers=2)
        assert all(each.startswith("failed") for each in answers)
        assert len(fake_openai.requests) <= 4
        fake_openai.faults = None
        assert not any(
            each.startswith("failed") for each in gptx_async.map(ask, ["another run"] * 3)
        )

    def test_it_ends_a_schedulers_batch(self, fake_openai: FakeOpenAI, installed: None) -> None:
        fake_openai.faults = lambda _request: HTTPFault(401)
        scheduler = BatchScheduler(num_workers=8, batch_size=8)
        answers = scheduler.forward(ask, [f"text {number}" for number in range(8)])
        assert all(str(each).startswith("failed") for each in answers)


class TestCounting:
    ERROR = ValueError()

    def reject(self, refusals: Refusals, *numbers: int) -> list[bool]:
        return [refusals.rejected("line", n, f"prompt {n}", self.ERROR) for n in numbers]

    def test_an_answer_in_between_begins_again(self) -> None:
        refusals = Refusals()
        numbers = [refusals.sent("line") for _ in range(2 * REJECTIONS_IN_ROW)]
        assert not any(self.reject(refusals, *numbers[: REJECTIONS_IN_ROW - 1]))
        refusals.ended("line", numbers[REJECTIONS_IN_ROW - 1], answered=True)
        assert not any(
            self.reject(refusals, *numbers[REJECTIONS_IN_ROW : 2 * REJECTIONS_IN_ROW - 1])
        )
        assert self.reject(refusals, numbers[-1]) == [True]
        assert refusals.error_of("line") is self.ERROR

    def test_an_attempt_that_is_still_in_flight_may_be_answered(self) -> None:
        refusals = Refusals()
        numbers = [refusals.sent("line") for _ in range(20)]
        assert not any(self.reject(refusals, *numbers[1:-1]))
        refusals.ended("line", numbers[0], answered=False)
        assert self.reject(refusals, numbers[-1]) == [True]

    def test_lines_are_apart(self) -> None:
        refusals = Refusals()
        assert refusals.refused("line", refusals.sent("line"), self.ERROR)
        assert not refusals.refused("line", refusals.sent("line"), self.ERROR)
        assert refusals.error_of("other") is None
