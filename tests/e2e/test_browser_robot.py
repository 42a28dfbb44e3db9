"""A page that drives a robot: router/client/browser/robot.js in Chromium, over WebTransport, against the daemon."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx
import pytest
import websockets

import router as package

sys.path.insert(0, str(Path(__file__).parent))

from browserkit import chromium, fingerprint, serve_files, visit  # noqa: E402
from test_robot import Policy, metric, quic_flags  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]
MODULE = (Path(package.__file__).parent / "client" / "browser" / "robot.js").read_bytes()

PAGE = """<!doctype html><title>robot</title><script type="module">
import { RobotSession, RobotError, pack, unpack, varint } from "/robot.js";
const certificateHashes = [new Uint8Array(%s).buffer], base = "https://127.0.0.1:%d";
const connect = (path, options) => RobotSession.connect(base + path, { certificateHashes, ...options });
const found = {};
const tell = () => fetch("/found", { method: "POST", body: JSON.stringify(found) });
setTimeout(() => { found.failed = `stuck with ${JSON.stringify(found)}`; tell(); }, 25_000);
try { %s } catch (error) { found.failed = String(error) + error.stack; }
tell();
</script>"""


class Obedient(Policy):
    """One that closes with the code it is told, and notes what it was asked with."""

    def __init__(self, name):
        super().__init__(name)
        self.requests = []

    async def _serve(self, socket):
        self.requests.append(socket.request)
        self.sockets.add(socket)
        try:
            await socket.send(b"metadata " + self.name)
            async for message in socket:
                self.got.append(message)
                if isinstance(message, str) and message.startswith("close "):
                    await socket.close(int(message[6:]), "as told")
                await socket.send(message)
        except websockets.ConnectionClosed:
            pass
        self.sockets.discard(socket)
        self.closed.append(socket.close_code)


@pytest.fixture
def run_page(start_router, start_server, files, tmp_path):
    """`await run_page(script, replicas)`: what the script found, and the router that served it."""
    chromium()

    async def run(script, replicas, *flags):
        found = asyncio.get_running_loop().create_future()
        router = await start_router(*quic_flags(files, *flags), replicas=[one.url for one in replicas])
        (url,) = [url for url in router.listen if url.startswith("quic://")]
        page = PAGE % (fingerprint(files / "local.pem"), httpx.URL(url).port, script)
        pages = {"/": (page.encode(), "text/html"), "/robot.js": (MODULE, "text/javascript")}
        origin = await start_server(lambda reader, writer: serve_files(reader, writer, pages, found))
        # `localhost` is a secure context, without which there is no WebTransport
        async with visit(origin.replace("127.0.0.1", "localhost") + "/", tmp_path), asyncio.timeout(40):
            said = json.loads(await found)
        assert "failed" not in said, said["failed"]
        return said, router

    return run


LANES = """
const robot = await connect("/arm?x=1", { headers: [["x-request-id", "page-1"], ["origin", "https://forged"]] });
Object.assign(found, { replica: robot.replica, epoch: robot.epoch });
const messages = robot[Symbol.asyncIterator]();
const next = async () => (await messages.next()).value;
const metadata = await next();
found.metadata = [metadata.lane, new TextDecoder().decode(metadata.data), metadata.sequence, metadata.epoch];
const observation = crypto.getRandomValues(new Uint8Array(60000));
robot.sendState(observation);
const reply = await next();
found.reply = [reply.lane, reply.sequence, reply.data.every((byte, at) => byte === observation[at]) && reply.data.length];
await robot.sendCommand("gr\\u00fc\\u00df");
const text = await next();
found.text = [text.lane, text.data, text.sequence];
robot.sendState(new Uint8Array(3_000_000));
found.large = (await next()).data.length;
found.rtt = await robot.ping();
found.link = robot.link;
found.code = (await robot.close()).code;
try { robot.sendState("late"); } catch (error) { found.after = error.code; }
for await (const message of robot) found.more = message;
"""


async def test_lanes(run_page, until):
    async with Obedient("a") as policy:
        found, router = await run_page(LANES, [policy])
        assert found["replica"] in policy.url and found["epoch"] == 1
        assert found["metadata"] == ["command", "metadata a", 1, 1]
        assert found["reply"] == ["state", 1, 60_000] and found["text"] == ["command", "grüß", 2]
        assert found["large"] == 3_000_000
        assert 0 < found["rtt"] < 5_000 and found["link"]["answered"] >= 1 and found["link"]["replies"] == 4
        assert (found["code"], found["after"]) == (1000, 1000) and "more" not in found
        await until(lambda: policy.closed == [1000])
        (request,) = policy.requests
        assert request.path == "/arm?x=1" and request.headers["origin"].startswith("http://localhost:")
        assert (await router.record("page-1"))["protocol"] == "ROBOT/1"
        await router.settled()
        assert await metric(router, "router_webtransport_sessions") == 0
        assert await metric(router, "router_robot_messages_total", lane="state", direction="up") == 2


RESUME = """
const first = await connect("/");
Object.assign(found, { first: [first.session, first.epoch], token: first.token.length });
await first.close();
const again = await connect("/", { resume: first.token });
found.again = [again.session, again.epoch];
await again.close();
const stranger = await connect("/", { resume: first.token.slice(0, -2) + "AA" });
found.stranger = [stranger.session, stranger.epoch];
await stranger.close();
"""


async def test_who_shows_a_token_goes_on(run_page):
    async with Obedient("a") as policy:
        found, router = await run_page(RESUME, [policy])
        session, epoch = found["first"]
        assert found["token"] > 50 and epoch == 1
        assert found["again"] == [session, 2]
        assert found["stranger"][0] != session and found["stranger"][1] == 1
        assert await metric(router, "router_robot_resumed_total") == 1


NEWEST = """
const robot = await connect("/");
const seen = [];
for (let i = 1; i <= 60; i += 1) robot.sendState(new Uint8Array(400_000).fill(i));
for await (const { lane, data, sequence } of robot) {
  if (lane !== "state") continue;
  seen.push([sequence, data[0]]);
  if (data[0] === 60) break;
}
Object.assign(found, { seen, stale: robot.link.stale });
await robot.close();
"""


async def test_the_newest_wins(run_page):
    async with Obedient("a") as policy:
        found, _ = await run_page(NEWEST, [policy])
        sequences, contents = zip(*found["seen"], strict=True)
        assert list(sequences) == sorted(set(sequences)) and list(contents) == sorted(set(contents)) and contents[-1] == 60
        delivered = [message[0] for message in policy.got]
        assert delivered == sorted(set(delivered)) and delivered[-1] == 60 and len(delivered) < 30
        assert found["stale"] >= 60 - len(delivered)


LATE = """
const robot = await connect("/");
const texts = [];
let rounds = 0;
await robot.sendCommand("late", { withinMs: -500 });
await robot.sendCommand("on time", { withinMs: 60_000 });
for await (const { data } of robot) {
  if (typeof data !== "string") continue;
  texts.push(data);
  if (data !== "on time") continue;
  if (texts.at(-2) === "on time" || texts.length === 1) break;
  rounds += 1;
  await new Promise((resolve) => setTimeout(resolve, 20));
  await robot.sendCommand("late", { withinMs: -500 });
  await robot.sendCommand("on time", { withinMs: 60_000 });
}
found.rounds = rounds;
robot.sendState("x", { withinMs: -500 });
found.late = robot.link.late;
await robot.close();
"""


async def test_what_is_late_is_not_delivered(run_page):
    """Nothing is late until the router has asked for the page's clock; then a command of the past comes no more."""
    async with Obedient("a") as policy:
        found, router = await run_page(LATE, [policy])
        assert policy.got.count("on time") == policy.got.count("late") + 1 and found["late"] == 1
        assert await metric(router, "router_robot_dropped_total", direction="up", reason="late") == 1


