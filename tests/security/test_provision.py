"""The authority: who may join, what it keeps, and what it refuses."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from security import enrolment
from security.certificates import DAY, check_issued_by, read_peer
from security.errors import UsageError
from security.federation_file import federation_from_toml
from security.grants import grant_from_json
from security.homes import AuthorityHome, ServerHome, SiteHome, read_public
from security.key_files import load_tls_key, public_der
from security.key_pairs import key_and_certificate
from security.provision import Office, at_work, found
from security.revocation import Revocations
from security.roster import is_signed, read_roster
from tests.security.small_federation import FEDERATION, FEDERATION_TOML, Homes, Signer

NOW = time.time()


@pytest.fixture
def office(homes: Homes) -> Iterator[Office]:
    """The authority at work; north and south are approved already."""
    with at_work(homes.authority, None) as working:
        yield working


def ask(folder: Path, site: str, *, federation: str = FEDERATION) -> bytes:
    """A new site's request."""
    home = SiteHome(folder / "new" / site)
    enrolment.make_keys(home, None)
    return enrolment.request(home, federation=federation, site=site, passphrase=None)


def open_to_all(homes: Homes) -> None:
    text = homes.authority.federation_file.read_text()
    homes.authority.federation_file.write_text(text.replace('sites = ["north", "south"]', ""))


# --- founding


def test_an_authority_is_founded_once(tmp_path: Path, federation_file: Path) -> None:
    home = AuthorityHome(tmp_path / "ca")
    found(home, federation_file, passphrase=None, now=NOW)
    key = home.authority_key.read_bytes()
    assert stat.S_IMODE(home.authority_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.authority_key.parent.stat().st_mode) == 0o700
    assert home.authority().not_after > NOW + 3650 * DAY
    with pytest.raises(UsageError, match="has an authority already"):
        found(home, federation_file, passphrase=None, now=NOW)
    assert home.authority_key.read_bytes() == key


def test_an_authority_s_key_may_have_a_passphrase(tmp_path: Path, federation_file: Path) -> None:
    home = AuthorityHome(tmp_path / "ca")
    found(home, federation_file, passphrase="correct horse", now=NOW)
    with pytest.raises(UsageError, match="needs its passphrase"), at_work(home, None):
        pass
    with pytest.raises(UsageError, match="no key that this passphrase opens") as error, at_work(home, "battery"):
        pass
    assert "battery" not in str(error.value)
    with at_work(home, "correct horse") as office:
        assert office.roster().sites == {}


def test_two_at_a_time_don_t_work_in_one_home(homes: Homes, office: Office) -> None:
    with pytest.raises(UsageError, match="in use by another `veil provision`"), at_work(homes.authority, None):
        pass


def test_a_key_that_others_may_read_signs_nothing(homes: Homes) -> None:
    homes.authority.authority_key.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"), at_work(homes.authority, None):
        pass


def test_another_authority_s_key_signs_nothing(homes: Homes) -> None:
    homes.authority.authority_key.write_bytes(homes.server.tls_key.read_bytes())
    with pytest.raises(UsageError, match="is not the key of"), at_work(homes.authority, None):
        pass


def test_a_federation_keeps_its_name(homes: Homes) -> None:
    homes.authority.federation_file.write_text(FEDERATION_TOML.replace(FEDERATION, "lung-study"))
    with pytest.raises(UsageError, match="a federation keeps its name"), at_work(homes.authority, None):
        pass


def test_a_folder_without_an_authority_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="veil provision init"), at_work(AuthorityHome(tmp_path), None):
        pass


# --- approving


def test_a_new_site_gets_into_the_roster(homes: Homes, office: Office, tmp_path: Path) -> None:
    open_to_all(homes)
    office = Office(homes.authority, None)
    request = ask(tmp_path, "west")
    asked, renews = office.consider(request)
    assert not renews
    assert "west" not in office.roster().sites
    grant = grant_from_json(office.approve(request, now=NOW))
    assert grant.roster.sites["west"] == asked.identity
    assert grant.roster == office.roster()
    assert set(grant.roster.sites) == {"north", "south", "west"}
    assert is_signed(grant.roster, office.certificate)
    assert grant.address == "127.0.0.1:8443"


