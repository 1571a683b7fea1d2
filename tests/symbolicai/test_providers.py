"""Which engine a model gets, on all ways to one; what is refused; and the twin of DynamicEngine.

That the engines do what symbolicai's own do is shown case by case in tests/differential.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from symai import Symbol
from symai.backend.engines import neurosymbolic
from symai.backend.settings import SYMAI_CONFIG
from symai.components import DynamicEngine
from symai.core import Argument
from symai.functional import CURRENT_ENGINE_VAR, EngineRepository

import gptx_async
from gptx_async import AsyncBatchEngine, AsyncDynamicEngine, AsyncGPTXBatchEngine
from gptx_async.errors import ConfigurationError, UnsupportedClientError
from gptx_async.symbolicai.v1.engine_classes import engine_class_of
from gptx_async.testing import BatchScheduler, FakeOpenAI

KEY = "sk-of-the-tests"

SUPPORTED = {
    "gpt-4o-mini": "GPTXChatEngine",
    "gpt-5.1-chat-latest": "GPTXChatEngine",
    "o3-mini": "GPTXReasoningEngine",
    "gpt-5.5": "GPTXReasoningEngine",
    "responses:gpt-4o-mini": "OpenAIResponsesEngine",
    "responses:gpt-5.4-pro": "OpenAIResponsesEngine",
    "groq:openai/gpt-oss-20b": "GroqEngine",
    "openrouter:any/model": "OpenRouterEngine",
    "deepseek-reasoner": "DeepSeekXReasoningEngine",
    "cerebras:any-model": "CerebrasEngine",
}

UNSUPPORTED = {
    "claude-3-haiku-20240307": "ClaudeXChatEngine",
    "claude-sonnet-4-5": "ClaudeXReasoningEngine",
    "gemini-2.5-pro": "GeminiXReasoningEngine",
    "llama": "LlamaCppEngine",
    "huggingface": "HFEngine",
    "vllm:any": "VLLMEngine",
}


def argument(text: str, **kwargs: Any) -> Any:
    """An argument as symbolicai's decorators build it, not prepared."""
    argument = Argument((), kwargs, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


def echo(request: Any) -> str:
    text = re.sub(r"\AData:\n(.*)\nContext: .*\Z", r"\1", request.user_text, flags=re.DOTALL)
    return f"{text} by {request.body['model']}"


@pytest.fixture(autouse=True)
def _clean_repository(
    engine_repository: Any, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("CEREBRAS_BASE_URL", root_of(fake_openai))
    engine_repository._engines.clear()
    yield
    gptx_async.uninstall()


def root_of(server: FakeOpenAI) -> str:
    return server.base_url.removesuffix("/v1")


def lead_to(server: FakeOpenAI, engine: Any) -> None:
    """Let an engine ask the server; some providers' URLs are constants."""
    is_of_cerebras = str(engine) == "CerebrasEngine"
    engine.client.base_url = root_of(server) if is_of_cerebras else server.base_url
    server.clear()  # of what the constructor has asked


def configure(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setitem(SYMAI_CONFIG, "NEUROSYMBOLIC_ENGINE_API_KEY", KEY)
    monkeypatch.setitem(SYMAI_CONFIG, "NEUROSYMBOLIC_ENGINE_MODEL", model)


@pytest.mark.parametrize("model", SUPPORTED)
def test_the_engine_is_the_one_that_symbolicai_registers(
    monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI, model: str
) -> None:
    configure(monkeypatch, model)
    registered = EngineRepository.get("neurosymbolic")  # by its own search through the package
    assert engine_class_of(model) is type(registered)
    assert type(registered).__name__ == SUPPORTED[model]


@pytest.mark.parametrize("model", SUPPORTED)
@pytest.mark.parametrize("way", ["install", "install by the configuration", "from_config"])
@pytest.mark.slow
def test_each_way_to_an_engine_takes_the_one_for_the_model(
    monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI, model: str, way: str
) -> None:
    fake_openai.reply = echo
    engine: AsyncBatchEngine
    if way == "install":
        engine = gptx_async.install(KEY, model, window=7, client_max_retries=5, client_timeout=9)
    else:
        configure(monkeypatch, model)
        build = AsyncBatchEngine.from_config if way == "from_config" else gptx_async.install
        engine = build(window=7, client_max_retries=5, client_timeout=9)
    if way == "from_config":
        assert "neurosymbolic" not in EngineRepository.list()
        EngineRepository.register("neurosymbolic", engine)
    assert EngineRepository.get("neurosymbolic") is engine
    assert (str(engine), engine.id()) == (SUPPORTED[model], "neurosymbolic")
    assert (engine.window, engine.client.max_retries, engine.client_timeout) == (7, 5, 9)
    lead_to(fake_openai, engine)
    outputs, metadatas = engine.forward([argument("a"), argument("b")])
    sent = re.sub("^(cerebras|groq|openrouter|responses):", "", model)
    assert outputs == [[f"a by {sent}"], [f"b by {sent}"]], metadatas
    assert {request.api_key for request in fake_openai.requests} == {KEY}


def test_the_class_of_an_installed_engine_is_as_narrow_as_its_model(
    monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI
) -> None:
    assert type(gptx_async.install(KEY, "gpt-4o-mini")) is AsyncGPTXBatchEngine
    assert type(gptx_async.install(KEY, "o3-mini")) is AsyncBatchEngine
    configure(monkeypatch, "gpt-4o-mini")
    assert type(AsyncGPTXBatchEngine.from_config(window=3)) is AsyncGPTXBatchEngine
    configure(monkeypatch, "o3-mini")
    with pytest.raises(ConfigurationError, match=r"AsyncBatchEngine\.from_config\(\)"):
        AsyncGPTXBatchEngine.from_config()


def test_from_config_names_what_the_configuration_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, "")
    with pytest.raises(ConfigurationError, match="NEUROSYMBOLIC_ENGINE_MODEL"):
        AsyncBatchEngine.from_config()


@pytest.mark.parametrize("model", UNSUPPORTED)
def test_a_model_whose_engine_cannot_be_asynchronous_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    configure(monkeypatch, model)
    for build in (gptx_async.install, AsyncBatchEngine.from_config):
        with pytest.raises(UnsupportedClientError, match=UNSUPPORTED[model]) as caught:
            build()
        assert {*re.findall(r"\w+Engine", str(caught.value))} >= {*SUPPORTED.values()}
    assert EngineRepository.list() == {}


@pytest.mark.parametrize("model", ["no-such-model", "GPT-4o", "gpt-5.2"])
def test_a_model_that_no_engine_knows_is_refused(model: str) -> None:
    with pytest.raises(ConfigurationError, match=f"knows the model '{model}'") as caught:
        gptx_async.install(KEY, model)
    assert {*re.findall(r"\w+Engine", str(caught.value))} == {*SUPPORTED.values()}
    assert ("'responses:gpt-5.2'" in str(caught.value)) == (model == "gpt-5.2")


def test_a_model_that_its_engine_does_not_take_is_refused(fake_openai: FakeOpenAI) -> None:
    with pytest.raises(ConfigurationError, match=r"GPTXChatEngine .*Unsupported model: gpt-4o-20"):
        gptx_async.install(KEY, "gpt-4o-2024-08-06")


def test_a_wrong_option_is_told_as_itself(fake_openai: FakeOpenAI) -> None:
    with pytest.raises(ConfigurationError, match=r"\Awindow is 0"):
        gptx_async.install(KEY, "o3-mini", window=0)
    with pytest.raises(ConfigurationError, match=r"\Aclient_timeout is -1"):
        gptx_async.install(KEY, "o3-mini", client_timeout=-1)


def build_claude() -> Any:
    return neurosymbolic.ClaudeXReasoningEngine(KEY, "claude-sonnet-4-5")


def build_gemini() -> Any:
    return neurosymbolic.GeminiXReasoningEngine(KEY, "gemini-2.5-pro")


def build_huggingface() -> Any:
    module = importlib.import_module(f"{neurosymbolic.__name__}.engine_huggingface")
    engine = module.HFEngine.__new__(module.HFEngine)  # its constructor wants a server of its own
    engine.config = {"NEUROSYMBOLIC_ENGINE_MODEL": "huggingface"}
    return engine


@pytest.mark.parametrize("build", [build_claude, build_gemini, build_huggingface])
def test_an_engine_that_does_not_call_openai_is_refused_at_construction(build: Any) -> None:
    engine = build()
    with pytest.raises(UnsupportedClientError, match=type(engine).__name__) as caught:
        AsyncBatchEngine(engine)
    assert {*re.findall(r"\w+Engine", str(caught.value))} >= {*SUPPORTED.values()}


@pytest.mark.parametrize("model", SUPPORTED)
def test_an_engine_survives_pickling(fake_openai: FakeOpenAI, model: str) -> None:
    fake_openai.reply = echo
    engine = gptx_async.install(KEY, model, pickle_key=True)
    lead_to(fake_openai, engine)
    twin = pickle.loads(pickle.dumps(engine))
    EngineRepository.register("neurosymbolic", twin, allow_engine_override=True)
    [[output]], _ = twin.forward([argument("a")])
    assert output.startswith("a by ")


@pytest.mark.parametrize(
    ("model", "counted"), [("responses:gpt-4o-mini", 2), ("cerebras:any", 2), ("groq:any", 0)]
)
def test_tokens_are_counted_by_the_engines_that_can(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, model: str, counted: int
) -> None:
    """The others would print that they cannot, for each call."""
    engine_class, asked = engine_class_of(model), []
    count = engine_class.compute_required_tokens

    def note(self: Any, messages: Any) -> Any:
        asked.append(messages[-1]["content"])
        return count(self, messages)

    engine = gptx_async.install(KEY, model)
    lead_to(fake_openai, engine)
    monkeypatch.setattr(engine_class, "compute_required_tokens", note)
    engine.forward([argument("a"), argument("b")])
    by_forward_itself = len(asked)
    engine.rate_limit = gptx_async.RateLimit(tokens_per_minute=1_000_000)
    _, metadatas = engine.forward([argument("a"), argument("b")])
    assert not any(metadata.get("error") for metadata in metadatas)
    assert len(asked) == 2 * by_forward_itself + counted


def ask() -> str:
    return str(Symbol("a").query("b"))


@pytest.fixture
def installed(fake_openai: FakeOpenAI) -> Any:
    fake_openai.reply = echo
    return gptx_async.install(KEY, "gpt-4o-mini")


def test_within_a_block_another_model_answers(installed: Any, fake_openai: FakeOpenAI) -> None:
    with gptx_async.dynamic_engine("o3-mini", "sk-dynamic", window=3) as engine:
        assert type(engine) is AsyncBatchEngine
        assert (str(engine), engine.window) == ("GPTXReasoningEngine", 3)
        assert EngineRepository.get("neurosymbolic") is engine
        assert ask() == "a by o3-mini"
        assert engine.forward([argument("c"), argument("d")])[0] == [
            ["c by o3-mini"],
            ["d by o3-mini"],
        ]
    assert ask() == "a by gpt-4o-mini"
    keys = [request.api_key for request in fake_openai.requests]
    assert keys == ["sk-dynamic"] * 3 + [KEY]


def test_the_calls_of_a_block_are_made_at_once(installed: Any, fake_openai: FakeOpenAI) -> None:
    def run_block() -> Any:
        with gptx_async.dynamic_engine("gpt-4o", "sk-dynamic") as engine:
            return engine.forward([argument(f"{number}") for number in range(30)])[0]

    fake_openai.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_block)
        fake_openai.wait_for(lambda server: server.in_flight == 30)
        fake_openai.release()
        assert running.result(30) == [[f"{number} by gpt-4o"] for number in range(30)]


def test_blocks_nest_and_end_as_those_of_symbolicai(installed: Any) -> None:
    """Step by step beside `DynamicEngine` itself."""

    def run(make: Any) -> list[str]:
        said = [ask()]
        with make("gpt-4o", KEY):
            said.append(ask())
            with make("gpt-4.1", KEY), make("o3-mini", KEY):
                said.append(ask())
            said.append(ask())
            with pytest.raises(LookupError), make("o3-mini", KEY):
                raise LookupError
            said.append(ask())
        again = make("gpt-4.1", KEY)
        with again:
            said.append(ask())
        with again:
            said.append(ask())
        return [*said, ask()]

    said = run(gptx_async.dynamic_engine)
    assert said == run(DynamicEngine)
    models = ["gpt-4o-mini", "gpt-4o", "o3-mini", "gpt-4o", "gpt-4o", "gpt-4.1", "gpt-4.1"]
    assert said == [f"a by {model}" for model in [*models, "gpt-4o-mini"]]


def test_a_block_and_one_of_symbolicai_nest_in_each_other(installed: Any) -> None:
    with DynamicEngine("gpt-4o", KEY):
        with gptx_async.dynamic_engine("gpt-4.1", KEY):
            assert ask() == "a by gpt-4.1"
        assert ask() == "a by gpt-4o"
    with gptx_async.dynamic_engine("gpt-4.1", KEY):
        with DynamicEngine("gpt-4o", KEY):
            assert ask() == "a by gpt-4o"
        assert ask() == "a by gpt-4.1"


@pytest.mark.parametrize("make", [DynamicEngine, gptx_async.dynamic_engine])
def test_threads_do_not_see_the_block_but_in_a_copy_of_its_context(
    installed: Any, make: Any
) -> None:
    with make("gpt-4o", KEY), ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask).result(30) == "a by gpt-4o-mini"
        context = contextvars.copy_context()
        assert pool.submit(context.run, ask).result(30) == "a by gpt-4o"


