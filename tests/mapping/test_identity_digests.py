"""What makes two digests or two jobs different: kinds, lengths, defaults, constants in lambdas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptx_async.errors import CheckpointError
from gptx_async.mapping.checkpoint import Checkpoint
from gptx_async.mapping.checkpoint_file import remove_checkpoint
from gptx_async.mapping.identity import differences, digest_of, identity_of

LIMIT = 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], (1,)),
        ([], ()),
        ({1}, frozenset({1})),
        (1, True),
        (1, 1.0),
        ("1", b"1"),
        (["a", "bstr:c"], ["astr:b", "c"]),
        (["a", "bstr:1:c"], ["astr:1:b", "c"]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    ],
    ids=repr,
)
def test_values_that_are_not_the_same_have_different_digests(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


def limited(value: int) -> Callable[[int], int]:
    def work(item: int, *, limit: int = value) -> int:
        return min(item, limit)

    return work


def test_the_default_of_a_keyword_only_parameter_is_part_of_the_job() -> None:
    assert identity_of(limited(1)) == identity_of(limited(1))
    assert identity_of(limited(1)) != identity_of(limited(2))


def in_a_lambda(items: list[int]) -> list[int]:
    return sorted(items, key=lambda item: item % LIMIT)


def in_a_function(item: int) -> int:
    def inner() -> int:
        return item % LIMIT

    return inner()


@pytest.mark.parametrize("work", [in_a_lambda, in_a_function])
def test_a_constant_that_an_inner_function_uses_is_part_of_the_job(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity_of(work)
    assert identity_of(work) == before
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert identity_of(work) != before


def test_an_attribute_that_an_instance_gets_while_it_works_is_no_difference() -> None:
    before, after = {"source": "s"}, {"source": "s", "attribute 'n'": "1"}
    assert differences(before, after) == differences(after, before) == []
    assert differences(after, after | {"attribute 'n'": "2"}) == ["attribute 'n' differs"]
    assert differences(before, before | {"constant N": "1"}) == ["constant N differs"]


JOB = {"expression": "a function", "source": "a digest"}


def test_a_model_that_becomes_known_later_is_compared_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    Checkpoint(path, JOB).close()
    Checkpoint(path, JOB | {"model": "one"}).close()
    Checkpoint(path, JOB).close()
    with pytest.raises(CheckpointError, match="model"):
        Checkpoint(path, JOB | {"model": "another"})


def test_a_removed_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    """Also after a kill, which leaves SQLite's own files beside it."""
    path = tmp_path / "run.sqlite"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").touch()
    remove_checkpoint(path)
    assert [*tmp_path.iterdir()] == []
