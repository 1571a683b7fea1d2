"""Which Pythons are named: in the package's metadata, in the CI example, in the documentation."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSION = re.compile(r"\b3\.\d+\b")


def classified() -> list[str]:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    prefix = "Programming Language :: Python :: "
    lines = settings["metadata"]["classifiers"].split("\n")
    names = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    return [name for name in names if VERSION.fullmatch(name)]


def test_the_ci_example_runs_every_python_of_the_classifiers() -> None:
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    [matrix] = re.findall(r"python: \[(.*)\]", workflow)
    assert VERSION.findall(matrix) == classified()


def test_the_documentation_names_every_python_of_the_classifiers() -> None:
    section = (ROOT / "docs" / "install.md").read_text().split("## Platforms\n", 1)[1]
    assert {*VERSION.findall(section.split("\n## ")[0])} == {*classified()}


def test_this_python_is_one_of_them() -> None:
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in classified()
