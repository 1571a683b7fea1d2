"""Pickled engines and errors: where they travel, the API key stays behind."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from symai import Symbol
from symai.backend.settings import SYMAI_CONFIG
from test_providers import SUPPORTED, lead_to

import gptx_async
from gptx_async import AsyncGPTXBatchEngine, Failed
from gptx_async.errors import ConfigurationError
from gptx_async.testing import FakeOpenAI, HTTPFault
from support import TESTS
from support.child import run_child
from support.engines import argument, echo, user_text

KEY, MODEL = "sk-of-this-process-0123", "gpt-4o-mini"
OTHER_KEY = "sk-of-an-embedding-engine"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """symbolicai's configuration, which a test may change."""
    monkeypatch.setitem(SYMAI_CONFIG, "EMBEDDING_ENGINE_API_KEY", OTHER_KEY)
    for variable in ("OPENAI", "GROQ", "OPENROUTER", "DEEPSEEK", "CEREBRAS"):
        monkeypatch.delenv(f"{variable}_API_KEY", raising=False)
    configuration: dict[str, Any] = SYMAI_CONFIG
    return configuration


@pytest.fixture
def uninstall() -> Iterator[None]:
    yield
    gptx_async.uninstall()


def texts_in(pickled: bytes) -> str:
    """All texts and bytes that a pickle holds, as one."""
    return " ".join(str(value) for _, value, _ in pickletools.genops(pickled) if value is not None)


