"""The paths of a call that the tests of the transport compare: the sync client's and ours."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import openai

from gptx_async.calls.request import RequestOptions
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from support.client_calls import CallsOnLoop

__all__ = ["CHAT", "OURS", "PATHS", "ask", "cause_of", "stand_in_of"]

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Which colour?"}],
    "model": "gpt-4o-mini",
}

OURS = ("route", "sdk")

PATHS = ("sync", *OURS)


def stand_in_of(client: openai.OpenAI) -> StandInClient:
    """Return a stand-in whose calls run on the default service, without patience for 429s."""
    return StandInClient(client, CallsOnLoop(RequestOptions(patience=0)))


def ask(path: str, client: openai.OpenAI) -> Any:
    """Make a chat call.

    Args:
        path: 'sync' for the client itself, 'route' for our fast route, 'sdk' for the SDK's own
            aiohttp transport on our loop, which a call takes while the SDK's log is listened to.
        client: The client, whose settings count.
    """
    if path == "sync":
        return client.chat.completions.create(**CHAT)
    with _logged() if path == "sdk" else contextlib.nullcontext():
        return stand_in_of(client).chat.completions.create(**CHAT)


def cause_of(error: BaseException) -> BaseException:
    """Return what an error was first caused by."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    logger = logging.getLogger("openai._base_client")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
