"""TLS handshakes in a closed loop, one after another: CPU per handshake, full or resumed.

A connection is opened, the handshake made, the connection dropped; no request is sent, so nothing but the
handshake and the accepting differs between proxies. Resumption (RFC 8446 §2.2) uses one session, taken from an
answered request beforehand, since tickets come after the handshake; a handshake that was not resumed is then an
error. Blocking sockets: nothing else happens in the generator meanwhile. Imports the seam.
"""

from __future__ import annotations

import socket
import ssl
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.clients.window import Command, Window

NAME = "localhost"
_TIMEOUT_S = 5.0
_REQUEST = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
_WARMUP = 20


class Handshakes:
    """`Client` of the handshakes; a unit is one."""

    def __init__(self, command: Command, window: Window) -> None:
        self.command = command
        self.window = window
        self.session: ssl.SSLSession | None = None
        # The certificate is made for the run and signed by itself; verifying it would cost only this side.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def start(self) -> None:
        """Make some handshakes, and take a session if they shall be resumed."""
        if self.command.resume:
            with self._connect() as connection:
                connection.sendall(_REQUEST)
                connection.recv(65_536)
                self.session = connection.session
        for _ in range(_WARMUP):
            self._connect().close()

    async def work(self) -> None:
        """Make handshakes until the window's time is over."""
        window = self.window
        until = perf_counter() + self.command.duration_s
        while (began := perf_counter()) < until:
            try:
                connection = self._connect()
            except OSError as failure:
                window.fail(f"{type(failure).__name__}: {failure}")
                return
            window.latencies.append(perf_counter() - began)
            window.units += 1
            if connection.session_reused is not self.command.resume:
                window.fail(f"a handshake {'not ' * self.command.resume}resumed")
            connection.close()

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.command.port), _TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain, server_hostname=NAME, session=self.session)

    async def drain(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is left open."""