@pytest.mark.parametrize("make", [DynamicEngine, gptx_async.dynamic_engine])
def test_a_block_that_was_entered_in_another_context_is_found_by_its_variable(
    installed: Any, make: Any
) -> None:
    block = make("gpt-4o", KEY)
    contextvars.copy_context().run(block.__enter__)
    assert CURRENT_ENGINE_VAR.get() is None
    assert EngineRepository.get("neurosymbolic") is block.engine_instance
    assert ask() == "a by gpt-4o"
    block.__exit__(None, None, None)
    assert ask() == "a by gpt-4o-mini"


@pytest.mark.parametrize("make", [DynamicEngine, gptx_async.dynamic_engine])
def test_the_items_of_a_batch_find_a_block_by_its_variable(installed: Any, make: Any) -> None:
    """Their frames end with their greenlet; on one thread with the caller they do not."""

    def remedy(_engine: Any, _error: Exception, callback: Any, _argument: Any) -> Any:
        said = ask()
        return callback(model="gpt-4.1", messages=[{"role": "user", "content": said}])

    block = make("gpt-4o", KEY)
    contextvars.copy_context().run(block.__enter__)
    bad = argument("bad", except_remedy=remedy, logit_bias={"1": object})
    [[output]], _ = installed.forward([bad])
    assert output == "a by gpt-4o by gpt-4.1"
    block.__exit__(None, None, None)


