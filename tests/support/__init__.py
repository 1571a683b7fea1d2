"""What tests stand on: child processes, hostile servers, virtual time, plugins of pytest."""

from pathlib import Path

__all__ = ["TESTS"]

TESTS = str(Path(__file__).parents[1])
"""The folder `tests`, to be put on the search path of child processes."""
