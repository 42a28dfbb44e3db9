"""A replica's sidecar that attaches to routers, as tests start and end it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

from childkit import first_line
from storekit import child_env


class AttachedSidecar:
    """One `router sidecar --attach … --store none` beside an engine that somebody else runs."""

    def __init__(self, folder, upstream, routers, *flags, name="gpu-7", token="t", ca=None, prefix=()):
        self._stderr = folder / f"{name}-{len(list(folder.iterdir()))}.err"
        trust = ("--attach-ca", str(ca)) if ca else ("--attach-insecure",)
        attach = [word for where in routers for word in ("--attach", where)]
        self._argv = [
            *prefix, sys.executable, "-m", "router", "sidecar", "--upstream", upstream, "--endpoint", "e",
            "--store", "none", "--json", "--settle-s", "0", "--attach-name", name, "--attach-token", token,
            *attach, *trust, *map(str, flags),
        ]  # fmt: skip
        self.process = None
        self.listen = []

    async def start(self):
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=child_env()
            )
        line = await asyncio.to_thread(first_line, self.process)
        assert line, self.stderr()
        self.listen = json.loads(line)["listen"]
        return self

    def stderr(self):
        return self._stderr.read_text(errors="replace")

    async def end(self, within_s=10):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
        assert "Traceback" not in self.stderr(), self.stderr()