def test_coroutines_of_one_loop_have_blocks_of_their_own(installed: Any) -> None:
    async def run(model: str) -> Any:
        with gptx_async.dynamic_engine(model, KEY) as engine:
            await asyncio.sleep(0)
            outputs, _ = await engine.aforward([argument("a")])
            assert EngineRepository.get("neurosymbolic") is engine
            return outputs[0][0]

    async def main() -> list[Any]:
        return await asyncio.gather(*(run(model) for model in ("gpt-4o", "o3-mini", "gpt-4.1")))

    assert asyncio.run(main()) == ["a by gpt-4o", "a by o3-mini", "a by gpt-4.1"]


def test_a_scheduler_that_is_made_within_a_block_asks_its_engine(
    installed: Any, fake_openai: FakeOpenAI
) -> None:
    with gptx_async.dynamic_engine("gpt-4o", KEY):
        context = contextvars.copy_context()
        scheduler = BatchScheduler(num_workers=4, batch_size=4)
        said = scheduler.forward(lambda text: context.copy().run(ask), [*range(8)])
    assert said == ["a by gpt-4o"] * 8


@pytest.mark.parametrize(
    ("model", "named"),
    [("claude-sonnet-4-5", "ClaudeXReasoningEngine"), ("gemini-2.5-pro", "GeminiXReasoning")],
)
def test_a_block_of_an_engine_that_cannot_be_asynchronous_is_refused_at_construction(
    model: str, named: str
) -> None:
    with pytest.raises(UnsupportedClientError, match=named):
        gptx_async.dynamic_engine(model, KEY)


