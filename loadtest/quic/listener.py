"""QUIC at the listener: our engine beside quic-portal's own server, asked by the same stock client, in turns.

Ours runs compiled, from a copy of the sources in which `router compile` compiles the engine and `echo` only; the
copy is kept in build/ for as long as the sources are the same. Imports `portal` and `place`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from inference_backend.ports import free_port
from loadtest.peers.ours import CHECKOUT
from loadtest.percentiles import ratio
from loadtest.quic.figures import Figure, Samples, failures, over_rounds
from loadtest.quic.place import ready
from loadtest.quic.portal import LARGE_BYTES, SMALL_BYTES, connect, exchange
from router.compiled import HOT

if TYPE_CHECKING:
    from pathlib import Path

    import quic_portal

    from loadtest.quic.place import Place

BUILD_S = 400.0
GOALS = {SMALL_BYTES: 1.0, LARGE_BYTES: 1.5}
_ENGINE = ("transport/codec/quic/", "transport/codec/stun", "transport/udp")
_OURS = """
import asyncio, json, socket, sys
import uvloop
from router import bench_echo
async def main():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    host = bench_echo.listen(sock, sys.argv[1], sys.argv[2])
    compiled = not bench_echo.__file__.endswith(".py")
    print(json.dumps({"event": "ready", "port": sock.getsockname()[1], "compiled": compiled}), flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""
_THEIRS = """
import json, sys
import quic_portal
portal = quic_portal.Portal()
print(json.dumps({"event": "ready"}), flush=True)
portal.listen(int(sys.argv[1]))
while True:
    message = portal.recv()
    portal.send(bytes(5_000) if len(message) > 10_000 else message)
"""


class NotBuiltError(Exception):
    """The copy could not be compiled; the text says why."""


def build(source: Path = CHECKOUT, root: Path = CHECKOUT / "build" / "bench-quic") -> Path:
    """Return a copy of the sources whose engine is compiled, made now unless it is there."""
    hot = [name for name in HOT if name.startswith(_ENGINE)]
    digest = hashlib.sha256(sys.version.encode())
    echo = source / "loadtest" / "quic" / "echo.py"
    for path in [echo, *(source / "router" / f"{name}.py" for name in hot)]:
        digest.update(path.read_bytes())
    place = root / digest.hexdigest()[:16]
    if (place / "router" / "compiled.json").exists():
        return place
    shutil.rmtree(root, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "compiled.json", "__pycache__")
    shutil.copytree(source / "router", place / "router", ignore=ignored)
    shutil.copy(echo, place / "router" / "bench_echo.py")
    listed = place / "router" / "compiled.py"
    names = "".join(f'    "{name}",\n' for name in ["bench_echo", *hot])
    written = f"HOT = (\n{names})\n"
    text, count = re.subn(r"HOT = \(\n.*?\n\)\n", lambda _: written, listed.read_text(), flags=re.DOTALL)
    assert count == 1, "router/compiled.py lists its modules in another way now"
    listed.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(place)}
    made = subprocess.run(
        [sys.executable, "-m", "router", "compile"], cwd=place, env=environment, capture_output=True, text=True,
        timeout=BUILD_S, check=False,
    )  # fmt: skip
    if made.returncode:
        raise NotBuiltError(made.stderr.strip()[-500:])
    return place


class _Server:
    """One of the two, and the client's connection to it."""

    def __init__(self, portal: quic_portal.Portal, pid: int) -> None:
        self.portal = portal
        self.pid = pid
        self.windows: dict[int, list[Samples]] = {LARGE_BYTES: [], SMALL_BYTES: []}

    def ask(self, size: int, count: int) -> None:
        """Measure one window."""
        self.windows[size].append(exchange(self.portal, size, count, self.pid))


def beside_quic_portal(place: Place, rounds: int, *, quick: bool) -> list[Figure]:
    """Both servers in turns; goals are for the ratios, round by round."""
    root = build()
    certificate = (str(place.certificate), str(place.key))
    ours = place.start("echo", ["-c", _OURS, *certificate], root=root)
    said = ready(ours)
    assert said["compiled"], "the copy does not use what was compiled"
    port = free_port()
    theirs = place.start("quic-portal", ["-c", _THEIRS, str(port)])
    ready(theirs)
    servers = {
        "ours": _Server(connect(said["port"]), ours.pid),
        "quic-portal": _Server(connect(port), theirs.pid),
    }
    for _ in range(rounds):
        for size, count in ((SMALL_BYTES, 300 if quick else 1_000), (LARGE_BYTES, 50 if quick else 100)):
            for server in servers.values():
                server.ask(size, count)
    return _figures(servers)


def _figures(servers: dict[str, _Server]) -> list[Figure]:
    work = "listener"
    found = []
    for size, title in ((SMALL_BYTES, "200 B echo"), (LARGE_BYTES, "600 KB up, 5 KB down")):
        for name, server in servers.items():
            windows = server.windows[size]
            found += [
                over_rounds(work, f"{title}: p50, {name}", [one.p(0.5) for one in windows], "ms"),
                over_rounds(work, f"{title}: CPU, {name}", [one.cpu_us() for one in windows], "us"),
            ]
        pairs = list(zip(*(server.windows[size] for server in servers.values()), strict=True))
        p50 = [ratio(mine.p(0.5), other.p(0.5)) or 0.0 for mine, other in pairs]
        cpu = [ratio(mine.cpu_us(), other.cpu_us()) or 0.0 for mine, other in pairs]
        found.append(over_rounds(work, f"{title}: p50, ours over quic-portal", p50, "x", GOALS[size]))
        found.append(over_rounds(work, f"{title}: CPU, ours over quic-portal", cpu, "x", GOALS[size]))
    windows = [one for server in servers.values() for size in server.windows for one in server.windows[size]]
    return [*found, failures(work, windows)]
