"""A home moves whole, with its ledger and its anchor, and is at one place at a time."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import Anchor, Ledger, LedgerError, default_anchors
from security import enrolment, moving
from security.credentials import channel_credentials
from security.errors import UsageError
from security.home_lock import holding
from security.homes import SiteHome
from security.identity import Identity
from security.key_pairs import key_and_certificate
from security.moving import ledger_anchor, pack, unpack
from tests.security.small_federation import Homes

WHEN = "2026-11-22T12:00:00+00:00"


@pytest.fixture
def home(homes: Homes) -> SiteHome:
    """A site that has worked: with a ledger, an outbox, plans, and data of its own."""
    home = homes.site
    with Ledger.create(home.ledger, anchors=default_anchors(home.ledger)) as ledger:
        ledger.open_scope("patients", owner=Identity.load(home.identity_key).public_hex)
    with closing(sqlite3.connect(home.outbox)) as outbox, outbox:
        outbox.execute("CREATE TABLE replies (id TEXT)")
        outbox.execute("INSERT INTO replies VALUES ('stored')")
    home.approvals.write_text("{}")
    (home.path / "ledger-begun.json").write_text("{}")
    home.pending.mkdir()
    (home.pending / f"{'ab' * 32}.toml").write_text('name = "plan"')
    (home.path / "rows.csv").write_text("age\n42\n")
    (home.path / "data").mkdir()
    home.log.write_text("log")
    home.status.write_text("{}")
    return home


def head(home: SiteHome) -> Anchor | None:
    with Ledger.open(home.ledger, read_only=True, anchors=default_anchors(home.ledger)) as ledger:
        return ledger.head("patients")


def moved(home: SiteHome, folder: Path) -> SiteHome:
    pack(home, folder / "north.home", when=WHEN)
    target = SiteHome(folder / "elsewhere" / "north")
    unpack(folder / "north.home", target)
    return target


def test_all_that_the_site_needs_arrives(home: SiteHome, tmp_path: Path) -> None:
    names = ("tls_key", "identity_key", "split_key", "certificate", "authority_certificate", "roster", "approval")
    before, ended = {name: getattr(home, name).read_bytes() for name in names}, head(home)
    home.settings.write_text(home.settings.read_text() + "# mine\n")
    there = moved(home, tmp_path)
    assert {name: getattr(there, name).read_bytes() for name in names} == before
    assert there.settings.read_text().endswith("# mine\n")
    assert head(there) == ended
    with closing(sqlite3.connect(there.outbox)) as outbox:
        assert outbox.execute("SELECT id FROM replies").fetchall() == [("stored",)]
    assert there.approvals.exists()
    assert (there.path / "ledger-begun.json").exists()
    assert [path.name for path in there.pending.iterdir()] == [f"{'ab' * 32}.toml"]
    there.check_here()
    key_and_certificate(there.tls_key, there.certificate, None)
    assert enrolment.approved_roster(there).sites
    assert f"client run {there.path}" in (there.path / "veil-site-north.service").read_text()


def test_the_ledger_goes_on_where_it_was(home: SiteHome, tmp_path: Path) -> None:
    there = moved(home, tmp_path)
    with Ledger.open(there.ledger, anchors=default_anchors(there.ledger)) as ledger:
        ledger.set_policy("patients", {"site": "north"}, "ab" * 32)
        assert ledger.head("patients").position == 1
    found = head(there)
    assert found is not None
    assert found.position == 1


def test_entries_that_are_still_in_the_log_arrive(home: SiteHome, tmp_path: Path) -> None:
    """A client that was killed leaves entries in SQLite's write-ahead log."""
    with Ledger.open(home.ledger, anchors=default_anchors(home.ledger)) as ledger:
        ledger.set_policy("patients", {"site": "north"}, "ab" * 32)
        copy = tmp_path / "killed"
        shutil.copytree(home.path, copy)
        ended = ledger.head("patients")
    killed = SiteHome(copy)
    assert killed.ledger.with_name("ledger.sqlite-wal").stat().st_size > 0
    assert head(moved(killed, tmp_path)) == ended


def test_without_its_anchor_a_ledger_does_not_move(home: SiteHome, tmp_path: Path) -> None:
    default_anchors(home.ledger).unlink()
    with pytest.raises(UsageError, match=r"ledger\.sqlite\.anchor: the ledger's anchor is missing"):
        pack(home, tmp_path / "north.home", when=WHEN)
    home.check_here()


