"""Calls by Cerebras's SDK: the loop raises OpenAI's errors, and the caller gets Cerebras's.

tests/differential compares its engine with symbolicai's own, case by case.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cerebras.cloud import sdk
from symai import Symbol
from symai.core import Argument

import gptx_async
from gptx_async import AsyncBatchEngine, errors
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI, HTTPFault, Reset, Stall

KEY, MODEL = "sk-of-the-tests", "cerebras:gpt-oss-120b"
MESSAGES = [{"role": "user", "content": "Which colour?"}]


def argument(text: str, **kwargs: Any) -> Any:
    """Return an argument as symbolicai's decorators build it, before `prepare`."""
    argument = Argument((), kwargs, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


@pytest.fixture
def engine(engine_repository: Any, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CEREBRAS_BASE_URL", fake_openai.base_url.removesuffix("/v1"))
    # The shortest waits between the engine's own retries.
    monkeypatch.setattr(
        "gptx_async.symbolicai.v1.retry_sleep._Time.sleep", lambda _self, _seconds: None
    )
    fake_openai.reply = lambda request: f"answer to {request.user_text}"
    engine = gptx_async.install(KEY, MODEL, client_max_retries=0, rate_limit_patience=0)
    fake_openai.clear()  # the constructor opens a connection
    return engine


def test_the_calls_of_a_batch_run_concurrently(engine: Any, fake_openai: FakeOpenAI) -> None:
    fake_openai.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.forward, [argument(f"{number}") for number in range(150)])
        fake_openai.wait_for(lambda server: server.in_flight == 150)
        fake_openai.release()
        outputs, _ = running.result(30)
    assert outputs == [[f"answer to {number}"] for number in range(150)]


def test_the_answer_is_an_object_of_cerebrass_sdk(engine: Any) -> None:
    _, [metadata] = engine.forward([argument("a")])
    assert type(metadata["raw_output"]).__module__.startswith("cerebras.")
    assert engine.stats().tokens_in > 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (HTTPFault(400, "bad request here"), sdk.BadRequestError),
        (HTTPFault(401), sdk.AuthenticationError),
        (HTTPFault(429), sdk.RateLimitError),
        (HTTPFault(500), sdk.InternalServerError),
        (HTTPFault(418), sdk.APIStatusError),
        (Reset("before"), sdk.APIConnectionError),
    ],
)
def test_a_caller_sees_the_errors_of_cerebrass_sdk(
    engine: Any, fake_openai: FakeOpenAI, fault: Any, kind: type[Exception]
) -> None:
    fake_openai.fail_next(fault)
    with pytest.raises(kind) as caught:
        engine.client.chat.completions.create(model="m", messages=MESSAGES)
    assert type(caught.value) is kind
    assert caught.value.__context__ is None or kind is sdk.APIConnectionError


def test_a_rate_limit_is_waited_for_as_with_openai(engine: Any, fake_openai: FakeOpenAI) -> None:
    engine.rate_limit_patience = 30
    fake_openai.fail_next(HTTPFault(429, retry_after_ms=1))
    assert engine.forward([argument("a")])[0] == [["answer to a"]]
    assert engine.stats().retries == 1


def test_faults_are_tried_again_as_often_as_the_client_says(
    engine: Any, fake_openai: FakeOpenAI
) -> None:
    engine.client.max_retries = 2
    fake_openai.fail_next(HTTPFault(500, retry_after_ms=1), 2)
    assert engine.forward([argument("a")])[0] == [["answer to a"]]
    counts = [request.headers["x-stainless-retry-count"] for request in fake_openai.requests]
    assert counts == ["0", "1", "2"]


def test_an_attempt_ends_at_its_timeout(engine: Any, fake_openai: FakeOpenAI) -> None:
    fake_openai.faults = lambda _request: Stall()
    _, [metadata] = engine.forward([argument("a")], timeout=0.05)
    assert isinstance(metadata["exception"], errors.TimeoutError)


def test_errors_in_results_hold_no_key(engine: Any, fake_openai: FakeOpenAI) -> None:
    fake_openai.faults = lambda _request: HTTPFault(400)
    _, [metadata] = engine.forward([argument("a")])
    sdk_error = metadata["exception"].__context__
    assert isinstance(sdk_error, sdk.BadRequestError)
    assert sdk_error.request.headers["authorization"] == "[secure]"
    assert KEY not in repr(sdk_error.response.request.headers)


def test_a_client_that_its_engine_rebuilds_is_taken_over(
    engine: Any, fake_openai: FakeOpenAI
) -> None:
    engine.command(NEUROSYMBOLIC_ENGINE_API_KEY="sk-another")
    assert isinstance(engine.client, StandInClient)
    engine._sync_engine.client = sdk.Cerebras(api_key="sk-third", warm_tcp_connection=False)
    engine.forward([argument("a")])
    assert isinstance(engine.client, StandInClient)
    assert fake_openai.requests[-1].api_key == "sk-third"


def test_a_copy_of_the_client_asks_on_the_loop_too(engine: Any, fake_openai: FakeOpenAI) -> None:
    patient = engine.client.with_options(timeout=20, api_key="sk-patient")
    assert isinstance(patient, StandInClient)
    patient.chat.completions.create(model="m", messages=MESSAGES)
    assert fake_openai.requests[-1].headers["x-stainless-async"].startswith("async")
    assert fake_openai.requests[-1].api_key == "sk-patient"


def test_engines_survive_pickling_and_copying(engine: Any, fake_openai: FakeOpenAI) -> None:
    engine.pickle_key = True
    for twin in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
        assert isinstance(twin.client, StandInClient)
        assert twin.forward([argument("a")])[0] == [["answer to a"]]


def test_a_client_with_its_own_transport_is_rejected(engine: Any) -> None:
    sync_engine = engine._sync_engine
    sync_engine.client = sdk.Cerebras(
        api_key=KEY, http_client=sdk.DefaultHttpxClient(), warm_tcp_connection=False
    )
    with pytest.raises(errors.UnsupportedClientError, match="http_client of its own"):
        AsyncBatchEngine(sync_engine)
    sync_engine.client.close()
