"""`TestHooks` over the wire: /router.store.TestHooks/Call, JSON in and out. Only there when hooks are on.

{"call": "partitions", "database": …, "stream": …}      → {"partitions": [[token, low, high], …]}, the open ones
{"call": "split", …, "token": …}                        → {"tokens": […]}
{"call": "merge", …, "tokens": […]}                     → {"tokens": […]}
{"call": "cut", "method": …, "skip": …, "count": …, "messages": …, "change_stream": …, "code": …}
{"call": "hang"}  {"call": "resume"}  {"call": "calls"} → {"calls": {…}}
{"call": "set", "silent_streams": …, "end_streams": …, "max_readers": …, "chunk_bytes": …}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc

from router.config.embedded.hooks import Cut

if TYPE_CHECKING:
    from router.config.embedded.hooks import TestHooks
    from router.config.embedded.registry import Registry

_SETTINGS = ("silent_streams", "end_streams", "max_readers", "chunk_bytes")


class HooksService:
    """Carries out one call."""

    def __init__(self, registry: Registry, hooks: TestHooks) -> None:
        self._registry = registry
        self._hooks = hooks

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer. KeyError, ValueError and TypeError for a request that makes no sense."""
        name = request.pop("call")
        if name in {"partitions", "split", "merge"}:
            return self._partitions(name, request)
        if name == "cut":
            self._hooks.cuts.append(Cut(**request))
        elif name == "hang":
            self._hooks.hang()
        elif name == "resume":
            self._hooks.resume()
        elif name == "calls":
            return {"calls": self._hooks.calls}
        elif name == "set":
            for key, value in request.items():
                if key not in _SETTINGS:
                    raise ValueError(f"no setting {key}")
                setattr(self._hooks, key, value)
        else:
            raise ValueError(f"no call {name}")
        return {}

    def _partitions(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        database = self._registry.database(request["database"]).database
        stream = request["stream"]
        if name == "split":
            return {"tokens": database.split(stream, request["token"])}
        if name == "merge":
            return {"tokens": [database.merge(stream, request["tokens"])]}
        opened = database.partitions.open(database.catalog.streams[stream.lower()].id)
        return {"partitions": [[part.token, part.low, part.high] for part in opened]}


def handler(service: HooksService) -> Any:
    """Return the gRPC handler."""

    async def call(request: bytes, context: Any) -> bytes:
        try:
            return json.dumps(service.call(json.loads(request))).encode()
        except Exception as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, repr(error))
            raise AssertionError from error  # abort raises

    method: Any = grpc.unary_unary_rpc_method_handler(call, None, None)
    return grpc.method_handlers_generic_handler("router.store.TestHooks", {"Call": method})
