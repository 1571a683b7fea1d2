"""The same arguments one after the other on `GPTXChatEngine`, and many at once on our engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from symai.components import MetadataTracker
from symai.functional import EngineRepository

from gptx_async.testing import BatchScheduler

from .harness import CHAT, Case, Laboratory, Subject, World
from .items import make_arguments, make_items, reply_by_item
from .outcomes import Outcome, differences, error_of, plain, request_of

SHARED = Case(lambda _world: None)
"""For an engine like that of most cases."""

Ask = Callable[[Any], Any]


def transpose(answers: tuple[Sequence[Any], Sequence[Any]]) -> list[Any]:
    return [*zip(*answers, strict=True)]


def call(engine: Any, arguments: list[Any]) -> list[Any]:
    answers: list[Any] = engine(arguments)
    return answers


def forward(engine: Any, arguments: list[Any]) -> list[Any]:
    return transpose(engine.forward(arguments))


def aforward(engine: Any, arguments: list[Any]) -> list[Any]:
    return transpose(asyncio.run(engine.aforward(arguments)))


WAYS: dict[str, tuple[Callable[[Any], Ask], Callable[[Any, list[Any]], list[Any]]]] = {
    "call": (lambda engine: engine, call),
    "forward": (lambda engine: engine.forward, forward),
    "aforward": (lambda engine: engine.forward, aforward),
}
"""How one argument is asked, and how a batch of them."""


def ask_one(engine: Any, ask: Ask, argument: Any) -> Any:
    """Return what the sync engine makes of one argument, in plain data."""
    try:
        if argument.prop.prepared_input is None:
            engine.prepare(argument)
        outputs, metadata = ask(argument)
    except Exception as error:
        return {"error": without_key(error_of(error))}
    return {"outputs": plain(outputs), "metadata": plain(metadata)}


def without_key(error: Any) -> Any:
    """Say of an error what a batch's results may: they are pickled and kept, and so have no key."""
    if not isinstance(error, dict):
        return error
    return {
        name: "[secure]" if name == "authorization" else without_key(value)
        for name, value in error.items()
    }


def unpack(answer: Any) -> Any:
    """Return what a batch says of one item, in plain data, by the error contract of DESIGN.md."""
    outputs, metadata = answer
    error = metadata.get("exception")
    if error is None:
        return {"outputs": plain(outputs), "metadata": plain(metadata)}
    assert outputs == [str(error)]
    assert metadata == {"error": True, "raw_output": None, "exception": error}
    return {"error": error_of(error)}


def prepare_where_possible(world: World, arguments: dict[str, Any]) -> None:
    for name in [*arguments]:
        try:
            world.engine.prepare(arguments[name])
        except Exception as error:
            world.note("cannot be prepared", name, error)
            del arguments[name]


def run(
    laboratory: Laboratory,
    engine_name: str,
    way: str,
    *,
    prepared: bool,
    subject: Subject = CHAT,
) -> Outcome:
    with laboratory.world(SHARED, engine_name, subject) as world:
        items = make_items(world)
        world.reply = reply_by_item(items)
        arguments = make_arguments(items)
        if prepared:
            prepare_where_possible(world, arguments)
        one, many = WAYS[way]
        if engine_name == "sync":
            ask = one(world.engine)
            seen = [ask_one(world.engine, ask, each) for each in arguments.values()]
        else:
            seen = [unpack(each) for each in many(world.engine, [*arguments.values()])]
        after = [plain([each.kwargs, vars(each.prop)]) for each in arguments.values()]
        by_name = dict(zip(arguments, zip(seen, after, strict=True), strict=True))
        requests = [request_of(each) for each in world.requests()]
        return Outcome({name: [*pair] for name, pair in by_name.items()}, requests, world.notes)


@pytest.mark.parametrize("prepared", [False, True], ids=["unprepared", "prepared"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_batch_is_like_its_arguments_one_by_one(
    laboratory: Laboratory, way: str, prepared: bool
) -> None:
    expected = run(laboratory, "sync", way, prepared=prepared)
    actual = run(laboratory, "async", way, prepared=prepared)
    assert [*differences(expected.sorted(), actual.sorted())] == []
    errors = [name for name, (seen, _) in expected.seen.items() if "error" in seen]
    assert len(errors) > 5, "the batch has good and bad items"
    assert len(expected.seen) - len(errors) > 5


def query(argument: Any) -> Any:
    """Query with an argument, as symbolicai's decorators do; return what comes of it."""

    def answer(_self: Any, *_args: Any) -> None: ...

    answer.__annotations__["return"] = str  # not its name, as under this module's future import
    try:
        returned = EngineRepository.query(
            "neurosymbolic",
            instance=argument.prop.instance,
            func=answer,
            argument=argument,
            limit=1,
        )
    except Exception as error:
        return {"error": error_of(error)}
    return {"returned": plain(returned)}


def run_queries(
    laboratory: Laboratory, engine_name: str, ask_all: Callable[[list[Any]], list[Any]]
) -> Outcome:
    with laboratory.world(SHARED, engine_name) as world:
        items = make_items(world)
        world.reply = reply_by_item(items)
        arguments = make_arguments(items)
        seen = ask_all([*arguments.values()])
        by_name = dict(zip(arguments, seen, strict=True))
        return Outcome(by_name, [request_of(each) for each in world.requests()], world.notes)


@pytest.mark.parametrize(("workers", "batch_size"), [(32, 32), (32, 8), (4, 64)])
def test_a_mixed_dataset_through_a_scheduler_is_like_its_queries_one_by_one(
    laboratory: Laboratory, workers: int, batch_size: int
) -> None:
    expected = run_queries(laboratory, "sync", lambda arguments: [*map(query, arguments)])
    actual = run_queries(
        laboratory,
        "async",
        lambda arguments: BatchScheduler(workers, batch_size).forward(query, arguments),
    )
    assert [*differences(expected.sorted(), actual.sorted())] == []


def test_a_tracker_around_a_batch_counts_what_it_counts_around_its_arguments(
    laboratory: Laboratory,
) -> None:
    usages = {}
    for engine_name in ("sync", "async"):
        with laboratory.world(SHARED, engine_name) as world:
            items = make_items(world)
            names = ("plain", "with three answers", "remedied by its callback", "refused with 400")
            world.reply = reply_by_item(items)
            arguments = make_arguments({name: items[name] for name in names})
            with MetadataTracker() as tracker:
                if engine_name == "sync":
                    for each in arguments.values():
                        ask_one(world.engine, world.engine.forward, each)
                else:
                    world.engine.forward([*arguments.values()])
            usages[engine_name] = plain(tracker.usage)
    assert [*differences(usages["sync"], usages["async"])] == []
    [usage] = usages["sync"]["dict"].values()
    assert usage["defaultdict"]["usage"]["defaultdict"]["total_calls"] == 3
