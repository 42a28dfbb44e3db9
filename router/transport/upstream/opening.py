"""What the exchange needs of a pool, so that it depends on none. A trait, for the reason that `stream` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import trait

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.errors import ProxyError
    from router.http import RequestHead
    from router.routing.load import Replica
    from router.routing.spec import DialSpec
    from router.stream import PendingStream, ResponseReceiver, UpstreamStream


@trait
class Pool:
    """Streams to replicas."""

    __slots__ = ()

    def open(
        self, replica: Replica, receiver: ResponseReceiver, dial: DialSpec, head: RequestHead | None, *, fresh: bool
    ) -> UpstreamStream | PendingStream | ProxyError:
        """Return a stream on a connection that is there at once, or a pending one, or why there can be none.

        `head` is what will be sent on it; None: by HTTP, whatever else there is. `fresh` forbids connections that
        serve one request after another, of which one was just found dead.
        """
        raise NotImplementedError


@trait
class Lanes:
    """Another way to some replicas, for robots: see `edge.lane_dials`."""

    __slots__ = ()

    def leads_to(self, replica: Replica, head: RequestHead) -> bool:
        """Whether it is worth a try, with this request."""
        raise NotImplementedError

    def open(
        self,
        replica: Replica,
        receiver: ResponseReceiver,
        dial: DialSpec,
        instead: Callable[[ResponseReceiver], UpstreamStream | PendingStream | ProxyError],
    ) -> PendingStream:
        """Return a stream to be; where there is no such way after all, one that `instead` opens."""
        raise NotImplementedError
