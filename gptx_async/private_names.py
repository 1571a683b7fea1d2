"""Declare and check the private names of other packages that this package uses.

Any release may remove a private name. Each room declares the names that it uses in one module, with
a check and a description of the fallback. `gptx-async doctor` prints all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["PrivateName", "are_there", "missing"]


@dataclass(frozen=True)
class PrivateName:
    """A private name of another package.

    Attributes:
        package: The other package, for example 'aiohttp'.
        name: The name in that package.
        without: What this package does if the check fails.
        check: Returns whether the name still has the expected form. An exception counts as False.
    """

    package: str
    name: str
    without: str
    check: Callable[[], bool]


def missing(names: Iterable[PrivateName]) -> list[PrivateName]:
    """Return the names whose check fails."""
    return [each for each in names if not _is_there(each)]


def are_there(names: Iterable[PrivateName]) -> bool:
    """Return whether the checks of all names pass."""
    return all(map(_is_there, names))


def _is_there(name: PrivateName) -> bool:
    try:
        return bool(name.check())
    except Exception:  # a changed package may raise anything
        return False
