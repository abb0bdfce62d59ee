"""Who comes in holds a certificate of this federation, valid now, not revoked, of a site on the roster; and says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from security.certificates import Peer, read_authority, read_peer
from security.errors import UsageError
from security.frames import Goodbye
from security.homes import ServerHome
from security.identity import Identity
from security.revocation import revoke_here
from security.roster import Roster, sign_roster, write_roster
from server.doors import Doors
from tests.server.link_certificates import FEDERATION, Credentials, TestAuthority
from tests.server.link_client import hello

NOW = time.time() + 4 * 3600.0  # the certificates below are made while the tests run, and hold for a day
DAY = 86400.0


@pytest.fixture(scope="module")
def authority() -> TestAuthority:
    return TestAuthority()


@pytest.fixture(scope="module")
def north(authority: TestAuthority) -> Credentials:
    return authority.site("north")


@dataclass
class Rules:
    """What the doors go by, to be changed at will."""

    sites: dict[str, str] = field(default_factory=dict)
    revoked: set[int] = field(default_factory=set)

    @property
    def doors(self) -> Doors:
        return Doors(
            federation=FEDERATION, sites=lambda: self.sites, is_revoked=lambda peer: peer.serial in self.revoked
        )


@pytest.fixture
def rules(north: Credentials) -> Rules:
    return Rules({"north": north.identity})


def test_a_site_of_the_federation_comes_in(rules: Rules, north: Credentials) -> None:
    peer = rules.doors.check(north.certificate, hello("north"), NOW)
    assert isinstance(peer, Peer)
    assert (peer.name, peer.identity) == ("north", north.identity)
    assert rules.doors.still(peer, NOW) is None


def test_the_first_thing_that_is_wrong_is_told(rules: Rules, authority: TestAuthority, north: Credentials) -> None:
    """All is wrong at first; each turn mends what was told, in the order of the rules."""
    late, peer = NOW + 2 * DAY, read_peer(north.certificate)
    rules.sites = {"north": "0" * 64}
    rules.revoked = {peer.serial}
    said = hello("south", federation="another", protocol=2)
    mend: list[tuple[Goodbye, Callable[[], object]]] = [
        (Goodbye.PROTOCOL, lambda: None),
        (Goodbye.UNKNOWN_SITE, lambda: None),
        (Goodbye.EXPIRED, lambda: None),
        (Goodbye.REVOKED, rules.revoked.clear),
        (Goodbye.UNKNOWN_SITE, lambda: rules.sites.update(north=north.identity)),
        (Goodbye.OTHER_FEDERATION, lambda: None),
        (Goodbye.OTHER_SITE, lambda: None),
    ]
    pem, now = authority.server().certificate, late
    for turn, (expected, then) in enumerate(mend):
        assert rules.doors.check(pem, said, now) == expected, turn
        then()
        said = hello("south", federation="another") if turn == 0 else said
        pem = north.certificate if turn == 1 else pem
        now = NOW if turn == 2 else now
        said = hello("south") if turn == 5 else said
    assert isinstance(rules.doors.check(pem, hello("north"), now), Peer)


@pytest.mark.parametrize(
    "pem",
    [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
def test_what_is_no_certificate_stays_out(rules: Rules, pem: bytes) -> None:
    assert rules.doors.check(pem, hello("north"), NOW) is Goodbye.UNKNOWN_SITE


def test_certificates_of_others_stay_out(rules: Rules, authority: TestAuthority) -> None:
    other = TestAuthority("another").site("north").certificate
    wrong: Iterable[bytes] = (other, authority.server().certificate, authority.certificate)
    for pem in wrong:
        assert rules.doors.check(pem, hello("north"), NOW) is Goodbye.UNKNOWN_SITE


def test_the_identity_is_the_one_on_the_roster(rules: Rules, authority: TestAuthority) -> None:
    """The authority alone can't put another in a site's place: the roster names its identity."""
    impostor = authority.site("north", identity=Identity.create())
    assert rules.doors.check(impostor.certificate, hello("north"), NOW) is Goodbye.UNKNOWN_SITE


@pytest.mark.parametrize(("now", "expected"), [(-DAY, Goodbye.EXPIRED), (0.0, None), (2 * DAY, Goodbye.EXPIRED)])
def test_a_certificate_has_its_time(rules: Rules, north: Credentials, now: float, expected: Goodbye | None) -> None:
    peer = read_peer(north.certificate)
    assert rules.doors.still(peer, NOW + now) == expected
    found = rules.doors.check(north.certificate, hello("north"), NOW + now)
    assert found == (peer if expected is None else expected)


def test_who_is_inside_must_go_when_the_rules_change(rules: Rules, north: Credentials) -> None:
    peer = read_peer(north.certificate)
    rules.revoked = {peer.serial}
    assert rules.doors.still(peer, NOW) is Goodbye.REVOKED
    rules.revoked = set()
    rules.sites = {}
    assert rules.doors.still(peer, NOW) is Goodbye.UNKNOWN_SITE
    assert rules.doors.still(replace(peer, role="server"), NOW) is Goodbye.UNKNOWN_SITE


def test_whom_nobody_need_wait_for(rules: Rules, north: Credentials) -> None:
    peer = read_peer(north.certificate)
    assert rules.doors.bars("north", None) is None
    assert rules.doors.bars("south", None) is Goodbye.UNKNOWN_SITE
    rules.revoked = {peer.serial}
    assert rules.doors.bars("north", peer) is Goodbye.REVOKED
    assert rules.doors.bars("north", None) is None  # it may come with another certificate


# --- a server's home


def write_revoked(home: ServerHome, authority: TestAuthority, serials: Iterable[int], number: int) -> None:
    now = datetime.now(UTC)
    name = x509.NameAttribute(NameOID.COMMON_NAME, f"veil://{FEDERATION}/authority")
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([name]))
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    replace_file(home.revoked, builder.sign(authority.key, SHA256()).public_bytes(Encoding.PEM))


def replace_file(path: Path, data: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(data)
    other.replace(path)


def roster_of(authority: TestAuthority, sites: dict[str, str], federation: str = FEDERATION) -> Roster:
    found = Roster(federation=federation, authority=read_authority(authority.certificate).fingerprint, sites=sites)
    return sign_roster(found, authority.key)


@pytest.fixture
def home(tmp_path: Path, authority: TestAuthority, north: Credentials) -> ServerHome:
    home = ServerHome(tmp_path / "server")
    home.authority_certificate.parent.mkdir(parents=True)
    home.authority_certificate.write_bytes(authority.certificate)
    write_roster(home.roster, roster_of(authority, {"north": north.identity}))
    write_revoked(home, authority, [], 1)
    return home


def test_the_doors_of_a_home_follow_its_files(home: ServerHome, authority: TestAuthority, north: Credentials) -> None:
    doors, south = Doors.of_home(home), authority.site("south")
    assert doors.federation == FEDERATION

    def verdict(own: Credentials, name: str) -> Goodbye | Peer:
        found = doors.check(own.certificate, hello(name), NOW)
        assert doors.still(read_peer(own.certificate), NOW) == (found if isinstance(found, Goodbye) else None)
        return found

    assert isinstance(verdict(north, "north"), Peer)
    assert verdict(south, "south") is Goodbye.UNKNOWN_SITE

    write_roster(home.roster, roster_of(authority, {"north": north.identity, "south": south.identity}))
    assert isinstance(verdict(south, "south"), Peer)

    write_revoked(home, authority, [read_peer(south.certificate).serial], 2)
    assert verdict(south, "south") is Goodbye.REVOKED

    revoke_here(home, "north")
    assert verdict(north, "north") is Goodbye.REVOKED
    assert doors.bars("north", None) is Goodbye.REVOKED  # by name, whatever its certificate
    assert doors.problem() is None


def test_a_roster_that_can_not_be_read_leaves_the_one_before_in_force(
    home: ServerHome, authority: TestAuthority, north: Credentials
) -> None:
    doors = Doors.of_home(home)
    others = [b"{", b"", b"[]"]
    for data in others:
        replace_file(home.roster, data)
        assert isinstance(doors.check(north.certificate, hello("north"), NOW), Peer)
        assert str(home.roster) in (doors.problem() or "")
    write_roster(home.roster, roster_of(authority, {}, federation="another"))
    assert isinstance(doors.check(north.certificate, hello("north"), NOW), Peer)
    assert "another federation" in (doors.problem() or "")
    # Rosters travel in the open: what somebody changed on the way is not the authority's.
    write_roster(home.roster, replace(roster_of(authority, {"north": north.identity}), sites={}))
    assert isinstance(doors.check(north.certificate, hello("north"), NOW), Peer)
    assert "was changed after the authority signed it" in (doors.problem() or "")
    home.roster.unlink()
    assert isinstance(doors.check(north.certificate, hello("north"), NOW), Peer)
    write_roster(home.roster, roster_of(authority, {}))
    assert doors.check(north.certificate, hello("north"), NOW) is Goodbye.UNKNOWN_SITE
    assert doors.problem() is None


def test_a_home_without_a_good_roster_has_no_doors(home: ServerHome, authority: TestAuthority) -> None:
    write_roster(home.roster, roster_of(authority, {}, federation="another"))
    with pytest.raises(UsageError, match="another federation"):
        Doors.of_home(home)
    write_roster(home.roster, replace(roster_of(authority, {}), authority="0" * 64))
    with pytest.raises(UsageError, match="another federation"):
        Doors.of_home(home)
    home.roster.unlink()
    with pytest.raises(UsageError, match="can't be read"):
        Doors.of_home(home)
