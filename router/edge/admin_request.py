"""One request of the admin listener, from its head to its reply.

`AdminRequest` is a `RequestReceiver` as the exchange is one, so the server codec, with all its limits, serves
the admin port as it serves clients. It collects the body, runs the handler in a task, and answers in one piece.
"""

from __future__ import annotations

import logging
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from router.edge.admin_http import FIXED_FIELDS, MAX_QUERY_FIELDS, AdminCall, Reply, error_reply, parse_target
from router.errors import Kind
from router.http import ResponseHead, ResponseShape
from router.local_reply import local_reply
from router.stream import RequestReceiver
from router.transport.tasks import spawn

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from router.errors import ProxyError
    from router.http import Headers, RequestHead
    from router.stream import DownstreamStream
    from router.transport.shell import Reactor

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 65_536
IDLE_S = 30.0  # nothing moves on a request: a body that stalls, or a handler that hangs


class AdminRequest(RequestReceiver):
    """One request from head to reply, for the server codec. Answers exactly once, unless the client left."""

    __slots__ = ("_body", "_handle", "_head", "_is_loopback", "_is_over", "_reactor", "_size", "_stream", "_task")

    def __init__(
        self,
        reactor: Reactor,
        handle: Callable[[AdminCall], Awaitable[Reply]],
        stream: DownstreamStream,
        *,
        is_loopback: bool,
    ) -> None:
        self._reactor = reactor
        self._handle = handle
        self._stream = stream
        self._is_loopback = is_loopback
        self._head: RequestHead | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    # -- RequestReceiver ------------------------------------------------------------------------------

    def request_head(self, head: RequestHead, end: bool) -> None:
        """Take the head; begin at once when there is no body."""
        self._head = head
        self._stream.limit_idle(IDLE_S)
        shape = head.shape
        if shape.upgrade is not None:
            self._answer(error_reply(400, "bad_request", "The admin listener speaks no WebSocket."))
        elif head.length is not None and head.length > MAX_BODY_BYTES:
            self._refuse_size()
        elif end:
            self._start(head)
        elif shape.expects_continue:
            self._stream.send_informational(ResponseHead(ResponseShape(100)))

    def request_data(self, data: bytes, end: bool) -> None:
        """Collect the body up to its limit."""
        if self._is_over:
            return
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            self._refuse_size()
            return
        self._body.append(data)
        if end and self._head is not None:
            self._start(self._head)

    def request_trailers(self, trailers: Headers) -> None:
        """Begin; trailers mean nothing here."""
        if self._head is not None and not self._is_over:
            self._start(self._head)

    def request_reset(self, error: ProxyError) -> None:
        """Stop the handler; say why where somebody still listens."""
        if self._is_over:
            return
        if self._task is not None:
            self._task.cancel()
        if error.kind in (Kind.CLIENT_GONE, Kind.CLIENT_STALLED):
            self._is_over = True
            return
        head, body = local_reply(error, b"no", b"")
        self._send(head, body)

    def pause_response(self) -> None:
        """Nothing to pause: a reply is one piece, and the codec's deadline ends a client that stalls."""

    def resume_response(self) -> None:
        """Nothing to resume."""

    # -- the reply ------------------------------------------------------------------------------------

    def _start(self, head: RequestHead) -> None:
        shape = head.shape
        target = parse_target(shape.path)
        if target is None:
            message = f"The query has more than {MAX_QUERY_FIELDS} fields."
            self._answer(error_reply(400, "bad_request", message))
            return
        call = AdminCall(
            method=shape.method.decode(),
            path=target[0],
            query=target[1],
            authority=shape.authority.decode("latin-1"),
            authorization=shape.authorization,
            headers=dict(shape.fields),
            body=b"".join(self._body),
            is_loopback=self._is_loopback,
        )
        self._task = spawn(self._run(call), f"admin {call.method} {call.path}")

    async def _run(self, call: AdminCall) -> None:
        try:
            reply = await self._handle(call)
        except Exception:
            # Last resort, as in the shell: our bug costs this one request.
            self._reactor.counters.internal_errors += 1
            _log.exception("the admin request %s %s failed", call.method, call.path)
            reply = error_reply(500, "internal", "The router failed; this is a bug.")
        if self._is_over:
            return
        self._reactor.clock.read()
        self._answer(reply)
        self._reactor.outbox.flush()

    def _refuse_size(self) -> None:
        self._answer(
            error_reply(413, Kind.BODY_TOO_LARGE.value, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        )

    def _answer(self, reply: Reply) -> None:
        shape = ResponseShape(reply.status)
        shape.fields = [
            (b"date", formatdate(time.time(), usegmt=True).encode()),
            (b"content-type", reply.content_type),
            *FIXED_FIELDS,
            *reply.headers,
        ]
        self._send(ResponseHead(shape, len(reply.body)), reply.body)

    def _send(self, head: ResponseHead, body: bytes) -> None:
        self._is_over = True
        self._body.clear()
        stream = self._stream
        if body:
            stream.send_head(head, False)
            stream.send_data(body, True)
        else:
            stream.send_head(head, True)
