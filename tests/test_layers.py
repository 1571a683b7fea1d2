"""The layers of imports, which `scripts/check` checks: an import that points up is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.child import DEADLINE

ROOT = Path(__file__).parent.parent


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [command, "--no-logo", "--no-cache", "setup.cfg"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with a copy of the package, and of the settings with the contracts."""
    shutil.copytree(
        ROOT / "gptx_async",
        tmp_path / "gptx_async",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_no_import_points_up(package: Path) -> None:
    found = lint(package)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("loop/service.py", "from ..calls import request", "Imports point down"),
        ("pacing/queue.py", "from ..telemetry import recorder", "Imports point down"),
        ("batch/window.py", "from ..calls import request", "Imports point down"),
        ("errors.py", "from .mapping import runner", "Imports point down"),
        ("new_module.py", "", "Imports point down"),
        ("mapping/runner.py", "from ..symbolicai.v1 import retry_sleep", "Mapping imports only"),
        ("mapping/runner.py", "import symai", "import symai"),
        ("calls/retry.py", "import aiohttp", "import aiohttp"),
        ("testing/server.py", "from ..pacing import governor", "The test server imports only"),
    ],
)
def test_an_import_that_breaks_a_layer_is_found(
    package: Path, module: str, line: str, contract: str
) -> None:
    """Also within a function, and a module that no layer names."""
    with (package / "gptx_async" / module).open("a") as file:
        file.write(f"\n\ndef _imported() -> None:\n    {line or 'return'}\n")
    found = lint(package)
    assert found.returncode != 0
    broken = " ".join(found.stdout.partition("Broken contracts")[2].split())
    assert contract in broken, found.stdout
    assert module.removesuffix(".py").replace("/", ".") in broken
