"""Sockets of an address among workers, and from one process to the next: which are kept, added, closed."""

import os
import socket
import stat

import pytest

from router.config.settings import Settings
from router.handover import HandedSocket
from router.listening import AdminSocket, BindError, Inheritance, ListeningSockets

SO_COOKIE = 57
NOTHING = Inheritance([])


def settings(workers=1, **more):
    return Settings(**({"workers": workers, "listen": ["127.0.0.1:0"], "replica": ["http://127.0.0.1:1"]} | more))


@pytest.fixture
def bind():
    """Bind as a daemon would; everything is closed in the end."""
    made = []

    def make(inherited=NOTHING, before=None, **options):
        made.append(ListeningSockets(settings(**options)))
        try:
            made[-1].bind(inherited, before)
        finally:
            inherited.close()
        return made[-1]

    yield make
    for sockets in made:
        sockets.close()


def handed(sockets):
    """What the next process has: the same sockets under numbers of its own."""
    pairs = []
    for entry in sockets.described():
        sock = socket.socket(fileno=os.dup(entry.fd))
        pairs.append((HandedSocket(sock.fileno(), entry.flag, entry.address, entry.kind, entry.path, entry.inode), sock))
    return Inheritance(pairs)


def cookies(sockets):
    """The kernel's own names of the sockets of each worker."""
    return [[sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) for sock in own] for own in sockets.by_worker]


def cookies_of(sockets):
    return [sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) for sock in sockets]


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=2)


def port_of(sockets):
    return int(sockets.shown[0].rpartition(":")[2])


def test_one_for_each_worker(bind):
    first = bind(workers=3, listen=["127.0.0.1:0", "[::1]:0"])
    assert [len(own) for own in first.by_worker] == [2, 2, 2]
    assert first.tls_count == [0, 0, 0]
    assert len({cookie for own in cookies(first) for cookie in own}) == 6
    assert first.shown[1].startswith("http://[::1]:")


def test_tls_comes_last(bind):
    first = bind(workers=2, listen=["127.0.0.1:0"], listen_tls=["127.0.0.1:0", "127.0.0.1:0"])
    assert first.tls_count == [2, 2]
    assert [url.partition(":")[0] for url in first.shown] == ["http", "https", "https"]
    tls = {int(url.rpartition(":")[2]) for url in first.shown[1:]}
    assert {sock.getsockname()[1] for sock in first.by_worker[1][1:]} == tls


def test_the_same_number_of_workers_has_the_same_sockets(bind):
    first = bind(workers=2)
    second = bind(handed(first), workers=2)
    assert cookies(second) == cookies(first)
    assert second.shown == first.shown, "port 0 is the one that was chosen"


def test_fewer_workers_accept_on_all_of_them(bind):
    first = bind(workers=5)
    second = bind(handed(first), workers=2)
    (a, b, c, d, e) = [cookie for own in cookies(first) for cookie in own]
    assert cookies(second) == [[a, c, e], [b, d]]


def test_more_workers_get_sockets_that_do_not_listen_yet(bind):
    """Who connects before their worker accepts must not wait in the queue of a process that may yet fail."""
    first = bind(workers=1)
    second = bind(handed(first), workers=3)
    listening = [own[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for own in second.by_worker]
    assert listening == [1, 0, 0]
    assert len({sock.getsockname() for own in second.by_worker for sock in own}) == 1
    socks = [connect(port_of(first)) for _ in range(20)]
    second.close()
    for sock in socks:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)  # not reset: the first process has it
        sock.close()


def test_with_tls_and_fewer_workers_each_knows_how_many(bind):
    first = bind(workers=3, listen_tls=["127.0.0.1:0"])
    second = bind(handed(first), workers=2, listen_tls=["127.0.0.1:0"])
    assert [len(own) for own in second.by_worker] == [4, 2]
    assert second.tls_count == [2, 1]


def test_an_address_written_in_another_way_or_become_tls(bind):
    first = bind()
    port = port_of(first)
    inherited = handed(first)
    second = bind(inherited, listen=[f"localhost:{port}"])
    assert cookies(second) == cookies(first) and len(inherited.taken) == 1
    third = bind(handed(first), listen=[], listen_tls=[f"127.0.0.1:{port}"])
    assert cookies(third) == cookies(first) and third.tls_count == [1]


def test_what_is_no_longer_listened_on_is_let_go(bind):
    first = bind(listen=["127.0.0.1:0", "127.0.0.1:0"])
    inherited = handed(first)
    second = bind(inherited, listen=["127.0.0.1:0"])
    assert second.shown == first.shown[:1] and len(inherited.taken) == 1, "they are called the same, and are not"
    second.close()
    second = bind(handed(first), listen=["127.0.0.1:0", "127.0.0.1:0"])
    assert second.shown == first.shown
    second.close()
    inherited = handed(first)
    second = bind(inherited, listen=["[::1]:0"])
    assert not inherited.taken and second.shown[0].startswith("http://[::1]:")
    first.close()
    with pytest.raises(ConnectionRefusedError):
        connect(int(first.shown[0].rpartition(":")[2]))


def quic(sockets, index):
    """The listening UDP sockets of a worker."""
    count = len(sockets.quic[index].addresses)
    ways = sockets.quic[index].receivers + len(sockets.quic[index].senders)
    return sockets.by_worker[index][-ways - count : -ways]


def test_a_datagram_socket_is_no_tcp_listeners(bind):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        entry = HandedSocket(sock.fileno(), "--listen", "127.0.0.1:0", int(sock.type))
        inherited = Inheritance([(entry, sock)])
        bind(inherited)
        assert not inherited.taken


