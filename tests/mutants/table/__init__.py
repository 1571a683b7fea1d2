"""The table of mutants, a module for each subject."""

from . import batch, calls, mapping, pacing, service, symbolicai, transport

__all__ = ["MUTANTS"]

MUTANTS = [
    mutant
    for subject in (batch, service, symbolicai, calls, pacing, transport, mapping)
    for mutant in subject.MUTANTS
]
