"""One call of the SDK on its way: its turn, its attempts, its record.

A `Request` is made in the thread that calls, and sent by running it on the loop. It brings together
the rooms below, which do not know each other: the governor says when an attempt may go, the client
makes it, the retries say if there is another, the record tells of it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checks import MOST_TOKENS
from ..errors import CostLimitError
from ..pacing.governor import Governor
from ..pacing.queue import Permit, StarvedError, Ticket
from ..pacing.settings import Pacing
from ..telemetry import recorder as telemetry
from ..telemetry.recorder import Recorder
from ..transport.body import MAX_RESPONSE_BYTES
from ..transport.chat_post import Post
from ..transport.client import Client, ClientSettings, Completed
from ..transport.client_cache import IDLE_CLIENT_SECONDS, ClientCache
from ..transport.idle_cache import IdleCache
from ..transport.no_completion import error_in
from ..transport.original_error import copy_of
from . import retry
from .refusals import Refusals

if TYPE_CHECKING:
    from ..loop.scope import LoopScope

__all__ = ["BatchGroup", "Request", "Terms", "estimate_tokens"]

CHARACTERS_PER_TOKEN = 4
"""Of English text, by OpenAI's rule of thumb
(https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them)."""

IDLE_LINE_SECONDS = 60.0
"""For how long a governor that is at rest is kept unused."""

MOST_LINES = 512
"""How many governors are kept, in use or not; more while they are in use or know of bad news."""

_PROMPTS = ("messages", "input", "prompt", "instructions")

_ANSWER_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

_RESPONSE = "_gptx_async_response"
"""Under which name an error that stood in a response carries that response."""

_DEFAULT_PACING = Pacing()
_DEFAULT_RECORDER = Recorder()


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is made: what is not in the call itself.

    Attributes:
        timeout: Seconds for each attempt, from when it is sent; None for the client's own.
        patience: Seconds for which it is tried again when the server has had too many requests.
        pacing: What the governor is asked for.
        recorder: What counts it and tells of it.
        prompt_tokens: Tokens of the prompt, as far as known.
        idle_client_seconds: How long the client may be unused before it is closed.
        max_response_bytes: How long a response may be, decoded; None for no bound.
        fast_path: Whether it may be sent past the SDK.
        retry_error_bodies: Whether an error in the body of an answer of status 200 is one to retry.
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
    """What the requests of one batch share: its id, and what is known of refused keys.

    Args:
        batch: The id that events name the batch by.
    """

    def __init__(self, batch: str) -> None:
        self.batch = batch
        self.refusals = Refusals()


_LineKey = tuple[bytes, str | None]
"""A hash of base URL and API key, and the model."""


@dataclass
class _Line:
    """All that goes to one base URL with one key for one model, in this process.

    Attributes:
        governor: Who says when the next attempt may go.
        unsent: The requests that wait for their first turn, each with its task.
    """

    governor: Governor
    unsent: dict[Request, asyncio.Task[Any]] = field(default_factory=dict)

    def may_be_dropped(self) -> bool:
        """Tell whether nothing that it knows would be missed."""
        return self.governor.is_at_rest()

    async def close(self) -> None:
        """Let its memory be freed; no connection is kept here."""
        self.governor.close()

    def end_unsent(self, is_meant: Callable[[Request], bool], error: Exception) -> None:
        """Let the requests that are meant end with an error, unsent."""
        for request, task in [*self.unsent.items()]:
            if is_meant(request) and request.ended_by is None:
                request.ended_by = error
                task.cancel()


def _new_lines() -> IdleCache[_Line]:
    return IdleCache(MOST_LINES, _Line.close, _Line.may_be_dropped)


class Request:
    """One call of the SDK, through all its attempts. Made in the thread that calls.

    It is the function of a `service.Call`: given the loop's scope, it sends itself, once.

    Args:
        settings: Which client; it is built at the first call with these settings.
        path: The attributes that lead to the method, `("chat", "completions", "create")` say.
        args: The method's positional arguments.
        kwargs: The method's keyword arguments.
        terms: On what terms.
        post: The same call as a POST, where it is known.
    """

    __slots__ = (
        "_args",
        "_budget",
        "_key",
        "_kwargs",
        "_last_error",
        "_path",
        "_post",
        "_refusals",
        "_settings",
        "_terms",
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
        terms: Terms,
        post: Post | None = None,
    ) -> None:
        self.record = terms.recorder.call(kwargs, path, base_url=settings.base_url)
        self.ended_by: Exception | None = None
        """Why it is ended before its first attempt, if it is."""
        self.status = 0
        """The HTTP status of the answer, when it is there."""
        self._settings = settings
        self._path = path
        self._post = post
        self._args = args
        self._kwargs = kwargs
        self._terms = terms
        self._refusals: Refusals | None = None
        self._key: _LineKey = (settings.account, self.record.model)
        self._last_error: Exception | None = None
        self._budget = retry.Budget(settings.max_retries, terms.patience)

    def join(self, group: BatchGroup, index: int) -> None:
        """Make it one of a batch, before it is sent.

        Args:
            group: The batch's.
            index: Its item's place in the batch.
        """
        self._refusals = group.refusals
        self.record.join(group.batch, index)

    def share(self, refusals: Refusals) -> None:
        """Make it one of a run that ends what is not sent yet when the key is refused."""
        self._refusals = refusals

    async def __call__(self, scope: LoopScope) -> Any:
        """Send it, once; on the loop.

        Returns:
            What the awaited method of the SDK returns.

        Raises:
            openai.OpenAIError: As the same method of the sync client would, after the last attempt.
            gptx_async.errors.TimeoutError: The last attempt took longer than it may.
            ResponseTooLargeError: The response is larger than it may be.
            CostLimitError: It does not fit into what is left of `max_cost`; it was not sent.
            RequestTooLargeError: It is more than the configured limit of a minute.
            ConfigurationError: There is a `max_cost`, and no price for the model.
        """
        settings = self._settings
        clients = scope.get(ClientCache, ClientCache, ClientCache.close)
        client = clients.take(settings, self._terms.idle_client_seconds)
        lines = scope.get(_Line, _new_lines, IdleCache.close)
        kept = lines.take(self._key, self._new_line, IDLE_LINE_SECONDS)
        line = kept.resource
        try:
            response = await self._ask(client.resource, line)
        except BaseException as error:
            if (in_place := vars(error).get(_RESPONSE)) is None:
                self.record.failed(error)
                raise
            [response] = in_place  # as without `retry_error_bodies`
        finally:
            clients.give_back(client)
            lines.give_back(kept)
        self._end_unsent_at_cost(line)
        return response

    def _new_line(self) -> _Line:
        return _Line(Governor(self.record.model or "", telemetry.governor_changed))

    async def _ask(self, client: Client, line: _Line) -> Any:
        """Send it when what it may cost is reserved."""
        self.record.check_cost()
        async with self.record.reserving(self._terms.prompt_tokens, _most_tokens(self._kwargs)):
            response = await self._send(client, line)
            self.record.answered(response)  # before another call looks at what is left
        return response

    async def _send(self, client: Client, line: _Line) -> Any:
        terms = self._terms
        terms.recorder.limit_of = line.governor
        ticket = line.governor.ticket(terms.pacing, terms.prompt_tokens, _most_tokens(self._kwargs))
        try:
            try:
                return await self._attempt(client, line, ticket)
            except Exception as error:
                if not retry.is_tried_again(error):
                    raise
                first = error
            attempt = functools.partial(self._attempt, client, line, ticket)
            retried = functools.partial(self._retried, ticket)
            return await retry.run_again(attempt, first, self._budget, retried)
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

    async def _attempt(self, client: Client, line: _Line, ticket: Ticket) -> Any:
        permit = await self._turn(line, ticket)
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
                    self._terms.timeout,
                    self.record.attempt - 1,
                    self._post,
                    self._terms.max_response_bytes,
                )
            self._check_body(completed)
        except BaseException as error:
            retry.settle(permit, error)
            self._budget.is_free = permit.is_probe and retry.is_of_outage(error)
            self._note_refusal(line, number, error)
            raise
        if self._refusals is not None:
            self._refusals.ended(self._key, number, answered=True)
        with retry.settling(permit):
            permit.succeeded(completed.headers, telemetry.tokens_of(completed.value))
        self.status = completed.status
        return completed.value

    def _check_body(self, completed: Completed) -> None:
        """Raise the 429 or 5xx that stands in the body of an answer of status 200."""
        if not self._terms.retry_error_bodies:
            return
        error = error_in(completed.value, completed.headers, self._settings.base_url)
        if error is not None:
            self.status = completed.status
            vars(error)[_RESPONSE] = [completed.value]
            raise error

    async def _turn(self, line: _Line, ticket: Ticket) -> Permit:
        """Wait until the next attempt may go; the first may be called off meanwhile."""
        patience = self._terms.patience
        if ticket.attempts:
            return await ticket.admit(patience)
        refusal = self._refusals and self._refusals.error_of(self._key)
        if refusal:
            raise copy_of(refusal)
        task = asyncio.current_task()
        assert task is not None
        line.unsent[self] = task
        try:
            return await ticket.admit(patience)
        except asyncio.CancelledError:
            if self.ended_by is None or task.uncancel():  # its caller has cancelled it, too
                raise
        finally:
            del line.unsent[self]
        raise copy_of(self.ended_by)

    def _end_unsent_at_cost(self, line: _Line) -> None:
        """Let those of the engine that wait for their turn end, if this answer used up its cost."""
        if self._terms.recorder.max_cost is None or not line.unsent:
            return
        try:
            self.record.check_cost()
        except CostLimitError as error:
            recorder = self._terms.recorder
            line.end_unsent(lambda other: other._terms.recorder is recorder, error)

    def _note_refusal(self, line: _Line, number: int, error: BaseException) -> None:
        """End the unsent requests of the batch or run, if the error shows that the key is refused.

        Args:
            line: The line.
            number: The attempt's, as `Refusals` counts them.
            error: What the attempt raised.
        """
        refusals = self._refusals
        if refusals is None:
            return
        cause, is_refused = retry.cause_of(error), False
        if cause is retry.Cause.REFUSAL and isinstance(error, Exception):
            is_refused = refusals.refused(self._key, number, error)
        elif cause is retry.Cause.REJECTION and isinstance(error, Exception):
            prompt = tuple(_texts([self._kwargs.get(name) for name in _PROMPTS]))
            is_refused = refusals.rejected(self._key, number, prompt, error)
        else:
            refusals.ended(self._key, number, answered=False)
        if is_refused and isinstance(error, Exception):
            line.end_unsent(lambda other: other._refusals is refusals, error)


def estimate_tokens(kwargs: Mapping[str, Any]) -> int:
    """Return about how many tokens the prompt of a call has, by its characters.

    Pictures and files are not counted: their size says nothing of their tokens.
    """
    characters = sum(map(len, _texts([kwargs.get(name) for name in _PROMPTS])))
    return -(-characters // CHARACTERS_PER_TOKEN)


def _texts(value: object) -> Iterator[str]:
    """Find the texts of a prompt."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(value.get("content"))
        yield from _texts(value.get("text"))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _most_tokens(kwargs: Mapping[str, Any]) -> int | None:
    """Return how many tokens the answers to a call may have, if it says."""
    for name in _ANSWER_LIMITS:
        limit = kwargs.get(name)
        if isinstance(limit, int) and limit >= 0:
            answers = kwargs.get("n")
            most = limit * (answers if isinstance(answers, int) and answers > 0 else 1)
            return min(most, MOST_TOKENS)
    return None
