"""The certificates that TLS listeners serve: read, kept, read again when their files change.

Files are replaced one after another, so what changed is read only once it has been the same for two looks. What
cannot be used is refused by name, what was there stays, and the same files are not tried again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.transport.certificates import file_stamp

if TYPE_CHECKING:
    from router.config.settings import Settings
    from router.transport.certificates import Stamp
    from router.transport.server_tls import ServerTls

WATCH_S = 2.0
"""Between two looks at the files."""


class ServedCertificates:
    """What is in force: `tls`, None without TLS listeners."""

    def __init__(self, settings: Settings) -> None:
        """Read the files; ConfigError names the flag."""
        self._settings = settings
        self._paths = [*settings.tls_cert, *settings.tls_key, settings.tls_client_ca]
        self._tried = self._seen = self._look()
        self.tls: ServerTls | None = settings.server_tls()

    def reload(self) -> ServerTls | None:
        """Read the files again. Return what is new, None if nothing is; ConfigError: what was there stays."""
        self._tried = self._seen = self._look()
        tls = self._settings.server_tls()
        if tls == self.tls:
            return None
        self.tls = tls
        return tls

    def is_due(self) -> bool:
        """Look at the files; return whether they changed, and have come to rest since the last look."""
        before, self._seen = self._seen, self._look()
        return self._seen != self._tried and self._seen == before

    def shown(self) -> list[dict[str, Any]]:
        """Return what an operator may see of each: its file, its names, when it expires."""
        pairs = self.tls.pairs if self.tls is not None else ()
        return [
            {"certificate": pair.path, "names": pair.names, "expires_epoch_s": pair.expires_epoch_s}
            for pair in pairs
        ]

    def _look(self) -> list[Stamp]:
        return [file_stamp(path) for path in self._paths]
