"""How the items of a run are executed: one module per back end.

A back end reads the dataset, runs the expression for its items, and stores values in the
checkpoint. It knows threads or processes. It must not know who takes the values, or what becomes of
an item that failed. `backend.py` states what the consumer asks of it.
"""
