"""The README is short, and what it names is there."""

from __future__ import annotations

import re

import pytest

from support.pages import PAGES, ROOT, text_of

README = text_of("README.md")


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_no_page_includes_another(page: str) -> None:
    assert "--8<--" not in text_of(page)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_scripts_that_a_page_names_can_be_run(page: str) -> None:
    scripts = {*re.findall(r"\bscripts/\w+", text_of(page))}
    assert len(scripts) >= 4
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} can be run"


def test_the_figures_of_the_readme_are_those_of_the_performance_page() -> None:
    performance = text_of("docs/performance.md")
    rows = [
        line.split("|")[2:6] for line in README.splitlines() if re.search(r"\d\.\d\d \|$", line)
    ]
    assert len(rows) == 4
    for row in rows:
        assert "|".join(row) in performance
