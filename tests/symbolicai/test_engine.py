"""The engine's own promises: the batch, the error contract, the scheduler, reading through.

That it does what GPTXChatEngine does is shown case by case in tests/differential.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import openai
import pytest
from symai import Symbol
from symai.backend.base import BatchEngine
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
from symai.backend.settings import SYMAI_CONFIG
from symai.functional import EngineRepository, _process_query_single

import gptx_async
from gptx_async import AsyncBatchEngine, AsyncGPTXBatchEngine, errors
from gptx_async.errors import (
    ConfigurationError,
    UnsupportedClientError,
    VocabularyError,
)
from gptx_async.testing import BatchScheduler, FakeOpenAI, HTTPFault, Stall
from support import TESTS
from support.child import run_python
from support.engines import KEY, MODEL, TwoSteps, argument, echo, user_text


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    engine = gptx_async.install(KEY, MODEL)
    engine.client.max_retries = 0
    yield engine
    gptx_async.uninstall()


def test_forward_answers_a_batch_in_the_order_of_its_arguments(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo
    outputs, metadatas = engine.forward([argument(f"text {i}") for i in range(200)])
    assert outputs == [[f"answer to text {i}"] for i in range(200)]
    assert [set(metadata) for metadata in metadatas] == [{"raw_output"}] * 200


def test_forward_makes_the_calls_of_a_batch_at_once(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.forward, [argument(f"text {i}") for i in range(100)])
        fake_openai.wait_for(lambda server: server.in_flight == 100)
        fake_openai.release()
        assert len(running.result(30)[0]) == 100


def test_calling_the_engine_with_a_batch_fires_handlers_and_sets_the_time(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo
    seen: list[Any] = []
    arguments = [
        argument(
            f"text {i}",
            input_handler=lambda given: seen.append(("in", given[0])),
            output_handler=lambda given: seen.append(("out", given[0])),
        )
        for i in range(2)
    ]
    pairs = engine(arguments)
    assert [outputs for outputs, _ in pairs] == [["answer to text 0"], ["answer to text 1"]]
    assert all(isinstance(metadata["time"], float) for _, metadata in pairs)
    assert sorted(map(str, seen)) == sorted(
        map(
            str,
            [
                ("in", "text 0"),
                ("in", "text 1"),
                ("out", ["answer to text 0"]),
                ("out", ["answer to text 1"]),
            ],
        )
    )


def test_one_bad_item_of_many_harms_no_other(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        HTTPFault(400, message="bad request here")
        if user_text(request.body) == "text 77"
        else echo(request)
    )
    handled: list[Any] = []
    arguments = [argument(f"text {i}", output_handler=handled.append) for i in range(200)]
    pairs = engine(arguments)
    (text,), metadata = pairs[77]
    assert text == "Error during generation. Caused by: Error code: 400 - bad request here"
    assert set(metadata) == {"error", "raw_output", "exception"}
    assert metadata["error"] is True
    assert metadata["raw_output"] is None
    assert type(metadata["exception"]) is ValueError
    assert str(metadata["exception"]) == text
    assert len(handled) == 199, "the output handler does not fire for the failed item"
    others = [outputs for i, (outputs, _) in enumerate(pairs) if i != 77]
    assert others == [[f"answer to text {i}"] for i in range(200) if i != 77]


def test_an_empty_batch_is_answered_without_a_request(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    assert engine.forward([]) == ([], [])
    assert engine([]) == []
    assert asyncio.run(engine.aforward([])) == ([], [])
    assert fake_openai.requests == []


@pytest.mark.slow
def test_a_batch_of_five_thousand(engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = echo
    outputs, _ = engine.forward([argument(f"text {i}") for i in range(5000)])
    assert outputs == [[f"answer to text {i}"] for i in range(5000)]


def test_twenty_batches_in_a_row_lose_nothing(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """An `asyncio.run` per batch over one client loses every second one (openai-python#1254)."""
    fake_openai.reply = echo
    for batch in range(20):
        outputs, _ = engine.forward([argument(f"{batch}-{i}") for i in range(10)])
        assert outputs == [[f"answer to {batch}-{i}"] for i in range(10)]


def test_arguments_are_prepared_once_in_the_calling_thread(
    engine: AsyncGPTXBatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[int, str]] = []
    prepare = GPTXChatEngine.prepare

    def note(self: Any, given: Any) -> None:
        prepared.append((threading.get_ident(), given.prop.processed_input))
        prepare(self, given)

    monkeypatch.setattr(GPTXChatEngine, "prepare", note)
    ready = argument("prepared before")
    engine.prepare(ready)
    engine.forward([ready, argument("prepared by the batch")])
    here = threading.get_ident()
    assert prepared == [(here, "prepared before"), (here, "prepared by the batch")]


def test_what_is_no_argument_fails_its_item_with_a_clear_error(
    engine: AsyncGPTXBatchEngine,
) -> None:
    wrong: list[Any] = [argument("right"), "a text"]
    _, metadatas = engine.forward(wrong)
    assert "error" not in metadatas[0]
    assert isinstance(metadatas[1]["exception"], TypeError)
    assert "Symbol(text).query" in str(metadatas[1]["exception"])


def test_a_remedy_in_a_batch_calls_back_without_blocking_the_others(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        HTTPFault(400) if user_text(request.body) == "bad" else echo(request)
    )

    def remedy(sync_engine: Any, error: Exception, callback: Any, given: Any) -> Any:
        nested = str(Symbol("nested").query("Answer."))
        message = {"role": "user", "content": f"remedied after {nested}"}
        return callback(model=sync_engine.model, messages=[message])

    arguments = [argument("bad", except_remedy=remedy), *(argument(f"t{i}") for i in range(20))]
    outputs, _ = engine.forward(arguments)
    assert outputs[0] == ["answer to remedied after answer to nested"]
    assert outputs[1:] == [[f"answer to t{i}"] for i in range(20)]


@pytest.mark.parametrize("count", [1, 40])
def test_forward_within_running_loops_in_many_threads(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, count: int
) -> None:
    fake_openai.reply = echo

    async def main(name: int) -> list[Any]:
        outputs, _ = engine.forward([argument(f"{name}-{i}") for i in range(5)])
        return list(outputs)

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda name: asyncio.run(main(name)), range(count)))
    assert answers == [[[f"answer to {name}-{i}"] for i in range(5)] for name in range(count)]


