"""Asking STUN servers from which address this host's socket is seen (RFC 8489 §6.2), and what follows from it.

    Inquiry: one question to one server, sent again and again, on whatever socket its caller has
    ask:     one question on a plain socket that nobody else reads
    survey:  the same question to several servers from one socket: is there a NAT, and of which kind?

What is asked for by a key counts only if it is signed with it. Only the server itself is listened to.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from router.transport.codec.stun import (
    BINDING_ERROR,
    BINDING_SUCCESS,
    TRANSACTION_BYTES,
    Address,
    binding_request,
    is_stun,
    read_message,
)
from router.transport.udp import find_local_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RTO_S: Final = 0.5
"""From the first request to the second; each time twice as long (RFC 8489 §6.2.1)."""
SENDS: Final = 7
LAST_WAIT: Final = 16
"""How many `RTO_S` the last request is waited for. All in all 39.5 seconds."""
MAX_READ_BYTES: Final = 2_048

NONE: Final = "none"
SAME: Final = "same"
ANOTHER: Final = "another"
UNKNOWN: Final = "unknown"
BLOCKED: Final = "blocked"


class StunError(Exception):
    """No address. `code` is the server's, or 0 if it said nothing."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Inquiry:
    """One Binding transaction. `answer` becomes the address, or a `StunError`; cancel it to give up.

    `send` is given each request; what comes from anywhere is handed to `take`.
    """

    def __init__(
        self, send: Callable[[bytes], object], server: Sequence[Any], *, timeout_s: float | None = None,
        username: bytes = b"", key: bytes = b"",
    ) -> None:  # fmt: skip
        """Ask at once. `server`: from where the answer comes; `timeout_s`: less time than the standard's."""
        self._send = send
        self._server = tuple(server[:2])
        self._key = key
        self._transaction = os.urandom(TRANSACTION_BYTES)
        self._request = binding_request(self._transaction, username=username, key=key)
        self._loop = asyncio.get_running_loop()
        self._sends = 0
        self._began_s = self._loop.time()
        self._ends_s = self._began_s + timeout_s if timeout_s is not None else float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self.rtt_s = 0.0
        self.answer: asyncio.Future[Address] = self._loop.create_future()
        self.answer.add_done_callback(self._stop)
        self._ask()

    def take(self, data: bytes, address: Sequence[Any]) -> bool:
        """Look at a datagram; whether it was the answer."""
        if not is_stun(data) or data[8:20] != self._transaction or tuple(address[:2]) != self._server:
            return False
        found = read_message(data, self._key)
        if found is None or found.kind not in (BINDING_SUCCESS, BINDING_ERROR) or self.answer.done():
            return False
        self.rtt_s = self._loop.time() - self._began_s
        if found.kind == BINDING_ERROR:
            self.answer.set_exception(StunError(f"refused with {found.error_code}", found.error_code))
        elif found.mapped is None or found.unknown:  # RFC 8489 §6.3.3
            self.answer.set_exception(StunError("an answer that cannot be understood"))
        else:
            self.answer.set_result(found.mapped)
        return True

    def _ask(self) -> None:
        now = self._loop.time()
        if self._sends >= SENDS or now >= self._ends_s:
            self.answer.set_exception(StunError("no answer"))
            return
        self._sends += 1
        wait_s = RTO_S * (LAST_WAIT if self._sends == SENDS else 1 << (self._sends - 1))
        self._timer = self._loop.call_at(min(now + wait_s, self._ends_s), self._ask)
        self._began_s = now
        self._send(self._request)

    def _stop(self, _: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _Reader:
    """Hands what comes to a plain socket to those who have asked, while it is entered."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._inquiries: list[Inquiry] = []
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> _Reader:  # noqa: PYI034 - it is not for others
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock.fileno(), self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._sock.fileno())
        for inquiry in self._inquiries:
            inquiry.answer.cancel()

    def begin(self, server: Sequence[Any], **options: Any) -> Inquiry:
        """Ask a server."""
        made = Inquiry(lambda data: self._send(data, server), server, **options)
        self._inquiries.append(made)
        return made

    def _send(self, data: bytes, server: Sequence[Any]) -> None:
        try:
            self._sock.sendto(data, tuple(server))
        except OSError:  # no route, no room, forbidden: as lost as on its way, and sent again
            return

    def _read(self) -> None:
        while True:
            try:
                data, address = self._sock.recvfrom(MAX_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # ICMP's word about an earlier datagram; the timers know better
            for inquiry in self._inquiries:
                if inquiry.take(data, address):
                    break


async def ask(
    sock: socket.socket, server: Sequence[Any], *, timeout_s: float | None = None,
    username: bytes = b"", key: bytes = b"",
) -> Address:  # fmt: skip
    """Return the address at which `server` sees this bound UDP socket; `StunError` if it does not say.

    The socket is read meanwhile: what is no answer is dropped. `server` is as the socket module wants it.
    """
    with _Reader(sock) as reader:
        return await reader.begin(server, timeout_s=timeout_s, username=username, key=key).answer


@dataclass(frozen=True, slots=True)
class Seen:
    """What one server said. `local`: this host's own address on the way there; `mapped` None: see `failure`."""

    server: Address
    local: Address
    mapped: Address | None
    rtt_s: float
    failure: str


async def survey(family: int, servers: Sequence[Sequence[Any]], *, timeout_s: float, port: int = 0) -> list[Seen]:
    """Ask all at once from one new socket, bound to `port` of all addresses. OSError if there is no such socket."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))  # noqa: S104 - it is a client
        own_port: int = sock.getsockname()[1]
        with _Reader(sock) as reader:
            inquiries = [reader.begin(server, timeout_s=timeout_s) for server in servers]
            answers = await asyncio.gather(*(inquiry.answer for inquiry in inquiries), return_exceptions=True)
    found = []
    for server, inquiry, answer in zip(servers, inquiries, answers, strict=True):
        if isinstance(answer, BaseException) and not isinstance(answer, StunError):
            raise answer
        try:
            host = find_local_host(family, tuple(server))
        except OSError as failure:
            host, answer = "", StunError(failure.strerror or "no route")  # noqa: PLW2901
        mapped = None if isinstance(answer, BaseException) else answer
        failure_text = str(answer) if isinstance(answer, BaseException) else ""
        found.append(Seen((server[0], server[1]), (host, own_port), mapped, inquiry.rtt_s, failure_text))
    return found


def judge(seen: Sequence[Seen]) -> str:
    """Return the kind of NAT there is, as far as addresses tell; see `router nat`."""
    heard = [one for one in seen if one.mapped is not None]
    if not heard:
        return BLOCKED
    if all(one.mapped == one.local for one in heard):
        return NONE
    if len({one.mapped for one in heard}) > 1:
        return ANOTHER
    return SAME if len({one.server for one in heard}) > 1 else UNKNOWN
