"""A `grpc.aio` server with the services it is given, grpc.health.v1 and server reflection; HTTP/2 in the clear.

Runs on the loop it is started in. Health of the server ("") and of each service follows `set_serving`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from inference_backend.rpc import proto

if TYPE_CHECKING:
    from collections.abc import Mapping

_Status = health_pb2.HealthCheckResponse.ServingStatus
_MAX_BYTES = 64 << 20  # observations of a robot come in pieces, prompts as token ids; nothing is larger
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.max_send_message_length", _MAX_BYTES),
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second server on it
)

for _known in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
    proto.pool.AddSerializedFile(_known.serialized_pb)  # reflection looks up all it lists in one pool


class Services:
    """The server; `port` is where it listens."""

    def __init__(self, server: grpc.aio.Server, names: tuple[str, ...], port: int) -> None:
        self.port = port
        self._server = server
        self._names = names
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def set_serving(self, *, serving: bool) -> None:
        """Change what grpc.health.v1 says."""
        status = _Status.Value("SERVING" if serving else "NOT_SERVING")
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self) -> None:
        """End every call and stop listening."""
        await self._server.stop(0)


async def start(services: Mapping[str, object], host: str, port: int, *, serving: bool) -> Services:
    """Listen with `services`, implementations by full name. OSError when the address cannot be had."""
    server = grpc.aio.server(options=_OPTIONS)
    names = tuple(services)
    server.add_generic_rpc_handlers(
        tuple(proto.handler_of(name, implementation) for name, implementation in services.items())
    )
    listed = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(listed, server, pool=proto.pool)
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError as failure:
        raise OSError(f"cannot listen for gRPC on {shown}:{port}") from failure
    found = Services(server, names, bound)
    await found.set_serving(serving=serving)
    await server.start()
    return found
