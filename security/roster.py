"""The roster: which sites a federation has, each with the identity that it signs with.

Sites agree on it, not the server (rule 8): each site's owner compares the identities, and signs that it approves. A
site works with a roster that its own identity has approved, and with no other. The server's copy says whom it lets in.
The authority signs the roster as well, so that nobody on the way can put a site into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from security.certificates import is_name, load_certificate
from security.errors import UsageError
from security.homes import read_public
from security.identity import Identity, is_public_key, verify
from security.private_files import replace_file
from security.strict_json import canonical, parse_record, pretty

_ROSTER: Final = "veil roster 1"
_APPROVAL: Final = "veil roster approval 1"


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The sites of a federation.

    Attributes:
        federation: its name.
        authority: fingerprint of its authority's certificate.
        sites: public key of each site's identity, by name.
        signature: the authority's, in hexadecimal; empty if it has none.
    """

    federation: str
    authority: str
    sites: Mapping[str, str]
    signature: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        names = all(is_name(name) for name in (self.federation, *self.sites))
        keys = all(is_public_key(key) for key in (self.authority, *self.sites.values()))
        if not names or not keys:
            raise ValueError("a roster holds names, and public keys in hexadecimal")
        if len(set(self.sites.values())) != len(self.sites):
            raise ValueError("two sites of a roster have one identity")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal. The signature is no part of it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """What is digested and signed."""
        return canonical(
            {"kind": _ROSTER, "federation": self.federation, "authority": self.authority, "sites": dict(self.sites)}
        )


def roster_to_json(roster: Roster) -> bytes:
    """As it is written to files."""
    data = {
        "kind": _ROSTER,
        "federation": roster.federation,
        "authority": roster.authority,
        "sites": dict(roster.sites),
        "signature": roster.signature,
    }
    return pretty(data)


def roster_from_json(data: bytes) -> Roster:
    """What `roster_to_json` wrote.

    Raises:
        ValueError: it is no roster; the text names no file.
    """
    found = parse_record(data, _ROSTER, federation=str, authority=str, sites=dict, signature=str)
    if not all(type(key) is str for key in found["sites"].values()):
        raise ValueError("sites is of the wrong type")
    del found["kind"]
    return Roster(**found)


def read_roster(path: Path) -> Roster:
    """Read a roster's file.

    Raises:
        UsageError: it can't be read, or is no roster.
    """
    try:
        return roster_from_json(read_public(path))
    except ValueError as error:
        raise UsageError(f"{path}: {error}; ask the authority for `veil provision roster --out`") from None


def write_roster(path: Path, roster: Roster) -> None:
    """Write a roster, in the place of another if there is one."""
    replace_file(path, roster_to_json(roster))


def sign_roster(roster: Roster, authority_key: ec.EllipticCurvePrivateKey) -> Roster:
    """The roster with the authority's signature (ECDSA with SHA-256)."""
    signature = authority_key.sign(roster.to_bytes(), ec.ECDSA(SHA256())).hex()
    return Roster(federation=roster.federation, authority=roster.authority, sites=roster.sites, signature=signature)


def is_signed(roster: Roster, authority_pem: bytes) -> bool:
    """Whether the holder of this authority's certificate signed the roster."""
    key = load_certificate(authority_pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(bytes.fromhex(roster.signature), roster.to_bytes(), ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


def approve(roster: Roster, identity: Identity) -> bytes:
    """A site's approval: JSON that its identity has signed."""
    return pretty(
        {
            "kind": _APPROVAL,
            "federation": roster.federation,
            "roster": roster.digest,
            "identity": identity.public_hex,
            "signature": identity.sign(_approved(roster)).hex(),
        }
    )


def check_approved(roster: Roster, approval: bytes, identity_hex: str) -> None:
    """Check that this identity has approved this very roster.

    Raises:
        UsageError: it hasn't.
    """
    try:
        found = parse_record(approval, _APPROVAL, federation=str, roster=str, identity=str, signature=str)
        signature = bytes.fromhex(found["signature"])
    except ValueError as error:
        raise UsageError(f"the roster's approval {error}; run `veil site roster approve`") from None
    if found["identity"] != identity_hex:
        raise UsageError("the roster's approval is of another identity; run `veil site roster approve`")
    if found["roster"] != roster.digest or found["federation"] != roster.federation:
        raise UsageError("another roster was approved, not this one; look at it with `veil site roster show`")
    if not verify(identity_hex, signature, _approved(roster)):
        raise UsageError("the roster's approval has a wrong signature; run `veil site roster approve`")


def _approved(roster: Roster) -> bytes:
    return f"{_APPROVAL}\n{roster.federation}\n{roster.digest}\n".encode()
