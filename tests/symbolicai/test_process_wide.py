"""What the package changes in the process outside itself, and that `uninstall` undoes it."""

from __future__ import annotations

import pytest

from gptx_async.testing import FakeOpenAI
from support.child import run_child

PROGRAM = """
    import logging, sys
    import openai
    from symai import Symbol, core_ext
    import gptx_async
    from gptx_async import AsyncBatchEngine

    NAMES = ("", "httpx2", "httpcore2", "httpx", "httpcore", "openai", "aiohttp", "asyncio")

    def state():
        levels = {name: logging.getLogger(name).level for name in NAMES}
        return core_ext.time, openai.api_key, levels, [*logging.getLogger().handlers]

    def install(key="sk-child"):
        engine = gptx_async.install(key, "gpt-4o-mini", client_max_retries=0)
        engine.client.base_url = sys.argv[1]
        return engine

    def changed(before):
        return [now != then for now, then in zip(state(), before)]

    openai.api_key = None
    root = logging.getLogger()
    for handler in [*root.handlers]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.INFO)
    logging.getLogger("httpcore2").setLevel(logging.NOTSET)
    before = state()
"""


def run(program: str, *arguments: str) -> None:
    completed = run_child(PROGRAM + program, *arguments, strict=False)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.slow
def test_uninstall_restores_all_that_engines_have_changed(fake_openai: FakeOpenAI) -> None:
    run(
        """
    install()
    install("sk-another")
    assert changed(before) == [True, True, True, True]
    assert Symbol("a").query("b").value
    gptx_async.uninstall()
    assert changed(before) == [False] * 4, (before, state())
    gptx_async.uninstall()
    assert changed(before) == [False] * 4
    """,
        fake_openai.base_url,
    )
    assert len(fake_openai.requests) == 1


@pytest.mark.slow
def test_an_engine_that_is_called_after_uninstall_changes_it_again(fake_openai: FakeOpenAI) -> None:
    run(
        """
    from symai.functional import EngineRepository
    engine = install()
    gptx_async.uninstall()
    EngineRepository.register("neurosymbolic", engine, allow_engine_override=True)
    assert Symbol("a").query("b").value
    assert changed(before) == [True, True, True, False], "all but the root logger's handlers"
    assert root.level == logging.WARNING
    gptx_async.uninstall()
    assert changed(before) == [False] * 4
    assert EngineRepository.list()["neurosymbolic"] is engine
    """,
        fake_openai.base_url,
    )
    assert len(fake_openai.requests) == 1


@pytest.mark.slow
def test_however_many_engines_are_built_the_root_logger_gets_one_handler() -> None:
    run(
        """
    for number in range(3):
        install(f"sk-{number}")
    with gptx_async.dynamic_engine("o3-mini", "sk-dynamic"):
        pass
    streams = [each for each in root.handlers if type(each) is logging.StreamHandler]
    assert len(streams) == 1, root.handlers
    """,
        "http://127.0.0.1:9/v1",
    )


@pytest.mark.slow
def test_the_handler_of_a_sync_engine_stays_and_is_the_only_one() -> None:
    run(
        """
    from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
    GPTXChatEngine("sk-sync", "gpt-4o-mini")
    before = state()
    install()
    assert root.handlers == before[3]
    assert openai.api_key == "sk-child"
    gptx_async.uninstall()
    assert changed(before) == [False] * 4, (before, state())
    """,
        "http://127.0.0.1:9/v1",
    )


@pytest.mark.slow
def test_what_somebody_else_has_changed_since_stays(fake_openai: FakeOpenAI) -> None:
    run(
        """
    import types
    install()
    mine = logging.NullHandler()
    root.addHandler(mine)
    root.setLevel(logging.ERROR)
    logging.getLogger("httpx2").setLevel(logging.CRITICAL)
    openai.api_key = "sk-mine"
    core_ext.time = time = types.SimpleNamespace(sleep=print)
    gptx_async.uninstall()
    assert root.handlers == [mine]
    assert root.level == logging.ERROR
    assert logging.getLogger("httpx2").level == logging.CRITICAL
    assert logging.getLogger("httpcore2").level == logging.NOTSET
    assert openai.api_key == "sk-mine"
    assert core_ext.time is time
    """,
        fake_openai.base_url,
    )


@pytest.mark.slow
def test_an_engine_of_another_provider_leaves_the_key_of_openai_alone() -> None:
    run(
        """
    gptx_async.install("sk-deepseek", "deepseek-reasoner")
    assert openai.api_key is None
    """,
        "http://127.0.0.1:9/v1",
    )
