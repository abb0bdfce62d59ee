"""A small federation for tests: an authority that signs whatever a test wants, and homes of everybody."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from security.authority import certify_authority, certify_server, certify_site
from security.homes import AuthorityHome, ServerHome, SiteHome
from security.identity import Identity
from security.key_files import load_tls_key, new_tls_key, plain_pem

FEDERATION = "heart-study"
FEDERATION_TOML = f"""
name = "{FEDERATION}"
sites = ["north", "south"]
[server]
address = "127.0.0.1:8443"
names = ["fl.example.org", "127.0.0.1"]
"""


@dataclass(frozen=True)
class Leaf:
    """A certificate with its key."""

    pem: bytes
    key: ec.EllipticCurvePrivateKey
    identity: str = ""

    @property
    def key_pem(self) -> bytes:
        return plain_pem(self.key)


class Signer:
    """An authority that signs whatever a test wants."""

    def __init__(self, federation: str = FEDERATION, *, now: float | None = None, days: float = 3650) -> None:
        self.federation = federation
        self.now = time.time() if now is None else now
        self.key = new_tls_key()
        self.pem = certify_authority(federation, self.key, now=self.now, days=days)

    @classmethod
    def of(cls, home: AuthorityHome) -> Signer:
        """The authority of a home, out of office."""
        found = cls.__new__(cls)
        found.federation, found.now = home.authority().federation, time.time()
        found.key, found.pem = load_tls_key(home.authority_key, None), home.authority_certificate.read_bytes()
        return found

    def site(self, name: str = "north", *, now: float | None = None, days: float = 365) -> Leaf:
        key, identity = new_tls_key(), Identity.create().public_hex
        pem = certify_site(
            self.pem,
            self.key,
            federation=self.federation,
            site=name,
            key=key.public_key(),
            identity=identity,
            now=self.now if now is None else now,
            days=days,
        )
        return Leaf(pem, key, identity)

    def server(self, *, now: float | None = None, days: float = 365, names: tuple[str, ...] = ("127.0.0.1",)) -> Leaf:
        key = new_tls_key()
        pem = certify_server(
            self.pem,
            self.key,
            federation=self.federation,
            names=names,
            key=key.public_key(),
            now=self.now if now is None else now,
            days=days,
        )
        return Leaf(pem, key)


@dataclass(frozen=True)
class Homes:
    """The homes of a whole federation."""

    folder: Path

    @property
    def authority(self) -> AuthorityHome:
        return AuthorityHome(self.folder / "authority")

    @property
    def server(self) -> ServerHome:
        return ServerHome(self.folder / "server")

    @property
    def site(self) -> SiteHome:
        return SiteHome(self.folder / "sites" / "north")

    @property
    def other_site(self) -> SiteHome:
        return SiteHome(self.folder / "sites" / "south")
