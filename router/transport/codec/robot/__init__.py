"""`router-robot/1`: one robot's session on one QUIC connection. See `router/client/PROTOCOL.md`.

`wire` and `control` are both roles', `server` is the router's. No I/O, no clock.
"""
