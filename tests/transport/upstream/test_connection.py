"""`_is_untouched`: what the kernel proves of a request, with real sockets."""

import asyncio

import pytest
from upkit import OK, send_rst


async def reused(bench):
    """A stream on a connection that served a request before, and the replica's socket."""
    (sock,) = await bench.idle()
    receiver, pending = bench.open()
    assert pending is None
    return receiver, sock


async def read_request(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        data += await asyncio.get_running_loop().sock_recv(sock, 65_536)


async def quiet():
    """Give loopback a moment without turning the loop, so that the router does not see what the peer did."""
    import time

    time.sleep(0.01)


async def test_the_peer_closed_before(bench):
    """Its FIN lies in our kernel when the request is written: no byte was taken, the request may be repeated."""
    receiver, sock = await reused(bench)
    sock.close()
    await quiet()
    bench.send(receiver)
    await receiver.done
    assert receiver.error is not None
    assert receiver.untouched is True


async def test_the_peer_was_reset_before(bench):
    receiver, sock = await reused(bench)
    send_rst(sock)
    await quiet()
    bench.send(receiver)
    await receiver.done
    assert receiver.error is not None
    # The write itself fails: nothing left this machine.
    assert receiver.untouched is True


async def test_read_and_then_closed(bench):
    receiver, sock = await reused(bench)
    bench.send(receiver)
    await read_request(sock)
    sock.close()
    await receiver.done
    assert receiver.error is not None
    assert receiver.untouched is False


async def test_read_and_then_reset(bench):
    receiver, sock = await reused(bench)
    bench.send(receiver)
    await read_request(sock)
    send_rst(sock)
    await receiver.done
    assert receiver.error is not None
    assert receiver.untouched is False


async def test_taken_by_the_kernel_and_then_reset(bench):
    """Nobody read it, but who could tell."""
    receiver, sock = await reused(bench)
    bench.send(receiver)
    await quiet()
    send_rst(sock)
    await receiver.done
    assert receiver.untouched is False


async def test_after_many_requests_the_count_is_of_the_last(bench):
    (sock,) = await bench.idle()
    for _ in range(5):
        receiver, _ = bench.open()
        await bench.exchange(receiver, sock)
    receiver, _ = bench.open()
    sock.close()
    await quiet()
    bench.send(receiver)
    await receiver.done
    assert receiver.untouched is True


async def test_a_transport_that_is_gone_proves_nothing(bench):
    receiver, sock = await reused(bench)
    connection = receiver.stream._shell
    bench.send(receiver)
    await read_request(sock)
    connection.abort()
    await receiver.done
    assert connection._is_current_untouched() is False


@pytest.mark.parametrize(("host", "authority"), [("127.0.0.1", b"127.0.0.1"), ("[::1]", b"[::1]")])
def test_the_authority_it_names(host, authority):
    from upkit import make_reactor

    from router.routing.load import Replica
    from router.routing.spec import ReplicaSpec
    from router.transport.upstream.connection import UpstreamConnection
    from router.transport.upstream.pool import ConnectionPool

    reactor = make_reactor()
    replica = Replica(ReplicaSpec("r", f"http://{host}:81"))
    connection = UpstreamConnection(reactor, replica, ConnectionPool(reactor), None)
    assert connection._authority() == authority + b":81"


async def test_open_connections_are_counted(bench):
    receiver, sock = await bench.connect()
    assert bench.reactor.counters.upstream_open == 1
    await bench.exchange(receiver, sock, OK.replace(b"Content-Length", b"Connection: close\r\nContent-Length"))
    while bench.reactor.counters.upstream_open:
        await asyncio.sleep(0)
    assert bench.pool.idle_count(bench.replica) == 0
