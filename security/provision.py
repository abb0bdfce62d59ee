"""What the authority does: founds a federation, approves sites, makes the server's home, revokes.

Nothing here talks to a network, and nothing is asked of a person: the command does that. Private keys of sites are made
at the sites (`security/enrolment.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from security.authority import certify_authority, certify_revocations, certify_server, certify_site
from security.certificate_requests import Request, read_request
from security.certificates import Peer, check_issued_by, public_key_of, read_peer
from security.errors import UsageError
from security.federation_file import Federation, federation_from_toml, read_federation
from security.grants import Grant, grant_to_json
from security.home_lock import holding
from security.homes import AuthorityHome, ServerHome, certificate_in, read_public
from security.key_files import load_tls_key, new_tls_key, public_der, save_private_key
from security.key_pairs import put_certificate, switch
from security.kit_files import write_server_kit
from security.private_files import make_folder, replace_file
from security.revocation import RevocationList, read_revocation_list
from security.roster import Roster, sign_roster, write_roster

_WHO = "another `veil provision`"


def found(home: AuthorityHome, federation_file: Path, *, passphrase: str | None, now: float) -> Federation:
    """Found a federation: make the authority's key and certificate, and its empty list of revoked certificates.

    Args:
        home: of the authority, new.
        federation_file: `federation.toml`, which is copied there.
        passphrase: for the authority's key; None for none.
        now: seconds since 1970.

    Raises:
        UsageError: the file says something wrong, or there is an authority already.
    """
    federation, text = read_federation(federation_file), read_public(federation_file, 1 << 20)
    if home.authority_key.exists() or home.authority_certificate.exists():
        raise UsageError(f"{home.path}: has an authority already, and a key is never overwritten; name another folder")
    make_folder(home.path, private=True)
    make_folder(home.authority_key.parent, private=True)
    make_folder(home.authority_certificate.parent)
    make_folder(home.issued)
    with holding(home.lock, _WHO):
        key = new_tls_key()
        certificate = certify_authority(federation.name, key, now=now)
        save_private_key(home.authority_key, key, passphrase)
        replace_file(home.federation_file, text)
        replace_file(home.revoked, certify_revocations(certificate, key, revoked=(), number=1, now=now))
        replace_file(home.authority_certificate, certificate)  # last: with it the authority is there
    return federation


@contextmanager
def at_work(home: AuthorityHome, passphrase: str | None) -> Iterator[Office]:
    """Open an authority's home for work; nobody else works there meanwhile.

    Raises:
        UsageError: there is no authority, its files don't fit together, or the passphrase is wrong.
    """
    if not home.authority_certificate.exists():
        raise UsageError(f"{home.path}: is no authority's home; make one with `veil provision init`")
    with holding(home.lock, _WHO):
        yield Office(home, passphrase)


class Office:
    """An authority at work: its files read, its key opened, its home locked (`at_work`)."""

    def __init__(self, home: AuthorityHome, passphrase: str | None) -> None:
        """As `at_work`, which also takes the lock."""
        self.home = home
        self.authority = home.authority()
        self.certificate = read_public(home.authority_certificate)
        self.federation = federation_from_toml(read_public(home.federation_file, 1 << 20), str(home.federation_file))
        if self.federation.name != self.authority.federation:
            raise UsageError(
                f"{home.federation_file}: name = '{self.federation.name}', but the authority's certificate is for "
                f"'{self.authority.federation}'; a federation keeps its name"
            )
        self._issued: list[Peer] | None = None  # read once: while the home is locked, nobody else adds any
        self._key = load_tls_key(home.authority_key, passphrase)
        if public_der(self._key) != public_key_of(self.certificate):
            raise UsageError(f"{home.authority_key}: is not the key of {home.authority_certificate}")

    def issued(self) -> list[Peer]:
        """Every certificate that was issued, oldest first."""
        if self._issued is None:
            self._issued = []
            for path in self.home.issued.glob("*.pem"):
                with certificate_in(path):
                    pem = read_public(path)
                    check_issued_by(pem, self.certificate)
                    self._issued.append(read_peer(pem))
        return sorted(self._issued, key=lambda peer: (peer.not_before, peer.serial))

    def revoked(self) -> frozenset[int]:
        """Serial numbers of revoked certificates."""
        return frozenset(self._revocations().revoked)

    def roster(self) -> Roster:
        """The federation's sites, signed."""
        whole = Roster(federation=self.federation.name, authority=self.authority.fingerprint, sites=self._members())
        return sign_roster(whole, self._key)

    def consider(self, data: bytes) -> tuple[Request, bool]:
        """Check a request. Whether the site is who it says it is, people find out by the identity's fingerprint.

        Returns:
            The request, and whether the site is in the roster already, with this identity.

        Raises:
            ValueError: the request is malformed, or its signatures are wrong; the text names no file.
            UsageError: it can't be approved.
        """
        asked = read_request(data)
        site, members = asked.site, self._members()
        if asked.federation != self.federation.name:
            raise UsageError(
                f"the request of site '{site}' is for federation '{asked.federation}', not '{self.federation.name}'; "
                f"the site must run `veil site request {site} --federation {self.federation.name}`"
            )
        if self.federation.sites and site not in self.federation.sites:
            raise UsageError(f"{self.home.federation_file}: sites: '{site}' is not there; add it, if it may join")
        if members.get(site, asked.identity) != asked.identity:
            raise UsageError(
                f"site '{site}' has another identity so far; if it lost that one, run `veil provision revoke {site}` "
                f"first: the other sites must then approve the new roster"
            )
        namesake = next((name for name, key in members.items() if key == asked.identity and name != site), None)
        if namesake is not None:
            raise UsageError(f"site '{site}' has the identity of site '{namesake}'; each site makes keys of its own")
        return asked, site in members

    def approve(self, data: bytes, *, now: float) -> bytes:
        """Issue the certificate that a request asks for.

        Returns:
            The grant, for the site.

        Raises:
            ValueError, UsageError: as for `consider`.
        """
        asked, _ = self.consider(data)
        certificate = certify_site(
            self.certificate,
            self._key,
            federation=asked.federation,
            site=asked.site,
            key=asked.key,
            identity=asked.identity,
            now=now,
        )
        self._record(certificate)
        grant = Grant(
            address=self.federation.address,
            certificate=certificate,
            authority=self.certificate,
            roster=self.roster(),
        )
        return grant_to_json(grant, self._key)

    def revoke(self, site: str, *, now: float) -> int:
        """Revoke every certificate of a site.

        Returns:
            How many.

        Raises:
            UsageError: the site has none, or they are revoked already.
        """
        before = self._revocations()
        own = {peer.serial for peer in self.issued() if peer.role == "site" and peer.name == site}
        serials = sorted(own - before.revoked.keys())
        if not serials:
            state = "is revoked already" if own else "has no certificate"
            raise UsageError(f"site '{site}' {state}; sites that have one: {', '.join(self._members()) or 'none'}")
        revoked = {**before.revoked, **dict.fromkeys(serials, now)}
        data = certify_revocations(
            self.certificate, self._key, revoked=revoked.items(), number=before.number + 1, now=now
        )
        replace_file(self.home.revoked, data)
        return len(serials)

    def equip_server(self, home: ServerHome, *, passphrase: str | None, now: float) -> Peer:
        """Make the server's home: key, certificate, roster, revoked certificates, settings.

        Args:
            home: of the server, new.
            passphrase: for the server's key; None for none.
            now: seconds since 1970.

        Raises:
            UsageError: there is a key already.
        """
        if home.tls_key.exists() or home.certificate.exists():
            raise UsageError(f"{home.path}: has a server's key already; renew it with --renew, or name another folder")
        make_folder(home.path, private=True)
        make_folder(home.tls_key.parent, private=True)
        make_folder(home.certificate.parent)
        key = new_tls_key()
        save_private_key(home.tls_key, key, passphrase)
        certificate = self._certify_server(key, now)
        self._inform(home)
        put_certificate(certificate, home.certificate)
        write_server_kit(home, federation=self.federation.name, address=self.federation.address)
        return read_peer(certificate)

    def renew_server(self, home: ServerHome, *, passphrase: str | None, now: float) -> Peer:
        """Give a server's home a new key and certificate; a running server takes them for new connections.

        Args:
            home, passphrase, now: as for `equip_server`.

        Raises:
            UsageError: it isn't the home of this federation's server.
        """
        if home.authority() != self.authority or home.peer().role != "server":
            raise UsageError(f"{home.path}: is not the home of this federation's server; make one without --renew")
        key = new_tls_key()
        new_key = home.tls_key.with_suffix(".next.key")
        new_key.unlink(missing_ok=True)  # of a renewal that was cut off
        save_private_key(new_key, key, passphrase)
        certificate = self._certify_server(key, now)
        switch(new_key, home.tls_key, certificate, home.certificate)
        self._inform(home)
        return read_peer(certificate)

    def _certify_server(self, key: ec.EllipticCurvePrivateKey, now: float) -> bytes:
        certificate = certify_server(
            self.certificate,
            self._key,
            federation=self.federation.name,
            names=self.federation.names,
            key=key.public_key(),
            now=now,
        )
        self._record(certificate)
        return certificate

    def _inform(self, home: ServerHome) -> None:
        """Tell a server whom to let in."""
        replace_file(home.authority_certificate, self.certificate)
        replace_file(home.revoked, read_public(self.home.revoked))
        write_roster(home.roster, self.roster())

    def _record(self, certificate: bytes) -> None:
        """Before it is given to anybody: what isn't recorded can't be revoked."""
        peer = read_peer(certificate)
        replace_file(self.home.issued / f"{peer.serial:x}.pem", certificate)
        if self._issued is not None:
            self._issued.append(peer)

    def _members(self) -> dict[str, str]:
        """Identity of each site that has a certificate which was not revoked, by name."""
        revoked = self.revoked()
        sites = (peer for peer in self.issued() if peer.role == "site" and peer.serial not in revoked)
        return dict(sorted((peer.name, peer.identity or "") for peer in sites))

    def _revocations(self) -> RevocationList:
        try:
            return read_revocation_list(read_public(self.home.revoked), self.certificate)
        except ValueError as error:
            raise UsageError(f"{self.home.revoked}: {error}; restore it from a backup") from None
