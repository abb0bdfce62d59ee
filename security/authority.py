"""What the authority's key signs: its own certificate, those of sites and server, and the list of revoked ones.

Pure but for the random serial numbers: keys and bytes in, PEM out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.certificates import (
    AUTHORITY_DAYS,
    BACKDATED,
    IDENTITY_OID,
    LEAF_DAYS,
    CertificateError,
    is_name,
    load_certificate,
    server_name,
    uri_of,
)
from security.identity import is_public_key

_LONGEST_COMMON_NAME: Final = 64  # RFC 5280, ub-common-name


def certify_authority(
    federation: str, key: ec.EllipticCurvePrivateKey, *, now: float, days: float = AUTHORITY_DAYS
) -> bytes:
    """The authority's certificate, signed by its own key.

    Args:
        federation: its name.
        key: of the authority.
        now: seconds since 1970.
        days: how long it is valid.

    Raises:
        ValueError: that can't be a federation's name.
    """
    if not is_name(federation):
        raise ValueError("a federation can't be called that")
    subject = _subject(f"{federation} authority")
    usage = _usage(issues=True)
    return (
        _builder(subject, subject, key.public_key(), now, now + days * 86400)
        .add_extension(_san(uri_of(federation, "authority")), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def certify_site(
    authority: bytes,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    federation: str,
    site: str,
    key: ec.EllipticCurvePublicKey,
    identity: str,
    now: float,
    days: float = LEAF_DAYS,
) -> bytes:
    """A site's certificate.

    Args:
        authority: the authority's certificate.
        authority_key: its key.
        federation: its name.
        site: name of the site.
        key: the site's public TLS key.
        identity: public key of the site's identity, in hexadecimal.
        now: seconds since 1970.
        days: how long it is valid; no longer than the authority's.

    Raises:
        ValueError: a name or the identity can't be one.
        CertificateError: the authority's certificate is over.
    """
    if not (is_name(federation) and is_name(site) and is_public_key(identity)):
        raise ValueError("a certificate needs names, and an identity in hexadecimal")
    own = x509.UnrecognizedExtension(IDENTITY_OID, bytes.fromhex(identity))
    return (
        _leaf(authority, site, key, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)
        .add_extension(_san(uri_of(federation, "site", site)), critical=False)
        .add_extension(own, critical=False)
        .sign(authority_key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def certify_server(
    authority: bytes,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    federation: str,
    names: Sequence[str],
    key: ec.EllipticCurvePublicKey,
    now: float,
    days: float = LEAF_DAYS,
) -> bytes:
    """The server's certificate.

    Args:
        authority, authority_key, federation, now, days: as for a site's.
        names: DNS names and IP addresses of the server, beside the name that every server of the federation has.
        key: the server's public TLS key.

    Raises:
        ValueError: that can't be a federation's name.
        CertificateError: the authority's certificate is over.
    """
    if not is_name(federation):
        raise ValueError("a federation can't be called that")
    return (
        _leaf(authority, f"{federation} server", key, now, days, ExtendedKeyUsageOID.SERVER_AUTH)
        .add_extension(_san(uri_of(federation, "server"), (server_name(federation), *names)), critical=False)
        .sign(authority_key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def certify_revocations(
    authority: bytes,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    revoked: Iterable[tuple[int, float]],
    number: int,
    now: float,
) -> bytes:
    """The list of revoked certificates (X.509 CRL), in force until there is a newer one.

    Args:
        authority, authority_key: as for a site's certificate.
        revoked: serial numbers, and when each was revoked, in seconds since 1970.
        number: of the list: one more than that of the list before.
        now: seconds since 1970.
    """
    issuer = load_certificate(authority)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(_time(now - BACKDATED))
        .next_update(max(issuer.not_valid_after_utc, _time(now)))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_ec(issuer)), critical=False)
    )
    for serial, when in revoked:
        item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(when)).build()
        builder = builder.add_revoked_certificate(item)
    return builder.sign(authority_key, SHA256()).public_bytes(Encoding.PEM)


def _leaf(
    authority: bytes,
    common_name: str,
    key: ec.EllipticCurvePublicKey,
    now: float,
    days: float,
    use: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    issuer = load_certificate(authority)
    end = min(now + days * 86400, issuer.not_valid_after_utc.timestamp())
    if end <= now:
        raise CertificateError("the authority's certificate has expired: make a new authority, and every site anew")
    return (
        _builder(_subject(common_name), issuer.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(issues=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_ec(issuer)), critical=False)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: float, end: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(start - BACKDATED))
        .not_valid_after(_time(end))
    )


def _san(uri: str, names: Sequence[str] = ()) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def _usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        crl_sign=issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_LONGEST_COMMON_NAME])])


def _ec(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # load_certificate takes no other
    return key


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
