"""Asking STUN servers: what is sent again and when, which answers count, and what they tell of a NAT."""

import asyncio
import json
import socket

import pytest
from aioice import stun as ice
from click.testing import CliRunner

from router.cli import main
from router.client import stun
from router.client.stun import Inquiry, Seen, StunError, ask, judge
from router.transport.codec.stun import binding_success, read_message


class Server(asyncio.DatagramProtocol):
    """Calls `answer(request, address)` for what to send, in terms of aioice."""

    def __init__(self, answer):
        self.answer = answer
        self.requests = []

    def connection_made(self, transport):
        self.transport = transport
        self.address = transport.get_extra_info("sockname")

    def datagram_received(self, data, address):
        self.requests.append(data)
        for made in self.answer(ice.parse_message(data), address):
            self.transport.sendto(bytes(made), address)


def answer_to(request, address, kind=ice.Class.RESPONSE, **attributes):
    attributes = attributes or {"XOR-MAPPED-ADDRESS": address}
    return ice.Message(ice.Method.BINDING, kind, request.transaction_id, attributes)


@pytest.fixture
async def serve():
    servers = []

    async def start(answer=lambda request, address: [answer_to(request, address)], host="127.0.0.1"):
        _, server = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Server(answer), local_addr=(host, 0))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.transport.close()


@pytest.fixture
def sock():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        yield made


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stun, "RTO_S", 0.005)


