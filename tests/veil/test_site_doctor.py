"""`veil doctor --site`: each thing that could keep a site from taking part, found, named once, with what to do."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.workplace import made_workplace
from privacy.ledger import Ledger, default_anchors
from security import provision
from security.credentials import server_credentials
from security.homes import ServerHome, SiteHome
from security.identity import Identity
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from tests.client.conftest import SECRET, plan_of
from tests.client.real_site import APPROVED, BUDGET, DATA, Authority, settings_text, started, write_rows
from tests.veil.test_main import run
from veil import site_doctor
from veil.commands.doctor import Finding
from veil.site_doctor import examine_site


@dataclass(frozen=True)
class Made:
    """A site's home, and a server that it can connect to."""

    home: Path
    port: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    authority = Authority(folder / "authority")
    home = authority.admit(folder / "home")
    with provision.at_work(authority.home, None) as office:
        office.equip_server(ServerHome(folder / "server"), passphrase=None, now=datetime.now(UTC).timestamp())
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(ServerHome(folder / "server")))
    server.start()
    yield Made(home.path, port)
    server.stop(None).wait(10)


@pytest.fixture
def home(made: Made, tmp_path: Path) -> SiteHome:
    found = SiteHome(tmp_path / "home")
    shutil.copytree(made.home, found.path)
    settle(found, made.port, BUDGET, DATA, APPROVED)
    write_rows(found.path / "rows.csv")
    return found


def settle(home: SiteHome, port: int, *parts: str) -> None:
    home.settings.write_text(settings_text(*parts).replace("127.0.0.1:1", f"127.0.0.1:{port}"))


def plan(**changes: Any) -> Plan:
    return plan_of(privacy={"noise": "secret", **changes.pop("privacy", {})}, **changes)


def wrong(home: SiteHome) -> dict[str, str]:
    """What the doctor finds wrong or worth a note, by name."""
    made_workplace.cache_clear()
    return {finding.name: finding.text for finding in examine_site(home) if not finding.good}


def needed(home: SiteHome) -> set[str]:
    return {finding.name for finding in examine_site(home) if not finding.good and finding.needed}


