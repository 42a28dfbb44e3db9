"""The fields of gRPC that a router reads: a call's deadline and its status.

As "gRPC over HTTP/2" has them. Imports nothing of the project.
"""

from __future__ import annotations

import re
from typing import Final

UNKNOWN: Final = 2
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_WRITTEN: Final = ((b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0), (b"H", 3600.0))
_MOST: Final = 99_999_999  # eight digits


def grpc_timeout_s(value: bytes) -> float:
    """Return a `grpc-timeout` in seconds; -1 for what is none."""
    match = _TIMEOUT.fullmatch(value)
    return -1.0 if match is None else int(match[1]) * _UNITS[match[2]]


def write_grpc_timeout(left_s: float) -> bytes:
    """Return a time as gRPC writes it: at most eight digits, in the finest unit that has room for it."""
    for unit, seconds in _WRITTEN:
        count = int(left_s / seconds)
        if count <= _MOST:
            return b"%d%b" % (max(1, count), unit)
    return b"%dH" % _MOST


def read_grpc_status(value: bytes) -> int:
    """Return the number in a `grpc-status`; UNKNOWN for what is none."""
    return int(value) if value.isdigit() and len(value) <= 2 else UNKNOWN
