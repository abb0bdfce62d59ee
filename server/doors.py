"""Who may come in, and who may stay: a certificate of this federation, valid now, of a site that the server lets in.

TLS has already checked that the authority signed the certificate. Here is decided what TLS can't know: whether the site
is on the roster with this identity, was revoked, or calls itself by another name. It is decided again while a site is
connected, because all of that may change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from security.certificates import CertificateError, Peer, read_peer
from security.errors import UsageError
from security.frames import PROTOCOL, Goodbye, Hello
from security.homes import ServerHome, read_public
from security.revocation import Revocations
from security.roster import is_signed, read_roster


@dataclass(frozen=True, kw_only=True)
class Doors:
    """The rules of entry. They hold no state: every question is answered anew.

    Attributes:
        federation: its name.
        sites: the sites that are let in, each with the public key of its identity; asked at every check.
        is_revoked: whether a certificate was revoked, or its site; asked at every check.
        problem: why the newest files are not in force, in one line; None if they are.
    """

    federation: str
    sites: Callable[[], Mapping[str, str]]
    is_revoked: Callable[[Peer], bool]
    problem: Callable[[], str | None] = lambda: None

    @classmethod
    def of_home(cls, home: ServerHome) -> Self:
        """The doors of a server: its roster and its revocations, read again whenever their files change.

        Raises:
            UsageError: one of them can't be read, or is of another federation.
        """
        roster, revocations = RosterFile(home), Revocations.of_home(home)
        return cls(
            federation=roster.federation,
            sites=roster.sites,
            is_revoked=revocations.is_revoked,
            problem=lambda: roster.problem or revocations.problem,
        )

    def check(self, pem: bytes, hello: Hello, now: float) -> Peer | Goodbye:
        """Who stands at the door, or why it stays shut.

        Args:
            pem: the certificate that TLS has accepted.
            hello: the site's first word.
            now: seconds since 1970.
        """
        if hello.protocol != PROTOCOL:
            return Goodbye.PROTOCOL
        try:
            peer = read_peer(pem)
        except CertificateError:
            return Goodbye.UNKNOWN_SITE
        refused = self.still(peer, now)
        if refused is not None:
            return refused
        if hello.federation != self.federation:
            return Goodbye.OTHER_FEDERATION
        return peer if hello.site == peer.name else Goodbye.OTHER_SITE

    def still(self, peer: Peer, now: float) -> Goodbye | None:
        """Why a site that came in must go now; None if it may stay."""
        if peer.role != "site" or peer.federation != self.federation or peer.identity is None:
            return Goodbye.UNKNOWN_SITE
        if not peer.not_before <= now <= peer.not_after:
            return Goodbye.EXPIRED
        if self.is_revoked(peer):
            return Goodbye.REVOKED
        return None if self.sites().get(peer.name) == peer.identity else Goodbye.UNKNOWN_SITE

    def bars(self, site: str, last: Peer | None) -> Goodbye | None:
        """Why a site need not be waited for, connected or not; None if it may come back as it was.

        Args:
            site: its name.
            last: the certificate that it came with last; None if it wasn't here yet.
        """
        identity = self.sites().get(site)
        if identity is None:
            return Goodbye.UNKNOWN_SITE
        return Goodbye.REVOKED if self.is_revoked(last or _nameless(self.federation, site, identity)) else None


class RosterFile:
    """The sites of the roster in a server's home. Read again when the file changes.

    A file that can't be read leaves the sites that were there before, and says so in `problem`. Safe to ask from
    several threads.

    Raises:
        UsageError: it can't be read at first, or is not one that the server's authority signed.
    """

    def __init__(self, home: ServerHome) -> None:
        self._path = home.roster
        authority = home.authority()
        self._authority = authority.fingerprint
        self._certificate = read_public(home.authority_certificate)
        self.federation = authority.federation
        self._lock = threading.Lock()
        self._seen = _look(self._path)
        self._sites = self._read()
        self.problem: str | None = None

    def sites(self) -> Mapping[str, str]:
        """The public key of each site's identity."""
        with self._lock:
            seen = _look(self._path)
            if seen != self._seen:
                self._seen = seen
                try:
                    self._sites, self.problem = self._read(), None
                except UsageError as error:
                    self.problem = str(error)
            return self._sites

    def _read(self) -> Mapping[str, str]:
        found = read_roster(self._path)
        if found.federation != self.federation or found.authority != self._authority:
            raise UsageError(f"{self._path}: is the roster of another federation; copy this one's here")
        if not is_signed(found, self._certificate):
            raise UsageError(f"{self._path}: was changed after the authority signed it; copy the authority's own here")
        return found.sites


def _nameless(federation: str, site: str, identity: str) -> Peer:
    """A certificate that nobody has (serial numbers begin at 1): it can be revoked by the site's name alone."""
    return Peer(
        federation=federation,
        role="site",
        name=site,
        serial=0,
        not_before=0.0,
        not_after=0.0,
        identity=identity,
        fingerprint="",
    )


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
