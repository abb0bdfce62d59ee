"""A site joins with keys of its own, and installs what is meant for it and nothing else."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from security import enrolment
from security.certificate_requests import make_request
from security.certificates import DAY
from security.errors import UsageError
from security.grants import Grant
from security.homes import AuthorityHome, SiteHome, read_public
from security.identity import Identity
from security.key_files import new_tls_key, passphrase_from_file, save_private_key
from security.key_pairs import key_and_certificate
from security.private_files import write_private
from security.provision import at_work, found
from security.roster import approve, read_roster, write_roster
from tests.security.small_federation import FEDERATION, FEDERATION_TOML, Homes

NOW = time.time()


def authority_in(folder: Path, text: str = FEDERATION_TOML) -> AuthorityHome:
    folder.mkdir(parents=True)
    (folder / "federation.toml").write_text(text)
    home = AuthorityHome(folder / "authority")
    found(home, folder / "federation.toml", passphrase=None, now=NOW)
    return home


def approved(authority: AuthorityHome, request: bytes) -> bytes:
    with at_work(authority, None) as office:
        return office.approve(request, now=NOW)


def requested(home: SiteHome, site: str = "north", passphrase: str | None = None) -> bytes:
    enrolment.make_keys(home, passphrase)
    return enrolment.request(home, federation=FEDERATION, site=site, passphrase=passphrase)


def checked(home: SiteHome, data: bytes, passphrase: str | None = None, *, now: float = NOW) -> Grant:
    return enrolment.check_grant(home, data, passphrase, now=now)


# --- joining


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_site_joins(tmp_path: Path, passphrase: str | None) -> None:
    authority = authority_in(tmp_path / "ca")
    home = SiteHome(tmp_path / "site")
    request = requested(home, passphrase=passphrase)
    grant = checked(home, approved(authority, request), passphrase)
    enrolment.install(home, grant, passphrase)

    peer = home.peer()
    assert (peer.name, peer.federation) == ("north", FEDERATION)
    assert peer.identity == Identity.load(home.identity_key, passphrase).public_hex
    key_and_certificate(home.tls_key, home.certificate, passphrase)
    assert enrolment.approved_roster(home) == grant.roster
    for path in (home.tls_key, home.identity_key, home.split_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None and path != home.split_key)
    assert len(home.split_key.read_bytes()) == 32
    assert {"site.toml", "README.md", "Containerfile", "veil-site-north.service"} <= {
        path.name for path in home.path.iterdir()
    }


def test_no_private_key_travels(tmp_path: Path) -> None:
    home = SiteHome(tmp_path / "site")
    request = requested(home)
    grant = approved(authority_in(tmp_path / "ca"), request)
    secrets = [
        b"".join(line for line in home.tls_key.read_bytes().splitlines() if b"-" not in line),
        b"".join(line for line in home.identity_key.read_bytes().splitlines() if b"-" not in line),
        home.split_key.read_bytes().hex().encode(),
    ]
    for message in (request, grant):
        assert b"PRIVATE" not in message
        assert not any(secret in message for secret in secrets)


def test_a_request_may_be_made_again_with_the_same_keys(tmp_path: Path) -> None:
    home = SiteHome(tmp_path / "site")
    first, second = json.loads(requested(home)), json.loads(requested(home))
    assert first["identity"] == second["identity"]
    grant = approved(authority_in(tmp_path / "ca"), json.dumps(first).encode())
    enrolment.install(home, checked(home, grant), None)
    with pytest.raises(UsageError, match="renew it with --renew"):
        requested(home)


def test_installing_again_changes_nothing(homes: Homes) -> None:
    data = approved(homes.authority, enrolment.request_renewal(homes.site, None))
    enrolment.install(homes.site, checked(homes.site, data), None)
    homes.site.settings.write_text("# mine\n")
    before = {path: path.read_bytes() for path in homes.site.path.rglob("*") if path.is_file()}
    enrolment.install(homes.site, checked(homes.site, data), None)
    after = {path: path.read_bytes() for path in homes.site.path.rglob("*") if path.is_file()}
    assert before == after


def test_a_lost_key_is_not_quietly_replaced(homes: Homes) -> None:
    homes.site.identity_key.unlink()
    with pytest.raises(UsageError, match=r"identity\.key: is missing, and another one won't do"):
        enrolment.make_keys(homes.site, None)
    assert not homes.site.identity_key.exists()


@pytest.mark.parametrize(
    ("federation", "site"), [("a/b", "north"), ("a", "../x"), ("a", ""), ("", "n"), ("a", "x" * 101)]
)
def test_what_can_t_be_a_name_gets_no_request(tmp_path: Path, federation: str, site: str) -> None:
    home = SiteHome(tmp_path / "site")
    enrolment.make_keys(home, None)
    with pytest.raises(UsageError, match="a name has letters"):
        enrolment.request(home, federation=federation, site=site, passphrase=None)


def test_the_passphrase_comes_from_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passphrase"
    monkeypatch.setenv("VEIL_PASSPHRASE_FILE", str(path))
    with pytest.raises(UsageError, match="no such file; VEIL_PASSPHRASE_FILE must name"):
        passphrase_from_file()
    write_private(path, b"correct horse\n")
    assert passphrase_from_file() == "correct horse"
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others on this machine may read this private passphrase"):
        passphrase_from_file()
    path.chmod(0o600)
    for content in (b"", b"\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="holds no passphrase"):
            passphrase_from_file()
    monkeypatch.delenv("VEIL_PASSPHRASE_FILE")
    assert passphrase_from_file() is None


def test_a_passphrase_from_systemd_may_show_a_right_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passphrase"
    write_private(path, b"correct horse")
    path.chmod(0o440)
    monkeypatch.setenv("VEIL_PASSPHRASE_FILE", str(path))
    with pytest.raises(UsageError, match="others on this machine"):
        passphrase_from_file()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert passphrase_from_file() == "correct horse"
    path.chmod(0o444)
    with pytest.raises(UsageError, match="others on this machine"):
        passphrase_from_file()


# --- what is not for this site


def test_another_site_s_grant_is_refused(homes: Homes) -> None:
    data = approved(homes.authority, enrolment.request_renewal(homes.other_site, None))
    with pytest.raises(UsageError, match=r"for another site's identity \('south'\)"):
        checked(homes.site, data)


def test_a_grant_for_a_tls_key_of_somebody_else_s_is_refused(homes: Homes, tmp_path: Path) -> None:
    data = approved(homes.authority, enrolment.request_renewal(homes.site, None))
    homes.site.next_tls_key.unlink()
    enrolment.request_renewal(homes.site, None)  # made again: another key
    with pytest.raises(UsageError, match="for another key of site 'north'; run `veil site request` again"):
        checked(homes.site, data)


def test_the_pinned_authority_stays(homes: Homes, tmp_path: Path) -> None:
    """Another authority, of the same federation's name, approves the site's own request."""
    data = approved(authority_in(tmp_path / "ca"), enrolment.request_renewal(homes.site, None))
    with pytest.raises(UsageError, match="of another authority than this site knows"):
        checked(homes.site, data)


def test_another_federation_needs_another_home(homes: Homes, tmp_path: Path) -> None:
    authority = authority_in(tmp_path / "ca", FEDERATION_TOML.replace(FEDERATION, "lung-study"))
    key, identity = new_tls_key(), Identity.load(homes.site.identity_key)
    save_private_key(homes.site.next_tls_key, key, None)
    data = approved(authority, make_request("lung-study", "north", key, identity))
    with pytest.raises(UsageError, match="of federation 'lung-study', this site's is 'heart-study'"):
        checked(homes.site, data)


@pytest.mark.parametrize("days", [366, -1])
def test_a_grant_out_of_its_time_is_refused(homes: Homes, days: float) -> None:
    data = approved(homes.authority, enrolment.request_renewal(homes.site, None))
    with pytest.raises(UsageError, match="can't be installed: the certificate of site 'north'"):
        checked(homes.site, data, now=NOW + days * DAY)


@pytest.mark.parametrize("key", ["tls_key", "identity_key"])
def test_keys_that_others_may_read_are_refused(homes: Homes, key: str) -> None:
    data = approved(homes.authority, enrolment.request_renewal(homes.site, None))
    getattr(homes.site, key).chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        checked(homes.site, data)


def test_a_wrong_passphrase_installs_nothing(tmp_path: Path) -> None:
    home = SiteHome(tmp_path / "site")
    data = approved(authority_in(tmp_path / "ca"), requested(home, passphrase="correct horse"))
    with pytest.raises(UsageError, match="no key that this passphrase opens"):
        checked(home, data, "battery staple")
    with pytest.raises(UsageError, match="needs its passphrase"):
        checked(home, data)
    assert not home.certificate.exists()


# --- renewal


def test_the_old_certificate_works_until_the_new_one_is_there(homes: Homes) -> None:
    home, before = homes.site, homes.site.peer()
    data = approved(homes.authority, enrolment.request_renewal(home, None))
    key_and_certificate(home.tls_key, home.certificate, None)
    assert home.peer() == before
    enrolment.install(home, checked(home, data), None)
    key_and_certificate(home.tls_key, home.certificate, None)
    after = home.peer()
    assert after.serial != before.serial
    assert after.identity == before.identity
    assert not home.next_tls_key.exists()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_renewal_that_is_cut_off_leaves_a_pair_that_works(
    homes: Homes, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed before each of the three renames: the waiting certificate's, the key's, the certificate's."""
    home, before = homes.site, homes.site.peer()
    grant = checked(home, approved(homes.authority, enrolment.request_renewal(home, None)))
    real: Callable[[Path, Path], Path] = Path.replace
    left = [step]

    class KilledError(BaseException):
        pass

    def cut_off(path: Path, target: Path) -> Path:
        if Path(target) != home.authority_certificate:
            left[0] -= 1
            if left[0] == 0:
                raise KilledError
        return real(path, target)

    monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises(KilledError):
        enrolment.install(home, grant, None)
    monkeypatch.undo()
    _, pem = key_and_certificate(home.tls_key, home.certificate, None)
    assert pem in (home.certificate.read_bytes(), grant.certificate)
    enrolment.install(home, grant, None)
    assert key_and_certificate(home.tls_key, home.certificate, None)[1] == grant.certificate
    assert home.peer().serial != before.serial


