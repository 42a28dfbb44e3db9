"""The stores that the transcript is run against, and a word in the summary that says which of them were."""

import asyncio
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import uvloop
from toldkit import told

from router.config.embedded.server import StoreServer

SDK = "google-cloud-sdk/bin/cloud_spanner_emulator/emulator_main"
PLACES = [Path("/usr/lib") / SDK, Path("/opt") / SDK, Path.home() / SDK]
EMBEDDED, ORACLE, SPANNER = (f"store contract, {name}" for name in ("embedded", "oracle", "Spanner"))


class Embedded:
    """A server on its own loop in its own thread, since the official client blocks."""

    def __init__(self, path):
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded store")
        self._thread.start()
        self._server = StoreServer(path / "data", f"unix:{path}/s")
        self._call(self._server.start())
        self.address = self._server.address

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self):
        self._call(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    server = Embedded(tmp_path_factory.mktemp("store"))
    told[EMBEDDED] = "ran"
    yield server.address
    server.stop()


@pytest.fixture(scope="session")
def oracle():
    """The address of Google's emulator, or None."""
    found = shutil.which("emulator_main") or next((str(place) for place in PLACES if place.exists()), None)
    if found is None:
        told[ORACLE] = "not present (install google-cloud-cli-spanner-emulator); recorded answers were used"
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen([found, "--host_port", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(address.rsplit(":", 1), 1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the emulator did not start"
            time.sleep(0.05)
    told[ORACLE] = f"ran ({found})"
    yield address
    process.kill()
    process.wait(10)


@pytest.fixture(scope="session")
def real_spanner():
    """The name of a database on Spanner itself, or None."""
    name = os.environ.get("ROUTER_SPANNER_DATABASE")
    told[SPANNER] = f"ran ({name})" if name else "not configured (set ROUTER_SPANNER_DATABASE=projects/…/databases/…)"
    return name
