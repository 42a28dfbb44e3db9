"""Datagrams in few system calls: whole and in order, whatever the kernel refuses, and bounded when it is full."""

import errno
import socket

import pytest
from udpkit import Counted, Faulty, Kept, bound, open_udp, until

from router.transport import udp
from router.transport.udp import (
    LONE_WAKES,
    LOOK_AGAIN,
    MAX_SEGMENTS,
    MAX_UNSENT,
    SOL_UDP,
    UDP_SEGMENT,
    UdpSocket,
)


@pytest.fixture
def pair():
    """Make connected-by-address sockets; all are closed in the end."""
    made = []

    def make(host="127.0.0.1", family=socket.AF_INET, to=None, fail=None):
        far, kept = open_udp(bound(host, family))
        raw = bound("::1" if family == socket.AF_INET6 else "127.0.0.1", family)
        near, heard = open_udp(Faulty(raw, fail) if fail else raw)
        made.extend((far, near))
        return near, heard, far, kept, (to or host, far.address()[1])

    yield make
    for sock in made:
        sock.close()


def has_segments(ancillary):
    return any((level, kind) == (SOL_UDP, UDP_SEGMENT) for level, kind, _ in ancillary)


def pieces_of(count, size, last=0):
    found = [bytes([i % 251]) * size for i in range(count)]
    if last:
        found[-1] = found[-1][:last]
    return found


async def test_a_group_is_one_write_and_one_read(pair):
    near, _, _, kept, to = pair()
    sent = pieces_of(40, 1_200, last=77)
    near.send(sent, 1_200, b"", to)
    await until(lambda: len(kept.datagrams) == 40)
    assert kept.datagrams == sent
    assert near.counters.writes == 1 and near.counters.datagrams_sent == 40
    assert near.counters.without_gso == 0
    data, segment_bytes, address, local, ecn = kept.buffers[0]
    assert (len(data), segment_bytes) == (39 * 1_200 + 77, 1_200), "this kernel joins what came as one"
    assert address == near.address() and local == b"" and ecn == 0
    assert kept.wakes >= 1


async def test_what_is_more_than_one_write_takes_is_several(pair):
    near, _, far, kept, to = pair()
    sent = pieces_of(MAX_SEGMENTS * 2 + 5, 700)
    near.send(sent, 700, b"", to)
    await until(lambda: len(kept.datagrams) == len(sent))
    assert kept.datagrams == sent and near.counters.writes == 3
    large = pieces_of(20, 9_000)
    near.send(large, 9_000, b"", to)  # seven of them fit into 64 KiB
    await until(lambda: len(kept.datagrams) == len(sent) + 20)
    assert kept.datagrams[len(sent) :] == large and near.counters.writes == 6
    assert far.counters.datagrams_received == len(sent) + 20


@pytest.mark.parametrize("size", [1, 20, 1_200, 65_000])
async def test_one_alone(pair, size):
    near, _, far, kept, to = pair()
    near.send([b"x" * size], size, b"", to)
    near.send([b"y" * size], 0, b"", to)
    await until(lambda: len(kept.datagrams) == 2)
    assert kept.datagrams == [b"x" * size, b"y" * size]
    assert {segment_bytes for _, segment_bytes, *_ in kept.buffers} == {0}


async def test_datagrams_that_come_alone_are_read_once_each(pair):
    near, _, _, _, _ = pair()
    counted = Counted(bound())
    far, kept = open_udp(counted)
    for number in range(3 * LOOK_AGAIN):
        near.send([b"ping"], 4, b"", far.address())
        await until(lambda: len(kept.buffers) == number + 1)  # noqa: B023 - awaited at once
    far.close()
    beyond = counted.reads - 3 * LOOK_AGAIN
    assert 0 < beyond <= LONE_WAKES + 4, "a socket that gets one at a time looks for a second now and then"


async def test_a_socket_that_becomes_busy_is_emptied_in_one_wake_up(pair):
    near, _, far, kept, to = pair()
    for number in range(LONE_WAKES + 2):
        near.send([b"ping"], 4, b"", to)
        await until(lambda: len(kept.buffers) == number + 1)  # noqa: B023 - awaited at once
    wakes, count = kept.wakes, len(kept.buffers)
    flood = [bytes([1 + i % 2]) * (100 + i % 2) for i in range(2 * LOOK_AGAIN)]  # of sizes that are not joined
    for one in flood:
        near.send([one], 0, b"", to)
    await until(lambda: len(kept.buffers) == count + len(flood))
    assert kept.datagrams[count:] == flood
    assert kept.wakes - wakes < LOOK_AGAIN + 6, "once a second was found, a wake-up takes all there is"


