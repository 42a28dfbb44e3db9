"""A certificate for the TLS measures, made for the run by `openssl` and signed by itself.

P-256, as public authorities issue by default today: a handshake with RSA costs several times as much, on every
proxy alike. Imports nothing of the project.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "apt install openssl"


def openssl() -> str | None:
    """Path of openssl; None when it is not installed."""
    return shutil.which("openssl")


def make_certificate(folder: Path) -> Path:
    """Write `certificate.pem` and `key.pem` for localhost into `folder`, and return it."""
    command = [
        openssl() or "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=30)  # noqa: S603 -- built here
    return folder
