"""The exceptions of the package: each says what happened and what to do next.

None of them holds a prompt, an answer or a key.
"""

import builtins

__all__ = [
    "AsyncioNeededError",
    "CallCancelledError",
    "CheckpointError",
    "ConfigurationError",
    "CostLimitError",
    "DataFileError",
    "DatasetError",
    "GPTXAsyncError",
    "ItemStoppedError",
    "LoopThreadDiedError",
    "LoopThreadError",
    "MissingPackageError",
    "OutputValueError",
    "RequestTooLargeError",
    "ResponseTooLargeError",
    "RunCancelledError",
    "SchedulerError",
    "ServiceClosedError",
    "ServiceError",
    "ServiceStartError",
    "TimeoutError",
    "UnsupportedClientError",
    "VocabularyError",
]


class GPTXAsyncError(Exception):
    """The base of every exception that this package raises by itself."""


class ServiceError(GPTXAsyncError, RuntimeError):
    """The background loop could not take or finish a call."""


class ServiceStartError(ServiceError):
    """The background thread or its loop could not be started; the next call tries again."""


class ServiceClosedError(ServiceError):
    """The service was closed, or the interpreter is exiting."""


class LoopThreadDiedError(ServiceError):
    """The background thread ended while calls were in flight; the next call starts a new one."""


class LoopThreadError(ServiceError):
    """A blocking call was made on the background loop's own thread, where it could never return."""


class AsyncioNeededError(GPTXAsyncError, RuntimeError):
    """A coroutine of the package was awaited outside asyncio, for example under trio."""


class CallCancelledError(GPTXAsyncError):
    """A call was cancelled on the loop by something other than the one who waits for it."""


class TimeoutError(GPTXAsyncError, builtins.TimeoutError):  # noqa: A001 - asyncio names its own so
    """An item's `timeout`, or its batch's `deadline`, passed before the item was answered."""


class RunCancelledError(BaseException):
    """The run that the code is part of was stopped, by Ctrl-C say, while it waited for a call.

    No `Exception`, as asyncio's own CancelledError: what tries failed calls again must not try.
    """


class SchedulerError(GPTXAsyncError, TypeError):
    """A scheduler's callback returned something that is not an answer."""


class ConfigurationError(GPTXAsyncError, ValueError):
    """A setting is missing or contradicts another."""


class CostLimitError(GPTXAsyncError, RuntimeError):
    """What was spent has reached `max_cost`: the attempt was not sent."""


class RequestTooLargeError(ConfigurationError):
    """One request alone is more than the configured limit of a minute, and could never be sent."""


class ResponseTooLargeError(GPTXAsyncError, ValueError):
    """A response is larger than `max_response_bytes`. It is not retried: it would come again.

    A ValueError, as symbolicai's engines raise for any other failed call; not one of the SDK's,
    because the server may have answered with any status, and because of the retries.
    """


class UnsupportedClientError(ConfigurationError):
    """The engine's client is not one whose calls can be made asynchronously."""


class VocabularyError(GPTXAsyncError, OSError):
    """Tiktoken could not load the vocabulary of the model."""


class ItemStoppedError(GPTXAsyncError, RuntimeError):
    """An item raised StopIteration or StopAsyncIteration, which is the cause.

    Python lets neither a generator nor a coroutine raise these.
    """


class DatasetError(GPTXAsyncError, RuntimeError):
    """A dataset raised an error instead of giving its next item; that error is the cause."""


class CheckpointError(GPTXAsyncError, RuntimeError):
    """A checkpoint can't be used: it is no checkpoint, in use, or another job's; or can't be kept.

    Also of a value or an item that has no place in one.
    """


class MissingPackageError(GPTXAsyncError, ImportError):
    """What was asked for needs a package that is not installed."""


class DataFileError(GPTXAsyncError, ValueError):
    """A file of rows can't be read or written; the message names the file, and the row if one."""


class OutputValueError(GPTXAsyncError, TypeError):
    """What an expression returned has no form in a file of rows."""