def test_a_key_and_a_foreign_certificate_are_no_pair(homes: Homes) -> None:
    homes.site.certificate.write_bytes(homes.other_site.certificate.read_bytes())
    with pytest.raises(UsageError, match="is not for the key in"):
        key_and_certificate(homes.site.tls_key, homes.site.certificate, None)


# --- the roster


def test_a_new_site_waits_for_approval(homes: Homes, tmp_path: Path) -> None:
    home = homes.site
    text = homes.authority.federation_file.read_text()
    homes.authority.federation_file.write_text(text.replace('"south"', '"south", "west"'))
    approved(homes.authority, requested(SiteHome(tmp_path / "west"), "west"))
    with at_work(homes.authority, None) as office:
        roster = office.roster()
    enrolment.check_roster(home, roster)
    change = enrolment.compare(home, roster)
    assert (change.added, change.removed, change.changed) == (("west",), (), ())
    assert not enrolment.is_approved(home, roster)
    write_roster(home.roster, roster)  # without approval: somebody put it there
    with pytest.raises(UsageError, match="another roster was approved"):
        enrolment.approved_roster(home)
    enrolment.approve_roster(home, roster, Identity.load(home.identity_key))
    assert enrolment.approved_roster(home) == roster
    assert enrolment.compare(home, roster).is_none