def test_a_block_of_a_model_that_its_engine_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="It knows 'responses:"):
        gptx_async.dynamic_engine("gpt-5.2", KEY)


def test_a_scheduler_sees_the_texts_of_the_responses_api(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda _request: "grey"
    engine = gptx_async.install(KEY, "responses:gpt-4o-mini")
    brought: list[Any] = []

    def callback(argument: Any) -> Any:
        [answer] = engine([argument])
        brought.append(answer[0])
        return answer

    engine.executor_callback = callback
    assert ask() == "grey"
    assert brought == [["grey"]]


def test_an_unknown_model_is_told_as_by_symbolicai(installed: Any) -> None:
    said = []
    for make in (DynamicEngine, gptx_async.dynamic_engine):
        block = make("no-such-model", KEY)
        with pytest.raises(ValueError, match="no-such-model") as caught, block:
            pass
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]
    assert ask() == "a by gpt-4o-mini"


def test_a_block_finds_its_vocabulary_where_there_is_no_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with gptx_async.dynamic_engine("gpt-4o", KEY):
        assert len([*tmp_path.iterdir()]) == 2


def test_a_block_is_a_dynamic_engine(fake_openai: FakeOpenAI) -> None:
    block = gptx_async.dynamic_engine("gpt-4o", KEY, client_timeout=3, client_max_retries=4)
    assert isinstance(block, DynamicEngine)
    assert isinstance(block, AsyncDynamicEngine)
    with block as engine:
        assert (engine.client.timeout, engine.client.max_retries) == (3, 4)
