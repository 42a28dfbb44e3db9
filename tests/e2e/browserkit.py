"""Chromium without a window, for tests whose page is served through the router and posts what it found to /found."""

import asyncio
import base64
import contextlib
import hashlib
import re
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-proxy-server", "--remote-debugging-port=0", "--enable-logging=stderr",
)  # fmt: skip


def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed")
    return found


def spki(cert_path):
    """The hash by which Chromium is told to trust one key, whatever signed it."""
    key = x509.load_pem_x509_certificate(cert_path.read_bytes()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def fingerprint(cert_path):
    """SHA-256 of a certificate, as `serverCertificateHashes` wants it."""
    der = x509.load_pem_x509_certificate(cert_path.read_bytes()).public_bytes(Encoding.DER)
    return list(hashlib.sha256(der).digest())


@contextlib.asynccontextmanager
async def visit(url, folder, *flags):
    """A browser that shows this page until the end of the block."""
    with (folder / "chromium.log").open("wb") as log:
        command = [chromium(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, url]
        browser = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    except TimeoutError:
        said = (folder / "chromium.log").read_text(errors="replace")
        raise AssertionError(f"the page said nothing; the browser: {said[-4_000:]}") from None
    finally:
        browser.terminate()
        await asyncio.to_thread(browser.wait, 15)


async def serve_files(reader, writer, files, found):
    """An origin of HTTP/1.1: `files` by path, uploads that are counted, `found`, what the page says it found; /echo."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].partition(b"?")[0].decode()
            if path == "/echo":
                await echo_once(reader, writer, head)
                return
            body, kind = files.get(path, (b"", "text/plain"))
            status = b"200 OK" if path in files else b"404 Not Found"
            if head.startswith(b"POST"):
                sent = await read_body(reader, head.lower())
                status, body = b"200 OK", b"%d" % len(sent)
                if path == "/found" and not found.done():
                    found.set_result(sent.decode())
            writer.write(
                b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, kind.encode(), len(body)) + body
            )


async def read_body(reader, head):
    length = re.search(rb"content-length: (\d+)", head)
    if length:
        return await reader.readexactly(int(length[1]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def echo_once(reader, writer, head):
    """A WebSocket that says one word of ours to a word of four letters."""
    key = re.search(rb"sec-websocket-key: (\S+)", head, re.IGNORECASE)[1]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-accept: " + accept + b"\r\n\r\n"
    )
    await reader.readexactly(2 + 4 + 4)
    writer.write(b"\x81\x07over-h1")
    await reader.read(100)
