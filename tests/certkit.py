"""Certificates for tests, made by `cryptography`: an authority, what it signs, and what nobody should take."""

import datetime as dt
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)


def name_of(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def alternative(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Pair:
    """A certificate and its key, as PEM and, once written, as paths."""

    def __init__(self, certificate, key):
        self.certificate = certificate
        self.private = key
        self.cert = certificate.public_bytes(serialization.Encoding.PEM)
        self.key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.expires = certificate.not_valid_after_utc.timestamp()

    def encrypted_key(self):
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )

    def write(self, folder, stem):
        """Write `stem`.pem and `stem`.key; return both paths as texts."""
        self.cert_path, self.key_path = str(folder / f"{stem}.pem"), str(folder / f"{stem}.key")
        (folder / f"{stem}.pem").write_bytes(self.cert)
        (folder / f"{stem}.key").write_bytes(self.key)
        return self.cert_path, self.key_path


class Authority(Pair):
    """Signs what it is asked to."""

    def __init__(self, name="test authority"):
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name_of(name))
            .issuer_name(name_of(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        super().__init__(certificate, key)

    def sign(self, *names, begins=-DAY, ends=10 * DAY, usage=ExtendedKeyUsageOID.SERVER_AUTH):
        """Return a pair for these names, the first of which is its common name too."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(names[0] if names else "nameless"))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([alternative(name) for name in names]), critical=False
            )
        return Pair(builder.sign(self.private, hashes.SHA256()), key)

    def client(self, name="operator"):
        return self.sign(name, usage=ExtendedKeyUsageOID.CLIENT_AUTH)
