"""The options of an engine as properties, so that help, editors and mypy see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..pacing.rate_limit import RateLimit
from ..pacing.settings import Pacing
from ..telemetry.recorder import Recorder
from .options import checked

__all__ = ["OptionProperties"]


class OptionProperties:
    """The options of an `AsyncBatchEngine`, which may be changed at any time in any thread.

    A change counts for the calls after it. A value that an option cannot have raises a
    `gptx_async.errors.ConfigurationError`.
    """

    _pacing: Pacing
    _recorder: Recorder

    @property
    def window(self) -> int:
        """How many items of one batch run at the same time."""
        return self._window

    @window.setter
    def window(self, value: int) -> None:
        self._window: int = checked("window", value)

    @property
    def deadline(self) -> float | None:
        """Seconds for a whole batch, or for a query; None for no limit."""
        return self._deadline

    @deadline.setter
    def deadline(self, value: float | None) -> None:
        self._deadline: float | None = checked("deadline", value)

    @property
    def timeout(self) -> float | None:
        """Seconds for one attempt of a call; None for the client's own timeout."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._timeout: float | None = checked("timeout", value)

    @property
    def max_concurrency(self) -> int:
        """How many requests to one base URL, key and model may be in flight at once."""
        return self._pacing.max_concurrency

    @max_concurrency.setter
    def max_concurrency(self, value: int) -> None:
        self._pace_by(
            dataclasses.replace(self._pacing, max_concurrency=checked("max_concurrency", value))
        )

    @property
    def rate_limit(self) -> RateLimit | None:
        """What may be sent in a minute; None for the limits that the server reports."""
        return self._pacing.rate_limit

    @rate_limit.setter
    def rate_limit(self, value: RateLimit | None) -> None:
        self._pace_by(dataclasses.replace(self._pacing, rate_limit=value))

    @property
    def adaptive(self) -> bool:
        """Whether the server's limits, 429s and outages change the pace."""
        return self._pacing.adaptive

    @adaptive.setter
    def adaptive(self, value: bool) -> None:
        self._pace_by(dataclasses.replace(self._pacing, adaptive=value))

    @property
    def rate_limit_patience(self) -> float:
        """Seconds for which a call that is answered 429 is retried."""
        return self._rate_limit_patience

    @rate_limit_patience.setter
    def rate_limit_patience(self, value: float) -> None:
        self._rate_limit_patience: float = checked("rate_limit_patience", value)

    @property
    def max_response_bytes(self) -> int | None:
        """How long the decoded body of a response may be, in bytes; None for no limit."""
        return self._max_response_bytes

    @max_response_bytes.setter
    def max_response_bytes(self, value: int | None) -> None:
        self._max_response_bytes: int | None = checked("max_response_bytes", value)

    @property
    def fast_path(self) -> bool:
        """Whether aiohttp sends a plain chat call without the SDK.

        Setting None chooses the default: True, or False if the environment variable
        GPTX_ASYNC_FAST_PATH is 0.
        """
        return self._fast_path

    @fast_path.setter
    def fast_path(self, value: bool | None) -> None:
        self._fast_path: bool = checked("fast_path", value)

    @property
    def retry_error_bodies(self) -> bool:
        """Whether a response of status 200 whose body reports a 429 or 5xx is retried."""
        return self._retry_error_bodies

    @retry_error_bodies.setter
    def retry_error_bodies(self, value: bool) -> None:
        self._retry_error_bodies: bool = checked("retry_error_bodies", value)

    @property
    def idle_client_seconds(self) -> float:
        """Seconds for which an unused client is kept open."""
        return self._idle_client_seconds

    @idle_client_seconds.setter
    def idle_client_seconds(self, value: float) -> None:
        self._idle_client_seconds: float = checked("idle_client_seconds", value)

    @property
    def prices(self) -> Mapping[str, Sequence[float]] | None:
        """US$ per million tokens in, out, and cached in, by model."""
        return self._recorder.prices

    @prices.setter
    def prices(self, value: Mapping[str, Sequence[float]] | None) -> None:
        self._recorder.prices = value

    @property
    def max_cost(self) -> float | None:
        """US$ that the calls of this engine may cost; None for no limit."""
        return self._recorder.max_cost

    @max_cost.setter
    def max_cost(self, value: float | None) -> None:
        self._recorder.max_cost = value

    @property
    def log_content(self) -> bool:
        """Whether log events contain prompts, answers and texts of errors."""
        return self._recorder.log_content

    @log_content.setter
    def log_content(self, value: bool) -> None:
        self._recorder.log_content = value

    @property
    def pickle_key(self) -> bool:
        """Whether a pickle of the engine contains its API key."""
        return self._pickle_key

    @pickle_key.setter
    def pickle_key(self, value: bool) -> None:
        self._pickle_key: bool = checked("pickle_key", value)

    def _pace_by(self, pacing: Pacing) -> None:
        before, self._pacing = self._pacing, pacing
        before.retire(pacing)
