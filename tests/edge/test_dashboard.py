"""The dashboard: its headers, its JSON, and the page itself in a browser where there is one."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from adminkit import FakeSource, endpoint, replica, robot, serve, snapshot, worker_state

from router.control import Robots
from router.counters import BOUNDS_S
from router.edge.dashboard import MAX_ROBOTS
from router.routing.spec import EndpointSpec, ReplicaSpec, TableSpec

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ODD = 'odd <img src=x onerror=alert(1)> & "quoted"'


async def test_the_page_is_self_contained():
    async with serve() as admin, admin.client() as client:
        response = await client.get("/")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["content-security-policy"].startswith("default-src 'self' 'unsafe-inline'")
        markup = response.text.replace('href="data:,"', "")
        assert not re.findall(r"\b(?:src|href)\s*=", markup), "nothing is loaded from elsewhere"
        assert "http://" not in response.text.replace("http://www.w3.org/2000/svg", "")
        for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert unsafe not in response.text
        assert len(response.content) < 64_000
        assert admin.source.asked == 0


async def test_the_summary_answers_what_the_page_asks():
    source = FakeSource()
    source.workers = [worker_state(), worker_state(1, 101, stalled=True)]
    async with serve(source) as admin, admin.client() as client:
        found = (await client.get("/dashboard.json")).json()
        assert (found["ready"], found["version"], found["table_version"]) == (True, "1.2.3", 7)
        assert found["bounds_s"] == pytest.approx(list(BOUNDS_S))
        assert [(w["index"], w["stalled"]) for w in found["workers"]] == [(0, False), (1, True)]
        assert sum(found["workers"][0]["loop_lag"]["counts"]) == 1
        by_name = {e["name"]: e for e in found["endpoints"]}
        assert set(by_name) == {"llama", "qwen", "-"}
        llama = by_name["llama"]
        assert (llama["ready"], llama["total"], llama["in_flight"], llama["requests"]) == (1, 2, 1, 3)
        assert sum(llama["duration"]["counts"]) == 1
        assert len(llama["overhead"]["counts"]) == len(BOUNDS_S) + 1
        assert by_name["-"]["total"] is None
        assert by_name["qwen"]["requests"] == 0
        assert [r["id"] for r in found["replicas"]] == ["a:1", "b:1", "c:1"]
        assert found["replicas"][1]["health_reason"] == "refused"


async def test_the_summary_has_the_worst_robots():
    source = FakeSource()
    async with serve(source) as admin, admin.client() as client:
        found = (await client.get("/dashboard.json")).json()
        assert (found["robots"], found["robot_count"]) == ([], 0)
        assert source.robots_asked == [], "nobody is asked where no session is open"
        source.taken = [snapshot(robot_sessions_open=70)]
        unknown = robot("new", endpoint="", reported_rtt_us=-1, reported_gap_us=-1, badness_us=1)
        source.robot_answers = [Robots(1, 70, [robot("s1", late_in=1, reported_late=2), unknown])]
        found = (await client.get("/dashboard.json")).json()
        assert source.robots_asked == [(MAX_ROBOTS, "")]
        assert found["robot_count"] == 70
        first, second = found["robots"]
        assert (first["session"], first["where"], first["rtt_us"], first["gap_us"], first["late"]) == ("s1", "llama", 20_000, 70_000, 3)
        assert (second["where"], second["rtt_us"], second["gap_us"]) == ("arm.example/arm", 18_000, 60_000)


async def test_the_summary_outlives_a_worker():
    source = FakeSource()
    source.taken = [snapshot(0, 100, endpoints={"llama": endpoint(9), "": endpoint()})]
    async with serve(source) as admin, admin.client() as client:
        await client.get("/dashboard.json")
        source.workers = [worker_state(0, 200, restarts=1)]
        source.taken = [snapshot(0, 200, endpoints={"llama": endpoint(2), "": endpoint()})]
        found = (await client.get("/dashboard.json")).json()
        assert found["endpoints"][0]["requests"] == 11


async def test_a_large_table_is_cut_to_the_busiest():
    source = FakeSource()
    names = [f"e{i}" for i in range(150)]
    source.spec = TableSpec(
        1, tuple(EndpointSpec(n, tuple(ReplicaSpec(f"{n}-{j}", "http://a:1") for j in range(5))) for n in names)
    )
    source.taken = [
        snapshot(
            endpoints={n: endpoint(i) for i, n in enumerate(names)},
            replicas=[replica("e149", "e149-3", in_flight=5)],
        )
    ]
    async with serve(source) as admin, admin.client() as client:
        found = (await client.get("/dashboard.json")).json()
        assert (len(found["endpoints"]), found["endpoint_count"]) == (100, 150)
        assert found["endpoints"][0]["name"] == "e149"
        assert (len(found["replicas"]), found["replica_count"]) == (500, 750)
        assert found["replicas"][0]["id"] == "e149-3"


async def rendered(url):
    """Return the page's DOM after a few polls, and what the browser's console said."""
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-logging=stderr", "--virtual-time-budget=3500", "--dump-dom", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    dom, log = await asyncio.wait_for(process.communicate(), 40)
    return dom.decode(), "\n".join(line for line in log.decode().splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
async def test_in_a_browser():
    source = FakeSource()
    source.spec = TableSpec(
        3, (EndpointSpec(ODD, (ReplicaSpec("a:1", "http://a:1"), ReplicaSpec("b:1", "http://b:1"))),)
    )
    source.workers = [worker_state(), worker_state(1, 0, "restarting", restarts=3)]
    polls = 0

    async def snapshots():
        nonlocal polls
        polls += 1
        counted = endpoint(10 * polls, codes={"no_replica": polls}, duration_s=[0.1] * 10 * polls, in_flight=4)
        endpoints = {ODD: counted, "": endpoint()}
        return [snapshot(endpoints=endpoints, replicas=[replica(ODD, in_flight=4)], robot_sessions_open=1)]

    source.robot_answers = [Robots(1, 3, [robot(ODD, reported_loss_ppm=25_000)])]

    async def explain(asked):
        path = asked.path
        candidate = {"address": "http://a:1", "load": 1.5, "in_flight": 4, "weight": 1, "latency_ms": 2.0}
        return {
            "table_version": 3,
            "route": {"host": "*", "path_prefix": path, "endpoint": ODD, "policy": "p2c"},
            "error": None,
            "panic": False,
            "least_loaded": "a:1",
            "candidates": [
                {"replica": "a:1", "excluded": None, **candidate},
                {"replica": "b:1", "excluded": "active health checks fail", **candidate},
            ],
        }

    source.snapshots, source.explain = snapshots, explain
    async with serve(source) as admin:
        dom, log = await rendered(admin.url + "/?host=h&path=/v1")
    assert log == "", "no script error, nothing blocked"
    assert polls >= 3
    text = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", dom, flags=re.DOTALL)
    assert "<img" not in text
    for wanted in (
        ">Degraded<",
        "1/2 workers serve · 1/2 replicas ready",
        ">worker 1 is restarting<",
        "1 of 2 replicas unhealthy<",
        ">live<",
        ">no_replica<",
        ">refused · 1 s<",
        "odd &lt;img src=x onerror=alert(1)&gt; &amp;",
        "passed over: active health checks fail",
        ">192.0.2.1:5000<",
        ">2.5 %<",
        "the worst links; 2 more",
        "candidate, least loaded",
    ):
        assert wanted in text, wanted
