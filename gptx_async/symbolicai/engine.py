"""The engine: an unmodified symbolicai engine whose model calls run on the background loop.

The sync engine's own `forward` runs in the calling thread, with a stand-in client. A call of that
client takes one of three ways:

- in an item of a batch, it leaves the item's greenlet until the response is there;
- in a query under a scheduler's run, it goes to the scheduler with its argument, and comes back in
  a batch (see `scheduler`);
- anywhere else, it blocks the thread until the response is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

from symai.backend.base import BatchEngine

from .. import errors
from ..batch.coroutine import is_in_batch
from ..batch.driver import Batch
from ..batch.window import WINDOW
from ..calls.request import BatchGroup
from ..calls.retry import PATIENCE
from ..pacing.rate_limit import RateLimit
from ..pacing.settings import Pacing
from ..telemetry.recorder import Recorder
from ..telemetry.stats import Stats
from ..transport.client_cache import IDLE_CLIENT_SECONDS
from ..transport.response_body import MAX_RESPONSE_BYTES
from . import process_wide
from .account import account_of
from .configuration import KEY
from .engine_calls import EngineCalls
from .generation import engine_classes, engine_lookup
from .option_properties import OptionProperties
from .options import EngineOptions, checked
from .outcomes import Answer, answer_of, transpose, without_key
from .proxy import EngineProxy
from .scheduler import active_callback, ask_scheduler, take_query
from .token_cache import remembering

__all__ = ["AsyncBatchEngine", "explained"]

_OPTION_ERRORS = (
    errors.ConfigurationError,
    errors.CostLimitError,
    errors.ResponseTooLargeError,
    errors.TimeoutError,
)
"""Errors of this package's options. They are raised as they are, where symbolicai's forward would
raise a `ValueError` in their place."""


class AsyncBatchEngine(EngineProxy, OptionProperties, BatchEngine):  # type: ignore[misc] # symbolicai ships no types
    """Run the calls of a symbolicai engine that has an `openai.OpenAI` client concurrently.

    The engine's client is replaced by a stand-in whose calls run on the background loop of the
    process. Attributes that this class does not define are read and set on the wrapped engine.
    Methods may be called from any thread, also while an event loop is running there, except from
    the background loop's own thread.

    `engine(argument)` and `engine.forward(argument)` handle one argument as the sync engine does.
    A list or tuple of arguments is a batch: its calls run concurrently, and a failed item does not
    affect the others. A failed item has the outputs `[str(error)]` and the metadata
    `{'error': True, 'raw_output': None, 'exception': error}`, with the error that the sync engine
    would have raised.

    Args:
        sync_engine: The engine to wrap.
        window: Number of items of a batch that are in progress at the same time.
        deadline: Seconds for a whole batch, or for a query; the default is no limit. Items that are
            not answered in time fail with a `gptx_async.errors.TimeoutError`; answers are kept.
        timeout: Seconds for one attempt of a call, from when it is sent; the default is the
            client's own timeout. If the last attempt times out, the call fails with a
            `TimeoutError`.
        max_concurrency: Number of requests in flight to one base URL, key and model. The limit
            applies to the whole process: if engines have different limits, the lowest applies.
        rate_limit: What may be sent there per minute. The server's own limits apply as well, if
            they are lower, and by default.
        rate_limit_patience: Seconds for which a call that is answered 429 is retried. After that
            it fails with the error that the sync engine would have raised.
        max_response_bytes: Largest decoded response body in bytes; None for no limit. A larger
            response fails with a `gptx_async.errors.ResponseTooLargeError`.
        fast_path: Whether aiohttp sends a plain chat call without the SDK. The default is True, or
            False if the environment variable GPTX_ASYNC_FAST_PATH is 0.
        retry_error_bodies: Whether a response of status 200 whose body reports a 429 or 5xx, as
            OpenRouter may send, is retried like a response of that status.
        idle_client_seconds: Seconds for which an unused client for a base URL and key is kept open.
            A client with calls in flight is never closed.
        adaptive: Whether the server's limits, 429s, overload and outages change the pace. If False,
            only `max_concurrency` and `rate_limit` apply.
        prices: US$ per million tokens in and out, by model: `{"gpt-4o-mini": (0.15, 0.60)}`. A
            third number is the price of cached input tokens. `stats()` then reports the cost.
        max_cost: US$ that the calls of this engine may cost, including the expected cost of calls
            in flight. Calls above the limit fail with a `gptx_async.errors.CostLimitError`.
        log_content: Whether log events contain prompts, answers and texts of errors.
        pickle_key: Whether a pickle of the engine contains its API key. If False, the process that
            unpickles the engine takes the key from its own configuration or environment.

    All arguments except `sync_engine` are also attributes. A change applies to the calls after it.

    Raises:
        UnsupportedClientError: The engine has no client, or its client is not a plain
            `openai.OpenAI` (or Cerebras's copy of it).
        ConfigurationError: An option is not a number or is too low, or `max_cost` is given without
            `prices`.
    """

    # symbolicai reads this to choose its query path. The batching path changes a dozen behaviours;
    # with False each query arrives as `engine(argument)`, as for the sync engine.
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
        engine_classes.check_engine(sync_engine)
        # Not BatchEngine.__init__: it would overwrite attributes of the sync engine, and add a
        # second handler to the root logger, so that each line is printed twice.
        self._sync_engine = sync_engine
        self._pacing = Pacing(checked("max_concurrency", max_concurrency), rate_limit, adaptive)
        self._recorder = Recorder(prices, max_cost, log_content=log_content)
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
        self._calls = EngineCalls(self)
        if hasattr(sync_engine, "tokenizer"):
            sync_engine.tokenizer = remembering(sync_engine.tokenizer)
        if hasattr(sync_engine, "client"):  # missing on an engine that does not know its model
            self.client = sync_engine.client
        process_wide.make(self._api_key)

    def _take_over(self, sync_engine: Any, options: EngineOptions) -> None:
        AsyncBatchEngine.__init__(self, sync_engine, **options)

    @classmethod
    def from_config(
        cls,
        *,
        client_timeout: float | None = None,
        client_max_retries: int | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Build the engine that symbolicai would choose for the configured model.

        Args:
            client_timeout: Seconds to connect, and for each read, of an attempt, as for that
                engine.
            client_max_retries: Number of retries of a call after a fault.
            **options: As for the class.

        Raises:
            ConfigurationError: The configuration has no key or no model; no engine knows the model,
                or the engine cannot be built for it; or an option has a wrong value.
            UnsupportedClientError: The calls of the engine for the model cannot be asynchronous.
            VocabularyError: tiktoken can neither find nor download the model's vocabulary.
        """
        api_key, model = account_of(None, None, f"{cls.__name__}.from_config")
        engine_class = engine_classes.engine_class_of(model)
        for_client = engine_classes.client_options(client_timeout, client_max_retries)
        with explained(engine_class, model):
            sync_engine = engine_classes.build_engine(engine_class, api_key, model, for_client)
            return cls(sync_engine, **options)

    def __call__(
        self, argument: Any, *, deadline: float | None = None, timeout: float | None = None
    ) -> Any:
        """Query the model for one argument or for a batch, as symbolicai and schedulers do.

        Handlers run in the calling thread, and `metadata['time']` is set, as on the sync engine.

        Args:
            argument: A prepared `Argument`, or a list or tuple of them, which need not be prepared.
            deadline: Seconds for the whole call; the default is the engine's own deadline.
            timeout: Seconds for one attempt of a call; the default is the engine's own timeout.

        Returns:
            `(outputs, metadata)` for one argument. For a batch `[(outputs, metadata), ...]`, one
            pair per argument, in order.

        Raises:
            Exception: For one argument, what the sync engine raises, or a
                `gptx_async.errors.TimeoutError`. Errors of a batch's items are not raised.
        """
        if isinstance(argument, (list, tuple)):
            with self._logged_batch(self._query, argument, deadline, timeout) as batch:
                return [answer_of(outcome) for outcome in batch.run()]
        if self._is_unlimited(deadline, timeout):
            return self._query(argument)
        return self._ask_limited(self._query, argument, deadline, timeout)

    def _forward(
        self, argument: Any, *, deadline: float | None = None, timeout: float | None = None
    ) -> Any:
        """Run the sync engine's forward for one argument, or concurrently for a batch.

        Args:
            argument: A prepared `Argument`, or a list or tuple of them, which need not be prepared.
            deadline: Seconds for the whole call; the default is the engine's own deadline.
            timeout: Seconds for one attempt of a call; the default is the engine's own timeout.

        Returns:
            `(outputs, metadata)` for one argument. For a batch `(all_outputs, all_metadatas)`: two
            lists, one entry per argument, in order.

        Raises:
            Exception: For one argument, what the sync engine raises, or a
                `gptx_async.errors.TimeoutError`. Errors of a batch's items are not raised.
        """
        if isinstance(argument, (list, tuple)):
            with self._logged_batch(self._forward, argument, deadline, timeout) as batch:
                return transpose(batch.run())
        if not self._is_unlimited(deadline, timeout):
            return self._ask_limited(self._forward, argument, deadline, timeout)
        self._take_client()
        if not process_wide.are_made():  # `uninstall` has undone the changes
            process_wide.make(self._api_key)
        callback = active_callback(self._callback)
        calls, forward = self._calls, self._sync_engine.forward
        calls.forget_note()
        try:
            with engine_lookup.LookupShortcut(argument):
                if callback is not None:
                    return ask_scheduler(calls, forward, argument, callback)
                answer: Answer = forward(argument)
                return answer
        except Exception as error:
            if isinstance(error, ValueError) and isinstance(error.__context__, _OPTION_ERRORS):
                raise error.__context__ from None
            calls.add_note_to(error)
            raise

    # The frame must not be named `forward`: symbolicai's MetadataTracker takes each such frame
    # whose `self` is an engine for a model call, and the sync engine's frame already counts.
    forward = _forward

    async def aforward(
        self,
        argument: Any,
        *,
        deadline: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of each attempt, not of this coroutine
    ) -> Any:
        """Do what `forward` does, as a coroutine on the caller's own asyncio loop.

        The loop keeps running between the items and while calls are in flight, and no thread is
        blocked. Cancelling the coroutine cancels the calls.

        Args:
            argument: As for `forward`.
            deadline: As for `forward`.
            timeout: As for `forward`.

        Returns:
            As `forward` does.

        Raises:
            Exception: As `forward` does.
            AsyncioNeededError: No asyncio loop is running.
            asyncio.CancelledError: The caller was cancelled. The calls are cancelled, and every
                item that had started has ended.
        """
        if asyncio._get_running_loop() is None:
            raise errors.AsyncioNeededError(
                "engine.aforward needs asyncio's event loop, and none is running here. Under trio "
                "use trio.to_thread.run_sync(engine.forward, argument)."
            )
        if isinstance(argument, (list, tuple)):
            with self._logged_batch(self._forward, argument, deadline, timeout) as batch:
                return transpose(await batch.run_async())
        batch = self._batch(self._forward, [argument], deadline, timeout)
        [outcome] = await batch.run_async()
        return without_key(outcome).result()

    def stats(self) -> Stats:
        """Return statistics of this engine's calls in this process. Allowed in any thread.

        They count from the engine's creation or the last `reset_stats()`. `limit` belongs to the
        model that was called last.
        """
        return self._recorder.stats()

    def reset_stats(self) -> None:
        """Reset the statistics, but not the cost that `max_cost` limits. Allowed in any thread."""
        self._recorder.reset()

    def prepare(self, argument: Any) -> None:
        """Build the prompt of an argument, as the sync engine does."""
        self._sync_engine.prepare(argument)

    def preview(self, argument: Any) -> Any:
        """Return a preview of an argument's prompt, as the sync engine does."""
        return self._sync_engine.preview(argument)

    def id(self) -> str:
        """Return the sync engine's id: 'neurosymbolic' if the engine knows its model."""
        return str(self._sync_engine.id())

    def command(self, *args: Any, **kwargs: Any) -> Any:
        """Change settings of the sync engine; a new API key applies to the calls after it."""
        with process_wide.setting_key():
            result = self._sync_engine.command(*args, **kwargs)
        self._take_client()
        key = kwargs.get(KEY)
        if key and hasattr(self._sync_engine, "client"):
            self._sync_engine.client.api_key = key
        return result

    @property
    def executor_callback(self) -> Callable[[Any], Answer]:
        """The engine's own query for one argument, also after a scheduler has set its callback.

        A scheduler sets its callback here, and receives the queries while its run is active. None
        removes the callback.
        """
        return self._query

    @executor_callback.setter
    def executor_callback(self, callback: Callable[[Any], Any] | None) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(
                f"executor_callback takes a function of one argument or None, not {callback!r}."
            )
        self._callback = callback

    @property
    def _query(self) -> Callable[[Any], Answer]:
        """Symbolicai's `Engine.__call__`, which queries for one argument by `forward`."""
        query: Callable[[Any], Answer] = super(BatchEngine, self).__call__
        return query

    def _is_unlimited(self, deadline: float | None, timeout: float | None) -> bool:
        """Return whether one argument needs no limits of time, which a batch would apply."""
        if deadline is not None or timeout is not None:
            return False
        # The engine's own deadline applies to a whole batch, also to a scheduler's.
        return self.deadline is None or is_in_batch() or active_callback(self._callback) is not None

    def _ask_limited(
        self,
        ask: Callable[[Any], Answer],
        argument: Any,
        deadline: float | None,
        timeout: float | None,
    ) -> Answer:
        [outcome] = self._batch(ask, [argument], deadline, timeout).run()
        return without_key(outcome).result()

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
        if deadline is None and not is_in_batch():
            deadline = self.deadline
        if timeout is None:
            timeout = self._calls.attempt_timeout()

        found = engine_lookup.entered_dynamic_engine()

        # symbolicai finds the second argument: it searches the local variables of its callers.
        def ask_prepared(argument: Any, _dynamic_engine: Any = found) -> Answer:
            if not hasattr(argument, "prop"):
                raise TypeError(
                    f"A batch is a list of symbolicai's Argument objects; one of them is a "
                    f"{type(argument).__name__}. For texts use Symbol(text).query(...)."
                )
            query = take_query(argument)
            if query is not None:
                return query.send()
            if argument.prop.prepared_input is None:
                self.prepare(argument)
            engine_lookup.LookupShortcut.prepare(argument, found)
            return ask(argument)

        return Batch(ask_prepared, arguments, self.window, deadline, timeout, group)

    @contextlib.contextmanager
    def _logged_batch(
        self,
        ask: Callable[[Any], Answer],
        arguments: Sequence[Any],
        deadline: float | None,
        timeout: float | None,
    ) -> Iterator[Batch[Any, Answer]]:
        """Create a batch whose start is logged now, and whose end is logged after the block.

        Raises:
            ConfigurationError: The deadline or the timeout is not a number above 0.
        """
        batch = self._batch(ask, arguments, deadline, timeout)
        model = getattr(self._sync_engine, "model", None)
        record = self._recorder.batch(len(arguments), self.window, model)
        batch.shared = BatchGroup(record.id)
        try:
            yield batch
        finally:
            record.ended(*batch.tally())


@contextlib.contextmanager
def explained(engine_class: type[Any], model: str) -> Iterator[None]:
    """Turn an error of an engine's constructor into a `ConfigurationError` that says what to do."""
    try:
        yield
    except errors.GPTXAsyncError:
        raise
    except (RuntimeError, ValueError) as error:
        raise errors.ConfigurationError(
            f"symbolicai's {engine_class.__name__} cannot be built for the model {model!r} "
            f"({error}). Choose another model, or supply what is missing."
        ) from error
