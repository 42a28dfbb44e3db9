"""The access log: valid lines, failures always, a bound instead of a wait, rotation."""

import asyncio
import json
import os
import queue

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from router.counters import WorkerCounters
from router.edge import access_log
from router.edge.access_log import AccessLog, format_line

KEYS = [
    "time", "request_id", "method", "authority", "path", "protocol", "status", "flags", "code", "endpoint", "replica", "bytes_received",
    "bytes_sent", "duration_ms", "overhead_us", "first_byte_ms", "client", "retries", "reached", "grpc_status",
]  # fmt: skip


def record(path=b"/v1", code=b"", method=b"GET", authority=b"a.example:80", **over):
    values = {
        "ended": 5.0, "id": b"p-1", "method": method, "authority": authority, "path": path, "version": b"HTTP/1.1", "status": 200, "flag": b"",
        "code": code, "endpoint": b"e", "replica": b"[::1]:80", "received": 1, "sent": 2, "duration": 0.25, "overhead": 0.00005,
        "first": 0.125, "client": b"fe80::1%eth0", "retries": 0, "reached": b"yes", "grpc_status": -1,
    } | over  # fmt: skip
    return tuple(values.values())


class TestLines:
    def test_every_field(self):
        line = json.loads(format_line(record(), 1_700_000_000.0))
        assert list(line) == KEYS
        assert line["time"] == 1_700_000_005.0
        assert (line["duration_ms"], line["overhead_us"], line["first_byte_ms"]) == (250.0, 50.0, 125.0)
        assert line["client"] == "fe80::1%eth0" and line["grpc_status"] is None
        assert json.loads(format_line(record(grpc_status=14), 0.0))["grpc_status"] == 14

    @pytest.mark.parametrize(
        "path", [b'/"', b"/\\", b'/\\"\\\\"', b'/","status":500,"x":"', b"/%22%00", b"/\\u0000", b"*"]
    )
    def test_escapes(self, path):
        assert json.loads(format_line(record(path), 0.0))["path"] == path.decode()

    @settings(deadline=None)
    @given(
        path=st.from_regex(rb"/[\x21-\x22\x24-\x7e]{0,30}", fullmatch=True),
        method=st.from_regex(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,20}", fullmatch=True),
        authority=st.from_regex(rb"[0-9a-z\-._~%!$&'()*+,;=]{0,20}(:[0-9]{0,5})?", fullmatch=True),
        endpoint=st.from_regex(rb"[A-Za-z0-9._:/-]{1,20}", fullmatch=True),
    )
    def test_whatever_the_parser_lets_pass(self, path, method, authority, endpoint):
        """The alphabets of `h1.head`, `h1.fields` and `config.static`: one valid line, with the same values."""
        line = format_line(record(path, method=method, authority=authority, endpoint=endpoint), 0.0)
        assert line.count(b"\n") == 1
        found = json.loads(line)
        assert (found["path"], found["method"]) == (path.decode(), method.decode())
        assert (found["authority"], found["endpoint"]) == (authority.decode(), endpoint.decode())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(access_log, "INTERVAL_S", 0.0)


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_all_is_written_in_order(tmp_path, quick):
    path = tmp_path / "log"
    log = AccessLog(str(path), 1.0, WorkerCounters())
    for i in range(500):
        log(record(b"/%d" % i))
    await until(lambda: path.exists() and path.read_bytes().count(b"\n") == 500)
    assert [line["path"] for line in lines(path)] == [f"/{i}" for i in range(500)]
    log.close()


async def test_close_writes_the_rest(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(str(path), 1.0, WorkerCounters())
    for _ in range(300):
        log(record())
    log.close()
    assert len(lines(path)) == 300


async def test_it_goes_on_in_an_existing_file(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"path": "old"}\n')
    log = AccessLog(str(path), 1.0, WorkerCounters())
    log(record())
    log.close()
    assert [line["path"] for line in lines(path)] == ["old", "/v1"]


async def test_a_new_file_is_not_for_everyone(tmp_path):
    AccessLog(str(tmp_path / "log"), 1.0, WorkerCounters()).close()
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


async def test_stdout(capfd):
    log = AccessLog("-", 1.0, WorkerCounters())
    log(record())
    log.close()
    assert json.loads(capfd.readouterr().out)["path"] == "/v1"


@pytest.mark.parametrize(("sample", "low", "high"), [(0.0, 0, 0), (0.5, 380, 620), (1.0, 1_000, 1_000)])
async def test_sampling_keeps_failures(tmp_path, sample, low, high):
    path = tmp_path / "log"
    log = AccessLog(str(path), sample, WorkerCounters())
    for _ in range(1_000):
        log(record())
    for _ in range(100):
        log(record(code=b"connect_failed"))
    log.close()
    found = [line["code"] for line in lines(path)]
    assert found.count("connect_failed") == 100
    assert low <= found.count("") <= high


async def test_beyond_its_bound_records_are_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(access_log, "MAX_PENDING", 10)
    counters = WorkerCounters()
    path = tmp_path / "log"
    log = AccessLog(str(path), 1.0, counters)
    for _ in range(25):
        log(record())
    assert counters.access_log_dropped == 15
    log.close()
    assert len(lines(path)) == 10


class StuckDisk:
    """A thread that takes nothing: its queue is full."""

    def __init__(self, log):
        self.log = log
        self.free = log._work
        log._work = queue.Queue(1)
        log._work.put(b"")

    def release(self):
        self.log._work = self.free


async def test_a_stuck_disk_is_never_waited_for(tmp_path, quick):
    counters = WorkerCounters()
    log = AccessLog(str(tmp_path / "log"), 1.0, counters)
    disk = StuckDisk(log)
    for _ in range(100):
        log(record())
    await until(lambda: counters.access_log_dropped)
    assert counters.access_log_dropped == 100
    disk.release()
    log.close()


@pytest.mark.parametrize("action", ["reopen", "close"])
async def test_nor_when_it_is_rotated_or_closed(tmp_path, monkeypatch, action):
    """`written by a thread, so that a slow disk does not stall it either`: also SIGHUP and the drain."""
    log = AccessLog(str(tmp_path / "log"), 1.0, WorkerCounters())
    disk = StuckDisk(log)
    stuck = log._work
    blocked = []

    def put(item, block=True, timeout=None):
        if block and timeout is None:
            blocked.append(item)
            stuck.get_nowait()
        return queue.Queue.put(stuck, item, block, timeout)

    monkeypatch.setattr(stuck, "put", put)
    disk.free.put(None)  # the thread itself is not what is tested
    getattr(log, action)()
    if action == "reopen":
        log.close()
    assert not blocked


async def test_rotation(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(str(path), 1.0, WorkerCounters())
    log(record(b"/one"))
    log._format_slice()
    await until(lambda: path.read_bytes())
    os.rename(path, tmp_path / "log.1")
    log.reopen()
    log(record(b"/two"))
    log.close()
    assert [line["path"] for line in lines(tmp_path / "log.1")] == ["/one"]
    assert [line["path"] for line in lines(path)] == ["/two"]


async def test_a_rotation_that_fails_goes_on_in_the_old_file(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "log"
    log = AccessLog(str(path), 1.0, WorkerCounters())
    folder.rename(tmp_path / "moved")
    log.reopen()
    log(record(b"/after"))
    log.close()
    assert [line["path"] for line in lines(tmp_path / "moved" / "log")] == ["/after"]


async def test_a_full_disk_does_not_end_it(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log = AccessLog("/dev/full", 1.0, WorkerCounters())
    log(record())
    log.close()
    assert not log._thread.is_alive()