async def test_an_empty_datagram_is_one(pair):
    near, _, far, kept, to = pair()
    near.send([b""], 0, b"", to)
    await until(lambda: kept.buffers)
    assert kept.buffers[0][:2] == (b"", 0) and far.counters.datagrams_received == 1


async def test_answers_find_the_way_back(pair):
    near, heard, far, kept, to = pair()
    near.send([b"ping"], 4, b"", to)
    await until(lambda: kept.buffers)
    far.send([b"pong"], 4, kept.buffers[0][3], kept.buffers[0][2])
    await until(lambda: heard.buffers)
    assert heard.buffers[0][:3] == (b"pong", 0, to)


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT])
async def test_a_path_without_segments_costs_one_failure(pair, code, caplog):
    near, _, _, kept, to = pair(fail=lambda _, ancillary: code if has_segments(ancillary) else 0)
    sent = pieces_of(5, 300)
    near.send(sent, 300, b"", to)
    near.send(sent, 300, b"", to)
    await until(lambda: len(kept.datagrams) == 10)
    assert kept.datagrams == sent * 2
    assert [count for count, _, _ in near._sock.calls] == [5] + [1] * 10, "asked once"
    assert near.counters.without_gso == 1 and near.counters.datagrams_sent == 10
    assert caplog.text.count("UDP_SEGMENT") == 1


async def test_datagrams_that_cannot_be_sent_either_do_not_speak_against_segments(pair, caplog):
    """A peer at port 0, an MTU that is too small: the fault is not the kernel's."""
    near, _, _, kept, to = pair(fail=lambda pieces, _: errno.EINVAL if pieces[0] == b"bad" else 0)
    near.send([b"bad", b"bad"], 3, b"", to)
    assert near.counters.dropped_failed == 2 and near.counters.without_gso == 0
    near.send([b"abc", b"def"], 3, b"", to)
    await until(lambda: len(kept.datagrams) == 2)
    assert near._sock.calls[-1][0] == 2, "still one write"
    assert "UDP_SEGMENT" not in caplog.text


async def test_a_kernel_that_knows_neither(pair, monkeypatch, caplog):
    monkeypatch.setattr(udp, "UDP_GRO", 9_999)
    monkeypatch.setattr(udp, "UDP_SEGMENT", 9_998)
    near, _, far, kept, to = pair()
    sent = pieces_of(40, 1_200)
    near.send(sent, 1_200, b"", to)
    await until(lambda: len(kept.datagrams) == 40)
    assert kept.datagrams == sent and near.counters.writes == 40
    assert (far.counters.without_gro, near.counters.without_gso) == (1, 1)
    assert kept.wakes >= 2, "no more than so many reads in one turn of the loop"
    assert "one by one" in caplog.text


async def test_a_probe_that_is_too_large_is_dropped_silently(pair, caplog):
    near, _, _, kept, to = pair(fail=lambda pieces, _: errno.EMSGSIZE if len(pieces[0]) > 1_500 else 0)
    near.send([bytes(2_000)], 2_000, b"", to)
    near.send([b"after"], 5, b"", to)
    await until(lambda: kept.datagrams == [b"after"])
    assert near.counters.dropped_too_large == 1 and not caplog.records


async def test_a_full_buffer_is_waited_for_in_order(pair):
    room = [2]

    def fail(pieces, ancillary):
        if not room[0]:
            return errno.EAGAIN
        room[0] -= 1
        return 0

    near, _, _, kept, to = pair(fail=fail)
    sent = pieces_of(MAX_SEGMENTS * 3, 100)
    near.send(sent, 100, b"", to)
    near.send([b"then this"], 9, b"", to)
    assert near.unsent_datagrams == MAX_SEGMENTS + 1
    await until(lambda: len(kept.datagrams) == 2 * MAX_SEGMENTS)
    room[0] = 1_000
    await until(lambda: len(kept.datagrams) == 3 * MAX_SEGMENTS + 1)
    assert kept.datagrams == [*sent, b"then this"]
    assert near.unsent_datagrams == 0 and near.counters.dropped_unsent == 0


