"""Where the environment is, whether it is whole, how it is made, and how its server is called.

| file             | what                                                                                   |
|---|---|
| `DIR/venv`       | Python packages, 1.8 GB                                                                |
| `DIR/model`      | the tiny model                                                                         |
| `DIR/steps.json` | digest of each step that was done: a repeated install does only what changed           |
| `DIR/lock`       | held while an install runs                                                             |
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from inference_backend.sglang_cpu import pins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

VARIABLE = "ROUTER_SGLANG_CPU"
HERE = Path(__file__).parent
SHIM = HERE / "shim"
MODEL_NAME = "tiny"
INSTALL = "python -m inference_backend sglang-cpu install"
NOT_PRESENT = f"not present - make it with `{INSTALL}`"
_COMPLAINT_LINES = 40


class InstallError(RuntimeError):
    """A step failed; the text has the end of what it printed."""


@dataclass(frozen=True, slots=True)
class _Step:
    title: str
    digest: str
    command: Sequence[str | Path]


class Place:
    """The environment in one directory: `directory`, else $ROUTER_SGLANG_CPU, else a folder of the user's cache."""

    def __init__(self, directory: Path | None = None) -> None:
        chosen = directory or os.environ.get(VARIABLE) or _cache() / "router" / "sglang-cpu"
        self.root = Path(chosen).expanduser().absolute()
        self.python = self.root / "venv" / "bin" / "python"
        self.model = self.root / "model"
        self._record = self.root / "steps.json"

    @property
    def is_present(self) -> bool:
        """Whether every step was done, with what this version of the project asks for."""
        done = self._done()
        return self.python.exists() and all(done.get(step.title) == step.digest for step in self._steps())

    def command(self, port: int, host: str = "127.0.0.1", extra: Sequence[str] = ()) -> list[str]:
        """Return the command line of the server; `extra` comes last, so that it wins.

        Without a bound on its tokens SGLang takes all memory of the machine for its cache.
        """
        return [
            str(self.python), "-m", "sglang.launch_server", "--device", "cpu",
            "--model-path", str(self.model), "--served-model-name", MODEL_NAME,
            "--host", host, "--port", str(port),
            "--max-total-tokens", "65536", "--max-running-requests", "64",
            "--context-length", "4096", "--chunked-prefill-size", "2048",
            "--enable-metrics", "--enable-cache-report", *extra,
        ]  # fmt: skip

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the variables the server needs, over `base`."""
        defaults = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        path = os.pathsep.join(filter(None, (str(SHIM), base.get("PYTHONPATH"))))
        return {**defaults, **base, "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": path}

    def install(self, tell: Callable[[str], None], show: Callable[[str], None]) -> None:
        """Make or complete it. `tell` gets a line per step, `show` what a running step last said.

        Raises InstallError. Harmless when all is there; one install runs at a time.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(tell):
            steps = self._steps()
            for number, step in enumerate(steps, 1):
                head = f"{number}/{len(steps)} {step.title}"
                done = self._done()
                if done.get(step.title) == step.digest and self.python.exists():
                    tell(f"{head}: there already")
                    continue
                begun_s = monotonic()
                self._run(step, head, show)
                self._record.write_text(json.dumps({**self._done(), step.title: step.digest}, indent=1))
                tell(f"{head}: {monotonic() - begun_s:.0f} s")

    def _steps(self) -> list[_Step]:
        pip = (self.python, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check")
        maker = HERE / "tiny_model.py"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shim = b"".join(path.read_bytes() for path in sorted(SHIM.rglob("*.py")))
        trial = "import sglang.srt.entrypoints.http_server, sglang; print(sglang.__version__)"
        return [
            _Step("virtual environment", version, (sys.executable, "-m", "venv", self.root / "venv")),
            _Step("torch", _digest(pins.TORCH), (*pip, *pins.TORCH)),
            _Step("what SGLang imports", _digest(pins.IMPORTED), (*pip, *pins.IMPORTED)),
            _Step(f"SGLang {pins.SGLANG}", _digest(pins.BARE), (*pip, "--no-deps", *pins.BARE)),
            _Step("tiny model", _digest((maker.read_text(),)), (self.python, maker, self.model)),
            _Step("trial import", sha256(shim).hexdigest(), (self.python, "-c", trial)),
        ]

    def _run(self, step: _Step, head: str, show: Callable[[str], None]) -> None:
        lines: list[str] = []
        with subprocess.Popen(  # noqa: S603 - every word of the command is ours
            [str(word) for word in step.command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", cwd=self.root, env=self.environment(os.environ),
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                lines = [*lines[1 - _COMPLAINT_LINES :], line.rstrip()]
                show(f"{head}: {line.strip()}")
        if process.returncode:
            raise InstallError("\n".join([f"{head}: exit code {process.returncode}", *lines]))

    def _done(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}
        return found

    @contextmanager
    def _locked(self, tell: Callable[[str], None]) -> Iterator[None]:
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("another install runs here; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _digest(words: Sequence[str]) -> str:
    return sha256("\n".join(words).encode()).hexdigest()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
