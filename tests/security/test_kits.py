"""Kits: a federation that is ready to start, made whole or not at all; and what is put into each home."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from client.site_settings import read_settings as read_site_settings
from security import kits
from security.certificates import check_issued_by
from security.enrolment import approved_roster
from security.errors import UsageError
from security.homes import ServerHome, SiteHome
from security.identity import Identity
from security.kit_files import write_server_kit, write_site_kit
from security.kits import make_kits
from security.roster import read_roster
from server.settings import read_settings as read_server_settings
from tests.security.small_federation import FEDERATION, Homes

NOW = time.time()


def test_every_home_belongs_to_the_others(made: Homes) -> None:
    authority = made.authority.authority_certificate.read_bytes()
    for home in (made.site, made.other_site):
        check_issued_by(home.certificate.read_bytes(), authority)
        roster = approved_roster(home)
        assert roster == read_roster(made.server.roster)
        assert roster.sites[home.path.name] == Identity.load(home.identity_key).public_hex
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    check_issued_by(made.server.certificate.read_bytes(), authority)


def test_a_site_s_settings_are_strict_and_complete(made: Homes) -> None:
    settings = read_site_settings(made.site.settings)
    assert (settings.site, settings.server.address) == ("north", "127.0.0.1:8443")
    assert settings.allow.federations == (FEDERATION,)
    assert settings.approval.plans == "ask"
    assert [budget.epsilon for budget in settings.budget] == [1.0]
    assert not settings.release.counts
    assert settings.release.entrust == settings.release.unprotected == settings.data == ()
    assert not settings.allow.reproducible_noise
    text = made.site.settings.read_text()
    assert set(tomllib.loads(text)) == {*type(settings).model_fields} - {"data"}
    filled = re.sub(r"^# (\[\[data\]\]|name = |format = |path = )", r"\1", text, flags=re.MULTILINE)
    assert tomllib.loads(filled)["data"] == [{"name": "heart-disease", "format": "csv", "path": "rows.csv"}]


def test_a_server_s_settings_are_complete(made: Homes) -> None:
    settings = read_server_settings(made.server.settings)
    assert (settings.federation, settings.address) == (FEDERATION, "0.0.0.0:8443")
    written = tomllib.loads(made.server.settings.read_text())
    assert set(written) == {*type(settings).model_fields} - {"data"}


@pytest.mark.parametrize("name", ["a", "x" * 100, "A.b-c_9"])
def test_settings_can_be_written_for_every_name(tmp_path: Path, name: str) -> None:
    write_site_kit(SiteHome(tmp_path), federation=name, site=name, address="[2001:db8::7]:443")
    assert read_site_settings(tmp_path / "site.toml").site == name
    write_server_kit(ServerHome(tmp_path), federation=name, address="[2001:db8::7]:443")
    assert read_server_settings(tmp_path / "server.toml").federation == name


def test_what_is_there_stays(homes: Homes) -> None:
    homes.site.settings.write_text("mine")
    write_site_kit(homes.site, federation=FEDERATION, site="north", address="other:1")
    assert homes.site.settings.read_text() == "mine"


def test_a_place_that_needs_quotes_is_not_written_into_units(tmp_path: Path) -> None:
    odd = tmp_path / "a b; rm -rf %h"
    odd.mkdir()
    write_site_kit(SiteHome(odd), federation=FEDERATION, site="north", address="x:1")
    unit = (odd / "veil-site-north.service").read_text()
    assert "ReadWritePaths=/var/lib/veil/north\n" in unit
    assert "rm -rf" not in unit


@pytest.mark.parametrize(
    ("unit", "restart"),
    [("sites/north/veil-site-north.service", "always"), (f"server/veil-server-{FEDERATION}.service", "on-abnormal")],
)
def test_the_service_is_hardened(made: Homes, tmp_path: Path, unit: str, restart: str) -> None:
    text = (made.folder / unit).read_text()
    lines = text.splitlines()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"Restart={restart}",
        "CapabilityBoundingSet=",
        "User=veil",
    ):
        assert line in lines
    assert sum(line.startswith("ReadWritePaths=/var/lib/veil/") for line in lines) == 1
    if shutil.which("systemd-analyze") is None:
        return
    file = tmp_path / "veil.service"
    file.write_text(text.replace("/opt/veil/bin/veil", "/bin/true"))  # it must be there
    checked = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(file)]
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0  # at most 2.0 of 10


@pytest.mark.parametrize("folder", ["sites/north", "server"])
def test_what_a_home_tells_to_run_is_there(made: Homes, folder: str) -> None:
    """Every `veil ...` in the files of a kit names a command that exists."""
    from typer.main import get_command

    from veil.main import app

    named = set()
    for path in (made.folder / folder).iterdir():
        if path.is_file():
            named |= set(
                re.findall(r"\bveil ((?:client|server|site|provision|ledger|budget) [a-z]+)", path.read_text())
            )
    container = (made.folder / folder / "Containerfile").read_text().splitlines()[-1].removeprefix("CMD ")
    named.add(" ".join(json.loads(container)[:2]))
    assert len(named) >= 4
    for words in named:
        group, _, name = words.partition(" ")
        assert name in get_command(app).commands[group].commands, words  # type: ignore[attr-defined]


def test_a_server_on_a_low_port_may_listen_there(made: Homes, tmp_path: Path) -> None:
    capability = "AmbientCapabilities=CAP_NET_BIND_SERVICE\n"
    assert capability not in (made.server.path / f"veil-server-{FEDERATION}.service").read_text()
    write_server_kit(ServerHome(tmp_path), federation=FEDERATION, address="fl.example.org:443")
    assert capability in (tmp_path / f"veil-server-{FEDERATION}.service").read_text()


def test_only_a_kit_that_is_carried_is_copied_into_place(homes: Homes, tmp_path: Path) -> None:
    assert "sudo cp -a . /var/lib/veil/north" in (homes.site.path / "README.md").read_text()
    assert "Whoever made it for you has had" in (homes.site.path / "README.md").read_text()
    (tmp_path / "here").mkdir()
    write_site_kit(SiteHome(tmp_path / "here"), federation=FEDERATION, site="north", address="x:1")
    text = (tmp_path / "here" / "README.md").read_text()
    assert "cp -a" not in text
    assert f"sudo chown -R veil: {tmp_path / 'here'}" in text


def test_kits_take_nobody_s_place(made: Homes, federation_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already, and a key is never overwritten"):
        make_kits(federation_file, made.folder, now=NOW)
    (tmp_path / "notes").write_text("mine")
    make_kits(federation_file, tmp_path, now=NOW)
    assert (tmp_path / "notes").read_text() == "mine"


def test_half_a_federation_is_none(federation_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("no room")

    monkeypatch.setattr(kits, "approve_roster", fail)
    with pytest.raises(UsageError, match="no room"):
        make_kits(federation_file, tmp_path / "kits", now=NOW)
    assert list((tmp_path / "kits").iterdir()) == []


def test_kits_need_names(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text('name = "a"\n[server]\naddress = "x:1"')
    with pytest.raises(UsageError, match="sites: missing; kits are made for the sites that it names"):
        make_kits(path, tmp_path, now=NOW)
