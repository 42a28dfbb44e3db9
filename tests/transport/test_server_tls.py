"""Certificates of listeners: read, tried out, chosen by name."""

import pytest
from certkit import DAY, Authority
from cryptography.x509.oid import ExtendedKeyUsageOID

from router.transport.certificates import TlsFileError
from router.transport.server_tls import CertificatePair, ServerNames, ServerTls, read_server_tls, server_context


@pytest.fixture(scope="module")
def authority():
    return Authority()


def read(*pairs, ca=""):
    return read_server_tls([pair.cert_path for pair in pairs], [pair.key_path for pair in pairs], ca, "1.2")


def made(folder, authority, stem="a", names=("a.test",), **how):
    pair = authority.sign(*names, **how)
    pair.write(folder, stem)
    return pair


def test_what_stands_in_a_certificate(tmp_path, authority):
    pair = made(tmp_path, authority, names=("A.Test", "*.b.test", "192.0.2.1"))
    (found,) = read(pair).pairs
    assert found == CertificatePair(pair.cert_path, pair.cert, pair.key, ("a.test", "*.b.test"), pair.expires)


def test_a_chain_is_read_by_its_leaf(tmp_path, authority):
    pair = made(tmp_path, authority)
    (tmp_path / "a.pem").write_bytes(b"Bag attributes\n" + pair.cert + authority.cert)
    assert read(pair).pairs[0].names == ("a.test",)


def test_a_certificate_without_names_serves_as_the_default(tmp_path, authority):
    assert read(made(tmp_path, authority, names=())).pairs[0].names == ()


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"ends": -DAY / 2}, "has expired"),
        ({"begins": DAY}, "is not valid yet"),
        ({"usage": ExtendedKeyUsageOID.CLIENT_AUTH}, "is not for servers"),
    ],
)
def test_what_no_client_would_take(tmp_path, authority, how, complaint):
    with pytest.raises(TlsFileError, match=complaint) as refusal:
        read(made(tmp_path, authority, **how))
    assert refusal.value.field == "cert"
    assert str(refusal.value).startswith(str(tmp_path / "a.pem"))


def test_the_pair_at_fault_is_named(tmp_path, authority):
    good, bad = made(tmp_path, authority, "good"), made(tmp_path, authority, "bad")
    (tmp_path / "bad.key").write_bytes(good.key)
    with pytest.raises(TlsFileError, match="bad.key: does not belong") as refusal:
        read(good, bad)
    assert refusal.value.field == "key"


def test_the_authority_of_clients(tmp_path, authority):
    pair = made(tmp_path, authority)
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    assert read(pair, ca=str(tmp_path / "ca.pem")).client_ca == authority.cert
    with pytest.raises(TlsFileError, match=r"a.pem: holds no certificate of an authority") as refusal:
        read(pair, ca=pair.cert_path)
    assert refusal.value.field == "ca"


def named(*groups):
    return ServerNames(tuple(CertificatePair("", b"", b"", group, 0.0) for group in groups))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.test", 0), ("b.test", 1), ("B.TEST", 1), ("b.test.", 1), ("x.c.test", 2), ("exact.c.test", 3), ("y.x.c.test", 0),
        ("c.test", 0), ("*.c.test", 2), ("", 0), (".", 0), ("..", 0), ("nobody.example", 0), ("both.test", 1), ("x" * 300, 0),
    ],
)  # fmt: skip
def test_the_pair_for_a_name(name, found):
    names = named(("a.test",), ("b.test", "both.test"), ("*.c.test", "both.test"), ("exact.c.test", "*.c.test"))
    assert names.find(name) == found


def test_with_one_pair_no_name_is_looked_at(tmp_path, authority):
    assert server_context(ServerTls(read(made(tmp_path, authority)).pairs)).sni_callback is None
