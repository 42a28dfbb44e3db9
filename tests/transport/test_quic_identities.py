"""Certificates as aioquic's TLS wants them: found by name, and what it cannot sign with refused before it serves."""

import datetime as dt

import pytest
from certkit import Authority, Pair
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from router.transport.certificates import TlsFileError
from router.transport.quic_identities import ServedIdentities
from router.transport.server_tls import CertificatePair, ServerTls


@pytest.fixture(scope="module")
def authority():
    return Authority()


def served(*pairs, chain=b""):
    return ServedIdentities(
        ServerTls(tuple(CertificatePair(f"{i}.pem", p.cert + chain, p.key, names, 0.0) for i, (p, names) in enumerate(pairs)))
    )


def of_kind(authority, key):
    """A certificate with this key."""
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(authority.certificate.subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).sign(authority.private, hashes.SHA256())
    )  # fmt: skip
    return Pair(made, key)


def test_by_name(authority):
    one, two = authority.sign("a.test"), authority.sign("*.b.test")
    found = served((one, ("a.test",)), (two, ("*.b.test",)))
    assert found.find("x.b.test").certificate == two.certificate
    assert found.find("A.TEST.").certificate == found.find("").certificate == found.find("c.test").certificate == one.certificate
    assert found.find("a.test").key.public_key() == one.private.public_key()


def test_a_chain_is_sent_behind_its_leaf(authority):
    found = served((authority.sign("a.test"), ("a.test",)), chain=authority.cert).find("")
    assert found.chain == [authority.certificate]


@pytest.mark.parametrize(
    "key",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65_537, 2_048),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_what_can_be_served(authority, key):
    assert served((of_kind(authority, key()), ())).find("").certificate


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (lambda: ec.generate_private_key(ec.SECP521R1()), "0.pem: has a key on secp521r1, which QUIC cannot use"),
        (lambda: dsa.generate_private_key(2_048), "0.pem: has a key of a kind that QUIC cannot use"),
    ],
)
def test_what_cannot(authority, key, text):
    with pytest.raises(TlsFileError) as refusal:
        served((of_kind(authority, key()), ()))
    assert (refusal.value.field, str(refusal.value)) == ("key", text)


def test_what_cannot_be_read(authority):
    pair = authority.sign("a.test")
    with pytest.raises(TlsFileError, match="cannot be served over QUIC"):
        ServedIdentities(ServerTls((CertificatePair("0.pem", pair.cert, b"no key", (), 0.0),)))
