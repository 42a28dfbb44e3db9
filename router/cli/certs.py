"""`router certs dev`: an authority and certificates of one's own, for trying TLS out on one machine.

The authority is made once and kept, so that a client that trusts it goes on doing so; it is for nothing but this.
`cryptography` makes them and is in the `tls` extra: serving TLS needs neither.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

AUTHORITY_DAYS = 3_650
CERTIFICATE_DAYS = 365  # clients of Apple take no more than 825, browsers no more than 398
_LOCAL = ("localhost", "127.0.0.1", "::1")
_BACKDATED = dt.timedelta(minutes=5)  # for clocks that differ


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def certs() -> None:
    """Certificates: make some to try TLS out."""


@certs.command()
@click.option("--dir", "folder", default="certs", show_default=True,
              type=click.Path(file_okay=False, path_type=Path),
              help="Where the files are put; made if it is not there.")  # fmt: skip
@click.option("--host", "hosts", multiple=True, help="Name or address beside localhost and its; repeatable.")
@click.option("--force", is_flag=True, help="Overwrite server and client certificates; the authority stays.")
def dev(folder: Path, hosts: tuple[str, ...], force: bool) -> None:
    """Make a local authority, a server certificate and a client certificate, and say how to try them."""
    try:
        import cryptography  # noqa: F401, PLC0415
    except ImportError:
        raise click.UsageError("no cryptography; install it with: pip install 'replica-router[tls]'") from None
    there = [path for path in (folder / name for name in ("server.pem", "server.key", "client.pem", "client.key"))
             if path.exists()]  # fmt: skip
    if there and not force:
        raise click.UsageError(f"{there[0]} is there already; give --force to overwrite it, or another --dir")
    try:
        is_new = make_dev(folder, hosts)
    except (OSError, ValueError) as failure:
        raise click.ClickException(str(failure)) from None
    _print_hints(folder, is_new)


def make_dev(folder: Path, hosts: tuple[str, ...] = ()) -> bool:
    """Write ca, server and client certificates with their keys; whether the authority is new."""
    names = tuple(dict.fromkeys((*_LOCAL, *hosts)))
    folder.mkdir(parents=True, exist_ok=True)
    authority = _Authority.load_or_make(folder)
    _write_pair(folder, "server", *authority.sign(names[0], names, for_servers=True))
    _write_pair(folder, "client", *authority.sign("client", (), for_servers=False))
    return authority.is_new


class _Authority:
    """What signs. `cryptography` is imported where it is used: the command line must start without it."""

    def __init__(self, certificate: Any, key: Any, *, is_new: bool) -> None:
        self._certificate = certificate
        self._key = key
        self.is_new = is_new

    @classmethod
    def load_or_make(cls, folder: Path) -> _Authority:
        """Take the authority that is there, or make one. ValueError for half of one, or one that has expired."""
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

        cert_path, key_path = folder / "ca.pem", folder / "ca.key"
        if cert_path.exists() != key_path.exists():
            missing = key_path if cert_path.exists() else cert_path
            raise ValueError(f"{missing} is missing beside its other half; remove that one, or give another --dir")
        if not cert_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = f"router dev authority of {socket.gethostname()}"
            certificate = _build(name, name, key.public_key(), AUTHORITY_DAYS).add_extension(
                x509.BasicConstraints(ca=True, path_length=0), critical=True
            )
            certificate = certificate.add_extension(_key_usage(is_authority=True), critical=True).add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            signed = _sign(certificate, key)
            _write_pair(folder, "ca", signed, key)
            return cls(signed, key, is_new=True)
        key_found: Any
        try:
            certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
            key_found = serialization.load_pem_private_key(key_path.read_bytes(), None)
        except (ValueError, TypeError) as failure:
            raise ValueError(f"{cert_path} and {key_path} cannot be used: {failure}") from None
        if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
            raise ValueError(f"{cert_path} has expired; remove it and {key_path}")
        if certificate.public_key() != key_found.public_key():
            raise ValueError(f"{key_path} does not belong to {cert_path}; remove both, or give another --dir")
        return cls(certificate, key_found, is_new=False)

    def sign(self, name: str, alternatives: Sequence[str], *, for_servers: bool) -> tuple[Any, Any]:
        """Return a certificate and its key; ValueError for a name that is none."""
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if for_servers else ExtendedKeyUsageOID.CLIENT_AUTH
        issuer = self._certificate.subject
        builder = (
            _build(name, issuer, key.public_key(), CERTIFICATE_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if alternatives:
            named = x509.SubjectAlternativeName([_alternative(each) for each in alternatives])
            builder = builder.add_extension(named, critical=False)
        return _sign(builder, self._key), key


def _build(subject: str, issuer: Any, public_key: Any, days: int) -> Any:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    def name(text: str) -> Any:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # X.520's upper bound

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer) if isinstance(issuer, str) else issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, is_authority: bool) -> Any:
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=is_authority, crl_sign=is_authority, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _sign(builder: Any, key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    return builder.sign(key, hashes.SHA256())


def _alternative(name: str) -> Any:
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if not name.isascii() or len(name) > 253 or not all(
        label and len(label) < 64 and label.replace("-", "").replace("_", "").isalnum() for label in labels
    ):  # fmt: skip
        raise ValueError(f"--host: {name!r} is neither a DNS name nor an IP address")
    return x509.DNSName(name.lower())


def _write_pair(folder: Path, stem: str, certificate: Any, key: Any) -> None:
    """Write both files; the key's is its owner's alone from its first byte."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(folder / f"{stem}.key", secret, 0o600)
    _replace(folder / f"{stem}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Put a file in its place whole: a router may be watching it."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    part.rename(path)


def _print_hints(folder: Path, is_new: bool) -> None:
    made = "made" if is_new else "kept, it was there"
    click.echo(
        f"{folder}/ca.pem       the authority ({made}); for clients to trust, and only on this machine\n"
        f"{folder}/server.pem   with server.key: what the router shows\n"
        f"{folder}/client.pem   with client.key: for clients where --tls-client-ca asks for one\n"
        "\n"
        "router serve --replica http://127.0.0.1:30000 \\\n"
        f"    --listen-tls 127.0.0.1:8443 --tls-cert {folder}/server.pem --tls-key {folder}/server.key\n"
        f"curl --cacert {folder}/ca.pem https://localhost:8443/v1/models\n"
        "\n"
        f"with `--tls-client-ca {folder}/ca.pem` as well, clients must show a certificate:\n"
        f"curl --cacert {folder}/ca.pem --cert {folder}/client.pem --key {folder}/client.key "
        "https://localhost:8443/v1/models"
    )
