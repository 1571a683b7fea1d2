"""The limits that an engine sets for its calls, and those that count in one governor."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ..checks import whole_numbers
from ..errors import ConfigurationError
from .rate_limit import RateLimit

__all__ = ["Pacing", "Pacings"]


class Paced(Protocol):
    """A governor, as far as its settings know it."""

    def replace_soon(self, pacing: Pacing, successor: Pacing | None) -> None:
        """Apply other settings in place of these."""


@dataclass(frozen=True, eq=False)
class Pacing:
    """The limits that one engine sets for its calls; one object per engine.

    Engines with the same base URL, key and model share a governor. The lowest limits of the engines
    that are still alive apply, and the governor adapts if any of them does.

    Attributes:
        max_concurrency: The number of requests that may be in flight.
        rate_limit: What may be sent in a minute, or None.
        adaptive: Whether answers change the limits. If not, only the two above apply.

    Raises:
        ConfigurationError: `max_concurrency` is not a positive whole number, or `rate_limit` is
            not a `RateLimit`.
    """

    max_concurrency: int = 256
    rate_limit: RateLimit | None = None
    adaptive: bool = True
    _governors: list[weakref.ref[Paced]] = field(default_factory=list, init=False, repr=False)
    _successor: Pacing | None = field(default=None, init=False, repr=False)

    @property
    def current(self) -> Pacing:
        """These settings, or those that have replaced them since."""
        pacing = self
        while pacing._successor is not None:
            pacing = pacing._successor
        return pacing

    def retire(self, successor: Pacing | None = None) -> None:
        """Stop applying the limits, until the next call that has them. Allowed in any thread.

        An engine that is no longer registered may live on for long: it is part of a reference
        cycle, which after `gc.freeze()` is never collected.

        Args:
            successor: The limits to apply instead, also to the calls that wait.
        """
        object.__setattr__(self, "_successor", successor)
        for reference in [*self._governors]:
            governor = reference()
            if governor is not None:
                governor.replace_soon(self, successor)

    def count_for(self, governor: Paced) -> None:
        """Note a governor that applies these limits, so that `retire` reaches it."""
        alive = [reference for reference in self._governors if reference() is not None]
        self._governors[:] = [*alive, weakref.ref(governor)]

    def __post_init__(self) -> None:
        count = whole_numbers("requests").check("max_concurrency", self.max_concurrency)
        object.__setattr__(self, "max_concurrency", count)
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):
            raise ConfigurationError(
                f"rate_limit is {self.rate_limit!r}. Give a gptx_async.RateLimit, or None."
            )


class Pacings:
    """The settings that count in one governor: those of engines that are alive.

    Attributes:
        has_lost: Whether one was collected since the last iteration. The garbage collector sets it,
            in any thread.
    """

    def __init__(self) -> None:
        self.has_lost = False
        self._references: dict[int, weakref.ref[Pacing]] = {}

    def __contains__(self, pacing: Pacing) -> bool:
        known = self._references.get(id(pacing))
        return known is not None and known() is pacing

    def __iter__(self) -> Iterator[Pacing]:
        self.has_lost = False
        known = self._references.items()
        alive = {key: pacing for key, reference in known if (pacing := reference())}
        self._references = {key: self._references[key] for key in alive}
        return iter(alive.values())

    def add(self, pacing: Pacing) -> None:
        """Let settings count for as long as they are alive."""
        self._references[id(pacing)] = weakref.ref(pacing, self._note_loss)

    def remove(self, pacing: Pacing) -> None:
        """Let settings no longer count."""
        del self._references[id(pacing)]

    def clear(self) -> None:
        """Forget all. A reference keeps the governor alive for the garbage collector."""
        self._references.clear()

    def _note_loss(self, _reference: object) -> None:
        self.has_lost = True
