"""Making a connection to a replica: the only task on a request's path, and only on a cold one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from router.errors import Kind, ProxyError, Retry, Source
from router.stream import PendingStream
from router.transport.tasks import spawn
from router.transport.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from router.routing.load import Replica
    from router.stream import ResponseReceiver
    from router.transport.upstream.pool import ConnectionPool
_log = logging.getLogger(__name__)


class PendingConnect(PendingStream):
    """A connection being made for one request. Cancelling it is safe at any moment."""

    __slots__ = ("_connect_s", "_connection", "_pool", "_receiver", "_replica", "_task")

    def __init__(
        self, pool: ConnectionPool, replica: Replica, receiver: ResponseReceiver, connect_s: float
    ) -> None:
        self._pool = pool
        self._replica = replica
        self._receiver: ResponseReceiver | None = receiver
        self._connect_s = connect_s
        self._connection = UpstreamConnection(pool.reactor, replica, pool)
        self._task = spawn(self._connect(), f"connect {replica.address}")

    def cancel(self) -> None:
        """Give it up; a connection made in the same moment is closed.

        The task is not cancelled then: uvloop would close the socket without a word to its protocol.
        """
        self._receiver = None
        if self._connection.transport is None:
            self._task.cancel()

    async def _connect(self) -> None:
        pool, replica = self._pool, self._replica
        reactor = pool.reactor
        loop = asyncio.get_running_loop()
        connection = self._connection
        error: ProxyError | None = None
        reactor.counters.upstream_connects += 1
        try:
            async with asyncio.timeout(self._connect_s):
                await loop.create_connection(lambda: connection, replica.host, replica.port)  # type: ignore[type-var]
        except TimeoutError:
            error = ProxyError(Kind.CONNECT_TIMEOUT, Source.UPSTREAM, Retry.SAFE)
            if connection.transport is not None:
                connection.connection_lost(None)  # timed out in the moment it was made: see `cancel`
        except OSError as failure:
            number = failure.errno or 0
            reason = "its name has no address" if isinstance(failure, socket.gaierror) else "no address accepts"
            reason = os.strerror(number).lower() if number > 0 else reason
            error = ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE, reason)
        except Exception as failure:  # whatever else a resolver may raise: the exchange must hear of it
            _log.warning("connecting to %s: %r", replica.address, failure)
            error = ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE, "its address is unusable")
        reactor.clock.read()
        receiver = self._receiver
        self._receiver = None
        if receiver is None:
            connection.abort()
        elif error is not None:
            receiver.upstream_failed(error)
        elif connection.transport is None or not connection.h1.is_idle:
            # Its FIN, or bytes nobody asked for, came between the accept and this line.
            connection.abort()
            gone = ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE, "closed on accept")
            receiver.upstream_failed(gone)
        else:
            connection.start(receiver, reused=False)
            try:
                receiver.upstream_ready(connection.h1)
            except Exception:
                reactor.counters.internal_errors += 1
                _log.exception("an exchange could not begin")
                connection.abort()  # the codec then tells the exchange that its replica is gone
        reactor.outbox.flush()
