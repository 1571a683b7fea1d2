"""The engine: symbolicai's own, unmodified, with its calls handed to the background loop.

Nothing of symbolicai's `forward` is stated again here. It runs in the thread that asked; only the
client that it calls is a stand-in, and the three ways a call can go from there are `_dispatch`:

- an item of a batch leaves its greenlet with the call (`batch.wait_for`);
- a query under a scheduler's run gives its argument, with the call, to the scheduler, which brings
  it back in a batch (`_Query`);
- any other call blocks its thread until the loop has the answer (`batch.wait_for` again).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import difflib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

import openai
from symai.backend.base import BatchEngine
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
from symai.backend.settings import SYMAI_CONFIG
from symai.functional import EngineRepository

from .. import errors
from ..batch.cancel_scope import current_scope
from ..batch.driver import Batch, current_item, is_item, wait_for
from ..batch.window import WINDOW
from ..calls.refusals import Refusals
from ..calls.request import BatchGroup, Request, RequestOptions
from ..calls.retry import PATIENCE
from ..calls.token_estimate import estimate_tokens
from ..loop.call import Call, Outcome
from ..pacing.rate_limit import RateLimit
from ..pacing.settings import Pacing
from ..telemetry.recorder import Recorder
from ..telemetry.stats import Stats
from ..transport.client_cache import IDLE_CLIENT_SECONDS
from ..transport.no_completion import note_of
from ..transport.patched_sync_client import is_double
from ..transport.redaction import hide_key
from ..transport.response_body import MAX_RESPONSE_BYTES
from ..transport.settings import ClientSettings
from . import process_wide
from .account import with_key_of_this_process, without_keys
from .option_properties import OptionProperties
from .options import EngineOptions, checked
from .token_cache import remembering
from .v1.engine_classes import build_engine, check_engine, client_options, engine_class_of
from .v1.engine_lookup import (
    NEUROSYMBOLIC,
    entered_dynamic_engine,
    note_found,
    put_engine,
    take_engine_away,
)
from .v1.stand_in_client import StandInClient, is_stand_in, tell_of_a_double

__all__ = [
    "AsyncBatchEngine",
    "AsyncGPTXBatchEngine",
    "install",
    "retire_limits_of",
    "uninstall",
]

Answer = tuple[list[Any], dict[str, Any]]
"""What an engine's forward returns for one argument: the outputs, and the metadata."""

_OF_OPTIONS = (
    errors.ConfigurationError,
    errors.CostLimitError,
    errors.ResponseTooLargeError,
    errors.TimeoutError,
)
"""What this package adds to how a call can fail: errors of options that the sync engine has not."""

_QUERY = "_gptx_async_query"
"""Under which name of `argument.prop` a query stands while its argument is with a scheduler."""


