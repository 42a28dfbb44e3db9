"""Chromium over TLS: it chooses HTTP/2, streams, and opens its WebSocket on the same connection (RFC 8441)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browserkit import chromium, serve_files, spki, visit  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = b"""<!doctype html><title>page</title><script>
const socket = async () => new Promise((resolve) => {
  const ws = new WebSocket(`wss://${location.host}/echo`);
  ws.onopen = () => ws.send("over");
  ws.onmessage = (event) => { ws.close(1000); resolve(event.data); };
  ws.onerror = () => resolve("error");
});
(async () => {
  const found = { page: performance.getEntriesByType("navigation")[0].nextHopProtocol };
  const answers = await Promise.all([...Array(20).keys()].map((i) => fetch(`/data?i=${i}`).then((r) => r.text())));
  found.answers = new Set(answers).size + ":" + answers[0].length;
  found.upload = await (await fetch("/upload", { method: "POST", body: new Uint8Array(300000) })).text();
  found.socket = await socket();
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
})();
</script>"""


async def test_a_page(start_server, start_router, tmp_path, until):
    chromium()
    subprocess.run([sys.executable, "-m", "router", "certs", "dev", "--dir", tmp_path], check=True, capture_output=True)
    found = asyncio.get_running_loop().create_future()
    pages = {"/": (PAGE, "text/html"), "/data": (b"x" * 50_000, "text/plain")}
    router = await start_router(
        "--health", "none", "--listen-tls", "127.0.0.1:0", "--tls-cert", tmp_path / "server.pem",
        "--tls-key", tmp_path / "server.key",
        replicas=[await start_server(lambda reader, writer: serve_files(reader, writer, pages, found))],
    )  # fmt: skip
    (url,) = [url for url in router.listen if url.startswith("https")]
    trust = f"--ignore-certificate-errors-spki-list={spki(tmp_path / 'server.pem')}"
    async with visit(url + "/", tmp_path, trust), asyncio.timeout(40):
        said = await found
    assert said == '{"page":"h2","answers":"1:50000","upload":"300000","socket":"over-h1"}'
    await until(lambda: any(record["path"] == "/found" for record in router.records()))
    protocols = {record["path"].partition("?")[0]: record["protocol"] for record in router.records()}
    assert protocols["/"] == protocols["/data"] == protocols["/upload"] == "HTTP/2"
    assert {record["protocol"] for record in router.records() if record["path"] == "/echo"} <= {"HTTP/2"}
