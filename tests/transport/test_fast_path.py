"""With the fast path turned off the SDK sends every call."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from openai.resources.chat.completions import AsyncCompletions

from gptx_async import AsyncGPTXBatchEngine, errors
from gptx_async.testing import FakeOpenAI
from gptx_async.transport.exchange import Exchange
from support.hostile import make_argument

ACCOUNT = ("sk-of-the-tests", "gpt-4o-mini")


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what sends each call: the package's exchange or the SDK's method."""
    seen: list[str] = []

    def watch(kind: type, name: str, sender: str) -> None:
        original = getattr(kind, name)

        def note(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(sender)
            return original(self, *args, **kwargs)

        note.__code__ = note.__code__.replace(co_filename=original.__code__.co_filename)
        monkeypatch.setattr(kind, name, note)

    watch(Exchange, "post", "ours")
    watch(AsyncCompletions, "create", "SDK")
    return seen


def ask(engine: Any) -> None:
    [(_, metadata)] = engine([make_argument("text")])
    assert "exception" not in metadata


def test_it_is_on_until_it_is_turned_off(fake_openai: FakeOpenAI, senders: list[str]) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    assert engine.fast_path is True
    ask(engine)
    engine.fast_path = False
    ask(engine)
    ask(pickle.loads(pickle.dumps(engine)))
    ask(AsyncGPTXBatchEngine(*ACCOUNT, fast_path=False))
    engine.fast_path = True
    ask(engine)
    assert senders == ["ours", "SDK", "SDK", "SDK", "ours"]


@pytest.mark.parametrize(("value", "is_on"), [("0", False), ("1", True), ("", True)])
def test_the_environment_sets_the_default_of_an_engine(
    fake_openai: FakeOpenAI,
    senders: list[str],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    is_on: bool,
) -> None:
    monkeypatch.setenv("GPTX_ASYNC_FAST_PATH", value)
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    assert engine.fast_path is is_on
    ask(engine)
    assert senders == ["ours" if is_on else "SDK"]
    assert AsyncGPTXBatchEngine(*ACCOUNT, fast_path=True).fast_path is True


@pytest.mark.parametrize("wrong", ["0", 0, 1, "no"])
def test_it_is_a_switch(fake_openai: FakeOpenAI, wrong: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match="fast_path"):
        AsyncGPTXBatchEngine(*ACCOUNT, fast_path=wrong)
