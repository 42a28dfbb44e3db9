"""What `router sidecar` does over QUIC, from its flags: dial routers from behind a NAT, or take robots by lanes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from router.config.addresses import is_loopback, parse_listen
from router.config.listeners import collector_target
from router.config.static import ConfigError
from router.control import AttachStart
from router.transport.attached import is_name
from router.transport.certificates import TlsFileError
from router.transport.server_tls import read_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.settings import Settings
    from router.transport.server_tls import CertificatePair

_PREFIX: Final = "router-sidecar-"
_TRIES: Final = 3


def quic_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags."""
    options = (
        click.option("--listen-quic", metavar="HOST:PORT",
                     help="UDP: routers bring robots here by lanes instead of a WebSocket. Told by the store."),
        click.option("--robot-telemetry", default="", envvar="ROUTER_ROBOT_TELEMETRY", show_envvar=True,
                     metavar="ADDRESS",
                     help="udp://HOST:PORT or unix:PATH to which robots' telemetry goes, a datagram each: "
                     "a msgpack map of session (the router's), authority, sequence, received_unix_us, payload."),
        click.option("--attach", "attach", multiple=True, metavar="HOST:PORT",
                     help="Router to dial, at its --listen-quic, and be served through; repeatable."),
        click.option("--attach-name", help="As which: letters, digits, hyphens. [default: --replica]"),
        click.option("--attach-token", envvar="ROUTER_ATTACH_TOKEN", show_envvar=True,
                     help="Proves to the router that it may."),
        click.option("--attach-ca", type=click.Path(exists=True, dir_okay=False),
                     help="Authorities of the router's certificate, in PEM; the system's if not given."),
        click.option("--attach-cert", type=click.Path(exists=True, dir_okay=False),
                     help="Certificate to show to a router that asks for one (--tls-client-ca), in PEM."),
        click.option("--attach-key", type=click.Path(exists=True, dir_okay=False), help="Its key."),
        click.option("--attach-insecure", is_flag=True, help="Take any certificate of the router: for trying out."),
        click.option("--attach-listen", default="0.0.0.0:0", show_default=True,
                     help="HOST:PORT (UDP) to dial from, and for robots that come directly."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


class SidecarQuic:
    """What the flags say: `attach` is None without --attach. `close` removes the certificate that was made."""

    def __init__(self, values: dict[str, Any], settings: Settings) -> None:
        """Check them, and have the relay listen with a certificate of its own. ConfigError names the flag."""
        self._folder: OwnFolder | None = None
        self.certificate = ""  # of its authority, PEM
        self.attach: AttachStart | None = None
        where = values["listen_quic"]
        for flag in ("attach_name", "attach_ca", "attach_cert", "attach_key"):
            if values[flag] and not values["attach"]:
                raise ConfigError(f"--{flag.replace('_', '-')}: is for --attach, which is not given")
        settings.robot_telemetry = values["robot_telemetry"]
        collector_target(settings.robot_telemetry)
        if settings.robot_telemetry and not (where or values["attach"]):
            raise ConfigError("--robot-telemetry: is for --listen-quic or --attach, neither of which is given")
        if values["attach"]:
            if where:
                raise ConfigError("--listen-quic: with --attach it is --attach-listen")
            name, routers = _check_attach(values)
            identity = _read_identity(values["attach_cert"], values["attach_key"])
            self._listen(settings, values["attach_listen"])
            settings.unauthenticated = True  # who comes over QUIC is asked for a ticket, see `edge.direct_robots`
            ca = values["attach_ca"]
            self.attach = AttachStart(
                routers,
                name,
                values["attach_token"],
                Path(ca).read_bytes() if ca else b"",
                values["attach_insecure"],
                self.certificate,
                identity,
            )
        elif where:
            host, _ = parse_listen(where, "--listen-quic")
            if not is_loopback(host) and not values["unauthenticated"]:
                raise ConfigError(f"--listen-quic {where}: give --unauthenticated if only routers can reach it")
            self._listen(settings, where)

    def _listen(self, settings: Settings, where: str) -> None:
        from router.cli.certs import make_dev  # noqa: PLC0415 - an extra's

        self._folder = OwnFolder()
        folder = self._folder.path
        make_dev(folder)
        settings.listen_quic = [where]
        settings.tls_cert = [str(folder / "server.pem")]
        settings.tls_key = [str(folder / "server.key")]
        self.certificate = (folder / "ca.pem").read_text()

    def lanes(self, listen: list[str]) -> dict[str, Any] | None:
        """Return what the row says of lanes, from the addresses that the relay listens on; None without any."""
        ports = [int(where.rpartition(":")[2]) for where in listen if where.startswith("quic://")]
        if self.attach is not None or not ports:
            return None
        return {"port": ports[0], "certificate": self.certificate}

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.close()


class OwnFolder:
    """A temporary folder of this process. Of those that were killed theirs is removed by the next."""

    def __init__(self) -> None:
        """Make it, and lock it for as long as we live."""
        root = Path(tempfile.gettempdir())
        for left in root.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                lock = _lock(left)  # refused while its owner lives
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        for _ in range(_TRIES):  # another one may begin in the moment before it is locked, and take it for left
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                self._lock = _lock(self.path)
                if self.path.is_dir():
                    return
        raise FileExistsError(f"no folder in {root} stays ours")

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _lock(folder: Path) -> int:
    """Return the descriptor that holds the folder's lock; OSError if somebody else has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_identity(cert: str | None, key: str | None) -> CertificatePair | None:
    """Return what is shown to routers that ask who is there; None for nothing."""
    if bool(cert) != bool(key):
        raise ConfigError("--attach-key: goes with --attach-cert, and that with it")
    if not cert or not key:
        return None
    from router.transport.quic_identities import ServedIdentity  # noqa: PLC0415 - an extra's

    try:
        pair = read_pair(cert, key)
        ServedIdentity(pair)
    except TlsFileError as failure:
        raise ConfigError(f"--attach-{failure.field}: {failure}") from None
    return pair


def _check_attach(values: dict[str, Any]) -> tuple[str, list[tuple[str, int]]]:
    """Return the name and the routers to dial."""
    name = values["attach_name"] or values["replica_id"] or ""
    if not name:
        raise ConfigError("--attach-name: is needed, the NAME of `http://NAME.attached.alt` in the table")
    if not is_name(name):
        raise ConfigError(f"--attach-name: {name!r} is no label of letters, digits and hyphens")
    if not values["attach_token"]:
        raise ConfigError("--attach-token: there is none; `router token create --scope attach:NAME` makes one")
    return name, [parse_listen(where, "--attach") for where in values["attach"]]
