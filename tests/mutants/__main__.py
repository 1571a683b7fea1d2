"""The command: `scripts/mutants --help` describes it."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .mutant import Mutant
from .placing import NotPlacedError, find_tests, place
from .running import Job, Ran, Verdict, preload, run_all
from .table import MUTANTS

ROOT = Path(__file__).resolve().parents[2]

DESCRIPTION = """\
Break the package on purpose, one small change at a time, and check that the tests notice.

Each mutant of the table in tests/mutants/table changes one function, where a comment or docstring
gives a reason for the code. It is applied to a copy of the repository, where the tests that the
table names for it are run until one fails. A mutant that no test notices survives: a test is
missing. It is an error, and never a kill, when the text of a mutant is not found exactly once in
its function, when the changed file does not compile, when its tests fail on the unchanged code,
or when pytest ends in any other way than by passed or failed tests. Mutants that do not change
what the code does are listed apart, with the reason."""

EPILOG = """\
examples:
  scripts/mutants                    all of them
  scripts/mutants 'R*' Q1-*          those whose names match
  scripts/mutants --check            is the table up to date? no tests are run

The exit status is 0 if no mutant survives and none fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    mutants = _chosen(MUTANTS, options.patterns)
    failures: list[str] = []
    jobs: list[Job] = []
    for mutant in mutants:
        try:
            placed = place(mutant, ROOT)
            tests = [] if mutant.equivalent else find_tests(mutant, ROOT)
        except NotPlacedError as error:
            failures.append(f"{mutant.name}: {error}")
            continue
        if options.list:
            print(f"{mutant.name}\n    {placed.path}:{placed.line} {mutant.function}")
            print(f"    {mutant.reason}\n    {' '.join(tests) or 'equivalent'}")
        if tests:
            jobs.append(Job(mutant.name, tests, {placed.path: placed.text}))
    survivors: list[Ran] = []
    if not (options.list or options.check):
        preload()
        jobs = _whose_tests_pass(jobs, options, failures)
        survivors = _survivors(jobs, options, failures)
    return _report(mutants, failures, survivors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/mutants",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("patterns", nargs="*", help="names of mutants, or patterns of them")
    parser.add_argument("-j", "--workers", type=int, default=1, help="mutants at once (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="time limit for the tests of one (default 300)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print what pytest prints")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    parser.add_argument("--check", action="store_true", help="check the table, run nothing")
    return parser


def _chosen(mutants: Sequence[Mutant], patterns: Sequence[str]) -> list[Mutant]:
    for pattern in patterns:
        if not fnmatch.filter([mutant.name for mutant in mutants], pattern):
            raise SystemExit(f"scripts/mutants: no mutant is named {pattern!r}; see --list")
    return [
        mutant
        for mutant in mutants
        if not patterns or any(fnmatch.fnmatch(mutant.name, each) for each in patterns)
    ]


def _whose_tests_pass(
    jobs: Sequence[Job], options: argparse.Namespace, failures: list[str]
) -> list[Job]:
    """Run all tests on the unchanged code; return the jobs whose tests pass there."""
    files: dict[str, dict[str, None]] = {}
    for job in jobs:
        for test in job.tests:
            files.setdefault(test.partition("::")[0], {})[test] = None
    unchanged = [
        Job(file, [file] if file in tests else [*tests], options=())
        for file, tests in files.items()
    ]
    bad: dict[str, frozenset[str]] = {}
    for ran in run_all(ROOT, unchanged, options.workers, 10 * options.seconds):
        print(f"{'unchanged':9} {ran.job.name} ({ran.seconds:.0f} s)", flush=True)
        if ran.verdict is not Verdict.SURVIVED:
            _print_output(ran)
            bad[ran.job.name] = ran.failed
    passing = []
    for job in jobs:
        wrong = [test for test in job.tests if _is_bad(test, bad)]
        if wrong:
            failures.append(f"{job.name}: on the unchanged code {wrong[0]} does not pass")
        else:
            passing.append(job)
    return passing


def _is_bad(test: str, bad: Mapping[str, frozenset[str]]) -> bool:
    """Tell whether a test is among those that failed, or of a file that pytest could not run."""
    failed = bad.get(test.partition("::")[0])
    if not failed:
        return failed is not None
    return any(each == test or each.startswith((f"{test}[", f"{test}::")) for each in failed)


def _survivors(jobs: Sequence[Job], options: argparse.Namespace, failures: list[str]) -> list[Ran]:
    survivors = []
    for ran in run_all(ROOT, jobs, options.workers, options.seconds):
        print(
            f"{ran.verdict.value:9} {ran.job.name} {ran.detail} ({ran.seconds:.0f} s)", flush=True
        )
        if ran.verdict is Verdict.SURVIVED:
            survivors.append(ran)
        elif ran.verdict is Verdict.FAILED:
            failures.append(f"{ran.job.name}: {ran.detail}")
        if options.verbose or ran.verdict is Verdict.FAILED:
            _print_output(ran)
    return survivors


def _print_output(ran: Ran) -> None:
    print("\n".join(f"    {line}" for line in ran.output.splitlines()[-15:]), flush=True)


def _report(mutants: Sequence[Mutant], failures: Sequence[str], survivors: Sequence[Ran]) -> int:
    equivalent = [mutant for mutant in mutants if mutant.equivalent]
    reasons = {mutant.name: mutant.reason for mutant in mutants}
    if equivalent:
        print(f"\n{len(equivalent)} equivalent, not run:")
        for mutant in equivalent:
            print(f"    {mutant.name}: {mutant.equivalent}")
    if failures:
        print(f"\n{len(failures)} failed:")
        for failure in failures:
            print(f"    {failure}")
    if survivors:
        print(f"\n{len(survivors)} survived:")
        for ran in survivors:
            print(f"    {ran.job.name}: {reasons[ran.job.name]}")
    print(f"\n{len(mutants)} mutants: {len(survivors)} survived, {len(failures)} failed")
    return 1 if failures or survivors else 0


if __name__ == "__main__":
    sys.exit(main())
