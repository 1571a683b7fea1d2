"""The environment of the processes that a measurement starts."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ROOT", "environment"]

ROOT = Path(__file__).parents[2]
"""The root of the repository."""


def environment(**variables: str) -> dict[str, str]:
    """Return environment variables with which a child process finds this repository's code.

    Args:
        **variables: More variables to set.
    """
    searched = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return os.environ | variables | {"PYTHONPATH": os.pathsep.join(filter(None, searched))}
