"""Where the calls of an engine's stand-in client go, and with which options."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..batch.cancel_scope import current_scope
from ..batch.driver import current_item, is_item, wait_for
from ..calls.refusals import Refusals
from ..calls.request import Request, RequestOptions
from ..calls.token_estimate import estimate_tokens
from ..loop.call import Call
from ..transport.no_completion import note_of
from .generation import engine_lookup

if TYPE_CHECKING:
    from .engine import AsyncBatchEngine

__all__ = ["EngineCalls", "send_request"]


class EngineCalls:
    """The `ClientCalls` of an engine. All methods run in the thread that makes the call.

    Args:
        engine: The engine whose options and statistics apply.
    """

    def __init__(self, engine: AsyncBatchEngine) -> None:
        self._engine = engine
        self._thread = _ThreadState()

    def begin(self) -> None:
        """End the shortcut of the engine lookup: after this, code of others may run."""
        engine_lookup.LookupShortcut.end()

    def options(self, arguments: Mapping[str, Any]) -> RequestOptions:
        """Return the options of a call, from those of the engine and of the batch."""
        engine = self._engine
        return RequestOptions(
            self.attempt_timeout(),
            engine.rate_limit_patience,
            engine._pacing,
            engine._recorder,
            self._count_tokens(arguments),
            max_response_bytes=engine.max_response_bytes,
            fast_path=engine.fast_path,
            retry_error_bodies=engine.retry_error_bodies,
            idle_client_seconds=engine.idle_client_seconds,
        )

    def attempt_timeout(self) -> float | None:
        """Return the seconds for one attempt: those of the current batch, or of the engine."""
        item = current_item()
        if item is None or item.batch.timeout is None:
            return self._engine.timeout
        return item.batch.timeout

    def dispatch(self, request: Request) -> Any:
        """Send a call to the scheduler or to the loop; return its response or raise its error."""
        ask = None if is_item() else self._thread.ask
        try:
            if ask is None:
                response = send_request(request)
            else:
                self._thread.ask = None  # calls of a remedy do not go to the scheduler
                response = ask(request)
        except BaseException as error:
            request.record.failed(error)  # counts a call that never reached the loop
            raise
        # Read by `forward` in this thread, before another item runs.
        self._thread.note = note_of(response, request.status)
        return response

    @contextlib.contextmanager
    def going_to(self, ask: Callable[[Request], Any]) -> Iterator[None]:
        """Give the first call of this thread in the block to `ask` instead of the loop."""
        outer, self._thread.ask = self._thread.ask, ask
        try:
            yield
        finally:
            self._thread.ask = outer

    def forget_note(self) -> None:
        """Forget the note on the last response of this thread."""
        self._thread.note = None

    def add_note_to(self, error: BaseException) -> None:
        """Add the note on the last response of this thread, if there is one, to an error."""
        if self._thread.note is not None:
            error.add_note(self._thread.note)

    def _count_tokens(self, arguments: Mapping[str, Any]) -> int:
        """Return the number of tokens of a prompt.

        If the user limits tokens or cost, the engine's tokenizer counts them. Otherwise they are
        estimated from the number of characters, as servers do for their limits.
        """
        engine = self._engine
        limit = engine.rate_limit
        can_count = getattr(engine._sync_engine, "tokenizer", None) is not None
        limits_tokens = limit is not None and limit.tokens_per_minute is not None
        if can_count and (limits_tokens or engine.max_cost is not None):
            messages = arguments.get("messages", arguments.get("input"))
            with contextlib.suppress(Exception):  # not messages, or in a form it cannot count
                return int(engine._sync_engine.compute_required_tokens(messages))
        return estimate_tokens(arguments)


class _ThreadState(threading.local):
    """What belongs to the call that a thread is making.

    Attributes:
        ask: Takes the next call to the scheduler; None sends it to the loop.
        note: What is wrong with the last response; None if it is a completion.
    """

    ask: Callable[[Request], Any] | None = None
    note: str | None = None


def send_request(request: Request) -> Any:
    """Send a request, as part of the current batch or run, and wait for its response."""
    item = current_item()
    if item is not None and item.batch.shared is not None:
        request.join(item.batch.shared, item.index)
    elif (scope := current_scope()) is not None:  # a run of `map`
        request.share(scope.shared(Refusals))
    return wait_for(Call(request))
