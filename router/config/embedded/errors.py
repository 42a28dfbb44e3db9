"""What goes back over the wire when something cannot be done: a gRPC status code and a sentence."""

from __future__ import annotations

from typing import Final, Literal

Code = Literal[
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "ABORTED",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
]

# google.rpc.Code
CODES: Final[dict[Code, int]] = {
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "UNAVAILABLE": 14,
}


class StoreError(Exception):
    """A peer's fault or a limit: `code` is the name of a gRPC status, `text` what the peer is told."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code: Code = code
        self.text = text


def invalid(text: str) -> StoreError:
    """INVALID_ARGUMENT: the request makes no sense in any state of the database."""
    return StoreError("INVALID_ARGUMENT", text)


def not_found(text: str) -> StoreError:
    """NOT_FOUND."""
    return StoreError("NOT_FOUND", text)


def precondition(text: str) -> StoreError:
    """FAILED_PRECONDITION: not in this state of the database, or not with this value."""
    return StoreError("FAILED_PRECONDITION", text)


def unsupported(construct: str) -> StoreError:
    """UNIMPLEMENTED: Spanner may know it, this store does not, and refuses rather than guess."""
    return StoreError(
        "UNIMPLEMENTED",
        f"{construct} is not supported by the embedded store; `router store --help` lists what is",
    )
