"""One call of the SDK: it waits for its turn, is sent, retried, and recorded.

A `Request` is created in the caller's thread and runs on the loop. It connects rooms that do not
know each other: the governor decides when an attempt may be sent, the client sends it, the retry
rules decide whether there is another attempt, and the record counts and logs them.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import CostLimitError
from ..pacing.governor import Governor
from ..pacing.queue import Permit, StarvedError, Ticket
from ..pacing.settings import Pacing
from ..telemetry.events import governor_changed
from ..telemetry.recorder import Recorder
from ..telemetry.usage import tokens_of
from ..transport.chat_post import Post
from ..transport.client import Client, Completed
from ..transport.client_cache import IDLE_CLIENT_SECONDS, ClientCache
from ..transport.idle_cache import IdleCache
from ..transport.no_completion import error_in
from ..transport.original_error import copy_of
from ..transport.response_body import MAX_RESPONSE_BYTES
from ..transport.settings import ClientSettings
from . import retry
from .refusals import Refusals
from .token_estimate import most_answer_tokens, prompt_texts

if TYPE_CHECKING:
    from ..loop.scope import LoopScope

__all__ = ["BatchGroup", "Request", "RequestOptions"]

IDLE_DESTINATION_SECONDS = 60.0
"""How long an unused governor is kept when it has nothing to remember."""

MOST_DESTINATIONS = 512
"""How many governors are kept. More are kept only while in use or while they limit requests."""

_RESPONSE = "_gptx_async_response"
"""The attribute under which an error from a response body carries that response."""

_DEFAULT_PACING = Pacing()
_DEFAULT_RECORDER = Recorder()


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The options of a request that are not arguments of the SDK's method.

    Attributes:
        timeout: Seconds for each attempt after it is sent; None for the client's own timeout.
        patience: Seconds for which 429s are retried.
        pacing: The limits that the governor applies.
        recorder: Counts and logs the request.
        prompt_tokens: Tokens of the prompt, counted or estimated.
        idle_client_seconds: Seconds after which an unused client is closed.
        max_response_bytes: The largest decoded response in bytes; None for no limit.
        fast_path: Whether the request may bypass the SDK.
        retry_error_bodies: Whether an error in the body of a response with status 200 is retried.
    """

    timeout: float | None = None
    patience: float = retry.PATIENCE
    pacing: Pacing = _DEFAULT_PACING
    recorder: Recorder = _DEFAULT_RECORDER
    prompt_tokens: int = 0
    idle_client_seconds: float = IDLE_CLIENT_SECONDS
    max_response_bytes: int | None = MAX_RESPONSE_BYTES
    fast_path: bool = True
    retry_error_bodies: bool = False


class BatchGroup:
    """The state that the requests of one batch share: its id and its refused keys.

    Args:
        batch: The batch's id in events.
    """

    def __init__(self, batch: str) -> None:
        self.batch = batch
        self.refusals = Refusals()


_DestinationKey = tuple[bytes, str | None]
"""A hash of base URL and API key, and the model's name."""


@dataclass
class _Destination:
    """The requests of this process to one base URL with one key for one model.

    Attributes:
        governor: Decides when the next attempt may be sent.
        unsent: The requests that wait for their first turn, each with its task.
    """

    governor: Governor
    unsent: dict[Request, asyncio.Task[Any]] = field(default_factory=dict)

    def may_be_dropped(self) -> bool:
        """Return whether it can be dropped without losing anything the governor has learned."""
        return self.governor.is_at_rest()

    async def close(self) -> None:
        """Close the governor. A destination holds no connections."""
        self.governor.close()

    def end_unsent(self, is_meant: Callable[[Request], bool], error: Exception) -> None:
        """End the unsent requests that `is_meant` selects with an error."""
        for request, task in [*self.unsent.items()]:
            if is_meant(request) and request.ended_by is None:
                request.ended_by = error
                task.cancel()


def _new_destinations() -> IdleCache[_Destination]:
    return IdleCache(MOST_DESTINATIONS, _Destination.close, _Destination.may_be_dropped)


