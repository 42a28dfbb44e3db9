"""The proxies that are compared, one file each; `base` says what a peer is.

A peer writes its own configuration into a folder and names the command that runs it. It starts
nothing and measures nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.peers.envoy import Envoy
from loadtest.peers.haproxy import HAProxy
from loadtest.peers.nginx import Nginx
from loadtest.peers.ours import Ours
from loadtest.peers.sglang_router import SglangRouter

if TYPE_CHECKING:
    from loadtest.peers.base import Peer

PEERS: tuple[Peer, ...] = (Envoy(), Nginx(), HAProxy(), SglangRouter())
PEER_NAMES = tuple(peer.name for peer in PEERS)

__all__ = ["PEERS", "PEER_NAMES", "Envoy", "HAProxy", "Nginx", "Ours", "SglangRouter"]
