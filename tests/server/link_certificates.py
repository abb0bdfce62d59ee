"""A federation's certificates for tests, made by hand, so that they may also be wrong in every way."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.certificates import IDENTITY_OID, server_name
from security.identity import Identity

FEDERATION = "clinics"


@dataclass(frozen=True)
class Credentials:
    """A certificate with its keys, in PEM, and the public key of its identity."""

    certificate: bytes
    key: bytes
    identity: str


@dataclass
class TestAuthority:
    """Signs whatever it is asked to."""

    __test__ = False

    federation: str = FEDERATION
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        builder = self._builder(f"veil://{self.federation}/authority", self.key.public_key(), days=30)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        self.certificate = builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)

    def site(
        self, name: str, *, days: float = 1.0, uri: str | None = None, identity: Identity | None = None
    ) -> Credentials:
        """A site's certificate."""
        own = identity or Identity.create()
        uri = uri or f"veil://{self.federation}/site/{name}"
        extension = x509.UnrecognizedExtension(IDENTITY_OID, bytes.fromhex(own.public_hex))
        return self._leaf(uri, ExtendedKeyUsageOID.CLIENT_AUTH, days, extension, own.public_hex)

    def server(self) -> Credentials:
        """The server's certificate."""
        return self._leaf(f"veil://{self.federation}/server", ExtendedKeyUsageOID.SERVER_AUTH, 1.0, None, "")

    def _leaf(
        self,
        uri: str,
        usage: x509.ObjectIdentifier,
        days: float,
        extension: x509.UnrecognizedExtension | None,
        identity: str,
    ) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(uri, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Credentials(certificate, pem, identity)

    def _builder(self, uri: str, key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        if uri.endswith("/server"):
            names += [x509.DNSName(server_name(self.federation)), x509.IPAddress(IPv4Address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri[:64])]))
            .issuer_name(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"veil://{self.federation}/authority"[:64])])
            )
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )


def server_credentials(authority: TestAuthority) -> grpc.ServerCredentials:
    """Mutual TLS, as the real server's."""
    own = authority.server()
    return grpc.ssl_server_credentials(
        [(own.key, own.certificate)], root_certificates=authority.certificate, require_client_auth=True
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