def test_only_its_own_authority_s_rosters_are_looked_at(homes: Homes, tmp_path: Path) -> None:
    home = homes.site
    good = read_roster(home.roster)
    with at_work(authority_in(tmp_path / "ca"), None) as office:
        foreign = office.roster()
    wrong = {
        "of federation 'lung-study'": replace(good, federation="lung-study"),
        "of another authority": foreign,
        "was changed after": replace(good, sites={**good.sites, "evil": Identity.create().public_hex}),
    }
    for message, roster in wrong.items():
        with pytest.raises(UsageError, match=message):
            enrolment.check_roster(home, roster)
    with at_work(homes.authority, None) as office:
        office.revoke("north", now=NOW)
        without = office.roster()
    with pytest.raises(UsageError, match=r"doesn't have this site \('north'\)"):
        enrolment.check_roster(home, without)


def test_an_approval_of_another_site_s_does_not_count(homes: Homes) -> None:
    home = homes.site
    home.approval.write_bytes(approve(read_roster(home.roster), Identity.load(homes.other_site.identity_key)))
    with pytest.raises(UsageError, match=r"roster\.json: the roster's approval is of another identity"):
        enrolment.approved_roster(home)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_damaged_approval_does_not_count(homes: Homes, content: bytes) -> None:
    homes.site.approval.write_bytes(content)
    with pytest.raises(UsageError, match="run `veil site roster approve`"):
        enrolment.approved_roster(homes.site)


def test_a_missing_approval_does_not_count(homes: Homes) -> None:
    homes.site.approval.unlink()
    with pytest.raises(UsageError, match=r"roster\.approval\.json: can't be read"):
        enrolment.approved_roster(homes.site)


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_errors_over_certificates_name_the_file(homes: Homes, content: bytes) -> None:
    homes.site.certificate.write_bytes(content)
    with pytest.raises(UsageError, match=r"certificates/site\.pem: is not one certificate"):
        homes.site.peer()
    homes.site.authority_certificate.write_bytes(read_public(homes.other_site.certificate))
    with pytest.raises(UsageError, match=r"certificates/authority\.pem: is not the certificate of an authority"):
        homes.site.authority()