def test_the_anchor_is_the_ledger_s_own(home: SiteHome, tmp_path: Path) -> None:
    assert ledger_anchor(home) == default_anchors(home.ledger)
    elsewhere = tmp_path / "disk"
    shutil.move(home.ledger.parent, elsewhere)
    home.ledger.parent.symlink_to(elsewhere)
    assert ledger_anchor(home) == default_anchors(home.ledger) == elsewhere / "ledger.sqlite.anchor"
    ended = head(home)
    there = moved(home, tmp_path)
    assert not there.ledger.parent.is_symlink()
    assert head(there) == ended


def test_an_old_copy_of_the_ledger_is_found_by_the_anchor_that_moved(home: SiteHome, tmp_path: Path) -> None:
    old = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(home.ledger)) as source, closing(sqlite3.connect(old)) as copy:
        source.backup(copy)
    with Ledger.open(home.ledger, anchors=default_anchors(home.ledger)) as ledger:
        ledger.set_policy("patients", {"site": "north"}, "ab" * 32)
    there = moved(home, tmp_path)
    shutil.copy(old, there.ledger)
    with pytest.raises(LedgerError, match="is not the one that was anchored"):
        head(there)


def test_the_old_place_is_dead(home: SiteHome, tmp_path: Path) -> None:
    moved(home, tmp_path)
    uses: list[Callable[[], Any]] = [
        home.check_here,
        lambda: channel_credentials(home),
        lambda: enrolment.request_renewal(home, None),
        lambda: enrolment.make_keys(home, None),
        lambda: enrolment.check_grant(home, b"", None, now=0.0),
        lambda: enrolment.check_roster(home, enrolment.approved_roster(home)),
        lambda: pack(home, tmp_path / "again.home", when=WHEN),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="it would spend its budget twice") as error:
            use()
        assert "north.home" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"file": "a\\nb", "when": "\\u001b[31m"}'])
def test_a_damaged_tombstone_is_one_all_the_same(homes: Homes, content: bytes) -> None:
    homes.site.moved.write_bytes(content)
    with pytest.raises(UsageError, match="to move elsewhere") as error:
        homes.site.check_here()
    assert str(error.value).isprintable()


def test_the_file_is_unpacked_once(home: SiteHome, tmp_path: Path) -> None:
    moved(home, tmp_path)
    assert not (tmp_path / "north.home").exists()
    with pytest.raises(UsageError, match="No such file"):
        unpack(tmp_path / "north.home", SiteHome(tmp_path / "third"))
    assert not (tmp_path / "third").exists()


