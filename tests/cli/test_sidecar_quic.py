"""Flags of a sidecar's QUIC; the folder in which a sidecar keeps its certificate: whose owner was killed is removed by the next."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli.sidecar import sidecar
from router.cli.sidecar_quic import OwnFolder


def test_what_a_killed_one_left_is_removed_and_a_living_ones_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run(
        [sys.executable, "-c", "import os; from router.cli.sidecar_quic import OwnFolder as F; print(F().path, flush=True); os._exit(9)"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    left = Path(killed.stdout.strip())
    (left / "server.key").write_text("secret")
    (tmp_path / "router-sidecar-link").symlink_to(tmp_path.parent)  # somebody else's trap
    first = OwnFolder()
    assert not left.exists()
    second = OwnFolder()
    assert first.path.is_dir() and second.path.is_dir()
    assert first.path.stat().st_mode & 0o077 == 0
    first.close()
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["router-sidecar-link"]
    assert tmp_path.parent.is_dir()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--robot-telemetry", "udp://h:1"), "--robot-telemetry: is for --listen-quic or --attach"),
        (("--robot-telemetry", "h:1", "--listen-quic", "127.0.0.1:0"), "--robot-telemetry: 'h:1' is neither udp"),
    ],
)
def test_where_telemetry_cannot_go(flags, says, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = CliRunner().invoke(sidecar, ["--upstream", "http://127.0.0.1:1", "--endpoint", "e", "--store", "none", *flags])
    assert result.exit_code == 2
    assert says in result.output
    assert list(tmp_path.iterdir()) == []
