"""The file of a checkpoint: its name, its mode, its lock, and files of other programs."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptx_async
from gptx_async.errors import CheckpointError, ConfigurationError
from gptx_async.mapping.checkpoint_file import remove_checkpoint
from support.child import run_child


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture
def foreign(path: Path) -> Iterator[bytes]:
    """An SQLite file of another program. The test must not change it."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE results (mine TEXT)")
    connection.close()
    before = path.read_bytes()
    yield before
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_sqlite_file_of_another_program_is_rejected(path: Path, foreign: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of gptx_async"):
        gptx_async.map(same, ["a"], checkpoint=path)


@pytest.mark.parametrize("content", [b"no database\n" * 100, b"SQLite format 3\x00" + b"x" * 5000])
def test_a_file_that_is_not_a_database_is_rejected(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not an SQLite file, or is damaged"):
        gptx_async.map(same, ["a"], checkpoint=path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_opened_is_rejected(tmp_path: Path) -> None:
    for impossible in (tmp_path, tmp_path / "no folder" / "run.sqlite"):
        with pytest.raises(CheckpointError, match="Check that its folder exists"):
            gptx_async.map(same, ["a"], checkpoint=impossible)


def test_a_later_format_is_rejected(path: Path) -> None:
    gptx_async.map(same, ["a"], checkpoint=path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(CheckpointError, match=r"has format 3; .* reads format 2"):
        gptx_async.map(same, ["a"], checkpoint=path)


@pytest.mark.slow
def test_a_checkpoint_that_is_in_use_is_rejected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptx_async.mapping.checkpoint_file.LOCK_SECONDS", 0.05)  # in this process
    items = [*range(100)]  # more items than are read ahead
    stream = gptx_async.map(same, items, workers=1, checkpoint=path, as_completed=True)
    assert next(stream) == (0, 0)
    with pytest.raises(CheckpointError, match="is in use"):
        gptx_async.map(same, items, checkpoint=path)
    in_child = run_child(
        """
        import gptx_async, sys
        try:
            gptx_async.map(len, ["a"], checkpoint=sys.argv[1])
        except gptx_async.errors.CheckpointError as error:
            print("in use" in str(error))
        """,
        str(path),
    )
    assert in_child.stdout == "True\n", in_child.stderr
    stream.close()
    assert gptx_async.map(same, items, checkpoint=path) == items


def same(item: Any) -> Any:
    return item


def test_the_file_is_readable_by_its_owner_only_from_the_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes SQLite's files next to it, from the moment they are created."""
    modes: dict[str, set[str]] = {}

    def look(item: Any) -> Any:
        for each in path.parent.iterdir():
            modes.setdefault(each.name, set()).add(stat.filemode(each.stat().st_mode))
        return item

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "chmod", None)
        gptx_async.map(look, range(20), workers=1, checkpoint=path)
    finally:
        os.umask(before)
    assert modes == {"run.sqlite": {"-rw-------"}, "run.sqlite-wal": {"-rw-------"}}


def test_an_empty_file_is_made_private_before_it_has_values(path: Path) -> None:
    path.touch(mode=0o644)
    gptx_async.map(same, ["a"], checkpoint=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_that_leads_nowhere_makes_a_private_file(path: Path) -> None:
    target = path.with_name("target.sqlite")
    path.symlink_to(target)
    gptx_async.map(same, ["a"], checkpoint=path)
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert gptx_async.map(same, ["a"], checkpoint=path) == ["a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":memory:", "is not a file, so a second run would find nothing"),
        (Path(":memory:"), "is not a file"),
        ("file:x.sqlite", r"looks like a URI.*Give 'x.sqlite', or './file:x.sqlite'"),
    ],
)
def test_a_name_that_sqlite_takes_for_something_else_is_rejected(
    name: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (gptx_async.map, gptx_async.amap):
        with pytest.raises(ConfigurationError, match=message):
            call(same, ["a"], checkpoint=name)
    assert not [*tmp_path.iterdir()]
    assert gptx_async.map(same, ["a"], checkpoint=f"./{name}") == ["a"]
    assert [each.name for each in tmp_path.iterdir()] == [str(name)]


def test_a_removed_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    """This also holds after a kill, which leaves SQLite's files next to it."""
    path = tmp_path / "run.sqlite"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").touch()
    remove_checkpoint(path)
    assert [*tmp_path.iterdir()] == []
