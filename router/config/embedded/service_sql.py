"""ExecuteSql and its kin: stub."""

from __future__ import annotations

from typing import Any

from router.config.embedded.errors import unsupported


class Statements:
    def __init__(self, served: Any, selected: Any) -> None:
        pass

    async def run(self, request: Any, chunk_bytes: int) -> Any:
        raise unsupported("SQL")
        yield b""

    async def dml(self, statement: Any, seqno: Any) -> Any:
        raise unsupported("SQL")