class TestAsk:
    async def test_an_address(self, serve, sock):
        server = await serve()
        assert await ask(sock, server.address) == sock.getsockname()
        assert len(server.requests) == 1

    async def test_by_ipv6(self, serve):
        server = await serve(host="::1")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
            assert await ask(sock, server.address) == sock.getsockname()[:2]

    async def test_the_same_question_again_until_there_is_an_answer(self, serve, sock, quick):
        server = await serve(lambda request, address: [answer_to(request, address)] if len(server.requests) == 4 else [])
        assert await ask(sock, server.address) == sock.getsockname()
        assert len(server.requests) == 4 and len(set(server.requests)) == 1

    async def test_when_it_is_sent_and_given_up(self, monkeypatch):
        """RFC 8489 §6.2.1: at 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 seconds; over at 39.5."""
        loop = asyncio.get_running_loop()
        begin = now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now)
        timers, sent = [], []
        monkeypatch.setattr(loop, "call_at", lambda when, what: timers.append((when, what)) or asyncio.TimerHandle(when, what, (), loop))
        inquiry = Inquiry(lambda data: sent.append(now - begin), ("192.0.2.1", 3_478))
        while timers:
            now, what = timers.pop()
            what()
        assert sent == pytest.approx([0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5])
        assert now - begin == pytest.approx(39.5)
        with pytest.raises(StunError, match="no answer"):
            inquiry.answer.result()

    async def test_a_smaller_limit(self, serve, sock):
        server = await serve(lambda request, address: [])
        began = asyncio.get_running_loop().time()
        with pytest.raises(StunError, match="no answer") as caught:
            await ask(sock, server.address, timeout_s=0.05)
        assert 0.04 < asyncio.get_running_loop().time() - began < 0.4 and caught.value.code == 0
        assert len(server.requests) == 1

    async def test_what_is_no_answer_is_dropped(self, serve, sock):
        def answer(request, address):
            other = ice.Message(ice.Method.BINDING, ice.Class.REQUEST)
            fake = {"XOR-MAPPED-ADDRESS": ("192.0.2.66", 66)}
            return [
                b"", b"noise", b"\x40" + bytes(50), answer_to(other, address, **fake),
                answer_to(request, address, ice.Class.INDICATION, **fake), answer_to(request, address, ice.Class.REQUEST, **fake),
                bytes(answer_to(request, address, **fake))[:-1], answer_to(request, address), answer_to(request, address, **fake),
            ]  # fmt: skip

        server = await serve(answer)
        assert await ask(sock, server.address) == sock.getsockname()

    async def test_another_sender_is_not_listened_to(self, serve, sock, quick):
        """Who has seen the question on its way could else say anything."""
        mallory = await serve()

        def answer(request, address):
            if len(server.requests) == 1:
                mallory.transport.sendto(bytes(answer_to(request, address, **{"XOR-MAPPED-ADDRESS": ("192.0.2.66", 66)})), address)
                return []
            return [answer_to(request, address)]

        server = await serve(answer)
        assert await ask(sock, server.address) == sock.getsockname()
        assert len(server.requests) == 2

    async def test_an_error(self, serve, sock):
        server = await serve(lambda request, address: [answer_to(request, address, ice.Class.ERROR, **{"ERROR-CODE": (420, "what?")})])
        with pytest.raises(StunError, match="420") as caught:
            await ask(sock, server.address)
        assert caught.value.code == 420

    @pytest.mark.parametrize("attributes", [{"SOFTWARE": "x"}, {"PRIORITY": 1, "XOR-MAPPED-ADDRESS": ("192.0.2.1", 1)}])
    async def test_an_answer_that_says_nothing(self, serve, sock, attributes):
        server = await serve(lambda request, address: [answer_to(request, address, **attributes)])
        with pytest.raises(StunError, match="cannot be understood"):
            await ask(sock, server.address)

    async def test_with_a_key(self, sock, quick):
        """Only what is signed with it counts; another's answer is waited past."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)

            async def answer():
                for key in (b"", b"another", b"key"):
                    data, address = await loop.sock_recvfrom(server, 2_000)
                    request = read_message(data, b"key")
                    assert request.username == b"me:you"
                    server.sendto(binding_success(request, address, key=key), address)

            answering = asyncio.ensure_future(answer())
            assert await ask(sock, server.getsockname(), username=b"me:you", key=b"key") == sock.getsockname()
            await answering

    async def test_one_answer_is_enough(self):
        sent = []
        inquiry = Inquiry(sent.append, ("192.0.2.1", 9))
        answer = bytes(answer_to(ice.parse_message(sent[0]), ("192.0.2.2", 5)))
        assert [inquiry.take(answer, ("192.0.2.1", 9)) for _ in range(2)] == [True, False]
        assert await inquiry.answer == ("192.0.2.2", 5)

    async def test_no_way_there_is_silence(self, quick):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(StunError, match="no answer"):
                await ask(sock, ("192.0.2.1", 9), timeout_s=0.05)

    async def test_the_socket_is_left_alone_afterwards(self, serve, sock):
        server = await serve(lambda request, address: [])
        asking = asyncio.ensure_future(ask(sock, server.address))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert asyncio.get_running_loop().remove_reader(sock.fileno()) is False


A, B = ("192.0.2.1", 1), ("192.0.2.1", 2)
OWN, OUT, OUT2 = ("10.0.0.1", 5), ("192.0.2.9", 5), ("192.0.2.9", 6)


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ([], "blocked"),
        ([(A, None), (B, None)], "blocked"),
        ([(A, OWN)], "none"),
        ([(A, OWN), (B, OWN)], "none"),
        ([(A, OWN), (B, None)], "none"),
        ([(A, OUT)], "unknown"),
        ([(A, OUT), (B, None)], "unknown"),
        ([(A, OUT), (A, OUT)], "unknown"),
        ([(A, OUT), (B, OUT)], "same"),
        ([(A, OUT), (B, OUT2)], "another"),
        ([(A, OWN), (B, OUT)], "another"),
    ],
)
def test_judge(seen, kind):
    assert judge([Seen(server, OWN, mapped, 0.01, "") for server, mapped in seen]) == kind


class Fixed:
    """A server on a thread of its own, that says what it is told."""

    def __init__(self, mapped=None):
        import threading

        self.mapped = mapped
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            data, address = self.sock.recvfrom(2_000)
            if data == b"end":
                return
            if self.mapped != "nothing":
                self.sock.sendto(bytes(answer_to(ice.parse_message(data), self.mapped or address)), address)

    def close(self):
        self.sock.sendto(b"end", self.sock.getsockname())
        self.thread.join()
        self.sock.close()


@pytest.fixture
def fixed():
    made = []

    def start(*arguments):
        made.append(Fixed(*arguments))
        return made[-1].name

    yield start
    for one in made:
        one.close()


class TestCommand:
    def call(self, *arguments):
        return CliRunner().invoke(main, ["nat", *map(str, arguments)])

    def test_no_nat(self, fixed):
        first, second = fixed(), fixed()
        found = self.call(first, "quic://" + second + "/", "--json")
        assert found.exit_code == 0, found.output
        told = json.loads(found.output)
        assert told["kind"] == "none" and [row["server"] for row in told["servers"]] == [first, second]
        assert all(row["mapped"] == row["local"] and row["error"] is None and row["rtt_s"] > 0 for row in told["servers"])
        found = self.call(first)
        assert "is seen as 127.0.0.1:" in found.output and "no NAT" in found.output

    def test_kinds(self, fixed):
        same = fixed(("192.0.2.9", 5)), fixed(("192.0.2.9", 5))
        assert "hole punching" in self.call(*same).output
        assert "symmetric" in self.call(same[0], fixed(("192.0.2.9", 6))).output
        assert "ask a second" in self.call(same[0]).output

    def test_nobody_answers(self, fixed):
        name = fixed("nothing")
        found = self.call(name, "--timeout", 0.1)
        assert found.exit_code == 1
        assert f"{name}: no answer" in found.output and "UDP is blocked" in found.output
        found = self.call(name, "--timeout", 0.1, "--json")
        assert json.loads(found.output)["servers"][0]["mapped"] is None

    def test_an_own_port(self, fixed):
        name = fixed()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("0.0.0.0", 0))
            port = taken.getsockname()[1]
            found = self.call(name, "--port", port)
            assert found.exit_code == 1 and f"port {port}" in found.output
        found = self.call(name, "--port", port, "--json")
        assert json.loads(found.output)["servers"][0]["local"] == f"127.0.0.1:{port}"

    def test_by_ipv6(self):
        found = self.call("[::1]:9", "--timeout", 0.1, "--json")
        assert json.loads(found.output)["servers"][0]["server"] == "[::1]:9"

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ((), "HOST:PORT"), (("here",), "HOST:PORT"), (("here:0",), "HOST:PORT"), (("here:70000",), "HOST:PORT"),
            (("127.0.0.1:9", "[::1]:9"), "IPv6"), (("nobody.invalid:9",), "nobody.invalid"), (("a..b:9",), "no name of a host"), (("127.0.0.1:9", "--timeout", 0), "--timeout"),
        ],
    )  # fmt: skip
    def test_bad_usage(self, arguments, says):
        found = self.call(*arguments)
        assert found.exit_code == 2 and says in found.output
