"""A pytest plugin that fails the session when a key stands in what the suite printed or logged.

Load it by one line of the top conftest: `pytest_plugins = ["secrets_scan"]`.

It looks at what the tests that passed or were skipped wrote to standard output and error, also
through child processes, at what they logged, at warnings, and at the log files in the home
directory that the suite gives symbolicai. Not at failed tests: an assertion that compares headers
shows them, and the session has failed anyhow. With `-s` there is no output to look at.

Every key of the suite begins with 'sk-' and goes on with a letter or a digit: what looks so is a
key, but for `NO_KEYS`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

__all__ = ["KEY", "NO_KEYS", "keys_in"]

KEY = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9][\w-]*", re.ASCII)
"""What every key of the suite looks like, and the ones that OpenAI gives out."""

NO_KEYS: frozenset[str] = frozenset()
"""What looks like a key, and may be shown."""


def keys_in(text: str) -> set[str]:
    """Return the keys that stand in a text."""
    return set(KEY.findall(text)) - NO_KEYS


def _seen(place: str, text: str) -> dict[str, None]:
    return {f"{place}: {_masked(key)}": None for key in sorted(keys_in(text))}


def _masked(key: str) -> str:
    """Make enough of a key to search for, without saying it: this is printed as well."""
    return f"sk-{key[3]}... of {len(key)} characters"


class SecretsScan:
    """Collects where keys were seen.

    Attributes:
        places: Where, and which, in the order of their finding.
    """

    def __init__(self) -> None:
        self.places: dict[str, None] = {}
        self._of_the_test: dict[str, None] = {}
        self._has_failed = False

    def look(self, place: str, text: str) -> None:
        self.places.update(_seen(place, text))

    def pytest_runtest_logstart(self) -> None:
        self._of_the_test, self._has_failed = {}, False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or hasattr(report, "wasxfail"):
            self._has_failed = True
        for title, text in report.sections:
            self._of_the_test.update(_seen(f"{report.nodeid}, {title.lower()}", text))
        if report.skipped:
            self._of_the_test.update(_seen(f"{report.nodeid}, its reason", report.longreprtext))

    def pytest_runtest_logfinish(self) -> None:
        if not self._has_failed:
            self.places.update(self._of_the_test)

    def pytest_warning_recorded(
        self, warning_message: object, when: str, nodeid: str, location: object
    ) -> None:
        self.look(f"{nodeid or when}, a warning", str(warning_message))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for path in sorted(Path.home().rglob("*.log")) if _is_of_the_suite(Path.home()) else ():
            self.look(f"the file {path.name}", path.read_text(errors="replace"))
        if self.places and session.exitstatus in (pytest.ExitCode.OK, 0):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.places:
            terminalreporter.section("keys in what was printed or logged", red=True, bold=True)
            for place in self.places:
                terminalreporter.line(place)


def _is_of_the_suite(home: Path) -> bool:
    """Tell whether a home directory is one that the suite made: nobody else's is looked into."""
    return home.name.startswith("gptx_async-tests-")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SecretsScan(), "gptx_async-secrets-scan")
