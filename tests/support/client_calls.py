"""The calls of a stand-in client that has no engine: each goes straight to the loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gptx_async.batch.driver import wait_for
from gptx_async.calls.request import Request, RequestOptions
from gptx_async.loop.call import Call

__all__ = ["CODE", "CallsOnLoop", "send"]


def send(request: Request) -> Any:
    """Send a request on the default service, and wait for its response."""
    return wait_for(Call(request))


class CallsOnLoop:
    """`ClientCalls` with the same options for every call.

    Args:
        options: The options; the default ones if None.
        dispatch: Sends a request.
    """

    def __init__(
        self,
        options: RequestOptions | None = None,
        dispatch: Callable[[Request], Any] = send,
    ) -> None:
        self._options = options or RequestOptions()
        self._dispatch = dispatch

    def begin(self) -> None:
        pass

    def options(self, _arguments: Mapping[str, Any]) -> RequestOptions:
        return self._options

    def dispatch(self, request: Request) -> Any:
        return self._dispatch(request)


CODE = f"""
from collections.abc import Callable, Mapping
from typing import Any
from gptx_async.batch.driver import wait_for
from gptx_async.calls.request import Request, RequestOptions
from gptx_async.loop.call import Call

{inspect.getsource(send)}
{inspect.getsource(CallsOnLoop)}
"""
"""The same for the program of a child process, which cannot import this module."""
