"""Whether a site's home is one of its federation: keys, certificate and roster that belong together."""

from __future__ import annotations

from security.certificates import Peer, check_issued_by
from security.enrolment import approved_roster, check_roster
from security.errors import UsageError
from security.homes import SiteHome, certificate_in, read_public


def check_membership(home: SiteHome, *, site: str, identity: str) -> Peer:
    """Who the site is: certified by the pinned authority, with a roster that it has approved itself (rule 8).

    When the certificate is valid is not looked at: a clock may be wrong now and right later.

    Args:
        home: of the site.
        site: its name, as its settings say.
        identity: public key of its identity.

    Raises:
        UsageError: a file can't be read, or they don't belong together; the text says what to do.
    """
    peer = check_certificate(home, site=site, identity=identity)
    if not home.roster.exists() or not home.approval.exists():
        raise UsageError(f"{home.path}: has approved no roster; compare its identities: `veil site roster approve`")
    check_roster(home, approved_roster(home))
    return peer


def check_certificate(home: SiteHome, *, site: str, identity: str) -> Peer:
    """The site's certificate: issued by the pinned authority, to this site, and to who signs for it here.

    Raises:
        UsageError: as `check_membership`.
    """
    peer = home.peer()
    with certificate_in(home.certificate):
        check_issued_by(read_public(home.certificate), read_public(home.authority_certificate))
    if peer.role != "site":
        raise UsageError(f"{home.certificate}: is a server's certificate; install the site's with `veil site install`")
    if peer.name != site:
        raise UsageError(
            f"{home.settings}: site = '{site}', but the certificate was issued to '{peer.name}'; mend the name in the "
            "settings, or install the certificate of this site"
        )
    if peer.identity != identity:
        raise UsageError(
            f"{home.certificate}: was issued to another identity than {home.identity_key}; put that key back, or "
            "request a new certificate with `veil site request`"
        )
    return peer
