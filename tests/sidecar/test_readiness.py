"""What is believed of an engine: the table of the judge, then the watch in virtual time, then one with real sockets."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from sidekit import Diary, in_virtual_time, now

from router.sidecar.readiness import Heard, Judge, Pace, ReadinessWatch, Reading
from router.transport.tasks import spawn

GOOD, UNAVAILABLE, REFUSED, CUT, POOR = Heard
STARTING, READY, DRAINING, FAILING, DEAD = Reading


@pytest.mark.parametrize(
    ("heard", "reading"),
    [
        ([], STARTING),
        ([UNAVAILABLE, REFUSED, CUT, POOR, POOR, POOR, POOR], STARTING),
        ([GOOD], READY),
        ([GOOD, UNAVAILABLE], DRAINING),
        ([GOOD, UNAVAILABLE, GOOD], READY),
        ([GOOD, REFUSED], DEAD),
        ([GOOD, UNAVAILABLE, REFUSED], DEAD),
        ([GOOD, POOR, CUT], READY),
        ([GOOD, POOR, CUT, POOR], FAILING),
        ([GOOD, POOR, POOR, GOOD, POOR, POOR], READY),
        ([GOOD, POOR, POOR, UNAVAILABLE, POOR, POOR], DRAINING),
        ([GOOD, UNAVAILABLE, POOR, POOR, POOR], FAILING),
        ([GOOD, POOR, POOR, POOR, POOR], FAILING),
        ([GOOD, POOR, POOR, POOR, GOOD], READY),
        ([GOOD, POOR, POOR, POOR, UNAVAILABLE], DRAINING),
        ([GOOD, POOR, POOR, POOR, REFUSED], DEAD),
    ],
)
def test_the_table(heard, reading):
    judge = Judge()
    for one in heard:
        judge.hear(one)
    assert judge.reading is reading


class FakeEngine:
    """Answers by `paths`: a status, an exception, or seconds to take and a status."""

    def __init__(self, **paths):
        self.paths = {f"/{path}": answer for path, answer in paths.items()}
        self.asked = Diary()
        self.knocked = Diary()
        self.listens = True
        self.busy = 0

    def refuse(self):
        self.listens = False
        for path in self.paths:
            self.paths[path] = ConnectionRefusedError("refused")

    async def ask(self, address, path):
        assert not self.busy, "never two questions at a time"
        self.busy += 1
        try:
            self.asked.note(path)
            answer = self.paths.get(path, 404)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, tuple):
                await asyncio.sleep(answer[0])
                answer = answer[1]
            return answer
        finally:
            self.busy -= 1

    async def knock(self, address):
        assert not self.busy
        self.knocked.note("knock")
        if not self.listens:
            raise ConnectionRefusedError


@asynccontextmanager
async def watching(engine, pace=None, **options):
    heard = Diary()
    watch = ReadinessWatch(
        "http://127.0.0.1:1", heard.note, ask=engine.ask, knock=engine.knock, pace=pace, **options
    )
    task = spawn(watch.run(), "watch")
    try:
        yield watch, heard, task
    finally:
        task.cancel()
        await asyncio.wait([task])


@in_virtual_time
async def test_from_loading_to_ready():
    engine = FakeEngine(ready=ConnectionRefusedError("refused"))
    async with watching(engine) as (watch, heard, _):
        await asyncio.sleep(3)
        engine.paths["/ready"] = 503
        await asyncio.sleep(2)
        assert heard == [] and not engine.knocked and watch.reading is STARTING
        engine.paths["/ready"] = 200
        await asyncio.sleep(0.26)
        assert [entry[1] for entry in heard] == [READY]
        assert 20 <= len(engine.asked) <= 22  # each 0.25 s
        before = len(engine.asked)
        await asyncio.sleep(10)
        assert len(engine.asked) - before == 20  # each 0.5 s
        assert watch.reason == "/ready: status 200"


@in_virtual_time
async def test_503_counts_at_once_and_so_does_its_end():
    engine = FakeEngine(ready=200)
    async with watching(engine) as (_, heard, _):
        await asyncio.sleep(0.6)
        engine.paths["/ready"] = 503
        await asyncio.sleep(0.5)
        engine.paths["/ready"] = 200
        await asyncio.sleep(0.5)
        assert [entry[1] for entry in heard] == [READY, DRAINING, READY]


@in_virtual_time
async def test_a_refused_port_is_death_within_a_second():
    engine = FakeEngine(ready=200)
    async with watching(engine) as (watch, heard, task):
        await asyncio.sleep(1.01)
        died_s = now()
        engine.refuse()
        await task
        assert heard[-1][1:] == (DEAD,) and now() - died_s < 0.6
        assert len(engine.knocked) == 1 and watch.reason == "connection refused"


@in_virtual_time
async def test_a_single_refusal_is_not_death():
    """Another process took the port over, or a listener was replaced."""
    engine = FakeEngine(ready=200)
    async with watching(engine) as (watch, heard, _):
        await asyncio.sleep(0.6)
        engine.paths["/ready"] = ConnectionRefusedError("refused")
        await asyncio.sleep(0.5)
        engine.paths["/ready"] = 200
        await asyncio.sleep(2)
        assert watch.reading is READY and len(heard) == 1


@in_virtual_time
async def test_a_connection_that_breaks_is_confirmed_by_a_knock():
    engine = FakeEngine(ready=200)
    async with watching(engine) as (_, heard, task):
        await asyncio.sleep(0.6)
        engine.paths["/ready"] = (0.2, 200)
        await asyncio.sleep(0.5)
        engine.paths["/ready"] = ConnectionResetError("reset")
        engine.listens = False
        died_s = now()
        await task
        assert heard[-1][1:] == (DEAD,) and now() - died_s < 0.8


@in_virtual_time
async def test_three_poor_answers_are_failing_not_dead():
    engine = FakeEngine(ready=200)
    async with watching(engine) as (_, heard, task):
        await asyncio.sleep(0.6)
        engine.paths["/ready"] = 500
        await asyncio.sleep(1.1)
        assert len(heard) == 1
        await asyncio.sleep(0.5)
        assert heard[-1][1:] == (FAILING,)
        engine.paths["/ready"] = (60, 200)  # silence
        await asyncio.sleep(30)
        assert not task.done() and len(heard) == 2
        engine.paths["/ready"] = 200
        await asyncio.sleep(6)
        assert heard[-1][1:] == (READY,)


@in_virtual_time
async def test_an_engine_without_ready_is_asked_at_health_for_ever():
    engine = FakeEngine(health=503)
    async with watching(engine) as (watch, heard, _):
        await asyncio.sleep(0.1)
        assert engine.asked.words() == ["/ready", "/health"] and watch.path == "/health"
        engine.paths["/health"] = (0.06, 200)
        await asyncio.sleep(60)
        assert [entry[1] for entry in heard] == [READY]
        assert engine.asked.words().count("/ready") == 1
        assert 10 <= engine.asked.words().count("/health") <= 14  # each 5 s
        assert len(engine.knocked) > 90  # each 0.5 s


@in_virtual_time
async def test_the_death_of_such_an_engine_is_noticed_by_a_knock():
    engine = FakeEngine(health=200)
    async with watching(engine) as (_, heard, task):
        await asyncio.sleep(6.2)
        died_s = now()
        engine.refuse()
        await task
        assert heard[-1][1:] == (DEAD,) and now() - died_s < 0.6


@in_virtual_time
async def test_a_slow_health_is_not_death():
    """1.0 s when idle, 20 s under load: SGLang's Python front end (sglang.md §3.2)."""
    engine = FakeEngine(health=(1.0, 200))
    async with watching(engine) as (_, heard, task):
        await asyncio.sleep(10)
        engine.paths["/health"] = (20, 200)
        await asyncio.sleep(200)
        assert [entry[1] for entry in heard] == [READY] and not task.done()


