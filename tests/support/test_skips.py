"""The plugin `support.skips`: a run with a skipped test fails, also on two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS
from support.child import DEADLINE

PROGRAM_TESTS = """
import pytest
def test_passes(): pass
@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail(): assert False
"""

SKIPS = {
    "a test": 'def test_it(): pytest.skip("no server")',
    "a mark": '@pytest.mark.skip(reason="no server")\ndef test_it(): pass',
    "a fixture": '@pytest.fixture\ndef it(): pytest.skip("no server")\ndef test_it(it): pass',
    "a module": 'pytest.skip("no server", allow_module_level=True)',
}


def run_pytest(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(PROGRAM_TESTS + tests)
    (folder / "conftest.py").write_text('pytest_plugins = ["support.skips"]\n')
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)],
        env={**os.environ, "PYTHONPATH": TESTS},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("tests", SKIPS.values(), ids=SKIPS)
@pytest.mark.slow
def test_a_skip_fails_the_run(tmp_path: Path, tests: str) -> None:
    done = run_pytest(tmp_path, tests, "--no-skips")
    assert done.returncode == 1, done.stdout
    assert "skipped, and so failed" in done.stdout
    assert "no server" in done.stdout


@pytest.mark.slow
def test_a_skip_in_a_worker_fails_the_run(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPS["a test"], "--no-skips", "-n", "2")
    assert done.returncode == 1, done.stdout
    assert "test_it.py::test_it: " in done.stdout


@pytest.mark.slow
def test_without_a_skip_or_without_the_option_it_passes(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, "", "--no-skips").returncode == 0
    assert run_pytest(tmp_path, SKIPS["a test"]).returncode == 0
