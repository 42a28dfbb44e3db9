"""Keeps as many replicas as are wanted: follows demand in the store, decides, starts and stops replicas.

`policy` decides how many, from numbers and the time it is given; `fleet` which ones to start and stop; `follow`
reads the store; `launcher` says what starts and stops them, `processes` does so with simulated engines on this
host, `commands` with an operator's commands; `keeper` is the loop around them, under a duty of its own.
"""
