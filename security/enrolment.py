"""What a site does to belong to a federation: makes its keys, asks, installs what it was granted, approves rosters.

Private keys are made here and never leave. A renewal has a new TLS key and the old identity; until its grant is
installed the old certificate works.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from security.certificate_requests import make_request
from security.certificates import expiry_warning, is_name
from security.errors import UsageError
from security.grants import Grant, grant_from_json
from security.homes import SiteHome, read_public
from security.identity import Identity
from security.key_files import load_tls_key, new_tls_key, public_der, save_private_key
from security.key_pairs import put_certificate, switch
from security.kit_files import write_site_kit
from security.private_files import make_folder, replace_file, write_private
from security.roster import Roster, approve, check_approved, is_signed, read_roster, write_roster

_SPLIT_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a roster differs from the one that the site has approved."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def is_none(self) -> bool:
        """Whether it is the same."""
        return not (self.added or self.removed or self.changed)


def check_names(federation: str, site: str) -> None:
    """Check that a federation and a site may be called so.

    Raises:
        UsageError: one may not.
    """
    for what, name in (("federation", federation), ("site", site)):
        if not is_name(name):
            raise UsageError(
                f"{what} {name!a}: a name has letters, digits, '_', '.' and '-', at most 100, and begins with a letter "
                f"or digit"
            )


def make_keys(home: SiteHome, passphrase: str | None) -> None:
    """Make those of a site's private keys that aren't there yet.

    Raises:
        UsageError: they can't be written, or one is missing that a certificate was issued for.
    """
    home.check_here()
    if home.certificate.exists():
        for path in (home.identity_key, home.tls_key, home.split_key):
            if not path.exists():
                raise UsageError(f"{path}: is missing, and another one won't do; restore it from a backup")
        return
    make_folder(home.path, private=True)
    make_folder(home.tls_key.parent, private=True)
    make_folder(home.ledger.parent, private=True)
    if not home.split_key.exists():
        write_private(home.split_key, secrets.token_bytes(_SPLIT_KEY_BYTES))
    if not home.tls_key.exists():
        save_private_key(home.tls_key, new_tls_key(), passphrase)
    if not home.identity_key.exists():
        Identity.create().save(home.identity_key, passphrase)


def request(home: SiteHome, *, federation: str, site: str, passphrase: str | None) -> bytes:
    """A site's first request; asked again before the grant is installed, one with the same keys.

    Args:
        home: of the site, with keys (`make_keys`).
        federation, site: names.
        passphrase: of the keys; None for none.

    Raises:
        UsageError: a name can't be one, or the site has a certificate already.
    """
    home.check_here()
    check_names(federation, site)
    if home.certificate.exists():
        raise UsageError(
            f"{home.certificate}: this site has a certificate; renew it with --renew, or name another home"
        )
    key = load_tls_key(home.tls_key, passphrase)
    return make_request(federation, site, key, Identity.load(home.identity_key, passphrase))


def request_renewal(home: SiteHome, passphrase: str | None) -> bytes:
    """A request for the next certificate, with a new TLS key; asked again before the grant is installed, the same.

    Raises:
        UsageError: there is no certificate yet, or the keys can't be used.
    """
    home.check_here()
    peer = home.peer()
    identity = Identity.load(home.identity_key, passphrase)
    if not home.next_tls_key.exists():
        save_private_key(home.next_tls_key, new_tls_key(), passphrase)
    key = load_tls_key(home.next_tls_key, passphrase)
    return make_request(peer.federation, peer.name, key, identity)


def check_grant(home: SiteHome, data: bytes, passphrase: str | None, *, now: float) -> Grant:
    """Check that a grant is for this site's own keys, and from the authority that the site knows, if it knows one.

    Args:
        home: of the site.
        data: what the authority sent.
        passphrase: of the keys; None for none.
        now: seconds since 1970.

    Raises:
        ValueError: it is no grant, or was changed; the text names no file.
        UsageError: it isn't for this site.
    """
    home.check_here()
    grant = grant_from_json(data)
    peer = grant.peer
    if (warning := expiry_warning(peer, now)) is not None and not peer.not_before <= now < peer.not_after:
        raise UsageError(f"the grant can't be installed: {warning}")
    if peer.identity != Identity.load(home.identity_key, passphrase).public_hex:
        raise UsageError(f"the grant is for another site's identity ('{peer.name}'); install it where that was made")
    if not any(
        path.exists() and public_der(load_tls_key(path, passphrase)) == grant.key
        for path in (home.tls_key, home.next_tls_key)
    ):
        raise UsageError(f"the grant is for another key of site '{peer.name}'; run `veil site request` again")
    if home.authority_certificate.exists():
        known = home.authority()
        if known.fingerprint != grant.roster.authority:
            raise UsageError(
                f"the grant is of another authority than this site knows, though for '{known.federation}'; "
                f"if that is right, begin with a new home"
                if known.federation == peer.federation
                else f"the grant is of federation '{peer.federation}', this site's is '{known.federation}'; "
                f"each federation needs a home of its own"
            )
    if home.certificate.exists() and (old := home.peer()).name != peer.name:
        raise UsageError(f"the grant is for site '{peer.name}', this is site '{old.name}'")
    return grant


def install(home: SiteHome, grant: Grant, passphrase: str | None) -> None:
    """Write what a grant holds, and that this site approves its roster.

    Args:
        home: of the site. A running client takes the new certificate for its next connection.
        grant: checked (`check_grant`), its authority and roster approved by the owner.
        passphrase: of the keys; None for none.

    Raises:
        UsageError: a file can't be written.
    """
    identity = Identity.load(home.identity_key, passphrase)
    peer = grant.peer
    make_folder(home.certificate.parent)
    replace_file(home.authority_certificate, grant.authority)
    if home.next_tls_key.exists() and public_der(load_tls_key(home.next_tls_key, passphrase)) == grant.key:
        switch(home.next_tls_key, home.tls_key, grant.certificate, home.certificate)
    else:
        put_certificate(grant.certificate, home.certificate)
    approve_roster(home, grant.roster, identity)
    write_site_kit(home, federation=peer.federation, site=peer.name, address=grant.address)


def compare(home: SiteHome, roster: Roster) -> Change:
    """How a roster differs from the one that this site has approved; from none, if it hasn't."""
    try:
        old = approved_roster(home).sites
    except UsageError:
        old = {}
    new = roster.sites
    return Change(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name in new if name in old and old[name] != new[name]),
    )