ENDS = """
const robot = await connect("/", { headers: [["authorization", "Bearer s3cret"]] });
await robot.sendCommand("close 1012");
while (robot.epoch < 2) await new Promise((resolve) => setTimeout(resolve, 10)); // EPOCH may be behind its replica's words
found.epoch = robot.epoch;
await robot.sendCommand("close 4001");
for await (const message of robot) found.last = message.data;
found.closed = [(await robot.closed).code, robot.error instanceof RobotError];
await connect("/").catch((error) => Object.assign(found, { refused: [error.code, error.status] }));
await connect("/?x", { headers: [["bad name", ""]] }).catch((error) => Object.assign(found, { malformed: error.status }));
"""


async def test_ends(run_page):
    async with Obedient("a") as one, Obedient("b") as other:
        found, router = await run_page(ENDS, [one, other], "--auth-token", "s3cret")
        assert found["epoch"] == 2 and found["closed"] == [4_001, True]
        assert found["refused"] == [1008, 401] and found["malformed"] == 400
        assert sorted(one.closed + other.closed) == [1012, 4_001]
        await router.settled()
        assert await metric(router, "router_webtransport_sessions") == 0


WORDS = """
const hex = (data) => [...data].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const values = [0, 127, 128, 65535, 2 ** 40, true, false, "", "gr\\u00fc\\u00df", [["a", "b"]], { n: 1, more: { x: [] } }];
found.there = values.map((value) => JSON.stringify(unpack(pack(value))) === JSON.stringify(value));
const given = %s;
found.from = given.map((one) => unpack(Uint8Array.from(one)));
found.numbers = [0, 63, 64, 16383, 16384, 2 ** 30 - 1, 2 ** 30, 2 ** 52].map((value) => hex(varint(value)));
found.wrong = [[0xc1], [0xa5, 0x61], [0xdc, 0, 9], []].map((one) => {
  try { return unpack(Uint8Array.from(one)); } catch (error) { return error.name; }
});
"""


async def test_its_own_words_are_those_of_others(run_page):
    """msgpack and QUIC's integers, against `msgpack` and aioquic."""
    import msgpack
    from aioquic.buffer import encode_uint_var

    values = [{"session": "a" * 40, "epoch": 1 << 20, "max": 1 << 40}, {"k" * 300: [1, -1, -200, -70_000, -(1 << 40), None, 1.5, True]}, list(range(20)), {str(i): i for i in range(20)}]
    async with Obedient("a") as policy:
        found, _ = await run_page(WORDS % [list(msgpack.packb(value)) for value in values], [policy])
    assert all(found["there"]) and found["from"] == values
    assert found["numbers"] == [encode_uint_var(value).hex() for value in (0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, 1 << 52)]
    assert found["wrong"] == ["RangeError"] * 4
