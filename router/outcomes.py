"""What the end of an exchange says of its replica's standing: it worked, is full, failed, or is not to blame."""

from __future__ import annotations

from typing import Final

from router.errors import Kind
from router.routing.load import OUTCOME_BACKPRESSURE, OUTCOME_CANCELLED, OUTCOME_FAILED, OUTCOME_OK

_OF_STATUS: Final = {
    429: OUTCOME_BACKPRESSURE,
    502: OUTCOME_FAILED,
    503: OUTCOME_BACKPRESSURE,
    504: OUTCOME_FAILED,
}
_OF_GRPC_STATUS: Final = {8: OUTCOME_BACKPRESSURE, 14: OUTCOME_BACKPRESSURE}  # the others are the application's
_OF_KIND: Final = {
    Kind.CONNECT_FAILED: OUTCOME_FAILED,
    Kind.CONNECT_TIMEOUT: OUTCOME_FAILED,
    Kind.UPSTREAM_CLOSED: OUTCOME_FAILED,
    Kind.UPSTREAM_RESET: OUTCOME_FAILED,
    Kind.UPSTREAM_PROTOCOL: OUTCOME_FAILED,
    Kind.FIRST_BYTE_TIMEOUT: OUTCOME_FAILED,
    Kind.AT_CAPACITY: OUTCOME_BACKPRESSURE,  # said in a stream's first event
}
# A replica that refuses a stream is full, one that says goodbye did nothing wrong.
_OF_MOVE: Final = {
    Kind.CONNECT_FAILED: OUTCOME_FAILED,
    Kind.CONNECT_TIMEOUT: OUTCOME_FAILED,
    Kind.UPSTREAM_RESET: OUTCOME_BACKPRESSURE,
    Kind.AT_CAPACITY: OUTCOME_BACKPRESSURE,
}


def answer_outcome(status: int, grpc_status: int) -> int:
    """Return the outcome of an answer that came whole; `grpc_status` is negative where there is none."""
    if grpc_status >= 0:
        return _OF_GRPC_STATUS.get(grpc_status, OUTCOME_OK)
    return _OF_STATUS.get(status, OUTCOME_OK)


def failure_outcome(kind: Kind) -> int:
    """Return the outcome of an exchange that ended with an error."""
    return _OF_KIND.get(kind, OUTCOME_CANCELLED)


def move_outcome(kind: Kind) -> int:
    """Return the outcome for a replica that provably did nothing with a request, which may move on."""
    return _OF_MOVE.get(kind, OUTCOME_CANCELLED)
