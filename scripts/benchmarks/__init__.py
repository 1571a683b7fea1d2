"""`scripts/bench`: measure this package and its rivals on this machine.

    scripts/bench [speed] [--quick] [--peers] ...    calls per second, CPU, memory: `speed.py`
    scripts/bench pace                               the use of rate limits: `pace.py`
    scripts/bench pace --simulate                    the same against simulated servers

`speed` runs several processes: the main process sends the orders and prints, `server.py` answers,
and one `child.py` per environment forks for every measurement. The package imports nothing from
here.
"""