def check_roster(home: SiteHome, roster: Roster) -> None:
    """Check that a roster is one of this site's federation, from its authority, and has this site in it.

    Raises:
        UsageError: it isn't.
    """
    home.check_here()
    peer, authority = home.peer(), home.authority()
    if roster.federation != peer.federation:
        raise UsageError(f"the roster is of federation '{roster.federation}', this site's is '{peer.federation}'")
    if roster.authority != authority.fingerprint:
        raise UsageError("the roster is of another authority than this site knows; ask the authority for its own")
    if not is_signed(roster, read_public(home.authority_certificate)):
        raise UsageError("the roster was changed after the authority signed it; ask the authority for its own")
    if roster.sites.get(peer.name) != peer.identity:
        raise UsageError(f"the roster doesn't have this site ('{peer.name}') with its identity; ask the authority why")


def approve_roster(home: SiteHome, roster: Roster, identity: Identity) -> None:
    """Write a roster, and this site's approval of it."""
    write_roster(home.roster, roster)
    replace_file(home.approval, approve(roster, identity))


def approved_roster(home: SiteHome) -> Roster:
    """The roster that this site works with.

    Raises:
        UsageError: there is none, or the site's own identity has not approved it.
    """
    roster, peer = read_roster(home.roster), home.peer()
    if peer.identity is None:
        raise UsageError(f"{home.certificate}: is not a site's certificate")
    try:
        check_approved(roster, read_public(home.approval), peer.identity)
    except UsageError as error:
        raise UsageError(f"{home.roster}: {error}") from None
    return roster


def is_approved(home: SiteHome, roster: Roster) -> bool:
    """Whether this very roster is the one that the site works with."""
    try:
        return approved_roster(home) == roster
    except UsageError:
        return False