def test_a_renewal_changes_the_roster_in_nothing(homes: Homes, office: Office) -> None:
    before = office.roster()
    request = enrolment.request_renewal(homes.site, None)
    assert office.consider(request)[1]
    grant = grant_from_json(office.approve(request, now=NOW))
    assert grant.roster == before
    assert grant.peer.serial != homes.site.peer().serial


def test_a_site_that_the_federation_does_not_name_is_refused(office: Office, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'west' is not there; add it"):
        office.approve(ask(tmp_path, "west"), now=NOW)


def test_a_request_for_another_federation_is_refused(office: Office, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for federation 'lung-study', not 'heart-study'"):
        office.approve(ask(tmp_path, "north", federation="lung-study"), now=NOW)


def test_nobody_takes_a_site_s_name(office: Office, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has another identity so far"):
        office.approve(ask(tmp_path, "north"), now=NOW)


def test_nobody_has_two_names(homes: Homes, tmp_path: Path) -> None:
    open_to_all(homes)
    home = homes.site
    home.certificate.unlink()
    request = enrolment.request(home, federation=FEDERATION, site="west", passphrase=None)
    with (
        at_work(homes.authority, None) as office,
        pytest.raises(UsageError, match="'west' has the identity of site 'north'"),
    ):
        office.approve(request, now=NOW)


def test_every_certificate_is_on_record(homes: Homes, office: Office) -> None:
    office.approve(enrolment.request_renewal(homes.site, None), now=time.time() + 5)
    peers = office.issued()
    assert sorted(peer.name for peer in peers) == ["north", "north", "server", "south"]
    assert peers[-1].name == "north"
    for path in homes.authority.issued.iterdir():
        check_issued_by(path.read_bytes(), office.certificate)


def test_a_foreign_certificate_on_record_is_named(homes: Homes, office: Office, other_signer: Signer) -> None:
    (homes.authority.issued / "odd.pem").write_bytes(other_signer.site().pem)
    with pytest.raises(UsageError, match=r"odd\.pem: was not issued by this authority"):
        office.roster()


# --- revoking


def test_all_certificates_of_a_site_are_revoked(homes: Homes, office: Office) -> None:
    renewed = grant_from_json(office.approve(enrolment.request_renewal(homes.site, None), now=NOW)).peer
    assert office.revoke("north", now=NOW) == 2
    homes.server.revoked.write_bytes(homes.authority.revoked.read_bytes())
    revocations = Revocations.of_home(homes.server)
    assert revocations.is_revoked(homes.site.peer())
    assert revocations.is_revoked(renewed)
    assert not revocations.is_revoked(homes.other_site.peer())
    assert set(office.roster().sites) == {"south"}


def test_who_has_nothing_can_t_be_revoked(office: Office) -> None:
    with pytest.raises(UsageError, match="'west' has no certificate; sites that have one: north, south"):
        office.revoke("west", now=NOW)
    office.revoke("north", now=NOW)
    with pytest.raises(UsageError, match="'north' is revoked already"):
        office.revoke("north", now=NOW)


def test_the_list_grows_and_is_numbered(homes: Homes, office: Office) -> None:
    revocations = Revocations.of_home(homes.server)
    for site in ("north", "south"):
        office.revoke(site, now=NOW)
        homes.server.revoked.write_bytes(homes.authority.revoked.read_bytes())
        assert revocations.problem is None
    assert revocations.is_revoked(homes.site.peer())
    assert revocations.is_revoked(homes.other_site.peer())


def test_a_site_that_lost_its_keys_joins_anew_after_a_revocation(office: Office, tmp_path: Path) -> None:
    office.revoke("north", now=NOW + 400 * DAY)  # however long ago its certificate expired
    request = ask(tmp_path, "north")
    grant = grant_from_json(office.approve(request, now=NOW + 400 * DAY))
    assert office.roster().sites["north"] == grant.peer.identity


# --- the server


def test_a_server_s_home_is_whole(homes: Homes, office: Office) -> None:
    home = homes.server
    key_and_certificate(home.tls_key, home.certificate, None)
    check_issued_by(home.certificate.read_bytes(), office.certificate)
    assert read_roster(home.roster) == office.roster()
    Revocations.of_home(home)
    assert stat.S_IMODE(home.tls_key.stat().st_mode) == 0o600


def test_a_server_s_key_is_not_overwritten_but_renewed(homes: Homes, office: Office) -> None:
    home = homes.server
    before = home.peer(), public_der(load_tls_key(home.tls_key, None))
    with pytest.raises(UsageError, match="has a server's key already"):
        office.equip_server(home, passphrase=None, now=NOW)
    assert before == (home.peer(), public_der(load_tls_key(home.tls_key, None)))
    settings = home.settings.read_bytes()
    home.settings.write_bytes(settings + b"# mine\n")
    peer = office.renew_server(home, passphrase="correct horse", now=NOW + 5)
    key, pem = key_and_certificate(home.tls_key, home.certificate, "correct horse")
    assert read_peer(pem) == peer != before[0]
    assert b"ENCRYPTED" not in key
    assert home.settings.read_bytes().endswith(b"# mine\n")
    assert not list(home.tls_key.parent.glob("*.next*"))


def test_another_federation_s_server_is_not_renewed(office: Office, tmp_path: Path, federation_file: Path) -> None:
    other = AuthorityHome(tmp_path / "other")
    found(other, federation_file, passphrase=None, now=NOW)
    with at_work(other, None) as elsewhere:
        home = ServerHome(tmp_path / "server")
        elsewhere.equip_server(home, passphrase=None, now=NOW)
    with pytest.raises(UsageError, match="is not the home of this federation's server"):
        office.renew_server(home, passphrase=None, now=NOW)


# --- federation.toml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 1", "name = 1: a name has letters"),
        ('name = "a/b"', "name = 'a/b': a name has letters"),
        ("", "name = missing"),
        ('name = "a"', "server: missing"),
        ('name = "a"\n[server]', r"server\.address = missing: must be host:port"),
        ('name = "a"\n[server]\naddress = "x"', "must be host:port"),
        ('name = "a"\n[server]\naddress = "x:99999"', "must be host:port"),
        ('name = "a"\n[server]\naddress = "x y:1"', "must be host:port"),
        ('name = "a"\n[server]\naddress = "2001:db8::7:1"', "must be host:port"),
        ('name = "a"\n[server]\naddress = "x:1"\nnames = ["*.org"]', "must be a DNS name or an IP address"),
        ('name = "a"\n[server]\naddress = "x:1"\nnames = ["300.1.1.1"]', "must be a DNS name or an IP address"),
        ('name = "a"\n[server]\nadress = "x:1"', r"server\.'adress': unknown key; did you mean address\?"),
        ('name = "a"\nsits = []\n[server]\naddress = "x:1"', "'sits': unknown key; did you mean sites"),
        ('name = "a"\nsites = ["x", "x"]\n[server]\naddress = "x:1"', "names something twice"),
        ('name = "a"\nsites = ["x y"]\n[server]\naddress = "x:1"', "a name has letters"),
        ('name = "a"\nsites = "x"\n[server]\naddress = "x:1"', "must be a list of texts"),
        ("name = ", "not valid TOML"),
        ("a = " + "[" * 100_000, "not valid TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        federation_from_toml(text.encode(), "federation.toml")
    assert str(error.value).startswith("federation.toml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("fl.example.org:8443", ("fl.example.org",)),
        ("192.0.2.7:1", ("192.0.2.7",)),
        ("[2001:db8::7]:1", ("2001:db8::7",)),
    ],
)
def test_the_address_gives_the_certificate_its_name(address: str, names: tuple[str, ...]) -> None:
    federation = federation_from_toml(f'name = "a"\n[server]\naddress = "{address}"'.encode(), "")
    assert (federation.address, federation.names, federation.sites) == (address, names, ())


def test_what_is_public_is_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="larger than any such file"):
        read_public(tmp_path / "large", 99)
