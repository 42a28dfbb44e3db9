"""`StoreServer`: binds, serves, stops. The only module here that knows gRPC's server side.

    async with StoreServer(data_dir, "unix:/run/store.sock") as store: ...   or  await start() … await stop()

A StoreError becomes its status; anything else that escapes a method is a fault of ours: INTERNAL, with a log, and
the server goes on. Socket files are mode 0600, and one that is left over is replaced only if nobody listens on it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from router.config.embedded import garbage, service_admin, service_hooks, service_spanner
from router.config.embedded.errors import StoreError
from router.config.embedded.limits import MAX_RECEIVE_BYTES, Settings
from router.config.embedded.registry import LockedError, Registry
from router.config.embedded.service_streams import Streams
from router.config.embedded.stream_query import is_stream_query
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from router.config.embedded.catalog import Table
    from router.config.embedded.database import Database
    from router.config.embedded.hooks import Cut, TestHooks
    from router.config.embedded.registry import OpenDatabase
    from router.config.embedded.workspace import Workspace

_log = logging.getLogger(__name__)
_COLLECT_S: Final = 1.0  # between two slices of garbage collection
_EXPIRE_S: Final = 60.0  # between two looks for rows whose deletion policy has come true
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # agents ping often to notice a hung peer
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_concurrent_streams", 10_000),
)


class BindError(RuntimeError):
    """The address cannot be listened on; the text says why."""


class StoreServer:
    """An embedded store. `data_dir` None keeps everything in memory.

    `address`: "unix:/path" or "host:port"; port 0 picks one, and `address` tells which after `start`.
    """

    def __init__(
        self,
        data_dir: Path | None,
        address: str,
        *,
        durable: bool = False,
        settings: Settings | None = None,
        hooks: TestHooks | None = None,
    ) -> None:
        self.address = address
        self.settings = settings or Settings(durable=durable)
        self.hooks = hooks
        self._data_dir = data_dir
        self._server: grpc.aio.Server | None = None
        self._registry: Registry | None = None
        self._socket_id: tuple[int, int] | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. Raises LockedError, BindError, or OSError where the directory cannot be used."""
        self._registry = Registry(self._data_dir, self.settings)
        try:
            await self._listen(self._registry)
        except BaseException:
            self._registry.close()
            self._registry = None
            raise
        self._tasks = [spawn(self._collect(self._registry), "store garbage")]

    async def stop(self, grace_s: float | None = 0.1) -> None:
        """End every call, then close the files. Streams end with UNAVAILABLE, which tells clients to come again."""
        if self.hooks is not None:
            self.hooks.resume()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        if self._registry is not None:
            self._registry.close()
            self._registry = None
        self._remove_socket()

    def database(self, name: str) -> Database:
        """Return a database that is being served, by its full name; for tests, the relay and `router up`."""
        assert self._registry is not None, "the server is not started"
        return self._registry.database(name).database

    # -- listening

    async def _listen(self, registry: Registry) -> None:
        server = grpc.aio.server(options=_OPTIONS)
        streams = Streams(self.settings, self.hooks)
        spanner = service_spanner.SpannerService(registry, self.settings, streams, self.hooks)
        admin = service_admin.AdminService(registry, self.settings)
        services = [
            ("google.spanner.v1.Spanner", spanner, service_spanner.REQUESTS, service_spanner.STREAM_REQUESTS),
            ("google.spanner.admin.instance.v1.InstanceAdmin", admin, service_admin.INSTANCE_REQUESTS, {}),
            ("google.spanner.admin.database.v1.DatabaseAdmin", admin, service_admin.DATABASE_REQUESTS, {}),
            ("google.longrunning.Operations", admin, service_admin.OPERATION_REQUESTS, {}),
        ]
        if self.hooks is not None:
            control = service_hooks.HooksService(registry, self.hooks)
            server.add_generic_rpc_handlers((service_hooks.handler(control),))
        for name, service, unary, streaming in services:
            handlers = {rpc: self._unary(rpc, getattr(service, rpc), kind) for rpc, kind in unary.items()}
            handlers |= {rpc: self._stream(rpc, getattr(service, rpc), kind) for rpc, kind in streaming.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        path = self.address.removeprefix("unix:") if self.address.startswith("unix:") else None
        if path is not None:
            _clear_socket(path)
        # gRPC makes the socket file itself: it must never be there with more rights than ours.
        before = os.umask(0o177) if path is not None else None
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise BindError(f"cannot listen on {self.address}: {error}") from error
        finally:
            if before is not None:
                os.umask(before)
        if path is None:
            if not port:
                raise BindError(f"cannot listen on {self.address}")
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        else:
            self._socket_id = _identity(path)
        await server.start()
        self._server = server

    def _remove_socket(self) -> None:
        if self._socket_id is None:
            return
        path = self.address.removeprefix("unix:")
        try:
            if _identity(path) == self._socket_id:
                Path(path).unlink()
        except FileNotFoundError:  # gRPC removes it on a clean stop
            pass
        self._socket_id = None

    # -- calls

    @staticmethod
    def _parse(kind: Any, data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise StoreError("INVALID_ARGUMENT", "the request is not a message of its type") from error

    def _unary(self, rpc: str, method: Callable[[Any], Awaitable[Any]], kind: Any) -> Any:
        async def call(data: bytes, context: Any) -> Any:
            try:
                request = self._parse(kind, data)
                cut = await self._enter(rpc, request)
                if cut is not None:
                    raise _Cut(cut.code)  # noqa: TRY301 -- here and below: one way out for every kind of end
                return await method(request)
            except StoreError as error:
                await context.abort(_status(error.code), error.text)
            except _Cut as cut_now:
                await context.abort(_status(cut_now.code), "cut by a test")
            except Exception:
                _log.exception("%s failed", rpc)
                await context.abort(
                    grpc.StatusCode.INTERNAL, f"the embedded store failed in {rpc}; its log says why"
                )

        return grpc.unary_unary_rpc_method_handler(call, None, _serialize)

    def _stream(self, rpc: str, method: Callable[[Any], AsyncGenerator[bytes, None]], kind: Any) -> Any:
        async def call(data: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                request = self._parse(kind, data)
                cut = await self._enter(rpc, request)
                sent = 0
                if cut is not None and cut.messages == 0:
                    raise _Cut(cut.code)  # noqa: TRY301
                async with aclosing(method(request)) as messages:
                    async for message in messages:
                        if self.hooks is not None:
                            await self.hooks.pass_gate()
                        yield message
                        sent += 1
                        if cut is not None and sent >= cut.messages:
                            raise _Cut(cut.code)  # noqa: TRY301
            except StoreError as error:
                await context.abort(_status(error.code), error.text)
            except _Cut as cut_now:
                await context.abort(_status(cut_now.code), "cut by a test")
            except Exception:
                _log.exception("%s failed", rpc)
                await context.abort(
                    grpc.StatusCode.INTERNAL, f"the embedded store failed in {rpc}; its log says why"
                )

        return grpc.unary_stream_rpc_method_handler(call, None, None)

    async def _enter(self, rpc: str, request: Any) -> Cut | None:
        if self.hooks is None:
            return None
        changes = rpc == "ExecuteStreamingSql" and is_stream_query(request.sql)
        cut = self.hooks.called(rpc, change_stream=changes)
        await self.hooks.pass_gate()
        return cut

    # -- in the background

    async def _collect(self, registry: Registry) -> None:
        expire_in_s = _EXPIRE_S
        while True:
            await asyncio.sleep(_COLLECT_S)
            expire_in_s -= _COLLECT_S
            for served in registry.all():
                try:
                    while not served.dropped and garbage.collect(served.database):  # noqa: ASYNC110 -- nothing to await
                        await asyncio.sleep(0.01)
                    served.transactions.sweep()
                    if expire_in_s <= 0:
                        await _expire(served)
                except Exception:  # a full disk, say: the next slice may succeed
                    _log.exception("garbage collection of %s failed", served.name)
            if expire_in_s <= 0:
                expire_in_s = _EXPIRE_S


async def _expire(served: OpenDatabase) -> None:
    """Delete the rows whose deletion policy has come true, as system transactions."""
    if served.database.upstream is not None:
        return
    for table, doomed in garbage.expired(served.database):

        def fill(workspace: Workspace, _at: int, table: Table = table, doomed: list[bytes] = doomed) -> None:
            for key in doomed:
                workspace.delete(table, key)

        served.database.commit(fill, system=True)
        await asyncio.sleep(0.01)


class _Cut(Exception):  # noqa: N818 -- not an error: a test asked for it
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _status(code: str) -> grpc.StatusCode:
    status: grpc.StatusCode = grpc.StatusCode[code]
    return status


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _identity(path: str) -> tuple[int, int]:
    """Return what tells a file from another that took its name."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _clear_socket(path: str) -> None:
    """Remove a socket file that nobody listens on. BindError where somebody does, or where it is no socket."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise BindError(f"cannot listen on unix:{path}: there is a file that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink()
            return
        except OSError as error:
            raise BindError(f"cannot listen on unix:{path}: {error}") from error
    raise BindError(f"cannot listen on unix:{path}: somebody else does")


__all__ = ["BindError", "LockedError", "StoreServer"]
