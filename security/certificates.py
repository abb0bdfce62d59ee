"""Who a certificate speaks for: X.509 certificates of a federation, read and judged. Bytes in, no files.

A federation has an authority, whose key signs the certificates of its server and its sites. Keys are P-256, because TLS
takes them everywhere. A certificate names its holder in a URI (`veil://FEDERATION/site/NAME` or
`veil://FEDERATION/server`), and a site's also carries the public key of its Ed25519 identity, so that whoever is
connected and whoever signs statements are known to be one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from security.errors import UsageError

DAY: Final = 86400.0
AUTHORITY_DAYS: Final = 3653
LEAF_DAYS: Final = 365
BACKDATED: Final = 300.0  # seconds, for clocks that are behind
WARNING_DAYS: Final = 30

# A number of our own, which nobody has to hand out: 2.25 and a UUID (ITU-T X.667).
IDENTITY_OID: Final = x509.ObjectIdentifier("2.25.270072998000185732127449807940755977562")

Role = Literal["site", "server"]
SERVER: Final = "server"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_URI: Final = re.compile(rf"veil://({_NAME.pattern})/(?:site/({_NAME.pattern})|(server)|(authority))")
_LARGEST: Final = 1 << 16
_USES: Final = {"site": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


class CertificateError(UsageError):
    """A certificate that is none, or not what it is taken for. The text doesn't say in which file it lies."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who a certificate speaks for.

    Attributes:
        federation: its name.
        role: of the holder.
        name: of the site; the server's is "server".
        serial: of the certificate.
        not_before, not_after: seconds since 1970.
        identity: Ed25519 public key in hexadecimal; None for the server.
        fingerprint: SHA-256 of the certificate's DER, in hexadecimal.
    """

    federation: str
    role: Role
    name: str
    serial: int
    not_before: float
    not_after: float
    identity: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Authority:
    """Whose signature makes a certificate one of the federation. The attributes are those of a `Peer`."""

    federation: str
    not_before: float
    not_after: float
    fingerprint: str


def is_name(text: str) -> bool:
    """Whether a federation or a site may be called so."""
    return _NAME.fullmatch(text) is not None


def server_name(federation: str) -> str:
    """The DNS name that the certificate of every server of this federation has, wherever it runs.

    Sites look for it and for no other, so a server may move to another address and no address makes a server. A
    digest, because not every federation's name is a name to DNS.
    """
    return f"server.{hashlib.sha256(federation.encode()).hexdigest()[:40]}.veil.internal"


def uri_of(federation: str, role: Role | Literal["authority"], name: str = SERVER) -> str:
    """The URI that names a holder."""
    return f"veil://{federation}/site/{name}" if role == "site" else f"veil://{federation}/{role}"


def read_peer(pem: bytes) -> Peer:
    """Who a site's or server's certificate speaks for. Nobody vouches for that yet: see `check_issued_by`.

    Raises:
        CertificateError: it isn't one of Veil's.
    """
    with _foreign_certificate():
        found = load_certificate(pem)
        federation, site, server, _ = _named(found)
        if site is None and server is None:
            raise CertificateError("is the certificate of an authority, not of a site or server")
        role: Role = "server" if site is None else "site"
        if list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) != [_USES[role]]:
            raise CertificateError(f"is not meant for a {role}'s connections")
        if found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise CertificateError("may issue certificates, which a site's or server's never may")
        identity = _identity(found)
        if (identity is None) == (role == "site"):
            raise CertificateError("does not name the identity of its site")
        return Peer(
            federation=federation,
            role=role,
            name=SERVER if site is None else site,
            serial=found.serial_number,
            not_before=found.not_valid_before_utc.timestamp(),
            not_after=found.not_valid_after_utc.timestamp(),
            identity=identity,
            fingerprint=_fingerprint(found),
        )


def read_authority(pem: bytes) -> Authority:
    """Whose certificate the authority's is. It vouches for itself: people compare the fingerprint.

    Raises:
        CertificateError: it isn't the certificate of an authority of Veil's, or not signed by its own key.
    """
    with _foreign_certificate():
        found = load_certificate(pem)
        federation, _, _, authority = _named(found)
        limits = found.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
        if authority is None or not (limits.ca and limits.path_length == 0 and usage.key_cert_sign and usage.crl_sign):
            raise CertificateError("is not the certificate of an authority")
        try:
            found.verify_directly_issued_by(found)
        except InvalidSignature:
            raise CertificateError("is not signed by its own key") from None
        return Authority(
            federation=federation,
            not_before=found.not_valid_before_utc.timestamp(),
            not_after=found.not_valid_after_utc.timestamp(),
            fingerprint=_fingerprint(found),
        )


def check_issued_by(pem: bytes, authority_pem: bytes) -> None:
    """Check that the authority signed this certificate, and for its own federation; not when it is valid.

    Raises:
        CertificateError: it didn't.
    """
    peer, authority = read_peer(pem), read_authority(authority_pem)
    if peer.federation != authority.federation:
        raise CertificateError(f"is of federation '{peer.federation}', the authority of '{authority.federation}'")
    with _foreign_certificate():
        try:
            load_certificate(pem).verify_directly_issued_by(load_certificate(authority_pem))
        except (InvalidSignature, ValueError, TypeError):
            raise CertificateError("was not issued by this authority") from None


def load_certificate(pem: bytes) -> x509.Certificate:
    """The one certificate that a PEM file holds.

    Raises:
        CertificateError: it holds none, several, or one whose key is of another kind.
    """
    try:
        found = x509.load_pem_x509_certificates(pem) if len(pem) <= _LARGEST else []
    except (ValueError, UnsupportedAlgorithm):
        found = []
    if len(found) != 1:
        raise CertificateError("is not one certificate in PEM")
    try:
        key = found[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("has another kind of key than P-256")
    return found[0]


def public_key_of(pem: bytes) -> bytes:
    """The public key of a certificate (DER), to be compared with a key's own."""
    return load_certificate(pem).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def expires_in(peer: Peer | Authority, now: float) -> float:
    """Seconds until a certificate expires; negative afterwards. `now` is in seconds since 1970."""
    return peer.not_after - now


