"""A low-latency L7 proxy and router in front of pools of inference replicas.

`router/README.md` follows one request from the client's bytes to the replica and back, row by row.
"""

from router.compiled import choose

__version__ = "0.1.0"
COMPILED = choose()
"""Whether the data path runs as machine code; see `router.compiled`."""
