"""Active checks on real sockets, and how verdicts change."""

import asyncio
import socket

import h2.config
import h2.connection
import h2.events
import pytest

from router.routing.image import TableImage
from router.routing.spec import EndpointSpec, HealthSpec, ReplicaSpec, TableSpec, TlsSpec
from router.transport.upstream.probe import Check, HealthMonitor, Verdict, check

QUICK = 0.01


class Web:
    """Answers each path with a fixed text; unknown paths with 404, None never."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc):
        self.server.close()

    async def _serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()
            return
        path = head.split(b" ")[1].decode()
        self.asked.append(path)
        answer = self.answers.get(path.strip("/"), b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()


def status(code):
    return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % code


def unused_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


HTTP = HealthSpec(kind="http", timeout_s=2.0)
TCP = HealthSpec(kind="tcp", timeout_s=2.0)


class TestCheck:
    async def test_tcp(self):
        async with Web() as web:
            assert await check(web.address, TCP) == ""
            assert await check(web.address.replace("127.0.0.1", "localhost"), TCP) == ""

    async def test_refused(self):
        for spec in (TCP, HTTP):
            assert "refused" in await check(unused_address(), spec)

    @pytest.mark.parametrize(
        ("code", "complaint"),
        [(200, ""), (204, ""), (299, ""), (301, "status 301"), (500, "status 500"), (503, "status 503")],
    )
    async def test_http(self, code, complaint):
        async with Web(ready=status(code)) as web:
            assert await check(web.address, HTTP) == complaint
            assert web.asked == ["/ready"]

    async def test_the_fall_back_is_asked_on_404_only(self):
        async with Web(health=status(200)) as web:
            assert await check(web.address, HTTP) == ""
            assert web.asked == ["/ready", "/health"]
        async with Web(ready=status(503), health=status(200)) as web:
            assert await check(web.address, HTTP) == "status 503"
        async with Web() as web:
            assert await check(web.address, HTTP) == "status 404"

    async def test_without_a_fall_back(self):
        async with Web(health=status(200)) as web:
            assert await check(web.address, HealthSpec(kind="http", fallback_path="")) == "status 404"
            assert web.asked == ["/ready"]

    async def test_another_path(self):
        async with Web(**{"v1/models": status(200)}) as web:
            assert await check(web.address, HealthSpec(kind="http", path="/v1/models")) == ""

    @pytest.mark.parametrize(
        "answer",
        [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000],
        ids=["end", "garbage", "half", "long"],
    )
    async def test_something_else_than_http(self, answer):
        async with Web(ready=answer) as web:
            assert (await check(web.address, HTTP)).startswith("the answer is not HTTP")

    async def test_no_answer(self):
        async with Web(ready=None) as web:
            assert await check(web.address, HealthSpec(kind="http", timeout_s=0.05)) == "no answer in 0.05 s"


class TestVerdicts:
    def monitor(self, **spec):
        self.changes = []
        self.spec = EndpointSpec("e", health=HealthSpec(**({"kind": "http"} | spec)))
        return HealthMonitor(lambda *change: self.changes.append(change))

    def judge(self, monitor, *complaints):
        for complaint in complaints:
            verdict = monitor.verdicts.setdefault(("e", "r"), Verdict(""))
            monitor._judge(Check(("e", "r"), "", self.spec, verdict), complaint)

    def test_the_first_decides_alone(self):
        monitor = self.monitor(unhealthy_after=3)
        self.judge(monitor, "bad")
        assert self.changes == [("e", "r", False)]
        assert monitor.unhealthy() == [("e", "r")]

    def test_later_ones_need_so_many_in_a_row(self):
        monitor = self.monitor(unhealthy_after=3, healthy_after=2)
        self.judge(monitor, "", "bad", "bad", "", "bad", "bad")
        assert self.changes == []
        self.judge(monitor, "bad")
        assert self.changes == [("e", "r", False)]
        self.judge(monitor, "", "bad", "")
        assert len(self.changes) == 1
        self.judge(monitor, "")
        assert self.changes[1:] == [("e", "r", True)]
        assert monitor.unhealthy() == []

    def test_the_reason_is_the_last_ones(self):
        monitor = self.monitor()
        self.judge(monitor, "", "status 503")
        assert monitor.verdicts["e", "r"].reason == "status 503"
        self.judge(monitor, "")
        assert monitor.verdicts["e", "r"].reason == "ok"


def table(*addresses, version=1, **spec):
    replicas = tuple(ReplicaSpec(f"r{i}", address) for i, address in enumerate(addresses))
    return TableSpec(
        version, (EndpointSpec("e", replicas, health=HealthSpec(**({"kind": "http", "interval_s": QUICK} | spec))),)
    )


class Changes:
    """Waits for what a monitor tells."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.monitor = HealthMonitor(lambda *change: self.queue.put_nowait(change))
        self.image = TableImage()

    def follow(self, spec):
        self.monitor.follow(self.image.apply(self.image.diff(spec)), self.image)

    async def next(self):
        async with asyncio.timeout(5):
            return await self.queue.get()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        self.monitor.close()
        await asyncio.sleep(0)


