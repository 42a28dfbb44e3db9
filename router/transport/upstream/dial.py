"""Making a connection to a replica: the only task on a request's path, and only on a cold one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING

from router.errors import Kind, ProxyError, Retry, Source
from router.stream import PendingStream
from router.transport.certificates import TlsFileError
from router.transport.tasks import spawn
from router.transport.tls import client_context, server_name
from router.transport.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from router.routing.load import Replica
    from router.routing.spec import DialSpec
    from router.stream import ResponseReceiver
    from router.transport.upstream.pool import ConnectionPool
_log = logging.getLogger(__name__)


class PendingConnect(PendingStream):
    """A request that waits for a connection. Cancelling it is safe at any moment."""

    __slots__ = ("dial", "has_moved", "receiver")

    def __init__(self, dial: Dial, receiver: ResponseReceiver) -> None:
        self.dial = dial
        self.has_moved = False
        self.receiver: ResponseReceiver | None = receiver

    def cancel(self) -> None:
        """Wait no longer."""
        self.receiver = None
        self.dial.leave(self)


class Dial:
    """A connection being made, and who waits for it: one request, or many if it will be shared."""

    __slots__ = ("_connection", "_is_shared", "_pool", "_task", "replica", "spec", "waiting")

    def __init__(
        self, pool: ConnectionPool, replica: Replica, spec: DialSpec, *, is_shared: bool = False
    ) -> None:
        self._pool = pool
        self.replica = replica
        self.spec = spec
        self._is_shared = is_shared
        self.waiting: list[PendingConnect] = []
        self._connection = UpstreamConnection(pool.reactor, replica, pool, spec)
        self._task = spawn(self._run(), f"connect {replica.address}")

    def wait(self, receiver: ResponseReceiver) -> PendingConnect:
        """Have `receiver` told when the connection is there, or cannot be."""
        pending = PendingConnect(self, receiver)
        self.waiting.append(pending)
        return pending

    def adopt(self, pending: PendingConnect, instead: PendingConnect) -> None:
        """Have `pending`, which waited elsewhere in vain, wait here in the place of `instead`."""
        pending.dial = self
        self.waiting[self.waiting.index(instead)] = pending

    def leave(self, pending: PendingConnect) -> None:
        """Wait no longer. A connection that nobody waits for is given up, one to be shared is kept.

        One made in the same moment is closed and its task is not cancelled: uvloop would close the socket without
        a word to its protocol.
        """
        if pending in self.waiting:
            self.waiting.remove(pending)
        if not self.waiting and not self._is_shared and self._connection.transport is None:
            self._task.cancel()

    async def _run(self) -> None:
        pool = self._pool
        reactor = pool.reactor
        connection = self._connection
        error = await self._connect()
        if error is None:
            await connection.greeting()
        reactor.clock.read()
        waiting = self.waiting
        self.waiting = []
        is_over = error is None and not connection.is_usable
        if is_over:
            # Its FIN, or bytes nobody asked for, came between the accept and this line.
            error = ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE, "closed on accept")
        if error is not None:
            connection.abort()
            pool.dialled(self, None)
            for pending in waiting:
                if is_over and self._is_shared and not pending.has_moved:
                    self._move(pending, error)  # it may have joined long after the connection was made
                else:
                    self._tell_failed(pending, error)
        elif connection.h1 is not None and not waiting:
            pool.dialled(self, None)
            if self._is_shared:
                pool.put(connection)  # it was to be HTTP/2; now it is known not to be
            else:
                connection.abort()
        else:
            is_kept = pool.dialled(self, connection)
            self._hand_out(waiting, is_kept or connection.h1 is not None)
            if connection.h2 is not None and not is_kept:
                connection.retire()  # after those who waited for it; HTTP/1.1 comes back to `put`, which retires it
        reactor.outbox.flush()

    def _hand_out(self, waiting: list[PendingConnect], may_move: bool) -> None:
        """Give each that waits a stream, as far as there are any; the others look for one elsewhere, once."""
        connection = self._connection
        full = ProxyError(Kind.AT_CAPACITY, Source.UPSTREAM, Retry.SAFE, "the replica takes no more streams")
        for pending in waiting:
            receiver = pending.receiver
            h2 = connection.h2
            try:
                if receiver is None:
                    continue  # cancelled by what became of one before it
                if h2 is not None and h2.room > 0:
                    receiver.upstream_ready(h2.open(receiver, self._pool.reactor.clock.now))
                elif connection.h1 is not None and connection.h1.is_idle:
                    receiver.upstream_ready(connection.start(receiver, reused=False))
                elif may_move and not pending.has_moved:
                    self._move(pending, full)
                else:
                    receiver.upstream_failed(full)
            except Exception:
                self._pool.reactor.counters.internal_errors += 1
                _log.exception("an exchange could not begin")
                connection.abort()  # the codec then tells the exchange that its replica is gone

    def _move(self, pending: PendingConnect, error: ProxyError) -> None:
        """Have a request that waited in vain look for another stream, if it still waits."""
        try:
            if pending.receiver is not None:
                self._pool.place(pending, self)
        except Exception:
            self._pool.reactor.counters.internal_errors += 1
            _log.exception("a request could not be moved")
            self._tell_failed(pending, error)

    def _tell_failed(self, pending: PendingConnect, error: ProxyError) -> None:
        receiver = pending.receiver
        try:
            if receiver is not None:
                receiver.upstream_failed(error)
        except Exception:
            self._pool.reactor.counters.internal_errors += 1
            _log.exception("an exchange could not be told that its replica is unreachable")

    async def _connect(self) -> ProxyError | None:
        """Connect; return why it could not be done."""
        replica, spec, connection = self.replica, self.spec, self._connection
        self._pool.reactor.counters.upstream_connects += 1
        loop = asyncio.get_running_loop()
        path = self._pool.attached.path_of(replica.host)
        try:
            tls = client_context(spec.tls) if replica.scheme == "https" else None
            name = server_name(spec.tls, replica.host) if tls is not None else None
            async with asyncio.timeout(spec.connect_s):
                if path:
                    await loop.create_unix_connection(
                        lambda: connection, path, ssl=tls, server_hostname=name  # type: ignore[type-var]
                    )
                else:
                    await loop.create_connection(
                        lambda: connection,  # type: ignore[type-var]
                        replica.host,
                        replica.port,
                        ssl=tls,
                        server_hostname=name,
                    )
        except TimeoutError:
            if connection.transport is not None:
                connection.connection_lost(None)  # timed out in the moment it was made: see `leave`
            return ProxyError(Kind.CONNECT_TIMEOUT, Source.UPSTREAM, Retry.SAFE)
        except ssl.SSLCertVerificationError as failure:
            _log.warning("the certificate of %s: %s", replica.address, failure.verify_message)
            return _failed("its certificate is not trusted")
        except ssl.SSLError as failure:
            _log.warning("TLS with %s: %s", replica.address, failure)
            return _failed("the TLS handshake failed")
        except TlsFileError as failure:
            _log.error("tls.%s of %s: %s", failure.field, replica.address, failure)
            return _failed("its TLS settings cannot be used")
        except OSError as failure:
            if path:
                return _failed("it is not attached")
            number = failure.errno or 0
            reason = "its name has no address" if isinstance(failure, socket.gaierror) else "no address accepts"
            return _failed(os.strerror(number).lower() if number > 0 else reason)
        except Exception as failure:  # whatever else a resolver may raise: the exchange must hear of it
            _log.warning("connecting to %s: %r", replica.address, failure)
            return _failed("its address is unusable")
        return None


def _failed(reason: str) -> ProxyError:
    return ProxyError(Kind.CONNECT_FAILED, Source.UPSTREAM, Retry.SAFE, reason)
