"""Two QUIC connections in memory: virtual time, a link with delay, loss, reordering and a largest datagram."""

import heapq
import itertools
import os
import random

from router.transport.codec.quic.client import ClientConnection
from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.quic.handshake import Tickets
from router.transport.codec.quic.invariants import ID_BYTES
from router.transport.codec.quic.seam import Application, Owner
from router.transport.codec.quic.server import ServerConnection
from tests.certkit import Authority

SERVER = ("192.0.2.1", 443)
CLIENT = ("198.51.100.7", 40_000)


class PemIdentity:
    def __init__(self, pair, chain=()):
        self.certificate = pair.certificate
        self.chain = list(chain)
        self.key = pair.private


class OneIdentity:
    def __init__(self, pair, client_ca=b""):
        self.client_ca = client_ca
        self._identity = PemIdentity(pair)

    def find(self, name):
        return self._identity


_authority = Authority()
_pair = _authority.sign("robot.test")


class Recorder(Application):
    """An application that writes everything down, and gives credit for what it reads unless told not to."""

    def __init__(self, bearer):
        self.bearer = bearer
        self.said = []
        self.flows = {}
        self.data = {}
        self.ended = set()
        self.gone = set()
        self.datagrams = []
        self.lost = None
        self.gives_credit = True
        self.on_data = None
        self.on_opened = None

    def connected(self):
        self.said.append("connected")

    def stream_opened(self, flow):
        self.flows[flow.id] = flow
        self.said.append(("opened", flow.id))
        if self.on_opened is not None:
            self.on_opened(flow)

    def stream_data(self, flow, data, end):
        self.flows[flow.id] = flow
        self.data[flow.id] = self.data.get(flow.id, b"") + data
        if end:
            self.ended.add(flow.id)
        if self.gives_credit and data:
            flow.credit(len(data))
        if self.on_data is not None:
            self.on_data(flow, data, end)

    def stream_reset(self, flow, code):
        assert flow.id not in self.gone, "that it is gone is the last word"
        self.said.append(("reset", flow.id, code))

    def stream_stopped(self, flow, code):
        assert flow.id not in self.gone, "that it is gone is the last word"
        self.said.append(("stopped", flow.id, code))

    def stream_drained(self, flow):
        self.said.append(("drained", flow.id))

    def stream_gone(self, flow):
        self.gone.add(flow.id)

    def datagram(self, data):
        self.datagrams.append(data)

    def streams_available(self):
        self.said.append("streams")

    def before_send(self, now):
        pass

    def connection_lost(self, code, reason, by_peer):
        self.lost = (code, reason, by_peer)

    def next_deadline(self):
        return None

    def handle_deadline(self, now):
        pass

    def drain(self):
        pass

    def retire(self, now):
        pass

    def cut(self, error):
        pass


class End(Owner):
    """The owner of one connection."""

    def __init__(self, make_app=Recorder):
        self.connection = None
        self.app = None
        self.make_app = make_app
        self.ids = set()
        self.strays = []
        self.moves = []

    def touch(self):
        pass

    def watch(self):
        pass

    def make_id(self):
        made = os.urandom(ID_BYTES)
        self.ids.add(made)
        return made

    def retire_id(self, retired):
        self.ids.discard(retired)

    def reset_token(self, issued):
        return issued[:4] * 4

    def new_token(self, address):
        return b"token of " + address[0].encode()

    def make_application(self, bearer, alpn):
        self.app = self.make_app(bearer)
        return self.app

    def stray(self, data, address):
        self.strays.append((data, address))

    def peer_moved(self, address):
        self.moves.append(address)


class Link:
    """What happens to datagrams of one direction; `spacing_s` is between one and the next, as of a slow line."""

    def __init__(self, delay_s=0.01, jitter_s=0.0, loss=0.0, duplicate=0.0, mtu=1_500, seed=1, spacing_s=0.0):
        self.delay_s, self.jitter_s, self.loss, self.duplicate, self.mtu = delay_s, jitter_s, loss, duplicate, mtu
        self.random = random.Random(seed)
        self.sent = 0
        self.sent_bytes = 0
        self.drop = None  # a function of the datagram
        self.spacing_s = spacing_s
        self.free_s = 0.0


