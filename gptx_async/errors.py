"""The exceptions of the package. Each message says what happened and what to do next.

No exception contains a prompt, an answer or a key. All derive from `GPTXAsyncError` except
`RunCancelledError`, which is not an `Exception`, so that `except Exception` does not catch it.
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
    """Base class of the package's exceptions, except for `RunCancelledError`."""


class ServiceError(GPTXAsyncError, RuntimeError):
    """The background loop could not accept or finish a call."""


class ServiceStartError(ServiceError):
    """The background thread or its loop could not start. The next call tries again."""


class ServiceClosedError(ServiceError):
    """The service was closed, or the interpreter is exiting."""


class LoopThreadDiedError(ServiceError):
    """The background thread ended while calls were in flight. The next call starts a new one."""


class LoopThreadError(ServiceError):
    """A blocking call was made on the background loop's own thread, where it would never return."""


class AsyncioNeededError(GPTXAsyncError, RuntimeError):
    """A coroutine of the package was awaited outside asyncio, for example under trio."""


class CallCancelledError(GPTXAsyncError):
    """Something other than the caller cancelled a call on the background loop."""


class TimeoutError(GPTXAsyncError, builtins.TimeoutError):  # noqa: A001 - the same name as asyncio.TimeoutError
    """An item's `timeout` or its batch's `deadline` expired before the item was answered."""


class RunCancelledError(BaseException):
    """The run that this code is part of was stopped, for example by Ctrl-C. Do not catch it.

    It is raised in an item's code that waits for a model call, or makes another one. Like
    `asyncio.CancelledError` it is not an `Exception`, and so not a `GPTXAsyncError` either: an
    `except Exception` in a remedy or in symbolicai's retries would swallow it and go on.
    """


class SchedulerError(GPTXAsyncError, TypeError):
    """A scheduler's callback returned a value that is not an answer."""


class ConfigurationError(GPTXAsyncError, ValueError):
    """A setting is missing or contradicts another."""


class CostLimitError(GPTXAsyncError, RuntimeError):
    """The amount spent has reached `max_cost`, or this call could exceed it. It was not sent."""


class RequestTooLargeError(ConfigurationError):
    """One request exceeds the configured limit per minute, and could never be sent."""


class ResponseTooLargeError(GPTXAsyncError, ValueError):
    """A response is larger than `max_response_bytes`. It is not retried.

    It is a ValueError because symbolicai's engines raise one for any failed call. It is not one of
    the SDK's errors: the response may have any status, and some of those errors are retried.
    """


class UnsupportedClientError(ConfigurationError):
    """Calls of the engine's client cannot be made asynchronously."""


class VocabularyError(GPTXAsyncError, OSError):
    """Tiktoken could not load the vocabulary of the model."""


class ItemStoppedError(GPTXAsyncError, RuntimeError):
    """An item raised StopIteration or StopAsyncIteration, which is the cause of this error.

    Python does not let generators and coroutines raise them.
    """


class DatasetError(GPTXAsyncError, RuntimeError):
    """A dataset raised an error instead of returning its next item. That error is the cause."""


class CheckpointError(GPTXAsyncError, RuntimeError):
    """A checkpoint cannot be used or written.

    The file is not a checkpoint, is in use, or belongs to a different job; or an item or a value
    cannot be stored in it.
    """


class MissingPackageError(GPTXAsyncError, ImportError):
    """The feature needs a package that is not installed."""


class DataFileError(GPTXAsyncError, ValueError):
    """A data file cannot be read or written. The message names the file and, if known, the row."""


class OutputValueError(GPTXAsyncError, TypeError):
    """An expression returned a value that cannot be written to a data file."""
