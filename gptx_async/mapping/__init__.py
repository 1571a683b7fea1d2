"""An Expression over a dataset: `map` and `amap`.

This room knows items, workers, checkpoints and progress. It must not know symbolicai or an engine,
so that it works with any registered engine.
"""
