"""QUIC and robots, measured: at the listener beside quinn, through the router, over a bad network.

`python -m loadtest.quic` is the command; a file here is a work, or what works share.
"""
