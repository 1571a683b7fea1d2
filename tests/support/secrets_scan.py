"""A pytest plugin that fails the session when a key stands in what the suite printed or logged.

Load it by one line of the top conftest: `pytest_plugins = ["support.secrets_scan"]`.

It looks at what the tests that passed or were skipped wrote to standard output and error, also
through child processes, at what they logged, at warnings, and at the log files in the home
directory that the suite gives symbolicai; under pytest-xdist at all of it in every worker. Not at
failed tests: an assertion that compares headers shows them, and the session has failed anyhow. With
`-s` there is no output to look at.

Every key of the suite begins with 'sk-' and goes on with a letter or a digit: what looks so is a
key, but for `NO_KEYS`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

__all__ = ["KEY", "NO_KEYS", "keys_in"]

KEY = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9][\w-]*", re.ASCII)
"""What every key of the suite looks like, and the ones that OpenAI gives out."""

NO_KEYS: frozenset[str] = frozenset()
"""What looks like a key, and may be shown."""


_OUTPUT = "gptx_async-secrets-scan"


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

    Under pytest-xdist the controller looks at the reports, which reach it from all workers, and
    each worker at the log files in its own home directory.

    Args:
        config: The session's. A worker's has `workeroutput`, which pytest-xdist sends.

    Attributes:
        places: Where, and which, in the order of their finding.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.places: dict[str, None] = {}
        self._workeroutput: dict[str, Any] | None = getattr(config, "workeroutput", None)
        self._pending: dict[str, dict[str, None]] = {}
        self._failed: set[str] = set()

    def look(self, place: str, text: str) -> None:
        self.places.update(_seen(place, text))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or hasattr(report, "wasxfail"):
            self._failed.add(report.nodeid)
        pending = self._pending.setdefault(report.nodeid, {})
        for title, text in report.sections:
            pending.update(_seen(f"{report.nodeid}, {title.lower()}", text))
        if report.skipped:
            pending.update(_seen(f"{report.nodeid}, its reason", report.longreprtext))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        pending = self._pending.pop(nodeid, {})
        if nodeid not in self._failed:
            self.places.update(pending)

    def pytest_warning_recorded(
        self, warning_message: object, when: str, nodeid: str, location: object
    ) -> None:
        self.look(f"{nodeid or when}, a warning", str(warning_message))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker found. A worker that crashed sent nothing; its test has failed."""
        self.places.update(dict.fromkeys(getattr(node, "workeroutput", {}).get(_OUTPUT, ())))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._workeroutput is not None:
            self.places.clear()  # the controller has seen the reports
        for path in sorted(Path.home().rglob("*.log")) if _is_of_the_suite(Path.home()) else ():
            self.look(f"the file {path.name}", path.read_text(errors="replace"))
        if self._workeroutput is not None:
            self._workeroutput[_OUTPUT] = list(self.places)
        elif self.places and session.exitstatus in (pytest.ExitCode.OK, 0):
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
    config.pluginmanager.register(SecretsScan(config), "gptx_async-secrets-scan")
