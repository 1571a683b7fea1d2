"""What the tests of pacing over HTTP share: an engine, and what became of a batch."""

from __future__ import annotations

from typing import Any

from gptx_async import AsyncGPTXBatchEngine
from gptx_async.errors import GPTXAsyncError
from gptx_async.loop.service import default_service
from support.hostile import make_argument
from support.looking import destination_on

__all__ = ["KEY", "MODEL", "arguments", "errors_of", "governor_of", "make_engine"]

KEY, MODEL = "sk-of-the-pacing-tests", "gpt-4o-mini"


def make_engine(**options: Any) -> AsyncGPTXBatchEngine:
    return AsyncGPTXBatchEngine(KEY, MODEL, **options)


def arguments(count: int, text: str = "text", **keywords: Any) -> list[Any]:
    return [make_argument(f"{text} {number}", **keywords) for number in range(count)]


def errors_of(answers: tuple[list[Any], list[dict[str, Any]]]) -> list[Any]:
    """Return the error that ended each item, None for an answer; the SDK's own where it has one."""
    found = [metadata.get("exception") for metadata in answers[1]]
    return [
        error if error is None or isinstance(error, GPTXAsyncError) else error.__context__ or error
        for error in found
    ]


def governor_of(engine: AsyncGPTXBatchEngine) -> Any:
    """Return the governor that paces an engine's calls."""

    async def find(scope: Any) -> Any:
        return destination_on(scope, engine.client.settings, MODEL)

    return default_service().run(find).governor
