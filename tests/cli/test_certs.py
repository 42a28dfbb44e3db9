"""`router certs dev`: what it makes serves, is kept apart from others' eyes, and is not overwritten by accident."""

import ssl
import stat
import sys

import pytest
from click.testing import CliRunner
from cryptography import x509

from router.cli import main
from router.transport.server_tls import read_server_tls


def dev(folder, *args):
    return CliRunner().invoke(main, ["certs", "dev", "--dir", str(folder), *args])


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path):
    found = load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in found]


def test_what_it_makes_serves(tmp_path):
    folder = tmp_path / "made" / "here"
    result = dev(folder, "--host", "gpu.example", "--host", "*.pool.example", "--host", "192.0.2.1", "--host", "localhost")
    assert result.exit_code == 0, result.output
    assert names(folder / "server.pem") == ["localhost", "127.0.0.1", "::1", "gpu.example", "*.pool.example", "192.0.2.1"]
    files = (str(folder / "server.pem"), str(folder / "server.key"))
    tls = read_server_tls([files[0]], [files[1]], str(folder / "ca.pem"), "1.2")
    assert tls.pairs[0].names == ("localhost", "gpu.example", "*.pool.example")
    for stem in ("ca", "server", "client"):
        assert stat.S_IMODE((folder / f"{stem}.key").stat().st_mode) == 0o600
    assert f"--listen-tls 127.0.0.1:8443 --tls-cert {files[0]} --tls-key {files[1]}" in result.output
    assert f"curl --cacert {folder}/ca.pem https://localhost:8443/" in result.output


def test_client_and_server_know_each_other(tmp_path):
    """OpenSSL's strict checks of a chain pass, both ways."""
    assert dev(tmp_path).exit_code == 0
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    for context in (server, client):
        context.load_verify_locations(tmp_path / "ca.pem")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs, ours, theirs):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
    assert theirs.getpeercert()


def test_the_authority_is_kept_and_the_rest_only_overwritten_by_force(tmp_path):
    dev(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused = dev(tmp_path)
    assert refused.exit_code == 2
    assert "server.pem is there already; give --force" in refused.output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert dev(tmp_path, "--force", "--host", "new.example").exit_code == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] == before[name]} == {"ca.pem", "ca.key"}
    load(tmp_path / "server.pem").verify_directly_issued_by(load(tmp_path / "ca.pem"))


@pytest.mark.parametrize("missing", ["ca.pem", "ca.key"])
def test_half_an_authority(tmp_path, missing):
    dev(tmp_path)
    (tmp_path / missing).unlink()
    result = dev(tmp_path, "--force")
    assert result.exit_code == 1
    assert f"{missing} is missing" in result.output


def test_an_authority_that_is_none(tmp_path):
    dev(tmp_path)
    other = tmp_path / "other"
    dev(other)
    (tmp_path / "ca.key").write_bytes((other / "ca.key").read_bytes())
    assert "does not belong" in dev(tmp_path, "--force").output
    (tmp_path / "ca.key").write_bytes(b"junk")
    result = dev(tmp_path, "--force")
    assert result.exit_code == 1
    assert "cannot be used" in result.output


@pytest.mark.parametrize("host", ["", "a b", "-", "a..b", "x" * 64, "ü.example", "http://x", "*"])
def test_a_name_that_is_none(tmp_path, host):
    result = dev(tmp_path, "--host", host)
    assert result.exit_code == 1
    assert "--host: " in result.output
    assert "Traceback" not in result.output


def test_without_cryptography_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    result = dev(tmp_path)
    assert result.exit_code == 2
    assert "pip install 'replica-router[tls]'" in result.output
