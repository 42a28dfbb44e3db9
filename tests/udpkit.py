"""Sockets for tests: a receiver that keeps what it is given, and a socket whose writes fail as a test wants."""

import asyncio
import socket
import time

from router.transport.udp import DatagramReceiver, UdpCounters, UdpSocket


class Kept(DatagramReceiver):
    """Keeps every buffer as (data, segment_bytes, address, local, ecn), and counts wake-ups."""

    def __init__(self):
        self.buffers = []
        self.wakes = 0
        self.sock = None

    def receive(self, sock, data, segment_bytes, address, local, ecn):
        self.buffers.append((data, segment_bytes, address, local, ecn))

    def received(self):
        self.wakes += 1

    @property
    def datagrams(self):
        found = []
        for data, segment_bytes, *_ in self.buffers:
            size = segment_bytes or len(data) or 1
            found += [data[i : i + size] for i in range(0, max(1, len(data)), size)]
        return found


class Faulty:
    """A socket whose `sendmsg` asks `fail(pieces, ancillary)` for an errno first; 0: go on."""

    def __init__(self, sock, fail):
        self._sock = sock
        self._fail = fail
        self.calls = []

    def sendmsg(self, pieces, ancillary, flags, address):
        self.calls.append((len(pieces), ancillary, address))
        code = self._fail(pieces, ancillary)
        if code:
            raise OSError(code, "as the test wants")
        return self._sock.sendmsg(pieces, ancillary, flags, address)

    def __getattr__(self, name):
        return getattr(self._sock, name)


def bound(host="127.0.0.1", family=socket.AF_INET, port=0):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


def open_udp(sock, receiver=None, name=b""):
    receiver = receiver or Kept()
    made = UdpSocket(sock, receiver, UdpCounters(), name)
    made.start_reading()
    return made, receiver


async def until(condition, limit_s=5.0):
    """Wait for a fact."""
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, "it did not come to be"
        await asyncio.sleep(0.002)


class Counted:
    """A socket that counts its `recvmsg` calls."""

    def __init__(self, sock):
        self._sock = sock
        self.reads = 0

    def recvmsg(self, size, control_size):
        self.reads += 1
        return self._sock.recvmsg(size, control_size)

    def __getattr__(self, name):
        return getattr(self._sock, name)