def test_forward_within_a_callback_of_a_running_loop(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        loop.call_soon(lambda: answered.set_result(engine.forward([argument("text")])))
        return await answered

    assert asyncio.run(main())[0] == [["answer to text"]]


def test_aforward_answers_a_batch_and_one_argument(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo

    async def main() -> tuple[Any, Any]:
        one = argument("one")
        engine.prepare(one)
        return await engine.aforward([argument("a"), argument("b")]), await engine.aforward(one)

    (outputs, metadatas), (output, metadata) = asyncio.run(main())
    assert outputs == [["answer to a"], ["answer to b"]]
    assert [set(each) for each in metadatas] == [{"raw_output"}] * 2
    assert output == ["answer to one"]
    assert set(metadata) == {"raw_output"}


def test_aforward_raises_the_error_of_one_argument(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.fail_next(HTTPFault(400, message="bad request here"))
    with pytest.raises(ValueError, match="Caused by: Error code: 400 - bad request here"):
        asyncio.run(engine.aforward(argument("text")))


@pytest.mark.serial
def test_a_thousand_aforwards_wait_on_one_loop_without_a_thread_each(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo
    fake_openai.hold()
    threads = threading.active_count()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(engine.aforward([argument(f"text {i}")])) for i in range(1000)]
        await asyncio.to_thread(fake_openai.wait_for, lambda server: server.in_flight == 256)
        waiting = threading.active_count()
        fake_openai.release()
        answers = await asyncio.gather(*tasks)
        return [waiting, *(outputs[0][0] for outputs, _ in answers)]

    waiting, *answers = asyncio.run(main())
    assert answers == [f"answer to text {i}" for i in range(1000)]
    assert waiting <= threads + 2, "the service's thread, and the one that this test waits in"


def test_a_remedy_within_aforward_does_not_block_the_loop(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        HTTPFault(400) if user_text(request.body) == "bad" else echo(request)
    )

    def remedy(sync_engine: Any, error: Exception, callback: Any, given: Any) -> Any:
        fake_openai.hold()
        Symbol("nested").query("Answer.")  # goes on only if the loop below runs meanwhile
        return callback(model=MODEL, messages=[{"role": "user", "content": "remedied"}])

    async def main() -> Any:
        running = asyncio.create_task(engine.aforward([argument("bad", except_remedy=remedy)]))
        await asyncio.to_thread(
            fake_openai.wait_for,
            lambda server: any(user_text(r.body) == "nested" for r in server.requests),
        )
        fake_openai.release()
        return await running

    assert asyncio.run(main())[0] == [["answer to remedied"]]


def test_cancelling_aforward_cancels_its_requests(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.hold()

    async def main() -> None:
        running = asyncio.create_task(engine.aforward([argument(f"t{i}") for i in range(20)]))
        await asyncio.to_thread(fake_openai.wait_for, lambda server: server.in_flight == 20)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    fake_openai.wait_for(lambda server: server.disconnected == 20)
    fake_openai.release()
    assert len(engine.forward([argument("after")])[0]) == 1


@pytest.mark.slow
def test_a_deadline_fails_what_is_late_and_keeps_what_was_answered(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        Stall() if user_text(request.body).startswith("late") else echo(request)
    )
    arguments = [argument(text) for text in ("early 1", "late 1", "early 2", "late 2")]
    outputs, metadatas = engine.forward(arguments, deadline=5.0)
    assert [outputs[0], outputs[2]] == [["answer to early 1"], ["answer to early 2"]]
    for late in (1, 3):
        assert isinstance(metadatas[late]["exception"], errors.TimeoutError)
        assert "deadline of 5.0 s" in outputs[late][0]
    fake_openai.wait_for(lambda server: server.disconnected == 2)


@pytest.mark.parametrize("option", ["deadline", "timeout"])
@pytest.mark.slow
def test_a_query_that_takes_too_long_raises_the_packages_own_timeout(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, option: str
) -> None:
    fake_openai.faults = lambda _request: Stall()
    setattr(engine, option, 0.2)
    with pytest.raises(errors.TimeoutError, match=r"0\.2 s"):
        Symbol("text").query("Answer.")
    setattr(engine, option, None)
    prepared = argument("text")
    engine.prepare(prepared)
    with pytest.raises(errors.TimeoutError, match=r"0\.3 s"):
        engine(prepared, **{option: 0.3})
    with pytest.raises(errors.TimeoutError, match=r"0\.3 s"):
        engine.forward(prepared, **{option: 0.3})
    with pytest.raises(errors.TimeoutError, match=r"0\.3 s"):
        asyncio.run(engine.aforward(prepared, **{option: 0.3}))
    fake_openai.faults = None
    assert engine(prepared, **{option: 30.0})[0] == engine.forward(prepared)[0]


@pytest.mark.slow
def test_a_timeout_of_an_item_is_its_own_error_and_a_remedy_sees_it(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        Stall() if user_text(request.body) == "late" else echo(request)
    )
    seen: list[Exception] = []

    def remedy(sync_engine: Any, error: Exception, callback: Any, given: Any) -> Any:
        seen.append(error)
        return callback(model=MODEL, messages=[{"role": "user", "content": "remedied"}])

    arguments = [argument("late"), argument("late", except_remedy=remedy), argument("early")]
    outputs, metadatas = engine.forward(arguments, timeout=3.0)
    assert isinstance(metadatas[0]["exception"], errors.TimeoutError)
    assert outputs[1:] == [["answer to remedied"], ["answer to early"]]
    assert isinstance(seen[0], errors.TimeoutError)


@pytest.mark.slow
def test_a_deadline_holds_for_the_batches_of_a_scheduler(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        Stall() if user_text(request.body) == "late" else echo(request)
    )
    engine.deadline = 5.0
    results = BatchScheduler(num_workers=2, batch_size=2).forward(TwoSteps, ["late", "early"])
    assert isinstance(results[0], errors.TimeoutError)
    assert results[1] == "answer to answer to early"


@pytest.mark.parametrize("option", ["window", "deadline", "timeout"])
def test_a_limit_that_is_none_is_refused(fake_openai: FakeOpenAI, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} is 0. Give a .* above 0"):
        AsyncGPTXBatchEngine(KEY, MODEL, **{option: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), "5", b"5", [5], 1j, object(), -1, True])
@pytest.mark.parametrize("option", ["window", "deadline", "timeout"])
def test_a_limit_that_is_no_number_is_refused_wherever_it_is_given(
    engine: AsyncGPTXBatchEngine, option: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{option} is .*Give a .*number of"):
        setattr(engine, option, value)
    if option != "window":
        with pytest.raises(ConfigurationError, match=f"^{option} is .*Give a .*number of"):
            engine.forward([argument("text")], **{option: value})


def test_a_limit_of_any_size_holds(engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = echo
    deadlines: list[Any] = [10**400, float("inf"), Decimal(30)]
    for deadline in deadlines:
        outputs, _ = engine.forward([argument("text")], deadline=deadline)
        assert outputs == [["answer to text"]]


def test_an_error_whose_text_cannot_be_made_fails_its_item_only(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise LookupError("no text")

    def handler(_given: Any) -> None:
        raise SpeechlessError

    fake_openai.reply = echo
    first, second = engine([argument("bad", input_handler=handler), argument("good")])
    assert first[0] == ["SpeechlessError, whose text cannot be made"]
    assert isinstance(first[1]["exception"], SpeechlessError)
    assert second[0] == ["answer to good"]


def test_the_limits_survive_a_pickle(fake_openai: FakeOpenAI) -> None:
    engine = AsyncGPTXBatchEngine(KEY, MODEL, window=3, deadline=2.0, timeout=1.0)
    again = pickle.loads(pickle.dumps(engine))
    assert (again.window, again.deadline, again.timeout) == (3, 2.0, 1.0)


def test_a_scheduler_brings_every_query_in_its_batches(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_openai.reply = echo
    batches: list[int] = []
    call = AsyncBatchEngine.__call__

    def note(self: Any, given: Any) -> Any:
        if isinstance(given, list):
            batches.append(len(given))
        return call(self, given)

    monkeypatch.setattr(AsyncBatchEngine, "__call__", note)
    texts = [f"text {i}" for i in range(30)]
    results = BatchScheduler(num_workers=10, batch_size=10).forward(TwoSteps, texts)
    assert results == [f"answer to answer to {text}" for text in texts]
    assert sum(batches) == 60
    assert len(fake_openai.requests) == 60


def test_an_error_under_a_scheduler_is_raised_and_never_an_answer(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = lambda request: (
        HTTPFault(400, message="bad request here")
        if user_text(request.body) in {"text 3", "answer to text 5"}
        else echo(request)
    )
    texts = [f"text {i}" for i in range(10)]
    results = BatchScheduler(num_workers=4, batch_size=4).forward(TwoSteps, texts)
    for index, result in enumerate(results):
        if index in {3, 5}:
            assert isinstance(result, ValueError)
            assert str(result).endswith("Error code: 400 - bad request here")
        else:
            assert result == f"answer to answer to text {index}"


def test_a_query_before_and_after_a_schedulers_run_goes_straight_to_the_loop(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo
    scheduler = BatchScheduler(num_workers=2, batch_size=2)
    assert str(Symbol("before").query("Answer.")) == "answer to before"
    assert scheduler.forward(TwoSteps, ["during"]) == ["answer to answer to during"]
    assert str(Symbol("after").query("Answer.")) == "answer to after"


def test_schedulers_one_after_the_other(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo
    for run in range(5):
        results = BatchScheduler(num_workers=3, batch_size=2).forward(TwoSteps, [f"run {run}"] * 4)
        assert results == [f"answer to answer to run {run}"] * 4


def test_a_batch_while_a_scheduler_runs_is_not_given_to_it(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    fake_openai.reply = echo
    given: list[Any] = []
    engine.executor_callback = given.append
    outputs, _ = engine.forward([argument("by hand")])
    assert outputs == [["answer to by hand"]]
    assert given == []


def query_by(engine: AsyncGPTXBatchEngine, callback: Callable[[Any], Any]) -> Any:
    engine.executor_callback = callback
    try:
        return Symbol("text").query("Answer.", return_metadata=True)
    finally:
        engine.executor_callback = None


def test_a_scheduler_may_answer_by_itself(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    cached = {"raw_output": "of the cache"}
    answer, metadata = query_by(engine, lambda _: (["from the cache"], cached))
    assert str(answer) == "from the cache"
    assert metadata["raw_output"] == "of the cache"
    assert isinstance(metadata["time"], float)
    assert fake_openai.requests == []


def test_a_scheduler_may_wrap_what_the_engine_returned(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    def callback(given: Any) -> Any:
        [(outputs, metadata)] = engine([given])
        return tuple(outputs), dict(metadata)

    fake_openai.reply = echo
    answer, metadata = query_by(engine, callback)
    assert str(answer) == "answer to text"
    assert metadata["raw_output"].choices[0].message.content == "answer to text"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda pair: pair,
        lambda pair: (pair[0], dict(pair[1])),
        lambda pair: (pair[0], {"error": True}),
        lambda pair: ([pair[1]["exception"]], None),
    ],
    ids=["as it is", "a copy", "only a flag", "the exception as the output"],
)
def test_an_error_is_raised_however_a_scheduler_hands_it_on(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, wrap: Callable[[Any], Any]
) -> None:
    fake_openai.fail_next(HTTPFault(400, message="bad request here"))
    with pytest.raises(ValueError, match=r"^Error during generation\. Caused by: .*bad request"):
        query_by(engine, lambda given: wrap(engine([given])[0]))


@pytest.mark.parametrize("nonsense", [None, 3, "text", (1, 2, 3)])
def test_a_schedulers_nonsense_is_an_error_that_says_so(
    engine: AsyncGPTXBatchEngine, nonsense: Any
) -> None:
    with pytest.raises(ValueError, match="not a pair of outputs and metadata"):
        query_by(engine, lambda _: nonsense)


def test_a_scheduler_that_brings_an_argument_twice_gets_two_answers(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    def callback(given: Any) -> Any:
        engine([given])
        return engine([given])[0]

    fake_openai.reply = echo
    answer, _ = query_by(engine, callback)
    assert str(answer) == "answer to text"
    assert len(fake_openai.requests) == 2


def test_another_engine_registered_meanwhile_answers_the_schedulers_batch(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    other = AsyncGPTXBatchEngine(KEY, MODEL)
    fake_openai.reply = echo
    answer, _ = query_by(engine, lambda given: other([given])[0])
    assert str(answer) == "answer to text"


def test_a_remedys_calls_do_not_go_to_the_scheduler_again(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    given: list[Any] = []

    def callback(argument: Any) -> Any:
        given.append(argument)
        return engine([argument])[0]

    def remedy(sync_engine: Any, error: Exception, callback: Any, argument: Any) -> Any:
        return callback(model=MODEL, messages=[{"role": "user", "content": "remedied"}])

    fake_openai.reply = echo
    fake_openai.fail_next(HTTPFault(400))
    engine.executor_callback = callback
    answer = Symbol("text").query("Answer.", except_remedy=remedy)
    engine.executor_callback = None
    assert str(answer) == "answer to remedied"
    assert len(given) == 1


def test_reading_executor_callback_gives_the_engines_own_query(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    """For callers of symbolicai's batching path, which calls it after a prepare."""
    fake_openai.reply = echo
    one = argument("text")
    engine.prepare(one)
    outputs, metadata = engine.executor_callback(one)
    assert outputs == ["answer to text"]
    assert set(metadata) == {"raw_output", "time"}

    by_hand = argument("text")
    answer = _process_query_single(engine, Symbol("text"), lambda _: None, argument=by_hand)
    assert answer.startswith("answer to")


def test_executor_callback_takes_functions_only(engine: AsyncGPTXBatchEngine) -> None:
    with pytest.raises(TypeError, match="function of one argument"):
        engine.executor_callback = 3  # type: ignore[assignment]


def test_the_engine_is_a_batch_engine_that_does_not_allow_batching(
    engine: AsyncGPTXBatchEngine,
) -> None:
    assert isinstance(engine, BatchEngine)
    assert engine.allows_batching is False
    assert engine.time_clock is False


def test_attributes_read_and_are_set_through_to_the_sync_engine(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    engine.command(NEUROSYMBOLIC_ENGINE_MODEL="gpt-4.1-mini", seed=7, verbose=False)
    assert engine.model == "gpt-4.1-mini"
    assert engine.seed == 7
    engine.seed = 8
    engine.forward([argument("text")])
    [request] = fake_openai.requests
    assert (request.body["model"], request.body["seed"]) == ("gpt-4.1-mini", 8)
    assert engine.compute_required_tokens([{"role": "user", "content": "text"}]) > 0
    assert "compute_remaining_tokens" in dir(engine)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        engine.no_such_attribute  # noqa: B018


def test_deleting_an_attribute_goes_through_too(engine: AsyncGPTXBatchEngine) -> None:
    engine.note = "set on the sync engine"
    del engine.note
    assert not hasattr(engine, "note")


def test_a_new_key_takes_effect_on_the_calls_after_it(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    Symbol("first").query("Answer.")
    engine.command(NEUROSYMBOLIC_ENGINE_API_KEY="sk-new")
    Symbol("second").query("Answer.")
    engine.command(NEUROSYMBOLIC_ENGINE_API_KEY="")  # no key: the one before stays
    Symbol("third").query("Answer.")
    keys = [request.headers["Authorization"] for request in fake_openai.requests]
    assert keys == [f"Bearer {KEY}", "Bearer sk-new", "Bearer sk-new"]


def test_a_client_that_is_set_later_is_used(engine: AsyncGPTXBatchEngine) -> None:
    with FakeOpenAI(reply=echo) as other:
        engine.client = openai.OpenAI(api_key="sk-other", base_url=other.base_url)
        engine.forward([argument("text")])
        assert [r.headers["Authorization"] for r in other.requests] == ["Bearer sk-other"]


def test_one_engine_adds_as_many_root_handlers_as_a_gptx_chat_engine(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without those that other tests have left: no second one like symbolicai's is added.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def added(build: Callable[[], Any]) -> int:
        before = [*logging.getLogger().handlers]
        build()
        new = [handler for handler in logging.getLogger().handlers if handler not in before]
        for handler in new:
            logging.getLogger().removeHandler(handler)
            handler.close()
        return len(new)

    assert added(lambda: AsyncGPTXBatchEngine(KEY, MODEL)) == added(
        lambda: GPTXChatEngine(KEY, MODEL)
    )


def test_a_request_logs_no_line_of_the_transport(
    engine: AsyncGPTXBatchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        engine.forward([argument("text")])
    assert [r.name for r in caplog.records if r.name.startswith(("httpx", "httpcore"))] == []


@pytest.mark.slow
def test_a_pickled_engine_works_in_another_process(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, tmp_path: Any
) -> None:
    fake_openai.reply = echo
    engine.command(seed=11)
    (tmp_path / "engine.pickle").write_bytes(pickle.dumps(engine))
    program = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
engine = pickle.load(open(sys.argv[2], "rb"))
from symai.functional import EngineRepository
EngineRepository.register("neurosymbolic", engine)
from support.engines import argument
print(engine.forward([argument("unpickled")])[0], engine.seed)
"""
    folder = TESTS
    child = run_python("-c", program, folder, str(tmp_path / "engine.pickle"))
    assert child.stdout.strip() == "[['answer to unpickled']] 11", child.stderr
    assert fake_openai.requests[-1].headers["Authorization"] == "Bearer sk-config"


def test_a_copied_engine_has_a_client_of_its_own(engine: AsyncGPTXBatchEngine) -> None:
    for twin in (copy.copy(engine), copy.deepcopy(engine)):
        twin.command(NEUROSYMBOLIC_ENGINE_API_KEY="sk-of-the-twin")
        assert twin.client.api_key == "sk-of-the-twin"
        assert engine.client.api_key == KEY


def test_an_unknown_model_leaves_the_engine_unregistered(fake_openai: FakeOpenAI) -> None:
    engine = AsyncGPTXBatchEngine(KEY, "o3-mini")
    assert engine.id() == GPTXChatEngine(KEY, "o3-mini").id() != "neurosymbolic"


def test_a_client_that_cannot_be_asynchronous_is_refused(fake_openai: FakeOpenAI) -> None:
    sync_engine = GPTXChatEngine(KEY, MODEL)
    sync_engine.client = object()
    with pytest.raises(UnsupportedClientError, match=r"openai\.OpenAI"):
        AsyncBatchEngine(sync_engine)


def test_timeout_and_retries_reach_the_client(fake_openai: FakeOpenAI) -> None:
    engine = AsyncGPTXBatchEngine(KEY, MODEL, client_timeout=3.5, client_max_retries=4)
    assert (engine.client.timeout, engine.client.max_retries) == (3.5, 4)
    assert (engine.client_timeout, engine.client_max_retries) == (3.5, 4)


def test_an_older_symbolicai_without_timeouts_is_named(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(self: Any, api_key: str | None = None, model: str | None = None) -> None:
        """The signature before symbolicai 1.15."""

    monkeypatch.setattr(GPTXChatEngine, "__init__", older)
    with pytest.raises(ConfigurationError, match=r"\['client_timeout'\].*1\.15"):
        AsyncGPTXBatchEngine(KEY, MODEL, client_timeout=3.5)


def test_install_names_both_ways_to_give_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SYMAI_CONFIG, "NEUROSYMBOLIC_ENGINE_API_KEY", "")
    with pytest.raises(ConfigurationError) as caught:
        gptx_async.install(model=MODEL)
    assert "api_key=..." in str(caught.value)
    assert "NEUROSYMBOLIC_ENGINE_API_KEY" in str(caught.value)


def test_a_vocabulary_that_cannot_be_loaded_names_the_offline_extra(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the very error that tiktoken's download raises where there is no way out."""
    import requests
    import tiktoken

    def fail(_name: str) -> Any:
        raise requests.ConnectionError("no way out")

    monkeypatch.setattr(tiktoken, "encoding_for_model", fail)
    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(VocabularyError, match=r"gptx_async\[offline\]"):
        gptx_async.install(KEY, MODEL)


def test_install_and_uninstall_put_back_what_was_there(fake_openai: FakeOpenAI) -> None:
    before = GPTXChatEngine(KEY, MODEL)
    EngineRepository.register("neurosymbolic", before, allow_engine_override=True)
    gptx_async.install(KEY, MODEL)
    second = gptx_async.install(KEY, MODEL)  # a notebook cell that is run again
    assert EngineRepository.get("neurosymbolic") is second
    gptx_async.uninstall()
    assert EngineRepository.get("neurosymbolic") is before
    gptx_async.uninstall()
    assert EngineRepository.get("neurosymbolic") is before
    del EngineRepository()._engines["neurosymbolic"]


def test_uninstall_leaves_an_engine_that_was_registered_since(fake_openai: FakeOpenAI) -> None:
    gptx_async.install(KEY, MODEL)
    since = GPTXChatEngine(KEY, MODEL)
    EngineRepository.register("neurosymbolic", since, allow_engine_override=True)
    gptx_async.uninstall()
    assert EngineRepository.get("neurosymbolic") is since
    del EngineRepository()._engines["neurosymbolic"]


def test_importing_the_package_does_not_import_symbolicai() -> None:
    program = "import gptx_async, sys; print('symai' in sys.modules, 'openai' in sys.modules)"
    child = run_python("-c", program, fresh=True)
    assert child.stdout.strip() == "False False", child.stderr
