"""TLS to replicas: contexts by spec and files, what they verify, and what is wrong with a file in words."""

import logging
import os
import ssl

import pytest
from certkit import Authority

from router.routing.spec import TlsSpec
from router.transport import tls
from router.transport.certificates import MAX_PEM_BYTES, TlsFileError, file_stamp
from router.transport.tls import client_context, make_client_context, server_name


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def files(tmp_path, authority):
    """A folder with ca.pem, and replica.pem and client.pem with their keys, signed by it."""
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    authority.sign("replica.test", "127.0.0.1").write(tmp_path, "replica")
    authority.client().write(tmp_path, "client")
    tls._contexts.clear()
    return tmp_path


def serving(files, *, ask=False, versions=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "replica.pem", files / "replica.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files / "ca.pem")
    return context


def shake(client, server, name):
    """Shake hands in memory; return both ends, or raise what the client, or then the server, found wrong."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [ours, theirs]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return ours, theirs
    raise AssertionError("no end of the handshake")


def test_the_replica_is_verified_by_the_authority_that_is_named(files):
    context = client_context(TlsSpec(ca=str(files / "ca.pem")))
    ours, _ = shake(context, serving(files), "replica.test")
    assert ours.selected_alpn_protocol() == "h2"
    assert ours.version() == "TLSv1.3"
    shake(context, serving(files), "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(context, serving(files), "other.test")


def test_the_systems_authorities_are_the_default(files):
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(client_context(TlsSpec()), serving(files), "replica.test")


def test_without_verification_any_certificate_is_taken(files):
    shake(client_context(TlsSpec(verify=False)), serving(files), "other.test")


def test_a_certificate_of_our_own(files):
    ca, server = str(files / "ca.pem"), serving(files, ask=True)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(client_context(TlsSpec(ca=ca)), server, "replica.test")
    spec = TlsSpec(ca=ca, cert=str(files / "client.pem"), key=str(files / "client.key"))
    _, theirs = shake(client_context(spec), server, "replica.test")
    assert dict(field[0] for field in theirs.getpeercert()["subject"]) == {"commonName": "operator"}


def test_certificate_and_key_may_stand_in_one_file(files):
    both = files / "both.pem"
    both.write_bytes((files / "client.key").read_bytes() + (files / "client.pem").read_bytes())
    shake(
        client_context(TlsSpec(ca=str(files / "ca.pem"), cert=str(both))), serving(files, ask=True), "replica.test"
    )


def test_a_health_check_offers_http1_alone(files):
    context = client_context(TlsSpec(ca=str(files / "ca.pem")), ("http/1.1",))
    ours, _ = shake(context, serving(files), "replica.test")
    assert ours.selected_alpn_protocol() == "http/1.1"


def test_nothing_old_is_spoken():
    context = client_context(TlsSpec())
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert all(
        "GCM" in cipher["name"] or "POLY1305" in cipher["name"] for cipher in context.get_ciphers()
    )
    assert all(
        cipher["name"].startswith(("ECDHE", "TLS_")) for cipher in context.get_ciphers()
    )


def test_a_context_is_made_once_for_specs_that_differ_in_the_name_only(files):
    ca = str(files / "ca.pem")
    assert client_context(TlsSpec(ca=ca)) is client_context(TlsSpec(ca=ca, server_name="x"))
    assert client_context(TlsSpec(ca=ca)) is not client_context(TlsSpec(ca=ca, verify=False))
    assert client_context(TlsSpec(ca=ca)) is not client_context(TlsSpec(ca=ca), ("http/1.1",))


def test_the_number_of_contexts_is_bounded(files, monkeypatch):
    monkeypatch.setattr(tls, "MAX_CONTEXTS", 4)
    for i in range(10):
        link = files / f"ca-{i}.pem"
        link.symlink_to(files / "ca.pem")
        client_context(TlsSpec(ca=str(link)))
        assert len(tls._contexts) <= 4


def test_rotated_files_are_in_force_with_the_next_connection(files):
    spec = TlsSpec(ca=str(files / "ca.pem"))
    before = client_context(spec)
    other = Authority("another")
    (files / "new.pem").write_bytes(other.cert)
    os.replace(files / "new.pem", files / "ca.pem")
    after = client_context(spec)
    assert after is not before
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(after, serving(files), "replica.test")
    other.sign("replica.test").write(files, "replica")
    shake(after, serving(files), "replica.test")


def test_rotated_files_that_are_bad_change_nothing_and_are_named_once(files, caplog):
    spec = TlsSpec(ca=str(files / "ca.pem"))
    before = client_context(spec)
    (files / "ca.pem").write_bytes(b"half a fi")
    with caplog.at_level(logging.ERROR):
        assert client_context(spec) is before
        assert client_context(spec) is before
    (said,) = caplog.messages
    assert "tls.ca" in said and "ca.pem" in said
    (files / "ca.pem").unlink()
    assert client_context(spec) is before


def test_what_never_worked_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        client_context(TlsSpec(ca=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("change", "field", "complaint"),
    [
        ({"ca": "none"}, "ca", "cannot be read: no such file"),
        ({"ca": "."}, "ca", "cannot be read: is a directory"),
        ({"ca": "junk"}, "ca", "no certificate in PEM"),
        ({"ca": "torn"}, "ca", "damaged"),
        ({"ca": "huge"}, "ca", "is larger"),
        ({"cert": "none"}, "cert", "cannot be read"),
        ({"cert": "junk"}, "cert", "no certificate in PEM"),
        ({"cert": "torn"}, "cert", "damaged"),
        ({"cert": ""}, "cert", "is needed beside a key"),
        ({"key": "none"}, "key", "cannot be read"),
        ({"key": "junk"}, "key", "no key in PEM"),
        ({"key": "client.pem"}, "key", "no key in PEM"),
        ({"key": ""}, "key", "no key in PEM"),
        ({"key": "replica.key"}, "key", "does not belong to the certificate"),
        ({"key": "locked.key"}, "key", "is encrypted"),
        ({"key": "torn.key"}, "key", "damaged"),
    ],
)
def test_what_is_wrong_with_a_file(files, authority, change, field, complaint):
    (files / "junk").write_bytes(b"not a certificate")
    (files / "torn").write_bytes(authority.cert[:200] + b"\n-----END CERTIFICATE-----\n")
    (files / "torn.key").write_bytes((files / "client.key").read_bytes()[:80])
    (files / "huge").write_bytes(authority.cert + b"\n" * MAX_PEM_BYTES)
    (files / "locked.key").write_bytes(authority.encrypted_key())
    names = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"} | change
    spec = TlsSpec(**{name: str(files / value) if value else "" for name, value in names.items()})
    with pytest.raises(TlsFileError, match=complaint) as refusal:
        make_client_context(spec)
    assert refusal.value.field == field
    assert change[field] == "" or str(refusal.value).startswith(str(files / change[field]))


def test_the_name_asked_for():
    assert server_name(TlsSpec(), "replica.test") == "replica.test"
    assert server_name(TlsSpec(), "replica.test.") == "replica.test"
    assert server_name(TlsSpec(), "::1") == "::1"
    assert server_name(TlsSpec(server_name="other.test"), "replica.test") == "other.test"


def test_a_stamp_follows_links(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    before = file_stamp(str(link))
    link.unlink()
    link.symlink_to(tmp_path / "b")
    assert file_stamp(str(link)) != before
    assert file_stamp("") is None
    assert file_stamp(str(tmp_path / "none")) is None
