"""Engines that were made before the package's modules are loaded again, as notebooks do."""

from __future__ import annotations

import pytest

from gptx_async.testing import FakeOpenAI, HTTPFault
from support.child import run_child

PROGRAM = """
    import importlib, sys, threading
    from symai import Symbol
    from symai.core import Argument
    import gptx_async

    def install(**options):
        engine = gptx_async.install("sk-child", "gpt-4o-mini", client_max_retries=3, **options)
        engine.client.base_url = sys.argv[1]
        return engine

    def modules():
        return [name for name in sys.modules if name.partition(".")[0] == "gptx_async"]

    def reload():
        for name in modules():
            importlib.reload(sys.modules[name])

    def import_again():
        global gptx_async
        for name in modules():
            del sys.modules[name]
        import gptx_async

    def argument(text):
        argument = Argument((), {}, {"prompt": "Answer."})
        argument.prop.instance = Symbol(text)
        argument.prop.processed_input = text
        return argument

    def ask(engine, expected="an answer"):
        [(one, _), (other, _)] = engine([argument("one"), argument("other")])
        prepared = argument("alone")
        engine.prepare(prepared)
        [text], _ = engine(prepared)
        assert [*one, *other, text] == [expected] * 3, (one, other, text)

    def threads():
        return [thread.name for thread in threading.enumerate()].count("gptx_async-loop")

    old = install()
    ask(old)
"""


def run(program: str, server: FakeOpenAI) -> None:
    server.reply = lambda _request: "an answer"
    completed = run_child(PROGRAM + program, server.base_url, strict=False)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.parametrize("way", ["reload", "import_again"])
@pytest.mark.slow
def test_engines_from_before_and_after_answer(fake_openai: FakeOpenAI, way: str) -> None:
    run(
        f"""
    {way}()
    ask(old)
    assert Symbol("a").query("b").value == "an answer", "the old engine is still installed"
    new = install()
    assert type(new) is not type(old)
    ask(new)
    ask(old)
    ask(gptx_async.AsyncBatchEngine(old._sync_engine))
    assert Symbol("a").query("b").value == "an answer"
    """,
        fake_openai,
    )
    assert len(fake_openai.requests) == 5 * 3 + 2


@pytest.mark.slow
def test_a_reload_keeps_the_thread_and_what_uninstall_restores(fake_openai: FakeOpenAI) -> None:
    run(
        """
    import logging, time
    from symai import core_ext
    from symai.functional import EngineRepository
    gptx_async.uninstall()
    levels = logging.getLogger().level, logging.getLogger("httpx2").level
    engine = install()
    for _ in range(2):
        reload()
        ask(engine)
        ask(install())
    assert threads() == 1
    gptx_async.uninstall()
    assert "neurosymbolic" not in EngineRepository.list()
    assert core_ext.time is time
    assert levels == (logging.getLogger().level, logging.getLogger("httpx2").level)
    """,
        fake_openai,
    )


@pytest.mark.slow
def test_after_a_reload_failures_are_retried_and_errors_are_caught(fake_openai: FakeOpenAI) -> None:
    fake_openai.fail_next(HTTPFault(500))
    run(
        """
    reload()
    from gptx_async import errors
    prices = {"gpt-4o-mini": (1e6, 1e6)}
    for engine in old, install():
        ask(engine)
        engine.prices, engine.max_cost = prices, 1e-9
        engine([argument("what uses it up")])
        [(_, metadata)] = engine([argument("too dear")])
        assert type(metadata["exception"]).__name__ == "CostLimitError"
        assert isinstance(metadata["exception"], errors.CostLimitError), "of the new module"
    """,
        fake_openai,
    )
