"""The README and the pages of the documentation: their sections and their code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
"""The README and all pages, as paths below the root of the repository."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def section_of(page: str, heading: str) -> str:
    """The text below a heading of a page, up to the next heading of the same level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text_of(page), re.MULTILINE)
    assert found is not None, f"{page} has no heading {heading!r}"
    rest = text_of(page)[found.end() :]
    return re.split(rf"^#{{1,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def code_in(text: str, language: str = "python") -> list[str]:
    """The blocks of code of a text, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