def test_a_good_site_is_told_so(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    running = started(home)
    running.site.approvals.add(plan(), "yes")
    running.train(plan())
    assert run("doctor", "--site", str(home.path)) == 0
    running.site.close()
    out = capsys.readouterr().out
    for line in (
        "ok      certificate: site 'st-mary' of 'clinics', until 20",
        "ok      roster: 1 sites, approved by this one",
        "ok      connection: TLS works, and both certificates are accepted",
        "ok      ledger: verified, patients: 4 entries",
        f"ok      data csv: {home.path}/rows.csv: 8 records, as the card says",
        f"ok      plan digits ({plan().digest()[:8]}): would run",
        "all that is needed is there",
    ):
        assert line in out


def test_it_changes_nothing(home: SiteHome) -> None:
    started(home).site.close()

    def content() -> dict[Path, bytes]:
        found = (path for path in home.path.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in found if not path.name.endswith(("-shm", "-wal"))}  # of any reader

    before = content()
    examine_site(home)
    assert content() == before


def test_exit_code_and_one_line_where_something_is_wrong(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.roster.unlink()
    assert run("doctor", "--site", str(home.path)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert len(lines) == 1
    assert str(home.roster) in lines[0]


def test_a_folder_that_is_no_home_is_told_so(tmp_path: Path) -> None:
    found = wrong(SiteHome(tmp_path / "nothing"))
    assert "is not a folder" in found["home"]
    assert len(found) == len(set(found.values()))


# --- the network ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_nobody_there_and_a_name_that_is_none_are_told_apart(home: SiteHome) -> None:
    settle(home, free_port(), BUDGET, DATA)
    found = wrong(home)
    assert "connection refused" in found["address"]
    assert found["connection"] == "not tried, for there is nothing to connect to"
    text = home.settings.read_text()
    home.settings.write_text(text.replace("127.0.0.1", "no-such-machine.invalid"))
    assert "no machine of that name is found" in wrong(home)["address"]
    home.settings.write_text(text.replace("address", "proxy").replace('"127.0.0.1', '"http://127.0.0.1'))
    assert "server.address is missing" in wrong(home)["address"]


def test_with_a_proxy_the_proxy_is_looked_for(home: SiteHome) -> None:
    text = home.settings.read_text()
    home.settings.write_text(text.replace("[server]", f'[server]\nproxy = "http://127.0.0.1:{free_port()}"'))
    assert "(the proxy): can't be reached" in wrong(home)["address"]


def test_a_port_that_is_not_the_servers_is_told(home: SiteHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor() as pool:

        def hang_up() -> None:
            for _ in range(2):
                other.accept()[0].close()

        done = pool.submit(hang_up)
        settle(home, other.getsockname()[1], BUDGET, DATA)
        found = wrong(home)
        done.result(60)
    assert "connection" in found
    assert "address" not in found


def test_another_federations_server_is_not_the_right_one(home: SiteHome, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", name="elsewhere")
    with provision.at_work(other.home, None) as office:
        office.equip_server(ServerHome(tmp_path / "server"), passphrase=None, now=datetime.now(UTC).timestamp())
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(ServerHome(tmp_path / "server")))
    server.start()
    settle(home, port, BUDGET, DATA)
    found = wrong(home)
    server.stop(None).wait(10)
    assert "is of federation 'elsewhere', this site's is 'clinics'" in found["connection"]


# --- what belongs to the site --------------------------------------------------------------------------------------


def moved(home: SiteHome) -> None:
    home.moved.write_text("{}")


def other_identity(home: SiteHome) -> None:
    home.identity_key.unlink()
    Identity.create().save(home.identity_key)


def readable_key(home: SiteHome) -> None:
    home.identity_key.chmod(0o644)


def other_name(home: SiteHome) -> None:
    home.settings.write_text(home.settings.read_text().replace("st-mary", "mercy"))


def bad_settings(home: SiteHome) -> None:
    home.settings.write_text(home.settings.read_text() + "\n[shcedule]\n")


def no_approval(home: SiteHome) -> None:
    home.approval.unlink()


def short_split_key(home: SiteHome) -> None:
    home.split_key.write_bytes(b"short")


def no_device(home: SiteHome) -> None:
    home.settings.write_text(home.settings.read_text() + '[resources]\ndevice = "mps"\n')


def little_memory(home: SiteHome) -> None:
    home.settings.write_text(home.settings.read_text() + "[resources]\nmemory_mb = 100\n")


@pytest.mark.parametrize(
    ("break_it", "name", "text"),
    [
        (moved, "home", "to move elsewhere"),
        (other_identity, "certificate", "was issued to another identity"),
        (readable_key, "certificate", "run chmod 600"),
        (other_name, "certificate", "the certificate was issued to 'st-mary'"),
        (bad_settings, "settings", "shcedule: unknown key; did you mean schedule?"),
        (no_approval, "roster", "roster.approval.json"),
        (short_split_key, "certificate", "holds 5 bytes, not 32"),
        (no_device, "device", "resources.device = 'mps': this machine has none"),
        (little_memory, "memory", "a client needs 600"),
    ],
)
def test_what_is_wrong_with_a_home_is_named_once_with_what_to_do(
    home: SiteHome, break_it: Callable[[SiteHome], None], name: str, text: str
) -> None:
    break_it(home)
    found = wrong(home)
    assert text in found[name]
    assert "\n" not in found[name]
    assert sum(text in each for each in found.values()) == 1
    assert name in needed(home)


def test_an_expired_certificate_and_one_about_to_expire(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    now = site_doctor.time.time()
    monkeypatch.setattr(site_doctor.time, "time", lambda: now + 350 * 86400)
    (finding,) = [each for each in examine_site(home) if each.name == "certificate"]
    assert (finding.good, finding.needed) == (False, False)
    assert "veil site request --renew" in finding.text
    monkeypatch.setattr(site_doctor.time, "time", lambda: now + 370 * 86400)
    assert "certificate" in needed(home)


def test_a_clock_that_runs_behind_what_was_written_is_told(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    started(home).site.close()
    later = datetime.now(UTC) + timedelta(hours=2)
    with Ledger.open(home.ledger, anchors=default_anchors(home.ledger), clock=lambda: later) as ledger:
        ledger.open_scope("patients", owner=Identity.load(home.identity_key).public_hex)
    assert "set the clock" in wrong(home)["clock"]


# --- the ledger ----------------------------------------------------------------------------------------------------


def test_a_ledger_that_was_cut_lost_or_put_back_is_told(home: SiteHome, tmp_path: Path) -> None:
    running = started(home)
    running.site.approvals.add(plan(), "yes")
    running.train(plan())
    running.site.close()
    shutil.copy(home.ledger, tmp_path / "old")
    running = started(home)
    running.train(plan(), 2)
    running.site.close()
    whole = home.ledger.read_bytes()
    shutil.copy(tmp_path / "old", home.ledger)
    assert "scope 'patients'" in wrong(home)["ledger"]
    home.ledger.unlink()
    assert "is gone; put back the newest copy" in wrong(home)["ledger"]
    home.ledger.write_bytes(whole)
    assert "ledger" not in wrong(home)
    home.ledger.write_bytes(whole[: len(whole) // 2])
    assert "ledger" in needed(home)


# --- data and plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            [f"0.1,{SECRET},a"],
            "line 10, column 'w': is not a finite number nor one of data.card.missing (1 such lines)",
        ),
        ([f"0.1,0.2,{SECRET}"], "line 10, column 'y': is not one of the classes (a, b, c) (1 such lines)"),
        ([f"0.1,0.2,a,{SECRET}"], "line 10 has 4 fields, the header 3; mend it"),
    ],
)
def test_rule_5_data_that_does_not_fit_a_plans_card_is_one_line_without_a_value(
    home: SiteHome, lines: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    running = started(home)
    running.site.approvals.add(plan(), "yes")
    running.site.close()
    write_rows(home.path / "rows.csv", lines=lines)
    assert wrong(home)["data csv"].endswith(f"{text} (veil data check lists all)")
    assert run("doctor", "--site", str(home.path)) == 1
    out = capsys.readouterr().out
    assert SECRET not in out


def test_data_that_is_not_there_or_that_nobody_described_yet(home: SiteHome) -> None:
    (finding,) = [each for each in examine_site(home) if each.name == "data csv"]
    assert finding == Finding(
        "data csv", True, True, f"{home.path}/rows.csv: is there; no plan is known yet that describes it"
    )
    (home.path / "rows.csv").unlink()
    assert wrong(home)["data csv"] == f"{home.path}/rows.csv: is not there; mend the path"


def test_data_of_a_known_name_is_held_against_its_card(home: SiteHome, made: Made) -> None:
    settle(home, made.port, BUDGET, DATA.replace('name = "csv"', 'name = "heart-disease"'))
    assert "data.card.target" in wrong(home)["data heart-disease"]
    settle(home, made.port, BUDGET)
    assert "no [[data]], so every plan is refused" in wrong(home)["data"]


def test_a_plan_that_would_be_refused_is_a_note(home: SiteHome, made: Made) -> None:
    settle(home, made.port, BUDGET, DATA)
    running = started(home)
    waiting, approved = plan(), plan(seed=8)
    assert running.site.consider(write_plan(waiting), waiting.digest()).pending
    running.site.approvals.add(approved, "yes")
    running.site.close()
    assert wrong(home) == {}
    settle(home, made.port, DATA)
    found = wrong(home)
    for each in (waiting, approved):
        assert found[f"plan digits ({each.digest()[:8]})"] == "would be refused: the site's policy: policy-unit"
    assert "no [[budget]]" in found["budget"]
    assert needed(home) == set()


def test_hours_in_which_nothing_may_be_done_are_a_note(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    home.settings.write_text(home.settings.read_text() + f'[schedule]\nhook = "{home.path}/no"\n')
    assert "can't be run" in wrong(home)["schedule"]
    assert needed(home) == set()


def test_a_full_disk_is_a_note(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "free some" in wrong(home)["disk"]
