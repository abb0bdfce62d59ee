"""A grant: what the authority sends to a site that it has approved. It may travel in the open.

It holds the site's certificate, the authority's, the roster and the server's address, all signed by the authority. A
site that sees the authority for the first time can't know it by that: its owner compares the fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from security.addresses import split_address
from security.certificates import (
    CertificateError,
    Peer,
    check_issued_by,
    load_certificate,
    public_key_of,
    read_authority,
    read_peer,
)
from security.roster import Roster, is_signed, roster_from_json, roster_to_json
from security.strict_json import canonical, parse_record, pretty

_KIND: Final = "veil grant 1"


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A grant whose parts fit together.

    Attributes:
        address: of the server, host:port.
        certificate: of the site, PEM.
        authority: certificate of the authority, PEM.
        roster: with the authority's signature.
    """

    address: str
    certificate: bytes
    authority: bytes
    roster: Roster

    @property
    def peer(self) -> Peer:
        """Who it is for."""
        return read_peer(self.certificate)

    @property
    def key(self) -> bytes:
        """The public TLS key that it is for (DER)."""
        return public_key_of(self.certificate)


def grant_to_json(grant: Grant, authority_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign a grant, for sending."""
    content = {
        "kind": _KIND,
        "address": grant.address,
        "certificate": grant.certificate.decode(),
        "authority": grant.authority.decode(),
        "roster": json.loads(roster_to_json(grant.roster)),
    }
    signature = authority_key.sign(canonical(content), ec.ECDSA(SHA256())).hex()
    return pretty({**content, "signature": signature})


def grant_from_json(data: bytes) -> Grant:
    """What was sent, checked in itself: nothing was changed since the authority that it names signed it.

    Raises:
        ValueError: it is no grant, was changed, or its parts don't fit together; the text names no file.
    """
    found = parse_record(data, _KIND, address=str, certificate=str, authority=str, roster=dict, signature=str)
    try:
        grant = Grant(
            address=found["address"],
            certificate=found["certificate"].encode(errors="replace"),
            authority=found["authority"].encode(errors="replace"),
            roster=roster_from_json(canonical(found["roster"])),
        )
        split_address(grant.address)
        _check_signature(found, grant.authority)
        peer, authority = grant.peer, read_authority(grant.authority)
        check_issued_by(grant.certificate, grant.authority)
    except CertificateError as error:
        raise ValueError(f"holds a certificate that {error}") from None
    roster = grant.roster
    if (roster.federation, roster.authority) != (authority.federation, authority.fingerprint):
        raise ValueError("holds a roster of another federation")
    if not is_signed(roster, grant.authority):
        raise ValueError("holds a roster that the authority has not signed")
    if peer.role != "site" or roster.sites.get(peer.name) != peer.identity:
        raise ValueError("is for a site that is not in its roster")
    return grant


def _check_signature(found: dict[str, Any], authority: bytes) -> None:
    content = {key: value for key, value in found.items() if key != "signature"}
    key = load_certificate(authority).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # load_certificate takes no other
    try:
        key.verify(bytes.fromhex(found["signature"]), canonical(content), ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        raise ValueError("was changed after the authority signed it") from None