def test_a_file_that_can_t_be_deleted_is_named(home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(home, tmp_path / "north.home", when=WHEN)
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == tmp_path / "north.home":
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(UsageError, match=r"can't be deleted \(Permission denied\); delete it"):
        unpack(tmp_path / "north.home", SiteHome(tmp_path / "there"))


def test_secrets_stay_private_on_the_way(home: SiteHome, tmp_path: Path) -> None:
    pack(home, tmp_path / "north.home", when=WHEN)
    assert stat.S_IMODE((tmp_path / "north.home").stat().st_mode) == 0o600
    there = SiteHome(tmp_path / "there")
    before = os.umask(0)
    try:
        unpack(tmp_path / "north.home", there)
    finally:
        os.umask(before)
    assert stat.S_IMODE(there.path.stat().st_mode) == 0o700
    for path in (there.tls_key, there.identity_key, there.split_key, there.ledger, there.settings):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_data_and_logs_stay(home: SiteHome, tmp_path: Path) -> None:
    packed = pack(home, tmp_path / "north.home", when=WHEN)
    assert packed.left == ("data/", "rows.csv")
    assert b"age\n42" not in (tmp_path / "north.home").read_bytes()
    there = SiteHome(tmp_path / "there")
    unpack(tmp_path / "north.home", there)
    assert {path.name for path in there.path.iterdir()}.isdisjoint(
        {"rows.csv", "data", "client.log", "status.json", "moved.json", ".lock"}
    )


def test_a_running_client_keeps_its_home(home: SiteHome, tmp_path: Path) -> None:
    with (
        holding(home.lock, "a running client"),
        pytest.raises(UsageError, match="is in use by a running client; stop that first"),
    ):
        pack(home, tmp_path / "north.home", when=WHEN)
    home.check_here()
    assert not (tmp_path / "north.home").exists()


def test_a_ledger_that_is_being_written_is_not_packed(
    home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(home.ledger, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(UsageError, match=r"ledger\.sqlite: is in use; stop what uses it"):
            pack(home, tmp_path / "north.home", when=WHEN)
    home.check_here()
    assert not list(tmp_path.glob("*.home"))


@pytest.mark.parametrize("step", ["write", "tombstone", "rename"])
def test_what_fails_on_the_way_leaves_the_home_alive(
    home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def unwritable(*_: Any, **__: Any) -> None:
        raise UsageError("moved.json: can't be written")

    if step == "write":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "tombstone":
        monkeypatch.setattr(moving, "replace_file", unwritable)
    else:
        real = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, to: full() if Path(to).suffix == ".home" else real(path, to))
    with pytest.raises(UsageError, match="written"):
        pack(home, tmp_path / "north.home", when=WHEN)
    monkeypatch.undo()
    home.check_here()
    assert not list(tmp_path.glob("*.home*"))
    assert not list(tmp_path.glob(".*.new"))
    assert head(moved(home, tmp_path)) is not None


def test_nothing_is_overwritten(home: SiteHome, tmp_path: Path) -> None:
    (tmp_path / "there.home").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        pack(home, tmp_path / "there.home", when=WHEN)
    home.check_here()
    pack(home, tmp_path / "north.home", when=WHEN)
    for target in (home.path, tmp_path / "there.home"):
        with pytest.raises(UsageError, match="is not empty; name a new folder"):
            unpack(tmp_path / "north.home", SiteHome(target))
    (tmp_path / "empty").mkdir()
    unpack(tmp_path / "north.home", SiteHome(tmp_path / "empty"))


# --- a file that isn't what was packed


def rewritten(source: Path, change: Callable[[dict[str, bytes]], Any]) -> None:
    """The same file with other members."""
    with tarfile.open(source) as archive:
        members = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(source, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def renamed(members: dict[str, bytes], old: str, new: str) -> None:
    members[new] = members.pop(old)
    members["manifest.json"] = members["manifest.json"].replace(json.dumps(old).encode(), json.dumps(new).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.update({"site.toml": b"changed"}), r"site\.toml is damaged"),
        (lambda members: members.update({"more": b""}), "holds what its manifest doesn't name"),
        (lambda members: members.pop("keys/tls.key"), "was cut off"),
        (lambda members: members.pop("manifest.json"), "is no packed home"),
        (lambda members: members.update({"manifest.json": b"{}"}), "is not a veil packed home"),
        (lambda members: renamed(members, "site.toml", "../site.toml"), "names a file outside the home"),
        (lambda members: renamed(members, "site.toml", "/tmp/site.toml"), "names a file outside the home"),
        (lambda members: renamed(members, "site.toml", "a//b"), "names a file outside the home"),
    ],
)
def test_a_file_that_was_changed_is_refused(
    home: SiteHome, tmp_path: Path, change: Callable[[dict[str, bytes]], Any], message: str
) -> None:
    file = tmp_path / "north.home"
    pack(home, file, when=WHEN)
    rewritten(file, change)
    with pytest.raises(UsageError, match=message):
        unpack(file, SiteHome(tmp_path / "there"))
    assert file.exists()
    assert not (tmp_path / "there").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["homes", "north.home"]


def test_a_link_in_the_file_is_refused(home: SiteHome, tmp_path: Path) -> None:
    file = tmp_path / "north.home"
    pack(home, file, when=WHEN)
    with tarfile.open(file) as archive:
        members = [(entry, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]
    with tarfile.open(file, "w") as archive:
        for entry, content in members:
            if entry.name == "site.toml":
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
                archive.addfile(entry)
            else:
                archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UsageError, match="holds what its manifest doesn't name"):
        unpack(file, SiteHome(tmp_path / "there"))


@pytest.mark.parametrize("keep", [0, 100, 1000, 20_000])
def test_a_file_that_was_cut_is_refused(home: SiteHome, tmp_path: Path, keep: int) -> None:
    file = tmp_path / "north.home"
    pack(home, file, when=WHEN)
    assert file.stat().st_size > 20_000
    os.truncate(file, keep)
    with pytest.raises(UsageError, match=r"north\.home: (is no packed home|was cut off|.* is damaged)"):
        unpack(file, SiteHome(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
