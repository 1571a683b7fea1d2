"""The private names of symbolicai that the package uses."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ..private_names import PrivateName

__all__ = ["NAMES"]


def _has(module: str, *path: str) -> Callable[[], bool]:
    def check() -> bool:
        owner = importlib.import_module(module)
        for name in path:
            owner = getattr(owner, name)
        return True

    return check


def _repository_has_engines() -> bool:
    repository = importlib.import_module("symai.functional").EngineRepository
    return isinstance(repository()._engines, dict)


def _dynamic_engine_notes_entry() -> bool:
    enter = importlib.import_module("symai.components").DynamicEngine.__enter__
    return "_entered" in enter.__code__.co_names


NAMES = (
    PrivateName(
        "symbolicai",
        "functional.EngineRepository._engines",
        "uninstall() leaves the engine registered where there was none before",
        _repository_has_engines,
    ),
    PrivateName(
        "symbolicai",
        "components.DynamicEngine._entered",
        "a DynamicEngine that was entered in another context is not found",
        _dynamic_engine_notes_entry,
    ),
    PrivateName(
        "symbolicai",
        "components.DynamicEngine._create_engine_instance",
        "gptx_async.dynamic_engine makes synchronous calls",
        _has("symai.components", "DynamicEngine", "_create_engine_instance"),
    ),
    PrivateName(
        "symbolicai",
        "core_ext.time",
        "the waits of an engine's own retries block the other items of its batch",
        _has("symai.core_ext", "time"),
    ),
    PrivateName(
        "symbolicai",
        "context.CURRENT_ENGINE_VAR",
        "symbolicai searches the variables of all callers for the engine, for each item",
        _has("symai.context", "CURRENT_ENGINE_VAR"),
    ),
)
