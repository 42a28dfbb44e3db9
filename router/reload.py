"""What a daemon reads again while it serves: the file's endpoints, and the certificates of its TLS listeners.

On SIGHUP both, certificates also by themselves when their files have changed. What is bad is refused, named in the
log and in /config_dump, and stays as it was; that does not keep the other part from being put in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from router.config.certificates import WATCH_S
from router.control import SetTls

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.certificates import ServedCertificates
    from router.config.static_table import StaticTable
    from router.routing.image import TableImage
    from router.routing.spec import TablePatch
    from router.worker_process import WorkerProcess

_log = logging.getLogger("router.supervisor")


class Reload:
    """One per daemon, over the workers, a list that the supervisor fills, and the table in force.

    `static` is None with a store, whose table needs no reading again: it is current. `publish` brings a table to
    every worker; ValueError: it cannot be. `last` is how it went, as if it had gone well at `began_epoch_s`.
    """

    def __init__(
        self,
        static: StaticTable | None,
        image: TableImage,
        certificates: ServedCertificates,
        workers: list[WorkerProcess],
        publish: Callable[[TablePatch], None],
        began_epoch_s: float,
    ) -> None:
        self._static = static
        self._image = image
        self._certificates = certificates
        self._workers = workers
        self._publish = publish
        self._refused: dict[str, str] = {}  # of what was read again last: the table, the certificates
        self.last: dict[str, Any] = {"ok": True, "error": "", "at_epoch_s": began_epoch_s}

    def read(self) -> None:
        """Read everything again; what was added and removed by hand is forgotten."""
        if self._static is not None:
            try:
                self._publish(self._image.diff(self._static.reload()))
            except ValueError as refusal:
                self._note("table", str(refusal))
            else:
                self._note("table", "")
        if self._certificates.tls is not None:
            self._read_certificates()

    def watch(self) -> None:
        """Look at the files of certificates from now on, for as long as the loop runs."""
        if self._certificates.tls is not None:
            asyncio.get_running_loop().call_later(WATCH_S, self._look)

    def _look(self) -> None:
        try:
            if self._certificates.is_due():
                self._read_certificates()
        finally:
            asyncio.get_running_loop().call_later(WATCH_S, self._look)

    def _read_certificates(self) -> None:
        """Read the files of TLS listeners again, and give what is new to new connections."""
        try:
            tls = self._certificates.reload()
        except ValueError as refusal:
            self._note("certificates", str(refusal))
            return
        self._note("certificates", "")
        if tls is not None:
            for worker in self._workers:
                worker.send(SetTls(tls))

    def _note(self, part: str, refusal: str) -> None:
        """Keep, and say, how it went; an empty `refusal`: well."""
        self._refused.pop(part, None)
        if refusal:
            self._refused[part] = refusal
            _log.error("reload refused, the old %s stays: %s", part, refusal)
        else:
            _log.info("reloaded: %s", part)
        self.last = {"ok": not self._refused, "error": "; ".join(self._refused.values()), "at_epoch_s": time.time()}
