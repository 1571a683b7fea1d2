"""The table of mutants, a module for each subject."""

from . import batch, calls, files, mapping, pacing, service, symbolicai, transport

__all__ = ["MUTANTS"]

MUTANTS = [
    mutant
    for subject in (batch, service, symbolicai, calls, pacing, transport, mapping, files)
    for mutant in subject.MUTANTS
]
