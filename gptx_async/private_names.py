"""What a declaration of another package's private name says, and how it is checked.

A private name may go with any release. Each room declares those it uses in one module, with a check
and with what happens where the check fails; `gptx-async doctor` prints all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["PrivateName", "are_there", "missing"]


@dataclass(frozen=True)
class PrivateName:
    """One name that its package does not promise to keep.

    Attributes:
        package: The package: 'aiohttp'.
        name: The name in that package.
        without: What the package does where the name is not as it was.
        check: Returns whether it is as it was; what it raises counts as no.
    """

    package: str
    name: str
    without: str
    check: Callable[[], bool]


def missing(names: Iterable[PrivateName]) -> list[PrivateName]:
    """Return the names that are not as they were."""
    return [each for each in names if not _is_there(each)]


def are_there(names: Iterable[PrivateName]) -> bool:
    """Tell whether all names are as they were."""
    return all(map(_is_there, names))


def _is_there(name: PrivateName) -> bool:
    try:
        return bool(name.check())
    except Exception:  # whatever a package that has changed may raise
        return False
