"""Which store: one setting, five kinds, one wire (google.spanner.v1).

embedded[:PATH]                          our own server; its Unix socket (default under the state directory)
emulator://HOST:PORT[/P/I/D]             Google's emulator, in clear
spanner://PROJECT/INSTANCE/DATABASE      Cloud Spanner, TLS, application-default credentials
omni://HOST:PORT[/P/I/D]                 Spanner Omni, TLS unless the host is this machine
relay://HOST:PORT[/P/I/D], relay:PATH    `router store --follow`, in clear or on a Unix socket
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from router.config.static import ConfigError

DEFAULT_DATABASE = "projects/router/instances/router/databases/router"
MAX_SOCKET_PATH_BYTES = 107
_NAMES = re.compile(r"[a-z][a-z0-9:.-]{1,62}/[a-z][a-z0-9-]{1,62}/[a-z][a-z0-9_-]{1,29}")
_PLACE = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
Kind = Literal["embedded", "emulator", "spanner", "omni", "relay"]


@dataclass(frozen=True, slots=True)
class Target:
    """One store. `address` is as gRPC writes it; `database` is the full resource name."""

    kind: Kind
    address: str
    database: str = DEFAULT_DATABASE

    @property
    def is_secure(self) -> bool:
        """Whether the channel is TLS with credentials."""
        return self.kind == "spanner" or (self.kind == "omni" and not _is_local(self.address))

    @property
    def project(self) -> str:
        """The project's id."""
        return self.database.split("/")[1]

    @property
    def instance(self) -> str:
        """The instance's id."""
        return self.database.split("/")[3]

    @property
    def key(self) -> str:
        """A short name for files that belong to this store."""
        return f"{self.kind}-{hashlib.sha256(f'{self.address} {self.database}'.encode()).hexdigest()[:12]}"

    def __str__(self) -> str:
        """Return it as a log names it."""
        return f"{self.kind} store at {self.address}"


def state_dir(setting: str = "") -> Path:
    """Return the directory in which the daemon keeps what must outlive it."""
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "router"


def default_socket(setting: str = "") -> Path:
    """Return the embedded store's socket where none is named."""
    return state_dir(setting) / "store" / "store.sock"


def parse_target(text: str, state: str = "", flag: str = "--store") -> Target:
    """Parse the setting; ConfigError says what it should look like. `state` is the --state-dir setting."""
    kind, mark, rest = text.partition("://")
    if not mark:
        kind, mark, rest = text.partition(":")
        if kind == "embedded":
            return Target("embedded", _socket(rest or str(default_socket(state)), flag))
        if kind == "relay" and rest.startswith("/"):
            return Target("relay", _socket(rest, flag))
    elif kind == "spanner":
        if not _NAMES.fullmatch(rest):
            raise ConfigError(f"{flag}: {text!r} is not spanner://PROJECT/INSTANCE/DATABASE")
        return Target("spanner", "spanner.googleapis.com:443", _database(rest))
    elif kind in ("emulator", "omni", "relay"):
        place, _, names = rest.partition("/")
        found = _PLACE.fullmatch(place)
        if found is None or not 0 < int(found[2]) < 65_536 or (names and not _NAMES.fullmatch(names)):
            raise ConfigError(f"{flag}: {text!r} is not {kind}://HOST:PORT[/PROJECT/INSTANCE/DATABASE]")
        return Target(kind, place, _database(names) if names else DEFAULT_DATABASE)  # type: ignore[arg-type]
    raise ConfigError(
        f"{flag}: {text!r} is not embedded, emulator://HOST:PORT, spanner://PROJECT/INSTANCE/DATABASE, "
        "omni://HOST:PORT or relay://HOST:PORT"
    )


def _socket(path: str, flag: str) -> str:
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{flag}: a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes: {path}")
    return f"unix:{path}"


def _database(names: str) -> str:
    project, instance, database = names.split("/")
    return f"projects/{project}/instances/{instance}/databases/{database}"


def _is_local(address: str) -> bool:
    return address.startswith(("localhost:", "127.", "[::1]:"))
