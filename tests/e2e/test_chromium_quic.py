"""Chromium with QUIC forced: a page, its data, an upload with a length and one that is streamed, a WebSocket, over HTTP/3."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from certkit import Authority

from inference_backend.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

from browserkit import chromium, serve_files, spki, visit  # noqa: E402

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

PAGE = b"""<!doctype html><title>page</title><script type="module">
const socket = () => new Promise((resolve) => {
  const ws = new WebSocket(`wss://${location.host}/echo`);
  ws.onopen = () => ws.send("over");
  ws.onmessage = (event) => { ws.close(1000); resolve(event.data); };
  ws.onerror = () => resolve("error");
});
const found = { page: performance.getEntriesByType("navigation")[0].nextHopProtocol };
try {
  const answers = await Promise.all([...Array(20).keys()].map((i) => fetch(`/data?i=${i}`).then((r) => r.text())));
  found.answers = new Set(answers).size + ":" + answers[0].length;
  found.upload = await (await fetch("/upload", { method: "POST", body: new Uint8Array(300000) })).text();
  const pieces = new ReadableStream({
    pull(controller) {
      this.left = (this.left ?? 50) - 1;
      this.left < 0 ? controller.close() : controller.enqueue(new Uint8Array(10000));
    },
  });
  found.streamed = await (await fetch("/upload?streamed", { method: "POST", body: pieces, duplex: "half" })).text();
  found.protocols = [...new Set(performance.getEntriesByType("resource").map((entry) => entry.nextHopProtocol))];
  found.socket = await socket();
} catch (error) { found.failed = String(error); }
await fetch("/found", { method: "POST", body: JSON.stringify(found) });
</script>"""


async def test_a_page(start_router, start_server, tmp_path, until):
    chromium()
    authority = Authority()
    authority.sign("localhost", "127.0.0.1").write(tmp_path, "local")
    found = asyncio.get_running_loop().create_future()
    pages = {"/": (PAGE, "text/html"), "/data": (b"x" * 50_000, "text/plain")}
    origin = await start_server(lambda reader, writer: serve_files(reader, writer, pages, found))
    port = free_port()
    router = await start_router(
        "--listen-quic", f"127.0.0.1:{port}", "--listen-tls", f"127.0.0.1:{port}", "--tls-cert", tmp_path / "local.pem",
        "--tls-key", tmp_path / "local.key", "--health", "none", replicas=[origin],
    )  # fmt: skip
    flags = (
        f"--origin-to-force-quic-on=127.0.0.1:{port}", "--enable-features=EnableWebsocketsOverHttp3",
        f"--ignore-certificate-errors-spki-list={spki(tmp_path / 'local.pem')}",
    )  # fmt: skip
    async with visit(f"https://127.0.0.1:{port}/", tmp_path, *flags), asyncio.timeout(40):
        said = json.loads(await found)
    assert said == {
        "page": "h3", "answers": "1:50000", "upload": "300000", "streamed": "500000", "protocols": ["h3"], "socket": "over-h1",
    }  # fmt: skip
    await until(lambda: any(record["path"] == "/found" for record in router.records()))
    assert {record["protocol"] for record in router.records()} == {"HTTP/3"}
