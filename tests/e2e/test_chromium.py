"""Chromium over TLS: it chooses HTTP/2, streams, and opens its WebSocket on the same connection (RFC 8441)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import shutil
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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


def spki(cert_path):
    """The hash by which Chromium is told to trust one key, whatever signed it."""
    key = x509.load_pem_x509_certificate(cert_path.read_bytes()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


async def serve(reader, writer, found):
    """A page, its data, an upload, a WebSocket that says one word back; and what the page found."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1]
        body = PAGE
        if path.startswith(b"/data"):
            body = b"x" * 50_000
        elif path in (b"/upload", b"/found"):
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
            sent = await reader.readexactly(length)
            body = b"%d" % len(sent)
            if path == b"/found" and not found.done():
                found.set_result(sent.decode())
        elif path == b"/echo":
            key = re.search(rb"sec-websocket-key: (\S+)", head, re.IGNORECASE)[1]
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                b"sec-websocket-accept: " + accept + b"\r\n\r\n"
            )
            await reader.readexactly(2 + 4 + 4)
            writer.write(b"\x81\x07over-h1")
            await reader.read(100)
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


async def test_a_page(start_server, start_router, tmp_path, until):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    subprocess.run([sys.executable, "-m", "router", "certs", "dev", "--dir", tmp_path], check=True, capture_output=True)
    found = asyncio.get_running_loop().create_future()
    router = await start_router(
        "--health", "none", "--listen-tls", "127.0.0.1:0", "--tls-cert", tmp_path / "server.pem",
        "--tls-key", tmp_path / "server.key",
        replicas=[await start_server(lambda reader, writer: serve(reader, writer, found))],
    )  # fmt: skip
    (url,) = [url for url in router.listen if url.startswith("https")]
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--ignore-certificate-errors-spki-list={spki(tmp_path / 'server.pem')}", url + "/",
    ]  # fmt: skip
    with (tmp_path / "chromium").open("wb") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(40):
            said = await found
    finally:
        browser.terminate()
        await asyncio.to_thread(browser.wait, 15)
    assert said == '{"page":"h2","answers":"1:50000","upload":"300000","socket":"over-h1"}'
    await until(lambda: any(record["path"] == "/found" for record in router.records()))
    protocols = {record["path"].partition("?")[0]: record["protocol"] for record in router.records()}
    assert protocols["/"] == protocols["/data"] == protocols["/upload"] == "HTTP/2"
    assert {record["protocol"] for record in router.records() if record["path"] == "/echo"} <= {"HTTP/2"}