class AsyncBatchEngine(OptionProperties, BatchEngine):  # type: ignore[misc] # symbolicai ships no types
    """Any symbolicai engine that calls an `openai.OpenAI` client, with many calls at once.

    It takes the engine over: the engine's client becomes a stand-in whose calls run on the
    background loop of the process. Every attribute that is not this class's own reads, and is set,
    through to the engine. All methods may be called in any thread, also where a loop is running,
    but not on the background loop's own thread.

    `engine(argument)` and `engine.forward(argument)` do for one argument what the sync engine does.
    A list or tuple of arguments is a batch: its calls are made at once, and one that fails harms no
    other. Such an item's outputs are `[str(error)]` and its metadata
    `{'error': True, 'raw_output': None, 'exception': error}`, where the error is what the sync
    engine would have raised.

    Args:
        sync_engine: The engine to take over.
        window: How many items of one batch are begun and not yet ended at once.
        deadline: Seconds for a batch, or for a query; none when not given. What is not answered by
            then fails with a `gptx_async.errors.TimeoutError`; what is answered stays.
        timeout: Seconds for one attempt of a call, from when it is sent; the client's own when not
            given. When the last attempt takes longer the call fails with a `TimeoutError` too.
        max_concurrency: How many requests may be out at once, to one base URL with one key for one
            model. What goes there is paced together in the whole process: where several engines
            have different limits, the lowest holds.
        rate_limit: What may be sent there in a minute; what the server says of its own limits when
            not given, and where it says less.
        rate_limit_patience: Seconds for which a call is tried again that is answered 429; then it
            fails with the error that the sync engine would have raised.
        max_response_bytes: How long the body of a response may be in bytes, decoded; None for no
            bound. What is larger fails with a `gptx_async.errors.ResponseTooLargeError`.
        fast_path: Whether a plain chat call is sent by aiohttp itself. If not, the SDK sends every
            call; that is the default when the environment variable GPTX_ASYNC_FAST_PATH is 0.
        retry_error_bodies: Whether a response of status 200 whose body reports a 429 or 5xx, as
            OpenRouter's may, is retried like a response of that status.
        idle_client_seconds: For how many seconds an unused client for a base URL and key is kept
            open. What is in flight is never closed.
        adaptive: Whether what the server answers changes the pace: its rate limit headers, 429s,
            overload, outages. If not, only the two limits above hold.
        prices: US$ per million tokens in and out, by model: `{"gpt-4o-mini": (0.15, 0.60)}`; a
            third figure is the price of a cached token in. `stats()` then tells the cost.
        max_cost: US$ that the calls of this engine may cost: calls that no longer fit fail with a
            `gptx_async.errors.CostLimitError`. What calls in flight are expected to cost counts.
        log_content: Whether log events hold prompts, answers and texts of errors.
        pickle_key: Whether a pickle of the engine contains its API key. If not, the key is taken
            from the configuration or the environment of the process that unpickles the engine.

    All but the first are attributes as well, and may be changed at any time, for the calls after
    it.

    Raises:
        UnsupportedClientError: The engine's client is no plain `openai.OpenAI` (or Cerebras's twin
            of it), or it has none.
        ConfigurationError: An option is no number, or too low; or there is a `max_cost` and no
            prices.
    """

    # symbolicai reads this to choose between its two query paths; the one for batching bends a
    # dozen behaviours. With False each query comes as `engine(argument)`, as on the sync engine.
    allows_batching = False

    def __init__(
        self,
        sync_engine: Any,
        *,
        window: int = WINDOW,
        deadline: float | None = None,
        timeout: float | None = None,
        max_concurrency: int = Pacing.max_concurrency,
        rate_limit: RateLimit | None = None,
        rate_limit_patience: float = PATIENCE,
        max_response_bytes: int | None = MAX_RESPONSE_BYTES,
        fast_path: bool | None = None,
        retry_error_bodies: bool = False,
        idle_client_seconds: float = IDLE_CLIENT_SECONDS,
        adaptive: bool = True,
        prices: Mapping[str, Sequence[float]] | None = None,
        max_cost: float | None = None,
        log_content: bool = False,
        pickle_key: bool = False,
    ) -> None:
        check_engine(sync_engine)
        # Not BatchEngine.__init__: it would set anew what is read through to the sync engine, and
        # add a second handler to the root logger, so that each line is printed twice.
        self._sync_engine = sync_engine
        self._pacing = Pacing(checked("max_concurrency", max_concurrency), rate_limit, adaptive)
        self._recorder = Recorder(prices, max_cost, log_content)
        self.window = window
        self.deadline = deadline
        self.timeout = timeout
        self.rate_limit_patience = rate_limit_patience
        self.max_response_bytes = max_response_bytes
        self.idle_client_seconds = idle_client_seconds
        self.pickle_key = pickle_key
        self.fast_path = fast_path
        self.retry_error_bodies = retry_error_bodies
        self._callback: Callable[[Any], Any] | None = None
        self._thread_local = threading.local()
        if hasattr(sync_engine, "tokenizer"):
            sync_engine.tokenizer = remembering(sync_engine.tokenizer)
        if hasattr(sync_engine, "client"):  # an engine that does not know its model has none
            self.client = sync_engine.client
        process_wide.make(self._api_key)

    @classmethod
    def from_config(
        cls,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Build the engine that symbolicai itself would choose for the model of its configuration.

        Args:
            client_timeout: As for that engine: seconds for the connecting, and for each read, of an
                attempt.
            client_max_retries: How often an attempt is made again after a fault.
            **options: As for the class.

        Raises:
            ConfigurationError: The configuration has no key or no model, or no engine is for the
                model, or cannot be built for it; or an option is wrong.
            UnsupportedClientError: The engine for the model cannot be asynchronous.
            VocabularyError: tiktoken can neither find nor download the model's vocabulary.
        """
        api_key, model = _account(None, None, f"{cls.__name__}.from_config")
        engine_class = engine_class_of(model)
        for_client = client_options(client_timeout, client_max_retries)
        with _told_how_to_go_on(engine_class, model):
            return cls(build_engine(engine_class, api_key, model, for_client), **options)

    def __call__(
        self, argument: Any, *, deadline: float | None = None, timeout: float | None = None
    ) -> Any:
        """Query for one argument, or for a list of them, as symbolicai and a scheduler do.

        Handlers fire, and `metadata['time']` is set, as on the sync engine and in this thread.

        Args:
            argument: One prepared `Argument`; or a list or tuple of them, prepared or not.
            deadline: Seconds for all of it; the engine's own when not given.
            timeout: Seconds for one attempt of a call; the engine's own when not given.

        Returns:
            `(outputs, metadata)` for one argument; `[(outputs, metadata), ...]` for a batch, as
            many pairs as arguments, in their order.

        Raises:
            Exception: For one argument, what the sync engine raises, or a
                `gptx_async.errors.TimeoutError`. An item of a batch never raises one.
        """
        if isinstance(argument, (list, tuple)):
            with self._told_batch(self._query, argument, deadline, timeout) as batch:
                return [_answer(outcome) for outcome in batch.run()]
        if self._is_unlimited(deadline, timeout):
            return self._query(argument)
        return self._ask_limited(self._query, argument, deadline, timeout)

    def _forward(
        self, argument: Any, *, deadline: float | None = None, timeout: float | None = None
    ) -> Any:
        """Run the sync engine's forward for one argument, or for a list of them at once.

        Args:
            argument: One prepared `Argument`; or a list or tuple of them, prepared or not.
            deadline: Seconds for all of it; the engine's own when not given.
            timeout: Seconds for one attempt of a call; the engine's own when not given.

        Returns:
            `(outputs, metadata)` for one argument; `(all_outputs, all_metadatas)` for a batch: two
            lists, as long as the batch and in its order.

        Raises:
            Exception: For one argument, what the sync engine raises, or a
                `gptx_async.errors.TimeoutError`. An item of a batch never raises one.
        """
        if isinstance(argument, (list, tuple)):
            with self._told_batch(self._forward, argument, deadline, timeout) as batch:
                return _transpose(batch.run())
        if not self._is_unlimited(deadline, timeout):
            return self._ask_limited(self._forward, argument, deadline, timeout)
        self._take_client()
        if not process_wide.are_made():  # `uninstall` has undone the changes
            process_wide.make(self._api_key)
        callback = self._scheduler_callback()
        self._thread_local.note = None
        try:
            put_engine(argument)
            if callback is not None:
                return self._forward_by_scheduler(argument, callback)
            answer: Answer = self._sync_engine.forward(argument)
        except Exception as error:
            # What the sync engine makes of a failed call; an error of our own stays itself.
            if isinstance(error, ValueError) and isinstance(error.__context__, _OF_OPTIONS):
                raise error.__context__ from None
            if self._thread_local.note is not None:
                error.add_note(self._thread_local.note)
            raise
        else:
            return answer
        finally:
            take_engine_away()

    # By another name, for symbolicai's MetadataTracker takes each frame named `forward` whose
    # `self` is an engine for one call of a model: the sync engine's frame is the one that counts.
    forward = _forward

    async def aforward(
        self,
        argument: Any,
        *,
        deadline: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of each attempt, not of this coroutine
    ) -> Any:
        """Do what `forward` does, as a coroutine on the caller's own loop.

        It holds no thread while it waits, and the loop goes on between the items and while their
        calls are out. Cancelling it cancels the calls.

        Args:
            argument: As for `forward`.
            deadline: As for `forward`.
            timeout: As for `forward`.

        Returns:
            As `forward` does.

        Raises:
            Exception: As `forward` does.
            asyncio.CancelledError: The caller was cancelled; by then the calls are cancelled and
                every item that was begun is unwound.
        """
        if asyncio._get_running_loop() is None:
            raise errors.AsyncioNeededError(
                "engine.aforward needs asyncio's event loop, and none is running here. Under trio "
                "use trio.to_thread.run_sync(engine.forward, argument)."
            )
        if isinstance(argument, (list, tuple)):
            with self._told_batch(self._forward, argument, deadline, timeout) as batch:
                return _transpose(await batch.run_async())
        batch = self._batch(self._forward, [argument], deadline, timeout)
        [outcome] = await batch.run_async()
        return _without_key(outcome).result()

    def stats(self) -> Stats:
        """Return what became of this engine's calls, in numbers. Allowed in any thread.

        Counted since the engine was made, in this process, or since `reset_stats()`. `limit` is
        that of the model that was asked last.
        """
        return self._recorder.stats()

    def reset_stats(self) -> None:
        """Count from zero again; what `max_cost` limits goes on. Allowed in any thread."""
        self._recorder.reset()

    def prepare(self, argument: Any) -> None:
        """Build the prompt of an argument, as the sync engine does."""
        self._sync_engine.prepare(argument)

    def preview(self, argument: Any) -> Any:
        """Return a preview of an argument's prompt, as the sync engine does."""
        return self._sync_engine.preview(argument)

    def id(self) -> str:
        """Return the sync engine's id: 'neurosymbolic', or that of an unregistered engine."""
        return str(self._sync_engine.id())

    def command(self, *args: Any, **kwargs: Any) -> Any:
        """Change settings of the sync engine; a new API key counts for the calls after it."""
        with process_wide.setting_key():
            result = self._sync_engine.command(*args, **kwargs)
        self._take_client()
        key = kwargs.get("NEUROSYMBOLIC_ENGINE_API_KEY")
        if key and hasattr(self._sync_engine, "client"):
            self._sync_engine.client.api_key = key
        return result

    @property
    def executor_callback(self) -> Callable[[Any], Answer]:
        """The engine's own query for one argument, also when a scheduler has put in its callback.

        A scheduler sets its callback here; queries then go to it while its run is going on. To set
        None takes it out.
        """
        return self._query

    @executor_callback.setter
    def executor_callback(self, callback: Callable[[Any], Any] | None) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(
                f"executor_callback takes a function of one argument or None, not {callback!r}."
            )
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_sync_engine" not in self.__dict__:
            raise AttributeError(name)  # copy and pickle ask before there is a sync engine
        return getattr(self._sync_engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN_ATTRIBUTES or hasattr(type(self), name):
            object.__setattr__(self, name, value)
            return
        if name == "client" and is_double(value):
            tell_of_a_double("The engine's client is a mock")
        elif name == "client":
            value = StandInClient(value, self._dispatch, self._terms, take_engine_away)
        elif not hasattr(self._sync_engine, name):
            _check_name(name)
        setattr(self._sync_engine, name, checked(name, value))

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__ or hasattr(type(self), name):
            object.__delattr__(self, name)
        else:
            delattr(self._sync_engine, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._sync_engine)})

    def __str__(self) -> str:
        # What symbolicai prints of an engine, in its verbose mode say.
        return str(self._sync_engine)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: not the connections, the scheduler, nor by default the key."""
        state = self._state()
        return state if self.pickle_key else without_keys(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "without_key" in state:
            state = with_key_of_this_process(state)
        sync_engine = state["class"].__new__(state["class"])
        vars(sync_engine).update(state["attributes"])
        settings: ClientSettings | None = state["settings"]
        if settings is not None:
            sync_engine.client = settings.build_sync()
        AsyncBatchEngine.__init__(self, sync_engine, **state["options"])

    def __copy__(self) -> Self:
        return self._twin(self._state())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._twin(copy.deepcopy(self._state(), memo))

    def _state(self) -> dict[str, Any]:
        attributes = dict(vars(self._sync_engine))
        client = attributes.pop("client", None)
        return {
            "class": type(self._sync_engine),
            "attributes": attributes,
            "settings": client.settings if is_stand_in(client) else None,
            "options": {name: getattr(self, name) for name in _OPTIONS},
        }

    def _twin(self, state: dict[str, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__setstate__(state)
        return twin

    @property
    def _query(self) -> Callable[[Any], Answer]:
        """The query for one argument: symbolicai's `Engine.__call__` around this forward."""
        query: Callable[[Any], Answer] = super(BatchEngine, self).__call__
        return query

    def _is_unlimited(self, deadline: float | None, timeout: float | None) -> bool:
        """Tell whether one argument is asked for as it is; else as a batch, which has limits."""
        if deadline is not None or timeout is not None:
            return False
        # The engine's own deadline holds for the whole batch, also for a scheduler's.
        return self.deadline is None or is_item() or self._scheduler_callback() is not None

    @property
    def _api_key(self) -> str | None:
        """The client's key, if the sync engine is one that looks at `openai.api_key`."""
        modules = [sys.modules.get(base.__module__) for base in type(self._sync_engine).__mro__]
        if not any(getattr(module, "openai", None) is openai for module in modules):
            return None
        key = getattr(getattr(self._sync_engine, "client", None), "api_key", None)
        return key if isinstance(key, str) else None

    def _take_client(self) -> None:
        """Take over a client that the sync engine has built anew, as Cerebras's does for a key."""
        client = getattr(self._sync_engine, "client", None)
        if client is not None and not is_stand_in(client) and not is_double(client):
            self.client = client

    def _ask_limited(
        self,
        ask: Callable[[Any], Answer],
        argument: Any,
        deadline: float | None,
        timeout: float | None,
    ) -> Answer:
        [outcome] = self._batch(ask, [argument], deadline, timeout).run()
        return _without_key(outcome).result()

    def _batch(
        self,
        ask: Callable[[Any], Answer],
        arguments: Sequence[Any],
        deadline: float | None,
        timeout: float | None,
        group: BatchGroup | None = None,
    ) -> Batch[Any, Answer]:
        deadline = checked("deadline", deadline)
        timeout = checked("timeout", timeout)
        if deadline is None and not is_item():
            deadline = self.deadline
        if timeout is None:
            timeout = self._attempt_timeout()

        found = entered_dynamic_engine()

        # The second argument is for symbolicai to find: it looks at the local variables of callers.
        def ask_prepared(argument: Any, _dynamic_engine: Any = found) -> Answer:
            if not hasattr(argument, "prop"):
                raise TypeError(
                    f"A batch is a list of symbolicai's Argument objects; one of them is a "
                    f"{type(argument).__name__}. For texts use Symbol(text).query(...)."
                )
            query = _take_query(argument)
            if query is not None:
                return query.send()
            if argument.prop.prepared_input is None:
                self.prepare(argument)
            note_found(argument, found)
            return ask(argument)

        return Batch(ask_prepared, arguments, self.window, deadline, timeout, group)

    @contextlib.contextmanager
    def _told_batch(
        self,
        ask: Callable[[Any], Answer],
        arguments: Sequence[Any],
        deadline: float | None,
        timeout: float | None,
    ) -> Iterator[Batch[Any, Answer]]:
        """Make a batch that the log tells of: that it starts, and when the block ends how it ended.

        Raises:
            ConfigurationError: The deadline or the timeout is no number above 0.
        """
        batch = self._batch(ask, arguments, deadline, timeout)
        model = getattr(self._sync_engine, "model", None)
        record = self._recorder.batch(len(arguments), self.window, model)
        batch.shared = BatchGroup(record.id)
        try:
            yield batch
        finally:
            record.ended(*batch.tally())

    def _attempt_timeout(self) -> float | None:
        item = current_item()
        return self.timeout if item is None or item.batch.timeout is None else item.batch.timeout

    def _terms(self, call: Mapping[str, Any]) -> RequestOptions:
        """Return the options for a call of the stand-in client. Only in the caller's thread."""
        return RequestOptions(
            self._attempt_timeout(),
            self.rate_limit_patience,
            self._pacing,
            self._recorder,
            self._count_tokens(call),
            max_response_bytes=self.max_response_bytes,
            fast_path=self.fast_path,
            retry_error_bodies=self.retry_error_bodies,
            idle_client_seconds=self.idle_client_seconds,
        )

    def _count_tokens(self, call: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt: by the engine's own count if a limit is set in them.

        Else by their characters: so do the servers that tell of limits, before they answer.
        """
        limit = self._pacing.rate_limit
        can_count = getattr(self._sync_engine, "tokenizer", None) is not None
        limits_tokens = limit is not None and limit.tokens_per_minute is not None
        if can_count and (limits_tokens or self.max_cost is not None):
            messages = call.get("messages", call.get("input"))
            with contextlib.suppress(Exception):  # none, or in a form that it cannot count
                return int(self._sync_engine.compute_required_tokens(messages))
        return estimate_tokens(call)

    def _scheduler_callback(self) -> Callable[[Any], Any] | None:
        """Return the scheduler's callback, if it can answer a query of this thread now."""
        callback = self._callback
        if callback is None or is_item():  # an item: this thread is driving a batch, perhaps its
            return None
        scheduler = getattr(callback, "__self__", None)
        complete = getattr(scheduler, "all_batches_complete", None)
        if complete is None:  # a BatchScheduler has it once its first run has begun
            return None if _is_batch_scheduler(scheduler) else callback
        return None if complete.is_set() else callback

    def _forward_by_scheduler(self, argument: Any, callback: Callable[[Any], Any]) -> Answer:
        outer = getattr(self._thread_local, "query", None)
        self._thread_local.query = _Query(argument, callback)
        try:
            answer: Answer = self._sync_engine.forward(argument)
        except _AnsweredByScheduler as answered:
            return answered.answer()
        else:
            return answer
        finally:
            self._thread_local.query = outer

    def _dispatch(self, request: Request) -> Any:
        """Send a call of the stand-in client on its way, and return or raise its outcome."""
        query: _Query | None = None
        if not is_item():
            query = getattr(self._thread_local, "query", None)
        try:
            if query is None:
                response = _send(request)
            else:
                self._thread_local.query = None  # a remedy's calls are not the scheduler's
                response = query.ask(request)
        except BaseException as error:
            request.record.failed(error)  # if the loop has not told of it: it never came there
            raise
        # For `forward` in this thread: it fails on what is no completion before another item runs.
        self._thread_local.note = note_of(response, request.status)
        return response


class AsyncGPTXBatchEngine(AsyncBatchEngine):
    """symbolicai's `GPTXChatEngine` with many calls at once; see `AsyncBatchEngine`.

    Args:
        api_key: As for `GPTXChatEngine`: used if the model is given too, else symbolicai's
            configuration counts.
        model: As for `GPTXChatEngine`.
        client_timeout: As for `GPTXChatEngine`: seconds for the connecting, and for each read, of
            an attempt; the SDK's 600 when not given.
        client_max_retries: How often an attempt is made again after a fault (no connection, a
            timeout, a status 408, 409, 5xx); the SDK's 2 when not given. Not for 429, which has
            its `rate_limit_patience`.
        **options: As for `AsyncBatchEngine`: window, deadline, timeout, max_concurrency,
            rate_limit, rate_limit_patience, max_response_bytes, fast_path,
            retry_error_bodies, idle_client_seconds, adaptive, prices, max_cost, log_content.
            `timeout`, for the whole of an attempt, takes the place of `client_timeout`.

    Raises:
        ValueError: As `GPTXChatEngine` does, for a missing key or an unknown model.
        ConfigurationError: An option is no number or too low, or this symbolicai cannot take
            `client_timeout` or `client_max_retries`.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """

    def __init__(
        self,
        api_key: str | None = None,
        model: str | None = None,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        for_client = client_options(client_timeout, client_max_retries)
        super().__init__(build_engine(GPTXChatEngine, api_key, model, for_client), **options)

    @classmethod
    def from_config(
        cls,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Build the engine for the key and the model of symbolicai's configuration.

        As `AsyncBatchEngine.from_config`, but for the models of `GPTXChatEngine` only.
        """
        api_key, model = _account(None, None, f"{cls.__name__}.from_config")
        engine_class = engine_class_of(model)
        if engine_class is not GPTXChatEngine:
            raise errors.ConfigurationError(
                f"The model of the configuration, {model!r}, is none of GPTXChatEngine's but of "
                f"{engine_class.__name__}'s. Use AsyncBatchEngine.from_config()."
            )
        with _told_how_to_go_on(engine_class, model):
            return cls(
                api_key,
                model,
                client_timeout=client_timeout,
                client_max_retries=client_max_retries,
                **options,
            )


class _Query:
    """A query whose argument is with a scheduler: its request, and what became of that.

    It is made in the thread that queries, travels with the argument to the scheduler's batch, which
    sends the request, and comes back when that thread wakes.
    """

    def __init__(self, argument: Any, callback: Callable[[Any], Any]) -> None:
        self._argument = argument
        self._callback = callback
        self._request: Request | None = None
        self._outcome: Outcome[Any] | None = None

    def ask(self, request: Request) -> Any:
        """Give the argument to the scheduler, wait, and return or raise the request's outcome.

        Raises:
            _AnsweredByScheduler: What the scheduler returned is not the outcome of this request.
            SchedulerError: It is no answer at all.
        """
        self._request = request
        setattr(self._argument.prop, _QUERY, self)
        try:
            answer = self._callback(self._argument)
        finally:
            _take_query(self._argument)
        outputs, metadata = _unpack(answer)
        if self._outcome is not None and _carries(metadata, self._outcome):
            return self._outcome.result()
        raise _AnsweredByScheduler(outputs, metadata)

    def send(self) -> Answer:
        """Send the request, as an item of the scheduler's batch."""
        assert self._request is not None
        try:
            response = _send(self._request)
        except Exception as error:
            self._outcome = Outcome(error=error)
            return _failed(error)
        self._outcome = Outcome(value=response)
        return _texts(response), {"raw_output": response}


class _AnsweredByScheduler(BaseException):
    """Takes a scheduler's own answer past forward's `except Exception`, to where it is returned."""

    def __init__(self, outputs: list[Any], metadata: dict[str, Any]) -> None:
        super().__init__(outputs, metadata)
        self._outputs = outputs
        self._metadata = metadata

    def answer(self) -> Answer:
        """Return the answer, or raise the error that it stands for."""
        error = self._metadata.get("exception")
        if self._metadata.get("error") and isinstance(error, BaseException):
            raise error
        return self._outputs, self._metadata


def install(
    api_key: str | None = None,
    model: str | None = None,
    *,
    client_timeout: float | None = None,
    client_max_retries: int | None = None,
    **options: Unpack[EngineOptions],
) -> AsyncBatchEngine:
    """Build the engine for a model and register it as symbolicai's 'neurosymbolic' engine.

    It is built around the engine that symbolicai itself would choose for the model.

    Args:
        api_key: The provider's key; NEUROSYMBOLIC_ENGINE_API_KEY of symbolicai's configuration when
            not given.
        model: The model's name, with its prefix if it has one ('groq:...'); of symbolicai's
            configuration, NEUROSYMBOLIC_ENGINE_MODEL, when not given.
        client_timeout: As for `AsyncGPTXBatchEngine`.
        client_max_retries: As for `AsyncGPTXBatchEngine`.
        **options: As for `AsyncBatchEngine`.

    Returns:
        The engine; an `AsyncGPTXBatchEngine` for a model of `GPTXChatEngine`. `uninstall` puts back
        what was registered before.

    Raises:
        ConfigurationError: The key or the model is missing, or no engine is for the model, or
            cannot be built for it; or an option is wrong.
        UnsupportedClientError: The engine for the model cannot be asynchronous.
        VocabularyError: tiktoken can neither find nor download the model's vocabulary.
    """
    api_key, model = _account(api_key, model, "gptx_async.install")
    engine_class = engine_class_of(model)
    for_client = client_options(client_timeout, client_max_retries)
    engine: AsyncBatchEngine
    with _told_how_to_go_on(engine_class, model):
        if engine_class is GPTXChatEngine:
            engine = AsyncGPTXBatchEngine(api_key, model, **for_client, **options)
        else:
            sync_engine = build_engine(engine_class, api_key, model, for_client)
            engine = AsyncBatchEngine(sync_engine, **options)
    registered = EngineRepository.list().get(NEUROSYMBOLIC)
    if registered is not _installed.get("engine"):
        _installed["before"] = registered
    _installed["engine"] = engine
    retire_limits_of(registered)
    EngineRepository.register(NEUROSYMBOLIC, engine, allow_engine_override=True)
    return engine


def uninstall() -> None:
    """Put back the 'neurosymbolic' engine that was registered before `install`, or none.

    The registry stays as it is when nothing is installed, or when another engine was registered
    since. What the package has changed in the process outside itself is restored in any case (log
    levels and handlers, `symai.core_ext.time`, `openai.api_key`); an engine that is called
    afterwards changes it again, except for the root logger, until the next `uninstall`.
    """
    process_wide.undo()
    engine, before = _installed.pop("engine", None), _installed.pop("before", None)
    if engine is None or EngineRepository.list().get(NEUROSYMBOLIC) is not engine:
        return
    retire_limits_of(engine)
    if before is None:
        getattr(EngineRepository(), "_engines", {}).pop(NEUROSYMBOLIC, None)
    else:
        EngineRepository.register(NEUROSYMBOLIC, before, allow_engine_override=True)


def retire_limits_of(engine: Any) -> None:
    """Stop applying the limits of an engine, if it has any, until somebody calls it again."""
    pacing = getattr(engine, "_pacing", None)  # not by the class: it may be from before a reload
    if pacing is not None:
        pacing.retire()


def _check_name(name: str) -> None:
    """Check that an attribute that no engine has is not a misspelled option.

    Raises:
        ConfigurationError: It is like the name of one.
    """
    alike = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.8)
    if alike:
        raise errors.ConfigurationError(
            f"The engine has no option {name!r}. Did you mean {alike[0]!r}?"
        )


def _account(api_key: str | None, model: str | None, asking: str) -> tuple[str, str]:
    """Return the key and the model; those of symbolicai's configuration where not given."""
    return (
        _setting("api_key", api_key, "NEUROSYMBOLIC_ENGINE_API_KEY", asking),
        _setting("model", model, "NEUROSYMBOLIC_ENGINE_MODEL", asking),
    )


def _setting(name: str, given: str | None, key: str, asking: str) -> str:
    value = given or SYMAI_CONFIG.get(key)
    if not value:
        raise errors.ConfigurationError(
            f"No {name} is given. Pass {name}=... to gptx_async.install, or set {key} in "
            f"symbolicai's configuration (symai.config.json), where {asking} looks for it."
        )
    return str(value)


@contextlib.contextmanager
def _told_how_to_go_on(engine_class: type[Any], model: str) -> Iterator[None]:
    """Say of what a constructor of symbolicai's raises what can be done about it."""
    try:
        yield
    except errors.GPTXAsyncError:
        raise
    except (RuntimeError, ValueError) as error:
        raise errors.ConfigurationError(
            f"symbolicai's {engine_class.__name__} cannot be built for the model {model!r} "
            f"({error}). Give another model, or what it misses."
        ) from error


def _send(request: Request) -> Any:
    """Send a request and wait for it; within a batch or a run, as one of its requests."""
    _join_batch(request)
    return wait_for(Call(request))


def _join_batch(request: Request) -> None:
    item = current_item()
    if item is not None and item.batch.shared is not None:
        request.join(item.batch.shared, item.index)
    elif (scope := current_scope()) is not None:  # of a run of `map`
        request.share(scope.shared(Refusals))


def _answer(outcome: Outcome[Answer]) -> Answer:
    """Return an item's answer, or what stands in its place when it failed."""
    if outcome.error is None:
        return outcome.result()
    hide_key(outcome.error)
    return _failed(outcome.error)


def _without_key(outcome: Outcome[Answer]) -> Outcome[Answer]:
    if outcome.error is not None:
        hide_key(outcome.error)
    return outcome


def _failed(error: BaseException) -> Answer:
    """Return what stands in the place of the answer of an item that failed."""
    try:
        text = str(error)
    except Exception:  # whatever a remedy or a handler may raise: its item has failed, no other
        text = f"{type(error).__name__}, whose text cannot be made"
    return [text], {"error": True, "raw_output": None, "exception": error}


def _transpose(
    outcomes: list[Outcome[Answer]],
) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    answers = [_answer(outcome) for outcome in outcomes]
    return [outputs for outputs, _ in answers], [metadata for _, metadata in answers]


def _take_query(argument: Any) -> _Query | None:
    query: _Query | None = vars(argument.prop).pop(_QUERY, None)
    return query


def _is_batch_scheduler(scheduler: object) -> bool:
    return any(base.__name__ == "BatchScheduler" for base in type(scheduler).__mro__)


def _unpack(answer: Any) -> tuple[list[Any], dict[str, Any]]:
    """Take a scheduler's answer apart; an error that it holds is raised as one.

    Raises:
        SchedulerError: It is not a pair of outputs and metadata, or it is an error's text.
        Exception: The error that stands in the place of the outputs.
    """
    try:
        outputs, metadata = answer
    except (TypeError, ValueError):
        raise errors.SchedulerError(
            f"The scheduler's callback returned {type(answer).__name__}, not a pair of outputs "
            "and metadata. Return what the engine returned for the argument."
        ) from None
    outputs = outputs if isinstance(outputs, list) else [outputs]
    metadata = metadata if isinstance(metadata, dict) else {}
    if outputs and isinstance(outputs[0], Exception):
        raise outputs[0]
    if metadata.get("error") and not isinstance(metadata.get("exception"), BaseException):
        raise errors.SchedulerError(f"The scheduler answered with an error: {outputs}")
    return outputs, metadata


def _carries(metadata: dict[str, Any], outcome: Outcome[Any]) -> bool:
    """Tell whether a scheduler's metadata is that of our call, passed on."""
    if outcome.error is not None:
        return metadata.get("exception") is outcome.error
    return "raw_output" in metadata and metadata["raw_output"] is outcome.value


def _texts(response: Any) -> list[Any]:
    """Return the texts of a response, for a scheduler to look at; forward reads the response."""
    try:
        return [choice.message.content for choice in response.choices]
    except (AttributeError, TypeError):
        text = getattr(response, "output_text", None)  # of the Responses API
        return [text] if isinstance(text, str) else []


_OPTIONS = EngineOptions.__annotations__.keys()

_OWN_ATTRIBUTES = {f"_{name}" for name in _OPTIONS} | {
    "_callback",
    "_pacing",
    "_recorder",
    "_sync_engine",
    "_thread_local",
}

_installed: dict[str, Any] = globals().get("_installed") or {}  # which outlives a reload
"""The engine that `install` registered, and what was registered before it."""
