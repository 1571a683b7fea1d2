"""The environment of the processes that a measurement starts."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ROOT", "environment"]

ROOT = Path(__file__).parents[2]
"""The root of the repository."""


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment variables, so that a child finds this repository's code.

    Args:
        **variables: Variables to set in addition.
    """
    searched = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return os.environ | variables | {"PYTHONPATH": os.pathsep.join(filter(None, searched))}
