"""grpc-js, which shares no code with grpcio, through the router: in the clear and over TLS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")
SCRIPT = Path(__file__).with_name("grpc_js_client.js")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Install grpc-js once, as a package of its own; without node or the registry there is nothing to ask."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--silent", "--no-fund", "--no-audit", "@grpc/grpc-js@^1.10"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=50)
    if done.returncode:
        pytest.skip("grpc-js cannot be installed here")
    return folder / "node_modules"


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_every_kind_of_call(modules, start_grpc, start_router, tmp_path, tls):
    kit = await start_grpc()
    arguments = ["--health", "grpc"]
    extra = []
    if tls:
        made = [sys.executable, "-m", "router", "certs", "dev", "--dir", tmp_path]
        subprocess.run(made, check=True, capture_output=True)
        arguments += ["--listen-tls", "127.0.0.1:0", "--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key"]
        extra = [str(tmp_path / "ca.pem")]
    router = await start_router(*arguments, replicas=[kit.url])
    url = next(url for url in router.listen if url.startswith("https" if tls else "http:"))
    command = ["node", str(SCRIPT), f"localhost:{url.rpartition(':')[2]}" if tls else f"127.0.0.1:{router.port}", *extra]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=50, env=os.environ | {"NODE_PATH": str(modules)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["unary"]["code"], found["unary"]["reply"], found["unary"]["trailers"]["x"]) == (0, "hello", "y")
    assert (found["failed"]["code"], found["failed"]["details"]) == (5, "no such thing")
    assert found["late"]["code"] == 4
    assert (found["many"], found["big"]) == (200, 3_000_000)
    assert len(found["serverStream"]) == 4 and found["bidi"] == ["a", "b", "c"]
    assert (found["clientStream"]["messages"], found["clientStream"]["bytes"]) == (50, 1_000_000)
    await router.settled()
