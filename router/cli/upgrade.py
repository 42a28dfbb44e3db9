"""`router serve --upgrade`: has the running daemon replace itself, waits for it, and says how it went.

The daemon is found by its admin listener; where that cannot be (`none`, port 0) by --pid-file, asked by SIGQUIT.
It starts its own command line again, not this one's: what is to change belongs into the file. Exit 0: a new process
serves; 1: there is nothing to upgrade, or it failed and the old process goes on.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from router.cli.admin_client import LOOK_S, AdminClient, UnreachableError, error_text
from router.config.addresses import parse_listen, unix_path
from router.service import PidFile

if TYPE_CHECKING:
    from router.config.settings import Settings

GRACE_S = 5.0  # beyond --upgrade-timeout-s, for the daemon to notice itself


class UpgradeError(Exception):
    """It cannot be, or was not; the text says why."""


def upgrade(settings: Settings) -> int:
    """Do it and return the exit code."""
    try:
        new = _by_admin(settings) if _has_address(settings.admin) else _by_pid_file(settings)
    except UpgradeError as failure:
        click.echo(f"Error: {failure}", err=True)
        return 1
    click.echo(f"upgraded: process {new} serves")
    return 0


def _has_address(admin: str) -> bool:
    return admin != "none" and bool(unix_path(admin, "--admin") or parse_listen(admin, "--admin")[1])


def _by_admin(settings: Settings) -> int:
    client = AdminClient(settings.admin, settings.admin_token)
    try:
        status, answer = client.call("POST", "/upgrade")
    except UnreachableError as failure:
        raise UpgradeError(f"nothing to upgrade: no daemon answers on --admin {failure}") from None
    if status != 202:
        raise UpgradeError(error_text(answer))
    old = int(answer["pid"])
    ends_s = time.monotonic() + settings.upgrade_timeout_s + GRACE_S
    while time.monotonic() < ends_s:
        try:
            _, info = client.call("GET", "/server_info")
        except UnreachableError:
            info = None  # between two processes there is none; if it lasts, the limit ends it
        if isinstance(info, dict) and info.get("pid") != old:
            return int(info["pid"])
        if isinstance(info, dict) and not info["upgrading"] and info["last_upgrade"]:
            raise UpgradeError(f"process {old} goes on: {info['last_upgrade']['error']}")
        time.sleep(LOOK_S)
    raise UpgradeError(f"process {old} did not say how it went")


def _by_pid_file(settings: Settings) -> int:
    if not settings.pid_file:
        raise click.UsageError("--upgrade finds the daemon by its --admin address or its --pid-file; give one")
    file = PidFile(settings.pid_file)
    old = file.read()
    if old is None or not _is_router(old):
        raise UpgradeError(f"nothing to upgrade: --pid-file {settings.pid_file} names no running router")
    os.kill(old, signal.SIGQUIT)
    ends_s = time.monotonic() + settings.upgrade_timeout_s + GRACE_S
    while time.monotonic() < ends_s:
        new = file.read()
        if new is not None and new != old:
            return new
        time.sleep(LOOK_S)
    raise UpgradeError(f"process {old} did not hand over; its log says why")


def _is_router(pid: int) -> bool:
    """Whether that process is one of ours: SIGQUIT ends others, and numbers are used again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"serve" in words and any(b"router" in word for word in words)