@in_virtual_time
async def test_an_engine_that_learns_ready_is_asked_there_again():
    engine = FakeEngine(health=200)
    async with watching(engine) as (watch, _, _):
        await asyncio.sleep(1)
        del engine.paths["/health"]
        engine.paths["/ready"] = 200
        await asyncio.sleep(10)
        assert watch.path == "/ready" and watch.reading is READY


@in_virtual_time
async def test_neither_path_is_never_ready():
    engine = FakeEngine()
    async with watching(engine) as (watch, heard, _):
        await asyncio.sleep(5)
        assert not heard and watch.reason == "/ready: status 404" and watch.path == "/ready"
    engine = FakeEngine(ready=200)
    async with watching(engine, fallback_path="") as (watch, heard, _):
        await asyncio.sleep(1)
        del engine.paths["/ready"]
        await asyncio.sleep(5)
        assert watch.reading is FAILING


def test_an_address_must_name_a_server():
    with pytest.raises(ValueError, match="port"):
        ReadinessWatch("http://here", print)


async def test_with_real_sockets():
    """A server that answers 200, then 503, then closes its port."""
    status = b"200 OK"

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    heard = asyncio.Event()
    readings = []

    def on_change(reading):
        readings.append(reading)
        heard.set()

    port = server.sockets[0].getsockname()[1]
    pace = Pace(starting_s=0.01, ready_s=0.02, confirm_s=0.01)
    watch = ReadinessWatch(f"http://127.0.0.1:{port}", on_change, pace=pace)
    task = spawn(watch.run(), "watch")
    await heard.wait()
    heard.clear()
    status = b"503 Service Unavailable"
    await heard.wait()
    server.close()
    await server.wait_closed()
    await task
    assert readings == [READY, DRAINING, DEAD]


async def test_what_is_not_http_is_no_good_answer():
    async def answer(reader, writer):
        writer.write(b"220 mail ready\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    watch = ReadinessWatch(f"http://127.0.0.1:{port}", print, pace=Pace(starting_s=0.01))
    task = spawn(watch.run(), "watch")
    while "not HTTP" not in watch.reason:
        await asyncio.sleep(0)
    assert watch.reading is STARTING
    task.cancel()
    await asyncio.wait([task])
    server.close()
    await server.wait_closed()