class Rig:
    """`client` and `server` are `End`s; time goes on in `run`."""

    def __init__(self, up=None, down=None, *, change=None, server_change=None, make_app=Recorder, validated=False):
        self.now = 1_000.0
        self.up = up or Link(seed=1)
        self.down = down or Link(seed=2)
        self.client, self.server = End(make_app), End(make_app)
        self.config = QuicConfig(is_server=False, alpn=["test"])
        self.config.server_name = "robot.test"
        self.config.ca = _authority.cert
        self.server_config = QuicConfig(is_server=True, alpn=["test"])
        self.server_config.identities = OneIdentity(_pair)
        self.server_config.tickets = Tickets()
        if change is not None:
            change(self.config)
        if server_change is not None:
            server_change(self.server_config)
        self.validated = validated
        self.client_address = CLIENT
        self.queue = []
        self.count = itertools.count()
        self.tickets = []
        self.tokens = []
        self.client.connection = ClientConnection(
            self.config, self.client, self.now, SERVER, on_ticket=self.tickets.append, on_token=self.tokens.append
        )

    def _send(self, end, link, to_server):
        connection = end.connection
        if connection is None:
            return
        for burst in connection.datagrams_to_send(self.now):
            for piece in burst.pieces:
                link.sent += 1
                link.sent_bytes += len(piece)
                if len(piece) > link.mtu or link.random.random() < link.loss:
                    continue
                if link.drop is not None and link.drop(piece):
                    continue
                if not to_server and burst.address != self.client_address:
                    continue  # it is not there any more
                for _ in range(2 if link.random.random() < link.duplicate else 1):
                    link.free_s = max(self.now, link.free_s + link.spacing_s) if link.spacing_s else self.now
                    at = link.free_s + link.delay_s + link.random.random() * link.jitter_s
                    heapq.heappush(self.queue, (at, next(self.count), to_server, piece, self.client_address))
        connection.deliver_drained()

    def _deliver(self, to_server, data, address):
        if not to_server:
            self.client.connection.receive(data, 0, SERVER, None, self.now)
            return
        if self.server.connection is None:
            if not data[0] & 0x80:
                return
            size = data[5]
            first = data[6 : 6 + size]
            self.server.connection = ServerConnection(
                self.server_config, self.server, self.now, address, None, first, first, self.validated
            )
        self.server.connection.receive(data, 0, address, None, self.now)

    def run(self, until=None, limit_s=30.0):
        """Go on until `until()` holds, or nothing happens any more, or for so long."""
        end_s = self.now + limit_s
        stuck = 0
        while True:
            for _ in range(64):
                before = len(self.queue), self.up.sent, self.down.sent
                self._send(self.client, self.up, True)
                self._send(self.server, self.down, False)
                if (len(self.queue), self.up.sent, self.down.sent) == before:
                    break
            if until is not None and until():
                return True
            times = [self.queue[0][0]] if self.queue else []
            for one in (self.client, self.server):
                deadline = one.connection.next_deadline() if one.connection is not None else None
                if deadline is not None:
                    times.append(deadline)
            if not times or min(times) > end_s:
                self.now = end_s
                return until is None
            stuck = stuck + 1 if min(times) <= self.now else 0
            assert stuck < 1_000, "time stands still: a deadline that has passed comes again"
            self.now = max(self.now, min(times))
            while self.queue and self.queue[0][0] <= self.now:
                _, _, to_server, data, address = heapq.heappop(self.queue)
                self._deliver(to_server, data, address)
            for one in (self.client, self.server):
                connection = one.connection
                if connection is not None:
                    deadline = connection.next_deadline()
                    if deadline is not None and deadline <= self.now:
                        connection.handle_deadline(self.now)

    def connect(self):
        assert self.run(lambda: self.client.connection.is_confirmed and self.server.connection.is_confirmed)
        return self