async def test_full_in_the_midst_of_what_goes_singly(pair):
    """Segments are refused, and after two datagrams there is no room: the others wait, and nothing overtakes."""
    room = [2]

    def fail(pieces, ancillary):
        if has_segments(ancillary):
            return errno.EIO
        if not room[0]:
            return errno.EAGAIN
        room[0] -= 1
        return 0

    near, _, _, kept, to = pair(fail=fail)
    sent = pieces_of(MAX_SEGMENTS + 7, 50)
    near.send(sent, 50, b"", to)
    assert near.unsent_datagrams == len(sent) - 2
    room[0] = 1_000
    await until(lambda: len(kept.datagrams) == len(sent))
    assert kept.datagrams == sent


async def test_what_waits_is_bounded(pair):
    full = [True]
    near, _, _, kept, to = pair(fail=lambda *_: errno.EAGAIN if full[0] else 0)
    for _ in range(MAX_UNSENT // 50 + 10):
        near.send(pieces_of(50, 20), 20, b"", to)
    assert near.unsent_datagrams == MAX_UNSENT
    assert near.counters.dropped_unsent == (MAX_UNSENT // 50 + 10) * 50 - MAX_UNSENT
    full[0] = False
    await until(lambda: near.unsent_datagrams == 0)
    await until(lambda: len(kept.datagrams) == MAX_UNSENT)
    assert near.counters.datagrams_sent == MAX_UNSENT


async def test_what_waits_when_it_is_closed_is_counted(pair):
    near, _, _, _, to = pair(fail=lambda *_: errno.EAGAIN)
    near.send(pieces_of(3, 20), 20, b"", to)
    near.close()
    assert near.counters.dropped_unsent == 3 and near.unsent_datagrams == 0


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ENOBUFS])
async def test_a_network_that_refuses(pair, code):
    near, _, _, kept, to = pair(fail=lambda pieces, _: code if pieces[0] == b"1" else 0)
    near.send([b"1"], 1, b"", to)
    near.send([b"2"], 1, b"", to)
    await until(lambda: kept.datagrams == [b"2"])
    assert near.counters.dropped_failed == 1


async def test_nobody_there_is_no_fault_of_a_connected_socket():
    """ICMP's word about a port where nobody listens is read as an error, and what comes after it still is."""
    gone = bound()
    where = gone.getsockname()
    gone.close()
    raw = bound()
    raw.connect(where)
    sock, kept = open_udp(raw)
    try:
        sock.send([b"anybody?"], 8, b"", where)
        sock.send([b"anybody?"], 8, b"", where)
        back = bound(port=where[1])
        back.sendto(b"now", sock.address())
        await until(lambda: kept.datagrams == [b"now"])
        back.close()
    finally:
        sock.close()


@pytest.mark.parametrize(
    ("host", "family", "asked", "size"),
    [
        ("0.0.0.0", socket.AF_INET, "127.0.0.2", 12),
        ("::", socket.AF_INET6, "::1", 20),
    ],
)
async def test_a_wildcard_answers_from_the_address_that_was_asked(pair, host, family, asked, size):
    near, heard, far, kept, to = pair(host, family, to=asked)
    for _ in range(2):
        near.send(pieces_of(3, 100), 100, b"", to)
    await until(lambda: len(kept.datagrams) == 6)
    local = kept.buffers[0][3]
    assert len(local) == size and {buffer[3] for buffer in kept.buffers} == {local}
    far.send(pieces_of(3, 100), 100, local, near.address())
    await until(lambda: len(heard.datagrams) == 3)
    assert heard.buffers[0][2][0] == asked


async def test_one_socket_for_both_families():
    """What an IPv6 socket gets from IPv4 comes from a mapped address, and goes back there."""
    raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    raw.bind(("::", 0))
    far, kept = open_udp(raw)
    near, heard = open_udp(bound())
    try:
        near._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
        near.send(pieces_of(3, 100), 100, b"", ("127.0.0.3", far.address()[1]))
        await until(lambda: len(kept.datagrams) == 3)
        _, _, address, local, ecn = kept.buffers[0]
        assert address[0] == "::ffff:127.0.0.1" and len(local) == 20 and ecn == 2
        far.send(pieces_of(3, 100), 100, local, address)
        await until(lambda: len(heard.datagrams) == 3)
        assert heard.buffers[0][2][0] == "127.0.0.3"
    finally:
        far.close()
        near.close()