class TestQuic:
    LISTEN = {"listen_tls": ["127.0.0.1:0"], "listen_quic": ["127.0.0.1:0"]}

    def test_it_comes_behind_tls_and_before_the_ways(self, bind):
        first = bind(workers=2, **self.LISTEN)
        assert [url.partition(":")[0] for url in first.shown] == ["http", "https", "quic"]
        assert first.tls_count == [1, 1]
        for index in range(2):
            start = first.quic[index]
            (sock,) = quic(first, index)
            assert sock.type == socket.SOCK_DGRAM and sock.getsockname() == start.addresses[0]
            assert (start.receivers, len(start.senders)) == (1, 3)
            assert len(first.by_worker[index]) == 2 + 1 + 1 + 3
        assert quic(first, 0)[0].getsockname() == quic(first, 1)[0].getsockname()
        port = int(first.shown[2].rpartition(":")[2])
        assert first.alt_svc() == b'h3=":%d"; ma=86400' % port

    def test_without_it_there_is_nothing(self, bind):
        first = bind(workers=2)
        assert first.quic == [None, None] and first.ways is None and first.alt_svc() == b""
        assert first.quic_handover() is None

    def test_a_successor_has_the_same_sockets(self, bind):
        first = bind(workers=2, **self.LISTEN)
        second = bind(handed(first), workers=2, before=first.quic_handover(), **self.LISTEN)
        assert [cookies_of(quic(second, i)) for i in range(2)] == [cookies_of(quic(first, i)) for i in range(2)]
        assert second.shown == first.shown
        assert second.quic[0].secret == first.quic[0].secret
        assert second.quic[0].incarnation == (first.quic[0].incarnation + 1) & 0xFF
        assert (second.quic[0].receivers, second.quic[1].receivers) == (2, 1)

    def test_fewer_workers_read_all_of_them(self, bind):
        first = bind(workers=3, **self.LISTEN)
        second = bind(handed(first), workers=1, before=first.quic_handover(), **self.LISTEN)
        assert cookies_of(quic(second, 0)) == [cookies_of(quic(first, i))[0] for i in range(3)]
        assert len(second.quic[0].addresses) == 3

    def test_more_workers_get_sockets_that_nobody_is_sent_to_yet(self, bind):
        """A UDP socket gets its share from the moment it is bound, and its worker is not there yet."""
        first = bind(workers=1, **self.LISTEN)
        second = bind(handed(first), workers=2, before=first.quic_handover(), **self.LISTEN)
        (added,) = quic(second, 1)
        assert added.getsockname()[1] == 0
        assert second.quic[1].addresses == second.quic[0].addresses
        added.bind(second.quic[1].addresses[0])

    def test_tcp_and_udp_may_have_the_same_port(self, bind):
        first = bind(listen=["127.0.0.1:0"], listen_quic=["127.0.0.1:0"])
        port = int(first.shown[1].rpartition(":")[2])
        second = bind(handed(first), listen=[f"127.0.0.1:{port}"], listen_quic=[f"127.0.0.1:{port}"])
        assert cookies_of(quic(second, 0)) == cookies_of(quic(first, 0))
        assert second.by_worker[0][0].type == socket.SOCK_STREAM

    def test_a_port_that_another_has(self, bind):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(BindError, match="--listen-quic"):
                bind(listen_quic=[f"127.0.0.1:{sock.getsockname()[1]}"])
        first = bind(**self.LISTEN)
        port = first.shown[2].rpartition(":")[2]
        with pytest.raises(BindError, match="--listen-quic"):
            bind(listen_quic=[f"127.0.0.1:{port}"])  # a second router, unasked

    def test_a_successor_without_it_lets_all_of_it_go(self, bind):
        first = bind(**self.LISTEN)
        inherited = handed(first)
        second = bind(inherited, before=first.quic_handover())
        assert second.quic == [None] and len(inherited.taken) == 1

    def test_ipv6(self, bind):
        first = bind(listen_quic=["[::1]:0"])
        assert first.shown[-1].startswith("quic://[::1]:")
        assert quic(first, 0)[0].family == socket.AF_INET6

    def test_closed_is_closed(self, bind):
        first = bind(workers=2, **self.LISTEN)
        socks = [sock for own in first.by_worker for sock in own]
        first.close()
        assert {sock.fileno() for sock in socks} == {-1}


def test_a_unix_sockets_file_is_its_makers_until_it_is_handed_over(bind, tmp_path):
    path = tmp_path / "s"
    first = bind(workers=2, listen=[f"unix:{path}"])
    second = bind(handed(first), workers=2, listen=[f"unix:{path}"], unix_mode="660")
    assert cookies(second) == cookies(first)
    second.close()
    assert path.exists(), "one that failed leaves it alone"
    inherited = handed(first)
    second = bind(inherited, workers=2, listen=[f"unix:{path}"], unix_mode="660")
    first.disown({entry.fd for entry in first.described()})
    second.own()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_one_that_was_not_taken_is_removed_by_its_maker(bind, tmp_path):
    path = tmp_path / "s"
    first = bind(listen=[f"unix:{path}"])
    first.disown(set())
    first.close()
    assert not path.exists()


def test_the_admin_socket(tmp_path):
    first, second, none = AdminSocket(), AdminSocket(), AdminSocket()
    first.bind("127.0.0.1:0", NOTHING)
    inherited = handed(first)
    second.bind("127.0.0.1:0", inherited)
    assert inherited.taken
    none.bind("none", NOTHING)
    assert first.shown == second.shown and none.shown == "" and none.accepting() == []
    (sock,) = second.accepting()
    sock.close()
    for admin in (first, second, none):
        admin.close()


def test_an_address_that_somebody_else_has(bind):
    first = bind()
    with pytest.raises(BindError, match="--listen"):
        bind(listen=[f"127.0.0.1:{port_of(first)}"])
