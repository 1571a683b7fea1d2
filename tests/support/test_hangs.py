"""What setup.cfg says about tests that hang, even in a loop that no signal handler can end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS
from support.child import DEADLINE

CONFIGURATION = Path(TESTS).parent / "setup.cfg"

# An endless loop in C: Python runs no signal handler, so pytest-timeout cannot end it.
HANGS = """
import collections, itertools
def test_hangs(): collections.deque(itertools.repeat(0), maxlen=0)
def test_passes(): pass
"""


def test_the_test_that_hangs_may_end_itself_first(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("timeout")) < pytestconfig.getini("faulthandler_timeout")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_hang_outside_of_python_ends_with_its_traceback(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    options = ["-c", str(CONFIGURATION), "-o", "timeout=1", "-o", "faulthandler_timeout=2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", workers, *options, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "Timeout (0:00:02)!" in done.stderr
    assert "in test_hangs" in done.stderr
    if workers == "1":
        assert "crashed while running" in done.stdout
        assert "test_it.py::test_hangs" in done.stdout
        assert "1 failed, 1 passed" in done.stdout
