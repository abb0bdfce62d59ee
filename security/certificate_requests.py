"""What a site sends to get a certificate: its public keys, and proof that it holds both private ones.

The request for the TLS certificate (PKCS #10) is signed by the TLS key and names the identity; the identity signs the
whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from security.certificates import IDENTITY_OID, is_name, uri_of
from security.identity import Identity, is_public_key, verify
from security.strict_json import parse_record, pretty

_KIND: Final = "veil certificate request 1"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request whose signatures are right. That it comes from the site it names, people check by the identity.

    Attributes:
        federation, site: who it is for.
        identity: public key of the site's identity.
        key: public TLS key.
    """

    federation: str
    site: str
    identity: str
    key: ec.EllipticCurvePublicKey


def make_request(federation: str, site: str, tls_key: ec.EllipticCurvePrivateKey, identity: Identity) -> bytes:
    """A site's request, as it is sent."""
    signed = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site[:64])]))
        .add_extension(_names(uri_of(federation, "site", site)), critical=False)
        .add_extension(_identity(identity.public_hex), critical=False)
        .sign(tls_key, SHA256())
    )
    return pretty(
        {
            "kind": _KIND,
            "federation": federation,
            "site": site,
            "identity": identity.public_hex,
            "request": signed.public_bytes(Encoding.PEM).decode(),
            "signature": identity.sign(_signed(signed)).hex(),
        }
    )


def read_request(data: bytes) -> Request:
    """What a site sent.

    Raises:
        ValueError: it is malformed, or a signature is wrong; the text names no file.
    """
    found = parse_record(data, _KIND, federation=str, site=str, identity=str, request=str, signature=str)
    federation, site, identity = found["federation"], found["site"], found["identity"]
    if not is_name(federation) or not is_name(site) or not is_public_key(identity):
        raise ValueError("names a federation, site or identity that can't be one")
    try:
        request = x509.load_pem_x509_csr(found["request"].encode(errors="replace"))
        key, extensions = request.public_key(), request.extensions
        signature = bytes.fromhex(found["signature"])
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, x509.DuplicateExtension, UnsupportedAlgorithm):
        raise ValueError("holds no request for a certificate (PKCS #10 in PEM)") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("asks for a certificate for another kind of key than P-256")
    expected = [_names(uri_of(federation, "site", site)), _identity(identity)]
    if [extension.value for extension in extensions] != expected:
        raise ValueError("asks for a certificate of another site or identity than it names")
    if not is_signed:
        raise ValueError("was not signed by the key that it asks a certificate for")
    if not verify(identity, signature, _signed(request)):
        raise ValueError("was not signed by the identity that it names")
    return Request(federation=federation, site=site, identity=identity, key=key)


def _names(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _identity(public_hex: str) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(IDENTITY_OID, bytes.fromhex(public_hex))


def _signed(request: x509.CertificateSigningRequest) -> bytes:
    return f"{_KIND}\n".encode() + request.public_bytes(Encoding.DER)
