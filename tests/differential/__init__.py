"""Each case on `GPTXChatEngine` and on this package's engine; what was seen has to be the same.

`harness.py` runs and compares, the `cases_*` modules hold what is run, by subject.
"""
