"""Find where a mutant belongs, and apply it to the text of that file."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .mutant import Mutant

__all__ = ["NotPlacedError", "Placed", "find_tests", "place"]


class NotPlacedError(Exception):
    """A mutant does not fit the code as it is now, so that nothing can be said about its tests."""


@dataclass(frozen=True)
class Placed:
    """A mutant applied to the text of a file.

    Attributes:
        path: The file, relative to the root of the repository.
        line: Line at which the change begins.
        text: All of the file, changed.
    """

    path: Path
    line: int
    text: str


def place(mutant: Mutant, root: Path, package: str = "gptx_async") -> Placed:
    """Apply a mutant to the one function of its name that contains its text.

    Args:
        mutant: The mutant.
        root: Root of the repository; nothing in it is changed.
        package: The folder in it to search.

    Raises:
        NotPlacedError: There is no such function, or its text is not found exactly once, or the
            changed file does not compile, or is the same program.
    """
    found = [
        (path, start + offset)
        for path, start, text in _definitions(root / package).get(mutant.function, ())
        for offset in _offsets(text, mutant.old)
    ]
    if mutant.function not in _definitions(root / package):
        raise NotPlacedError(f"{package} has no {mutant.function}")
    if len(found) != 1:
        raise NotPlacedError(f"text found {len(found)} times in {mutant.function}, not once")
    [(path, at)] = found
    before = path.read_text()
    after = before[:at] + mutant.new + before[at + len(mutant.old) :]
    try:
        compile(after, str(path), "exec")
    except SyntaxError as error:
        raise NotPlacedError(f"the changed {path.name} does not compile: {error}") from None
    if ast.dump(ast.parse(after)) == ast.dump(ast.parse(before)):
        raise NotPlacedError(f"the changed {path.name} is the same program")
    line = before.count("\n", 0, at + len(mutant.old) - len(mutant.old.lstrip())) + 1
    return Placed(path.relative_to(root), line, after)


def find_tests(mutant: Mutant, root: Path) -> list[str]:
    """Return pytest's ids of a mutant's tests, relative to the root of the repository.

    Raises:
        NotPlacedError: The mutant names no tests, or a file that is not found exactly once.
    """
    if not mutant.tests:
        raise NotPlacedError("no tests are named")
    ids = []
    for name in mutant.tests:
        file, separator, test = name.partition("::")
        paths = [path for path in _test_files(root / "tests") if path.name == file]
        if len(paths) != 1:
            raise NotPlacedError(f"{len(paths)} files in tests are named {file!r}, not one")
        ids.append(f"{paths[0].relative_to(root)}{separator}{test}")
    return ids


@functools.cache
def _test_files(tests: Path) -> list[Path]:
    return [*tests.rglob("test_*.py")]


@functools.cache
def _definitions(folder: Path) -> dict[str, list[tuple[Path, int, str]]]:
    """Return each function, class and constant of a folder: its file, its offset, its text."""
    definitions: dict[str, list[tuple[Path, int, str]]] = {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        starts = [0]
        for line in text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for name, first, last in _named(ast.parse(text)):
            start = starts[first - 1]
            definitions.setdefault(name, []).append((path, start, text[start : starts[last]]))
    return definitions


def _named(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield the qualified name of each definition below a node, its first line and its last."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min(each.lineno for each in (child, *child.decorator_list))
            yield prefix + child.name, first, child.end_lineno or first
            yield from _named(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            for target in child.targets if isinstance(child, ast.Assign) else [child.target]:
                if isinstance(target, ast.Name):
                    yield prefix + target.id, child.lineno, child.end_lineno or child.lineno
        else:
            yield from _named(child, prefix)


def _offsets(text: str, searched: str) -> Iterator[int]:
    at = text.find(searched)
    while at >= 0:
        yield at
        at = text.find(searched, at + 1)