@pytest.mark.parametrize(
    ("host", "family", "level", "option"),
    [
        ("127.0.0.1", socket.AF_INET, socket.IPPROTO_IP, socket.IP_TOS),
        ("::1", socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    ],
)
async def test_ecn_bits(pair, host, family, level, option):
    near, _, _, kept, to = pair(host, family)
    for mark in (0, 1, 2, 3):
        near._sock.setsockopt(level, option, 0xB8 | mark)  # beside a DSCP
        near.send([b"x"], 1, b"", to)
    await until(lambda: len(kept.datagrams) == 4)
    assert [buffer[4] for buffer in kept.buffers] == [0, 1, 2, 3]


async def test_a_datagram_is_never_cut_into_fragments(pair):
    near, _, far, _, _ = pair("::1", socket.AF_INET6)
    assert near._sock.getsockopt(socket.IPPROTO_IPV6, udp.IPV6_MTU_DISCOVER) == 3
    near, _, far, _, _ = pair()
    assert near._sock.getsockopt(socket.IPPROTO_IP, udp.IP_MTU_DISCOVER) == 3


async def test_it_stops_reading_and_still_sends(pair):
    near, heard, far, kept, to = pair()
    far.stop_reading()
    near.send([b"x"], 1, b"", to)
    far.send([b"y"], 1, b"", near.address())
    await until(lambda: heard.datagrams == [b"y"])
    assert not kept.buffers
    far.start_reading()
    await until(lambda: kept.datagrams == [b"x"])


async def test_a_receiver_that_stops_it_is_given_nothing_more():
    class Once(Kept):
        def receive(self, sock, *rest):
            super().receive(sock, *rest)
            sock.stop_reading()

    far, kept = open_udp(bound(), Once())
    near = bound()
    try:
        for _ in range(5):
            near.sendto(b"x", far.address())
        await until(lambda: kept.buffers)
        await until(lambda: kept.wakes == 1)
        assert len(kept.buffers) == 1
    finally:
        near.close()
        far.close()


async def test_what_it_remembers_is_bounded(pair):
    near, _, _, _, to = pair()
    for size in range(2, 2 + 2 * udp.MAX_REMEMBERED):
        near.send([b"x" * size] * 2, size, b"", to)
    assert len(near._controls) <= udp.MAX_REMEMBERED
    for i in range(2 * udp.MAX_REMEMBERED):
        near._local(bytes(8) + i.to_bytes(4, "big"))
    assert len(near._locals) <= udp.MAX_REMEMBERED
    assert near._local(b"not a packet info") == b""


def test_a_link_local_address_keeps_its_interface():
    scoped = bytes.fromhex("fe80000000000000000000000000000103000000")
    plain = bytes.fromhex("20010db800000000000000000000000103000000")
    sock = UdpSocket.__new__(UdpSocket)
    sock._locals = {}
    assert sock._local(scoped) == scoped
    assert sock._local(plain) == plain[:16] + bytes(4)


async def test_buffers_are_as_large_as_the_kernel_gives(pair):
    near, *_ = pair()
    with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
        most = int(file.read())
    wanted = min(udp.BUFFER_BYTES, most)
    assert near._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * wanted


async def test_reads_that_follow_on_each_other_are_handed_on_as_one(pair):
    near, _, far, kept, to = pair()
    far.stop_reading()
    sent = pieces_of(50, 1_200)
    for at in range(0, 50, 10):
        near.send(sent[at : at + 10], 1_200, b"", to)
    end = pieces_of(15, 1_200, last=77)
    near.send(end, 1_200, b"", to)
    more, other = pieces_of(3, 1_200), pieces_of(4, 600)
    near.send(more, 1_200, b"", to)
    near.send(other, 600, b"", to)
    near.send([b"alone"], 0, b"", to)
    far.start_reading()
    await until(lambda: len(kept.datagrams) == 73)
    assert kept.datagrams == [*sent, *end, *more, *other, b"alone"]
    assert [(len(data), segment) for data, segment, *_ in kept.buffers] == [
        (60_000, 1_200), (14 * 1_200 + 77, 1_200), (3_600, 1_200), (2_400, 600), (5, 0),
    ]  # fmt: skip
    assert far.counters.reads == 9 and far.counters.datagrams_received == 73


async def test_reads_of_two_senders_stay_apart(pair):
    near, heard, far, kept, to = pair()
    second, _ = open_udp(bound())
    far.stop_reading()
    for sender in (near, second, near):
        sender.send(pieces_of(3, 500), 500, b"", to)
    far.start_reading()
    await until(lambda: len(kept.datagrams) == 9)
    assert [buffer[2] for buffer in kept.buffers] == [near.address(), second.address(), near.address()]
    second.close()
