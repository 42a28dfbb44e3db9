"""`router sidecar --attach`: what a replica behind a NAT needs beside the others, from its flags."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from router.config.addresses import parse_listen
from router.config.static import ConfigError
from router.control import AttachStart
from router.transport.attached import is_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.settings import Settings


def attach_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags."""
    options = (
        click.option("--attach", "attach", multiple=True, metavar="HOST:PORT",
                     help="Router to dial, at its --listen-quic, and be served through; repeatable."),
        click.option("--attach-name", help="As which: letters, digits, hyphens. [default: --replica]"),
        click.option("--attach-token", envvar="ROUTER_ATTACH_TOKEN", show_envvar=True,
                     help="Proves to the router that it may."),
        click.option("--attach-ca", type=click.Path(exists=True, dir_okay=False),
                     help="Authorities of the router's certificate, in PEM; the system's if not given."),
        click.option("--attach-insecure", is_flag=True, help="Take any certificate of the router: for trying out."),
        click.option("--attach-listen", default="0.0.0.0:0", show_default=True,
                     help="HOST:PORT (UDP) to dial from, and for robots that come directly."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


class Attaching:
    """What the flags say. `close` removes the certificate that was made."""

    def __init__(self, values: dict[str, Any]) -> None:
        """Check them; ConfigError names the flag."""
        self.name = values["attach_name"] or values["replica_id"] or ""
        self._values = values
        self._folder = tempfile.TemporaryDirectory(prefix="router-sidecar-")
        if not is_name(self.name):
            raise ConfigError(f"--attach-name: {self.name!r} is no label of letters, digits and hyphens")
        if not values["attach_token"]:
            raise ConfigError("--attach-token: there is none; `router token create --scope attach:NAME` makes one")
        self._routers = [parse_listen(where, "--attach") for where in values["attach"]]

    def start(self, settings: Settings) -> AttachStart:
        """Have the relay listen over QUIC, with a certificate of its own; return what its worker is told."""
        from router.cli.certs import make_dev  # noqa: PLC0415 - an extra's

        folder = Path(self._folder.name)
        make_dev(folder)
        settings.listen_quic = [self._values["attach_listen"]]
        settings.tls_cert = [str(folder / "server.pem")]
        settings.tls_key = [str(folder / "server.key")]
        settings.unauthenticated = True  # who comes over QUIC is asked for a ticket, see `edge.direct_robots`
        ca = self._values["attach_ca"]
        return AttachStart(
            self._routers,
            self.name,
            self._values["attach_token"],
            Path(ca).read_bytes() if ca else b"",
            self._values["attach_insecure"],
            (folder / "ca.pem").read_text(),
        )

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
