"""How the items of a run are executed.

A back end knows threads or processes. It must not know where items come from or what becomes of
their values.
"""
