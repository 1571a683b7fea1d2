"""One mutant: a change to the package that its tests must notice."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True)
class Mutant:
    """A change to the package that its tests must notice.

    Attributes:
        name: Names the mutant on the command line; unique in the table.
        function: Qualified name of the function, class or constant that contains the text, without
            its module, so that a file can be moved: `Batch._cancel`.
        old: Text that stands in it exactly once, with its indentation.
        new: Text to put in its place.
        reason: Why the code is as it is.
        tests: The tests that must fail: names of test files, wherever they lie below `tests`, or
            pytest's ids of single tests in them.
        equivalent: Why no test can fail, for a mutant that does not change what the code does.
    """

    name: str
    function: str
    old: str
    new: str
    reason: str
    tests: tuple[str, ...] = ()
    equivalent: str = ""