class TestMonitor:
    async def test_a_replica_comes_and_goes(self):
        async with Changes() as changes, Web(ready=status(503)) as web:
            changes.follow(table(web.address, unhealthy_after=2))
            assert await changes.next() == ("e", "r0", False)
            web.answers["ready"] = status(200)
            assert await changes.next() == ("e", "r0", True)
            web.answers["ready"] = status(500)
            assert await changes.next() == ("e", "r0", False)

    async def test_those_that_stay_keep_their_prober_and_verdict(self):
        async with Changes() as changes, Web(ready=status(503)) as web:
            changes.follow(table(web.address))
            await changes.next()
            verdict = changes.monitor.verdicts["e", "r0"]
            kept = changes.monitor._checks["e", "r0"]
            changes.follow(table(web.address, unused_address(), version=2))
            assert changes.monitor.verdicts["e", "r0"] is verdict
            assert changes.monitor._checks["e", "r0"] is kept
            assert await changes.next() == ("e", "r1", False)

    async def test_those_that_left_are_forgotten(self):
        async with Changes() as changes:
            changes.follow(table(unused_address()))
            await changes.next()
            changes.follow(table())
            assert changes.monitor.verdicts == {}
            assert changes.monitor.unhealthy() == []
            assert not changes.monitor._checks

    async def test_turned_off_is_healthy(self):
        async with Changes() as changes:
            address = unused_address()
            changes.follow(table(address))
            assert await changes.next() == ("e", "r0", False)
            changes.follow(table(address, kind="none"))
            assert await changes.next() == ("e", "r0", True)
            assert changes.monitor.verdicts["e", "r0"].reason == "no active checks"

    async def test_another_address_is_another_replica(self):
        """Workers make a new, healthy `Replica` of it: a verdict that stays unhealthy must be told again."""
        async with Changes() as changes:
            changes.follow(table(unused_address(), unhealthy_after=2))
            assert await changes.next() == ("e", "r0", False)
            changes.follow(table(unused_address(), version=2, unhealthy_after=2))
            for _ in range(100):
                if not changes.queue.empty():
                    break
                await asyncio.sleep(QUICK / 2)
            assert not changes.queue.empty()
            assert await changes.next() == ("e", "r0", False)

    async def test_close_stops_all(self):
        async with Web(ready=status(200)) as web:
            changes = Changes()
            changes.follow(table(web.address))
            while not web.asked:
                await asyncio.sleep(0)
            changes.monitor.close()
            await asyncio.sleep(QUICK)
            count = len(web.asked)
            await asyncio.sleep(QUICK * 5)
            assert len(web.asked) <= count + 1


async def answer_h2(reader, writer):
    """Answer the first request with 200 and read until the client hangs up."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    while data := await reader.read(65_536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                connection.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
        writer.write(connection.data_to_send())


@pytest.mark.parametrize("protocol", ["http/1.1", "h2", None])
async def test_over_tls(tmp_path, protocol):
    """`http` checks of https replicas speak TLS as their endpoint says, and what the replica chooses of both versions."""
    import ssl

    from certkit import Authority

    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    authority.sign("replica.test").write(tmp_path, "replica")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "replica.pem", tmp_path / "replica.key")
    if protocol:
        context.set_alpn_protocols([protocol])
    chosen = []

    async def serve(reader, writer):
        chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        if protocol == "h2":
            await answer_h2(reader, writer)
        else:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ca = str(tmp_path / "ca.pem")
    try:
        assert await check(address, HTTP, TlsSpec(ca=ca, server_name="replica.test")) == ""
        assert await check(address, HTTP, TlsSpec(verify=False)) == ""
        assert "IP address mismatch" in await check(address, HTTP, TlsSpec(ca=ca))
        assert "its certificate: " in await check(address, HTTP)
        assert (await check(address, HTTP, TlsSpec(ca=ca + "x"))).startswith("tls.ca: ")
        assert await check(address, TCP) == ""
    finally:
        server.close()
    assert chosen == [protocol, protocol]
