"""A certificate speaks for one site or server of one federation, or for nobody."""

from __future__ import annotations

import hashlib
import os
import random
import time
from base64 import encodebytes
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.authority import certify_authority, certify_server, certify_site
from security.certificates import (
    DAY,
    IDENTITY_OID,
    CertificateError,
    check_issued_by,
    expires_in,
    expiry_warning,
    is_name,
    read_authority,
    read_peer,
    server_name,
)
from security.identity import Identity
from security.key_files import new_tls_key
from tests.security.small_federation import Homes, Signer

IDENTITY = bytes(range(32))


def test_a_site_s_certificate_names_site_and_identity(signer: Signer) -> None:
    leaf = signer.site("north", now=signer.now)
    peer = read_peer(leaf.pem)
    assert (peer.federation, peer.role, peer.name) == ("heart-study", "site", "north")
    assert peer.identity == leaf.identity
    assert peer.not_before == int(signer.now - 300)
    assert peer.not_after == int(signer.now + 365 * DAY)
    der = x509.load_pem_x509_certificate(leaf.pem).public_bytes(Encoding.DER)
    assert peer.fingerprint == hashlib.sha256(der).hexdigest()
    check_issued_by(leaf.pem, signer.pem)


def test_a_server_s_certificate_has_the_federation_s_own_name(signer: Signer) -> None:
    leaf = signer.server(names=("fl.example.org", "192.0.2.7", "2001:db8::7"))
    peer = read_peer(leaf.pem)
    assert (peer.role, peer.name, peer.identity) == ("server", "server", None)
    san = x509.load_pem_x509_certificate(leaf.pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.value.get_values_for_type(x509.DNSName) == [server_name("heart-study"), "fl.example.org"]
    assert [str(item) for item in san.value.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "2001:db8::7"]


def test_every_federation_s_name_makes_a_name_for_dns() -> None:
    names = {server_name(name) for name in ("a", "A", "a.b", "a_b", "x" * 100, "9.-")}
    assert len(names) == 6
    assert all(len(label) < 64 for name in names for label in name.split("."))


def test_the_authority_s_certificate_speaks_for_the_authority_alone(signer: Signer) -> None:
    authority = read_authority(signer.pem)
    assert authority.federation == "heart-study"
    with pytest.raises(CertificateError, match="of an authority, not of a site or server"):
        read_peer(signer.pem)
    with pytest.raises(CertificateError, match="is not the certificate of an authority"):
        read_authority(signer.site().pem)


def test_only_the_authority_s_own_certificates_are_its(signer: Signer, other_signer: Signer, stranger: Signer) -> None:
    for leaf in (signer.site(), signer.server()):
        check_issued_by(leaf.pem, signer.pem)
        with pytest.raises(CertificateError, match="not issued by this authority"):
            check_issued_by(leaf.pem, other_signer.pem)
        with pytest.raises(CertificateError, match="of federation 'heart-study', the authority of 'lung-study'"):
            check_issued_by(leaf.pem, stranger.pem)


def test_a_site_can_t_issue_certificates(signer: Signer) -> None:
    site = signer.site()
    forged = certify_site(
        signer.pem,
        site.key,
        federation="heart-study",
        site="south",
        key=new_tls_key().public_key(),
        identity=IDENTITY.hex(),
        now=signer.now,
    )
    with pytest.raises(CertificateError, match="not issued by this authority"):
        check_issued_by(forged, signer.pem)
    with pytest.raises(CertificateError, match="not the certificate of an authority"):
        check_issued_by(forged, site.pem)


def test_the_authority_of_one_federation_issues_none_for_another(signer: Signer) -> None:
    odd = certify_server(
        signer.pem, signer.key, federation="lung-study", names=(), key=new_tls_key().public_key(), now=signer.now
    )
    with pytest.raises(CertificateError, match="of federation 'lung-study', the authority of 'heart-study'"):
        check_issued_by(odd, signer.pem)


def test_no_certificate_outlives_its_authority() -> None:
    key, now = new_tls_key(), time.time()
    authority = certify_authority("short", key, now=now, days=10)
    pem = certify_server(authority, key, federation="short", names=(), key=key.public_key(), now=now)
    assert read_peer(pem).not_after == read_authority(authority).not_after
    with pytest.raises(CertificateError, match="authority's certificate has expired"):
        certify_server(authority, key, federation="short", names=(), key=key.public_key(), now=now + 11 * DAY)


# --- what is no certificate of Veil's


def build(
    *,
    uris: tuple[str, ...] = ("veil://heart-study/site/north",),
    usage: tuple[x509.ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    identity: bytes | None = IDENTITY,
    ca: bool | None = False,
    key: object = None,
) -> bytes:
    """A site's certificate, but for what a test changes."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    start = x509.load_pem_x509_certificate(SAMPLE).not_valid_before_utc
    builder = x509.CertificateBuilder(name, name, own.public_key(), 7, start, start)  # type: ignore[attr-defined]
    if uris:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(san, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if identity is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(IDENTITY_OID, identity), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    digest = None if isinstance(own, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(own, digest).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


SAMPLE = certify_authority("heart-study", new_tls_key(), now=time.time())


def test_the_certificate_that_the_tests_change_is_good() -> None:
    assert read_peer(build()).identity == IDENTITY.hex()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uris": ()}, "not a certificate of Veil's"),
        ({"uris": ("https://example.org",)}, "names nobody that Veil knows"),
        ({"uris": ("veil://heart-study/site/",)}, "names nobody"),
        ({"uris": ("veil://heart-study/site/a/b",)}, "names nobody"),
        ({"uris": ("veil://heart-study/site/..",)}, "names nobody"),
        ({"uris": ("veil://heart-study/site/north\n",)}, "names nobody"),
        ({"uris": ("veil:///site/north",)}, "names nobody"),
        ({"uris": ("veil://heart-study/site/" + "n" * 101,)}, "names nobody"),
        ({"uris": ("veil://heart-study/site/north", "veil://heart-study/site/south")}, "names nobody"),
        ({"uris": ("veil://heart-study/server",)}, "not meant for a server's connections"),
        ({"uris": ("veil://heart-study/server",), "usage": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "identity"),
        ({"usage": None}, "not a certificate of Veil's"),
        ({"usage": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "not meant for a site's connections"),
        ({"usage": (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)}, "not meant for a site's"),
        ({"identity": None}, "does not name the identity"),
        ({"identity": b""}, "an identity that is none"),
        ({"identity": IDENTITY + b"!"}, "an identity that is none"),
        ({"ca": True}, "may issue certificates"),
        ({"ca": None}, "not a certificate of Veil's"),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, "another kind of key"),
        ({"key": rsa.generate_private_key(65537, 2048)}, "another kind of key"),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, "another kind of key"),
    ],
)
def test_what_is_odd_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        read_peer(build(**change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        lambda _: os.urandom(500),
        lambda pem: pem + pem,
        lambda pem: pem[:200],
        lambda pem: pem.replace(b"CERTIFICATE", b"PRIVATE KEY"),
        lambda pem: b"\n" * (1 << 17) + pem,
    ],
)
def test_what_is_no_certificate_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CertificateError):
        read_peer(spoil(build()))
    with pytest.raises(CertificateError):
        read_authority(spoil(SAMPLE))


def test_no_changed_byte_gets_by(signer: Signer) -> None:
    """Each byte of a certificate is changed in turn."""
    pem = signer.site().pem
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    draw = random.Random(7)
    for index in range(len(der)):
        spoiled = bytearray(der)
        spoiled[index] ^= draw.randrange(1, 256)
        with pytest.raises(CertificateError):
            check_issued_by(_pem(bytes(spoiled)), signer.pem)


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n"


# --- time


@pytest.mark.parametrize(
    ("days_left", "words"),
    [
        (200, None),
        (30.01, None),
        (29.9, "expires in 29 days"),
        (1.5, "expires in 1 day ("),
        (0.5, "expires today"),
        (-0.5, "expired on"),
        (-400, "not valid before"),
    ],
)
def test_a_warning_comes_a_month_before_the_end(signer: Signer, days_left: float, words: str | None) -> None:
    peer = read_peer(signer.site().pem)
    now = peer.not_after - days_left * DAY
    if days_left == -400:
        now = peer.not_before - DAY
    warning = expiry_warning(peer, now)
    assert (warning is None) == (words is None)
    if words is not None and warning is not None:
        assert words in warning
        assert "\n" not in warning
        assert ("veil site request --renew" in warning) == (days_left != -400)
    if days_left != -400:
        assert expires_in(peer, now) == pytest.approx(days_left * DAY)


def test_the_server_s_warning_names_the_server_s_remedy(signer: Signer) -> None:
    peer = read_peer(signer.server().pem)
    assert "veil provision server --renew" in (expiry_warning(peer, peer.not_after + 1) or "")


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 100])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a b", "ä", "x" * 101, "a\n"])
def test_what_can_t_be_a_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValueError, match="can't be called"):
        certify_authority(name, new_tls_key(), now=time.time())


# --- an independent reading: DER by hand, and the signature by the textbook (FIPS 186-5, 6.4.2)

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int] | None


def add(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    slope = (3 * a[0] ** 2 - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope**2 - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def times(k: int, point: Point) -> Point:
    total: Point = None
    while k:
        if k & 1:
            total = add(total, point)
        point, k = add(point, point), k >> 1
    return total


def element(der: bytes) -> tuple[bytes, bytes, bytes]:
    """The first element whole, its content, and what follows."""
    length, start = der[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(der[2:start], "big")
    return der[: start + length], der[start : start + length], der[start + length :]


def test_another_implementation_agrees_with_the_signature(signer: Signer) -> None:
    leaf = signer.site()
    der = x509.load_pem_x509_certificate(leaf.pem).public_bytes(Encoding.DER)
    signed, _, rest = element(element(der)[1])
    algorithm, _, rest = element(rest)
    assert bytes.fromhex("06082a8648ce3d040302") in algorithm  # ecdsa-with-SHA256
    first, _, second = element(element(element(rest)[1][1:])[1])
    r, s = int.from_bytes(element(first)[1], "big"), int.from_bytes(element(second)[1], "big")
    public = signer.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    q = int.from_bytes(public[1:33], "big"), int.from_bytes(public[33:], "big")

    def is_valid(digest: bytes) -> bool:
        inverse = pow(s, -1, N)
        point = add(times(int.from_bytes(digest, "big") * inverse % N, G), times(r * inverse % N, q))
        return point is not None and point[0] % N == r

    assert is_valid(hashlib.sha256(signed).digest())
    assert not is_valid(hashlib.sha256(signed + b"!").digest())
    assert bytes.fromhex(leaf.identity) in signed
    assert b"veil://heart-study/site/north" in signed


def test_the_identity_in_the_certificate_is_the_one_that_signs(made: Homes) -> None:
    identity = Identity.load(made.site.identity_key)
    assert made.site.peer().identity == identity.public_hex