def expiry_warning(peer: Peer, now: float) -> str | None:
    """What a person must know of a certificate's time, in one line; None while all is well for another 30 days."""
    left, day = expires_in(peer, now), _day(peer.not_after)
    whose = "the server's certificate" if peer.role == "server" else f"the certificate of site '{peer.name}'"
    renew = (
        "run `veil provision server --renew` at the authority"
        if peer.role == "server"
        else "run `veil site request --renew` and have it approved"
    )
    if now < peer.not_before:
        return f"{whose} is not valid before {_day(peer.not_before)}: check this machine's clock"
    if left <= 0:
        return f"{whose} expired on {day}: {renew}"
    if left > WARNING_DAYS * DAY:
        return None
    days = int(left // DAY)
    when = "today" if days == 0 else "in 1 day" if days == 1 else f"in {days} days"
    return f"{whose} expires {when} ({day}): {renew}"


def _named(found: x509.Certificate) -> tuple[str, str | None, str | None, str | None]:
    uris = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        raise CertificateError("names nobody that Veil knows of")
    return match[1], match[2], match[3], match[4]


def _identity(found: x509.Certificate) -> str | None:
    try:
        extension = found.extensions.get_extension_for_oid(IDENTITY_OID).value
    except x509.ExtensionNotFound:
        return None
    if not isinstance(extension, x509.UnrecognizedExtension) or len(extension.value) != 32:
        raise CertificateError("names an identity that is none")
    return extension.value.hex()


def _fingerprint(found: x509.Certificate) -> str:
    return hashlib.sha256(found.public_bytes(Encoding.DER)).hexdigest()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


@contextmanager
def _foreign_certificate() -> Iterator[None]:
    """The library's errors over odd certificates, some of which come only when a field is read."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
    ):
        raise CertificateError("is not a certificate of Veil's") from None
