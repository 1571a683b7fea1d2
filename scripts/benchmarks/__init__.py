"""`scripts/bench`: the measures of this package, against its rivals, on the machine it runs on.

    scripts/bench [speed] [--quick] [--peers] ...    calls a second, CPU, memory: `speed.py`
    scripts/bench pace                               how rate limits are used: `pace.py`
    scripts/bench pace --simulate                    the same against simulated servers

A run of `speed` is a few processes: this one, which gives the orders and prints; `server.py`, which
answers; and for each environment one `child.py`, which forks for every single measurement.
Nothing here is imported by the package itself.
"""
