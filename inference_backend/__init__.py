"""Stand-ins for the servers a router fronts, and a way to start them.

Two servers: a simulated SGLang engine (`engine`) and an openpi policy server (`policy`); `launch` starts
either as a child process. Nothing here imports `router`: both sides of the wire must not share a bug, so the
engine's HTTP is aiohttp's and the policy's WebSocket is the `websockets` library's.
"""