@pytest.mark.parametrize("model", SUPPORTED)
@pytest.mark.usefixtures("uninstall")
@pytest.mark.slow
def test_a_pickled_engine_contains_no_key(
    fake_openai: FakeOpenAI,
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:sk-password@127.0.0.1:9")
    engine = gptx_async.install(KEY, model)
    lead_to(fake_openai, engine)
    engine.forward([argument("a")])  # which computes what is kept about the settings
    for pickled in (pickle.dumps(engine), pickle.dumps(engine, 0), pickle.dumps([engine, engine])):
        assert "sk-" not in texts_in(pickled)
        assert b"sk-" not in pickled
    monkeypatch.setitem(config, "NEUROSYMBOLIC_ENGINE_MODEL", model)
    monkeypatch.setitem(config, "NEUROSYMBOLIC_ENGINE_API_KEY", "sk-where-it-wakes-up")
    twin = pickle.loads(pickled)[0]
    assert twin.client.api_key == "sk-where-it-wakes-up"
    assert twin.config["NEUROSYMBOLIC_ENGINE_API_KEY"] == "sk-where-it-wakes-up"
    assert twin.config["EMBEDDING_ENGINE_API_KEY"] == OTHER_KEY
    assert KEY not in repr(vars(twin._sync_engine))
    assert twin.id() == engine.id()
    [[output]], _ = twin.forward([argument("a")])
    assert output
    assert fake_openai.requests[-1].api_key == "sk-where-it-wakes-up"


def test_pickle_key_keeps_the_key(fake_openai: FakeOpenAI, config: dict[str, Any]) -> None:
    engine = AsyncGPTXBatchEngine(KEY, MODEL, pickle_key=True)
    twin = pickle.loads(pickle.dumps(engine))
    assert twin.pickle_key is True
    assert twin.client.api_key == KEY
    engine.pickle_key = False
    assert KEY.encode() not in pickle.dumps(engine)
    assert gptx_async.install(KEY, MODEL, pickle_key=True).pickle_key
    gptx_async.uninstall()


def test_a_copy_in_the_same_process_keeps_the_key(
    fake_openai: FakeOpenAI, config: dict[str, Any]
) -> None:
    engine = AsyncGPTXBatchEngine(KEY, MODEL, window=7)
    for twin in (copy.copy(engine), copy.deepcopy(engine), copy.deepcopy([engine])[0]):
        assert type(twin) is AsyncGPTXBatchEngine
        assert (twin.client.api_key, twin.window) == (KEY, 7)
        assert twin.config == engine.config


@pytest.mark.parametrize(
    ("model", "configured", "variables", "expected"),
    [
        (MODEL, (MODEL, "sk-configured"), {"OPENAI_API_KEY": "sk-env"}, "sk-configured"),
        (MODEL, ("o3-mini", "sk-configured"), {}, "sk-configured"),
        (MODEL, ("", "sk-configured"), {}, "sk-configured"),
        (MODEL, (MODEL, ""), {"OPENAI_API_KEY": "sk-env"}, "sk-env"),
        (MODEL, ("groq:any", "sk-of-groq"), {"OPENAI_API_KEY": "sk-env"}, "sk-env"),
        (MODEL, ("claude-sonnet-4-5", "sk-of-another"), {"OPENAI_API_KEY": "sk-env"}, "sk-env"),
        ("groq:any", (MODEL, "sk-of-openai"), {"GROQ_API_KEY": "sk-env"}, "sk-env"),
        ("cerebras:any", (MODEL, "sk-of-openai"), {"CEREBRAS_API_KEY": "sk-env"}, "sk-env"),
        ("groq:any", (MODEL, "sk-of-openai"), {"OPENAI_API_KEY": "sk-env"}, None),
        (MODEL, ("groq:any", "sk-of-groq"), {"GROQ_API_KEY": "sk-env"}, None),
        (MODEL, ("no-such-model", "sk-of-another"), {}, None),
    ],
)
@pytest.mark.usefixtures("uninstall")
@pytest.mark.slow
def test_the_key_is_the_providers_where_the_engine_wakes_up(
    fake_openai: FakeOpenAI,
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    configured: tuple[str, str],
    variables: dict[str, str],
    expected: str | None,
) -> None:
    """No provider is sent the key of another one."""
    pickled = pickle.dumps(gptx_async.install(KEY, model))
    monkeypatch.setitem(config, "NEUROSYMBOLIC_ENGINE_MODEL", configured[0])
    monkeypatch.setitem(config, "NEUROSYMBOLIC_ENGINE_API_KEY", configured[1])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        with pytest.raises(ConfigurationError, match="was pickled without its key") as raised:
            pickle.loads(pickled)
        assert "pickle_key=True" in str(raised.value)
        assert "sk-" not in str(raised.value)
    else:
        assert pickle.loads(pickled).client.api_key == expected


@pytest.mark.slow
def test_an_engine_wakes_up_in_another_process(
    fake_openai: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_openai.reply = echo
    engine = AsyncGPTXBatchEngine(KEY, MODEL, max_concurrency=3)
    (tmp_path / "engine.pickle").write_bytes(pickle.dumps(engine))
    configuration = {
        "NEUROSYMBOLIC_ENGINE_API_KEY": "sk-of-the-worker",
        "NEUROSYMBOLIC_ENGINE_MODEL": MODEL,
    }
    (tmp_path / "symai.config.json").write_text(json.dumps(configuration))
    program = """
    import pickle, sys
    sys.path.insert(0, sys.argv[1])
    engine = pickle.load(open("engine.pickle", "rb"))
    from support.engines import argument
    print(engine.forward([argument("a")])[0], engine.max_concurrency)
    """
    monkeypatch.chdir(tmp_path)
    completed = run_child(program, TESTS, strict=False, fresh=True)
    assert completed.stdout.strip() == "[['answer to a']] 3", completed.stderr
    assert fake_openai.requests[-1].api_key == "sk-of-the-worker"


def raised_by_aforward(engine: AsyncGPTXBatchEngine) -> BaseException:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is
        asyncio.run(engine.aforward(argument("bad", except_remedy=reraise)))
    return raised.value


def raised_by_forward_with_a_deadline(engine: AsyncGPTXBatchEngine) -> BaseException:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        engine.forward(argument("bad", except_remedy=reraise), deadline=60)
    return raised.value


def failed_in_a_batch(engine: AsyncGPTXBatchEngine) -> BaseException:
    _, [metadata] = engine.forward([argument("bad", except_remedy=reraise)])
    error: BaseException = metadata["exception"]
    return error


def failed_in_map(_: AsyncGPTXBatchEngine) -> BaseException:
    [failed] = gptx_async.map(ask, ["bad"], on_error="return")
    assert isinstance(failed, Failed)
    return failed.error


def ask(text: str) -> Any:
    return Symbol(text).query("Answer.", except_remedy=reraise)


def reraise(_engine: Any, error: Exception, _callback: Any, _argument: Any) -> Any:
    raise error


@pytest.mark.parametrize(
    "fail",
    [
        raised_by_aforward,
        raised_by_forward_with_a_deadline,
        failed_in_a_batch,
        failed_in_map,
    ],
)
@pytest.mark.usefixtures("uninstall")
def test_the_error_of_a_call_contains_no_key(
    fake_openai: FakeOpenAI, fail: Callable[[Any], BaseException]
) -> None:
    fake_openai.faults = lambda request: (
        HTTPFault(400) if user_text(request.body) == "bad" else None
    )
    error = fail(gptx_async.install(KEY, MODEL))
    assert isinstance(error, openai.BadRequestError)
    assert error.request.headers["authorization"] == "[secure]"
    assert error.response.request.headers["authorization"] == "[secure]"
    assert fake_openai.requests[-1].api_key == KEY
