"""What the exchange needs of a pool, so that it depends on none. A trait, for the reason that `stream` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import trait

if TYPE_CHECKING:
    from router.errors import ProxyError
    from router.routing.load import Replica
    from router.routing.spec import DialSpec
    from router.stream import PendingStream, ResponseReceiver, UpstreamStream


@trait
class Pool:
    """Streams to replicas."""

    __slots__ = ()

    def open(
        self, replica: Replica, receiver: ResponseReceiver, dial: DialSpec, *, fresh: bool
    ) -> UpstreamStream | PendingStream | ProxyError:
        """Return a stream on a connection that is there at once, or a pending one, or why there can be none.

        `fresh` forbids those that serve one request after another, of which one was just found dead.
        """
        raise NotImplementedError
