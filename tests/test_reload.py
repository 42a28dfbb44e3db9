"""What is read again: each part is put in force or refused by itself, and the verdict is on both."""

import pytest
from certkit import Authority

from router.config.certificates import ServedCertificates
from router.config.settings import Settings
from router.config.static_table import StaticTable
from router.control import SetTls
from router.reload import Reload
from router.routing.image import TableImage

FILE = """
[[endpoint]]
name = "e"
[[endpoint.replica]]
address = "http://10.0.0.1:80"
"""


class Told:
    """A worker that keeps what it is told."""

    def __init__(self):
        self.messages = []

    def send(self, message):
        self.messages.append(message)


class Daemon:
    """A reload over files of a folder, with what came of it: the table, and what two workers were told."""

    def __init__(self, folder):
        self.folder, self.authority = folder, Authority()
        self.file = folder / "router.toml"
        self.file.write_text(FILE)
        cert, key = self.authority.sign("a.test").write(folder, "a")
        settings = Settings(config=str(self.file), listen_tls=["127.0.0.1:0"], tls_cert=[cert], tls_key=[key])
        self.workers = [Told(), Told()]
        self.image = TableImage()
        static = StaticTable(settings)
        self.image.apply(self.image.diff(static.spec()))
        certificates = ServedCertificates(settings)
        self.reload = Reload(static, self.image, certificates, self.workers, self.image.apply, 1.0)

    def rotate(self):
        self.authority.sign("b.test").write(self.folder, "a")

    def replicas(self):
        return sorted(self.image.replicas["e"])

    def names(self):
        """What each worker was told of certificates."""
        assert all(isinstance(message, SetTls) for worker in self.workers for message in worker.messages)
        return [[message.tls.pairs[0].names for message in worker.messages] for worker in self.workers]


@pytest.fixture
def daemon(tmp_path):
    return Daemon(tmp_path)


def test_before_the_first_time_all_is_well(daemon):
    assert daemon.reload.last == {"ok": True, "error": "", "at_epoch_s": 1.0}


def test_what_is_new_is_put_in_force_and_certificates_that_are_not_are_not_sent(daemon):
    daemon.file.write_text(FILE.replace("10.0.0.1", "10.0.0.2"))
    daemon.reload.read()
    assert (daemon.replicas(), daemon.names()) == (["10.0.0.2:80"], [[], []])
    daemon.rotate()
    daemon.reload.read()
    assert daemon.names() == [[("b.test",)]] * 2
    assert daemon.reload.last["ok"] and daemon.reload.last["at_epoch_s"] > 1.0


def test_a_bad_part_stays_as_it_was_and_the_other_is_put_in_force(daemon):
    daemon.file.write_text("[[endpoint")
    daemon.rotate()
    daemon.reload.read()
    assert (daemon.replicas(), daemon.names()) == (["10.0.0.1:80"], [[("b.test",)]] * 2)
    assert not daemon.reload.last["ok"] and "router.toml" in daemon.reload.last["error"]
    daemon.file.write_text(FILE.replace("10.0.0.1", "10.0.0.2"))
    (daemon.folder / "a.key").unlink()
    daemon.reload.read()
    assert (daemon.replicas(), len(daemon.workers[0].messages)) == (["10.0.0.2:80"], 1)
    assert "--tls-key" in daemon.reload.last["error"] and "router.toml" not in daemon.reload.last["error"]


def test_the_verdict_is_on_both_until_each_is_well(daemon):
    daemon.file.write_text("[[endpoint")
    (daemon.folder / "a.key").unlink()
    daemon.reload.read()
    assert all(part in daemon.reload.last["error"] for part in ("router.toml", "; ", "--tls-key"))
    daemon.file.write_text(FILE)
    daemon.rotate()
    daemon.reload.read()
    assert daemon.reload.last["ok"] and not daemon.reload.last["error"]
