"""Mistakes in the use of an engine that are told at once."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio

from gptx_async import AsyncBatchEngine, AsyncGPTXBatchEngine, amap, errors
from gptx_async.symbolicai.options import EngineOptions
from gptx_async.testing import FakeOpenAI
from support.hostile import make_argument

ACCOUNT = ("sk-of-the-tests", "gpt-4o-mini")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_concurency", "max_concurrency"),
        ("rate_limits", "rate_limit"),
        ("timeouts", "timeout"),
        ("windows", "window"),
        ("retry_error_body", "retry_error_bodies"),
    ],
)
def test_a_misspelled_option_is_an_error_with_the_right_name(
    fake_openai: FakeOpenAI, wrong: str, right: str
) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    with pytest.raises(errors.ConfigurationError, match=f"Did you mean '{right}'"):
        setattr(engine, wrong, 5)
    assert not hasattr(engine, wrong)


def test_other_names_and_those_of_the_sync_engine_are_set_there(fake_openai: FakeOpenAI) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    engine._sync_engine.timeouts = 1
    given: dict[str, Any] = {"timeouts": 2, "verbose": True, "mine": 3}
    for name, value in given.items():
        setattr(engine, name, value)
        assert getattr(engine._sync_engine, name) == value


@pytest.mark.parametrize("name", sorted(EngineOptions.__annotations__))
def test_each_option_is_a_property_with_a_type_and_a_text_for_help(name: str) -> None:
    option = inspect.getattr_static(AsyncBatchEngine, name)
    assert isinstance(option, property)
    assert option.fget is not None
    assert option.fset is not None
    assert option.fget.__annotations__["return"]
    assert option.__doc__


def test_properties_are_the_engines_own_and_never_the_sync_engines(
    fake_openai: FakeOpenAI,
) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    for name in EngineOptions.__annotations__:
        setattr(engine, name, getattr(engine, name))
        assert name not in vars(engine._sync_engine)
        assert f"_{name}" not in vars(engine._sync_engine)


@pytest.mark.parametrize("argument", ["one", "a batch"])
def test_aforward_under_trio_says_that_it_needs_asyncio(
    fake_openai: FakeOpenAI, argument: str
) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    one = make_argument("text")

    async def ask() -> None:
        await engine.aforward(one if argument == "one" else [one])

    with pytest.raises(errors.AsyncioNeededError, match=r"trio\.to_thread"):
        trio.run(ask)
    assert fake_openai.requests == []


@pytest.mark.parametrize("way", ["awaited", "in order", "as completed"])
def test_amap_under_trio_says_that_it_needs_asyncio(way: str) -> None:
    asked: list[str] = []

    async def run() -> None:
        if way == "awaited":
            await amap(asked.append, ["a"])
        elif way == "in order":
            async for _ in amap(asked.append, ["a"]):
                pass
        else:
            async for _ in amap(asked.append, ["a"], as_completed=True):
                pass

    with pytest.raises(errors.AsyncioNeededError, match=r"trio\.to_thread"):
        trio.run(run)
    assert asked == []
