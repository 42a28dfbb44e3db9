"""Certificates in force: taken when their files came to rest, kept when the new ones are bad."""

import pytest
from certkit import Authority

from router.config.certificates import ServedCertificates
from router.config.settings import Settings
from router.config.static import ConfigError


@pytest.fixture
def made(tmp_path):
    authority = Authority()
    cert, key = authority.sign("a.test").write(tmp_path, "a")
    settings = Settings(listen_tls=["127.0.0.1:0"], tls_cert=[cert], tls_key=[key], replica=["http://127.0.0.1:1"])
    return authority, tmp_path, ServedCertificates(settings)


def test_nothing_is_due_while_nothing_changes(made):
    _, _, served = made
    assert not served.is_due() and not served.is_due()
    assert served.reload() is None


def test_a_change_is_due_once_it_has_come_to_rest(made):
    authority, folder, served = made
    pair = authority.sign("b.test")
    (folder / "a.pem").write_bytes(pair.cert)
    assert not served.is_due(), "the key is still to come"
    (folder / "a.key").write_bytes(pair.key)
    assert not served.is_due()
    assert served.is_due()
    assert served.reload().pairs[0].names == ("b.test",)
    assert not served.is_due()
    assert served.shown() == [
        {"certificate": str(folder / "a.pem"), "names": ("b.test",), "expires_epoch_s": pair.expires}
    ]


def test_bad_files_are_tried_once_and_the_old_stay(made):
    _, folder, served = made
    before = served.tls
    (folder / "a.key").unlink()
    assert not served.is_due()
    assert served.is_due()
    with pytest.raises(ConfigError, match="--tls-key: .*a.key: cannot be read"):
        served.reload()
    assert served.tls is before
    assert not served.is_due() and not served.is_due()


def test_without_tls_there_is_nothing():
    served = ServedCertificates(Settings())
    assert served.tls is None
    assert served.shown() == []