class Request:
    """One call of the SDK with all its attempts. Create it in the caller's thread.

    A request is the function of a `Call`: called with the loop's scope, it sends itself, once.

    Args:
        settings: Select the client, which is built at the first call with these settings.
        path: The client's attributes that lead to the method, for example
            `("chat", "completions", "create")`.
        args: The method's positional arguments.
        kwargs: The method's keyword arguments.
        options: All other options.
        post: The same call as a single POST, if it can be sent that way.
    """

    __slots__ = (
        "_args",
        "_budget",
        "_key",
        "_kwargs",
        "_last_error",
        "_options",
        "_path",
        "_post",
        "_refusals",
        "_settings",
        "ended_by",
        "record",
        "status",
    )

    def __init__(
        self,
        settings: ClientSettings,
        path: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: RequestOptions,
        post: Post | None = None,
    ) -> None:
        self.record = options.recorder.call(kwargs, path, base_url=settings.base_url)
        self.ended_by: Exception | None = None
        """The error that ended the request before its first attempt, if any."""
        self.status = 0
        """The HTTP status of the answer, or 0 until there is one."""
        self._settings = settings
        self._path = path
        self._post = post
        self._args = args
        self._kwargs = kwargs
        self._options = options
        self._refusals: Refusals | None = None
        self._key: _DestinationKey = (settings.account, self.record.model)
        self._last_error: Exception | None = None
        self._budget = retry.Budget(settings.max_retries, options.patience)

    def join(self, group: BatchGroup, index: int) -> None:
        """Make the request part of a batch, before it is sent.

        Args:
            group: The state that the batch's requests share.
            index: The item's position in the batch.
        """
        self._refusals = group.refusals
        self.record.join(group.batch, index)

    def share(self, refusals: Refusals) -> None:
        """Make the request part of a run that ends its unsent requests if the key is refused."""
        self._refusals = refusals

    async def __call__(self, scope: LoopScope) -> Any:
        """Send the request, with retries. Only once, and only on the loop.

        Returns:
            The return value of the SDK's method.

        Raises:
            openai.OpenAIError: The error of the last attempt, as the sync client would raise it.
            gptx_async.errors.TimeoutError: The last attempt exceeded its timeout.
            ResponseTooLargeError: The response is larger than `max_response_bytes`.
            CostLimitError: The call does not fit into `max_cost`, and was not sent.
            RequestTooLargeError: The call exceeds the configured limit per minute.
            ConfigurationError: `max_cost` is set, but there is no price for the model.
        """
        settings = self._settings
        clients = scope.get(ClientCache, ClientCache, ClientCache.close)
        client = clients.take(settings, self._options.idle_client_seconds)
        destinations = scope.get(_Destination, _new_destinations, IdleCache.close)
        kept = destinations.take(self._key, self._new_destination, IDLE_DESTINATION_SECONDS)
        destination = kept.resource
        try:
            response = await self._ask(client.resource, destination)
        except BaseException as error:
            if (in_place := vars(error).get(_RESPONSE)) is None:
                self.record.failed(error)
                raise
            [response] = in_place  # return it, as without `retry_error_bodies`
        finally:
            clients.give_back(client)
            destinations.give_back(kept)
        self._end_unsent_at_cost(destination)
        return response

    def _new_destination(self) -> _Destination:
        return _Destination(Governor(self.record.model or "", governor_changed))

    async def _ask(self, client: Client, destination: _Destination) -> Any:
        """Reserve what the request may cost, then send it."""
        self.record.check_cost()
        async with self.record.reserving(
            self._options.prompt_tokens, most_answer_tokens(self._kwargs)
        ):
            response = await self._send(client, destination)
            self.record.answered(response)  # before another call checks the cost limit
        return response

    async def _send(self, client: Client, destination: _Destination) -> Any:
        options = self._options
        options.recorder.limit_of = destination.governor
        ticket = destination.governor.ticket(
            options.pacing, options.prompt_tokens, most_answer_tokens(self._kwargs)
        )
        try:
            try:
                return await self._attempt(client, destination, ticket)
            except Exception as error:
                if not retry.is_retryable(error):
                    raise
                first = error
            attempt = functools.partial(self._attempt, client, destination, ticket)
            retried = functools.partial(self._retried, ticket)
            return await retry.run_retries(attempt, first, self._budget, retried)
        except StarvedError as starved:
            failed = self._last_error or copy_of(starved.error)
        finally:
            ticket.close()
        raise failed

    def _retried(self, ticket: Ticket, error: Exception, seconds: float) -> None:
        self._last_error = error
        if retry.cause_of(error) is retry.Cause.RATE_LIMIT:
            ticket.sleep(seconds)
        self.record.retried(error, seconds)

    async def _attempt(self, client: Client, destination: _Destination, ticket: Ticket) -> Any:
        permit = await self._turn(destination, ticket)
        try:
            self.record.sending()
        except BaseException:
            permit.release()
            raise
        number = 0 if self._refusals is None else self._refusals.sent(self._key)
        try:
            with self.record.attached():
                completed = await client.attempt(
                    self._path,
                    self._args,
                    self._kwargs,
                    self._options.timeout,
                    self.record.attempt - 1,
                    self._post,
                    self._options.max_response_bytes,
                )
            self._check_body(completed)
        except BaseException as error:
            retry.settle(permit, error)
            self._budget.is_free = permit.is_probe and retry.is_of_outage(error)
            self._note_refusal(destination, number, error)
            raise
        if self._refusals is not None:
            self._refusals.ended(self._key, number, answered=True)
        with retry.settling(permit):
            permit.succeeded(completed.headers, tokens_of(completed.value))
        self.status = completed.status
        return completed.value

    def _check_body(self, completed: Completed) -> None:
        """Raise the 429 or 5xx error in the body of a response with status 200, if there is one."""
        if not self._options.retry_error_bodies:
            return
        error = error_in(completed.value, completed.headers, self._settings.base_url)
        if error is not None:
            self.status = completed.status
            vars(error)[_RESPONSE] = [completed.value]
            raise error

    async def _turn(self, destination: _Destination, ticket: Ticket) -> Permit:
        """Wait until the next attempt may be sent. The first wait may end with `ended_by`."""
        patience = self._options.patience
        if ticket.attempts:
            return await ticket.admit(patience)
        refusal = self._refusals and self._refusals.error_of(self._key)
        if refusal:
            raise copy_of(refusal)
        task = asyncio.current_task()
        assert task is not None
        destination.unsent[self] = task
        try:
            return await ticket.admit(patience)
        except asyncio.CancelledError:
            if self.ended_by is None or task.uncancel():  # its caller cancelled it, too
                raise
        finally:
            del destination.unsent[self]
        raise copy_of(self.ended_by)

    def _end_unsent_at_cost(self, destination: _Destination) -> None:
        """End the engine's unsent requests if this answer used up `max_cost`."""
        if self._options.recorder.max_cost is None or not destination.unsent:
            return
        try:
            self.record.check_cost()
        except CostLimitError as error:
            recorder = self._options.recorder
            destination.end_unsent(lambda other: other._options.recorder is recorder, error)

    def _note_refusal(self, destination: _Destination, number: int, error: BaseException) -> None:
        """End the unsent requests of the batch or run if the error shows that the key is refused.

        Args:
            destination: Where the attempt was sent.
            number: The attempt's number, from `Refusals.sent`.
            error: The attempt's error.
        """
        refusals = self._refusals
        if refusals is None:
            return
        cause, is_refused = retry.cause_of(error), False
        if cause is retry.Cause.REFUSAL and isinstance(error, Exception):
            is_refused = refusals.refused(self._key, number, error)
        elif cause is retry.Cause.REJECTION and isinstance(error, Exception):
            prompt = tuple(prompt_texts(self._kwargs))
            is_refused = refusals.rejected(self._key, number, prompt, error)
        else:
            refusals.ended(self._key, number, answered=False)
        if is_refused and isinstance(error, Exception):
            destination.end_unsent(lambda other: other._refusals is refusals, error)
