"""The one line a server prints on stdout, and the promise to its parent."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def announce(scheme: str, host: str, port: int, *, grpc_port: int = 0) -> None:
    """Say where the server listens; nothing else is ever written to stdout."""
    shown = f"[{host}]" if ":" in host else host
    line = {"event": "ready", "url": f"{scheme}://{shown}:{port}", "pid": os.getpid()}
    if grpc_port:
        line["grpc_url"] = f"h2c://{shown}:{grpc_port}"
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
