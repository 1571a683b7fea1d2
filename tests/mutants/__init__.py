"""Small changes that break the code, and the tool that checks that the tests notice each of them.

`table` holds the mutants: a change, the reason for the code that it changes, and the tests that
have to fail. `placing` finds where a change belongs, `running` runs the tests in a changed copy of
the repository. Neither knows anything about particular mutants.
"""
