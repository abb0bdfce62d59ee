"""Nothing is ever trained on a ledger that is damaged, cut off, old, full, newer or not to be written."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import Anchor, Ledger, LedgerError, default_anchors
from privacy.ledger import file as ledger_file
from privacy.ledger.anchors import read_anchors, write_anchors
from privacy.ledger.check import verify
from tests.privacy.ledger.cases import FIELDS, charged, in_child, play, reserve, tamper, task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed ledger of three committed rounds, with its anchor."""
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, anchors=default_anchors(path)) as ledger:
        ledger.open_scope("site", owner="")
        for number in range(3):
            play(ledger, number)
    return path


def opened(path: Path) -> Ledger:
    """As a site opens it."""
    return Ledger.open(path, anchors=default_anchors(path))


def refused(path: Path, message: str) -> None:
    """Nobody can reserve on it, and a check says so too."""
    with pytest.raises(LedgerError, match=message) as caught, opened(path) as ledger:
        reserve(ledger, 50)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert verify(path) != []


def sidecars(path: Path) -> list[str]:
    return sorted(item.name.removeprefix(path.name) for item in path.parent.iterdir() if item != path)


class TestMaking:
    def test_a_closed_ledger_is_one_file_that_only_its_owner_reads(self, path: Path) -> None:
        assert sidecars(path) == [".anchor"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(default_anchors(path).stat().st_mode) == 0o600

    def test_it_is_never_made_over_another_file(self, path: Path) -> None:
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="exists already"):
            Ledger.create(path)
        assert path.read_bytes() == before

    def test_it_is_not_made_anew_where_one_was_lost(self, path: Path) -> None:
        """Or a lost file would be a fresh budget."""
        path.unlink()
        with pytest.raises(LedgerError, match="was here before"):
            Ledger.create(path, anchors=default_anchors(path))
        assert not path.exists()

    @pytest.mark.parametrize("where", ["missing/ledger", "file/ledger"])
    def test_a_place_that_takes_no_file_is_named(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(LedgerError, match="can't make a ledger here"):
            Ledger.create(tmp_path / where)

    def test_on_a_file_system_without_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_links(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
        path = tmp_path / "ledger"
        Ledger.create(path).close()
        with pytest.raises(LedgerError, match="exists already"):
            Ledger.create(path)
        assert sidecars(path) == []
        assert verify(path) == []

    def test_where_no_write_ahead_log_can_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Network file systems have no shared memory: SQLite then stays in another journal mode."""

        class Stubborn(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                return super().execute("SELECT 'delete'" if "journal_mode" in sql else sql, *values)

        real = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=Stubborn))
        with pytest.raises(LedgerError, match="use a local disk"):
            Ledger.create(tmp_path / "ledger")
        assert list(tmp_path.iterdir()) == []


class TestWhatIsNoLedger:
    def test_missing(self, path: Path) -> None:
        path.unlink()
        refused(path, "no ledger here")

    def test_cut_to_nothing(self, path: Path) -> None:
        os.truncate(path, 0)
        refused(path, "is empty, it was cut off")

    @pytest.mark.parametrize("length", [1, 99, 100, 4_095, 4_096, 10_000, -4_097, -4_096, -1])
    def test_cut_somewhere(self, path: Path, length: int) -> None:
        os.truncate(path, length % path.stat().st_size)
        refused(path, "was cut off|is no ledger|is damaged")

    def test_a_folder_in_its_place(self, path: Path) -> None:
        path.unlink()
        path.mkdir()
        refused(path, "is not a file")

    def test_a_pipe_in_its_place(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)
        refused(path, "is not a file")

    @pytest.mark.parametrize("text", [b"hello", bytes(10_000)])
    def test_another_kind_of_file(self, path: Path, text: bytes) -> None:
        path.write_bytes(text)
        refused(path, "is no ledger")

    def test_another_database(self, path: Path) -> None:
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE entries (scope)")
        connection.close()
        refused(path, "is no ledger")

    def test_a_dangling_link(self, path: Path) -> None:
        path.unlink()
        path.symlink_to(path.parent / "nowhere")
        with pytest.raises(LedgerError, match="no ledger here"):
            opened(path)

    def test_a_link_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(LedgerError, match=r"leads nowhere|no ledger here"):
            Ledger.open(tmp_path / "a")
        assert verify(tmp_path / "a") != []


class TestNames:
    def test_a_link_leads_to_the_one_file_and_the_one_anchor(self, path: Path, tmp_path: Path) -> None:
        link = tmp_path / "elsewhere" / "ledger"
        link.parent.mkdir()
        link.symlink_to(path)
        assert default_anchors(link) == default_anchors(path)
        with opened(link) as one, opened(path) as two:
            play(one, 10)
            play(two, 11)
            assert charged(one) == 5
        assert list(link.parent.iterdir()) == [link]
        assert verify(link) == []

    def test_two_names_of_one_file_would_have_two_logs(self, path: Path, tmp_path: Path) -> None:
        os.link(path, tmp_path / "second name")
        refused(path, "2 names")
        (tmp_path / "second name").unlink()
        assert verify(path) == []


class TestVersions:
    def test_a_newer_schema_is_refused(self, path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 2")
        connection.close()
        refused(path, "written by a newer Veil; update Veil")

    def test_a_newer_form_of_entries_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "ledger"
        with monkeypatch.context() as patch:
            patch.setattr("privacy.ledger.ledger.FORMAT", 2)
            patch.setattr("privacy.ledger.chain.FORMAT", 2)
            with Ledger.create(path, anchors=default_anchors(path)) as ledger:
                ledger.open_scope("site", owner="")
        refused(path, "entries of format 2; this Veil reads format 1")

    def test_an_older_schema_is_brought_up_to_date_once(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = (*ledger_file._MIGRATIONS, ("CREATE TABLE later (x)",))
        monkeypatch.setattr(ledger_file, "_MIGRATIONS", steps)
        with pytest.raises(LedgerError, match="older Veil"):
            Ledger.open(path, read_only=True)
        with opened(path) as ledger:
            assert charged(ledger) == 3
        with opened(path) as ledger:
            play(ledger, 3)
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        connection.close()

    def test_a_migration_that_fails_leaves_the_old_schema(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            steps = (*ledger_file._MIGRATIONS, ("CREATE TABLE later (x)", "CREATE TABLE later (x)"))
            patch.setattr(ledger_file, "_MIGRATIONS", steps)
            with pytest.raises(LedgerError):
                opened(path)
        assert verify(path) == []

    @pytest.mark.parametrize(
        "change",
        [
            "DROP TRIGGER entries_are_not_deleted",
            "CREATE TRIGGER spy AFTER INSERT ON entries BEGIN DELETE FROM replies; END",
            "ALTER TABLE replies ADD COLUMN copy TEXT",
            "CREATE VIEW v AS SELECT 1",
        ],
    )
    def test_changed_tables_are_refused(self, path: Path, change: str) -> None:
        connection = sqlite3.connect(path)
        connection.execute(change)
        connection.close()
        refused(path, "its tables are damaged or were changed")


class TestAppendOnly:
    @pytest.mark.parametrize("statement", ["UPDATE entries SET time = ''", "DELETE FROM entries"])
    def test_a_slip_with_the_sqlite_shell_changes_no_entry(self, path: Path, statement: str) -> None:
        connection = sqlite3.connect(path)
        with pytest.raises(sqlite3.IntegrityError, match="entries are never"):
            connection.execute(statement)
        connection.close()
        assert verify(path) == []


class TestAnchors:
    def test_the_anchor_follows_each_write(self, path: Path) -> None:
        with opened(path) as ledger:
            for number in range(10, 13):
                reserve(ledger, number)
                assert read_anchors(default_anchors(path)) == {"site": ledger.head("site")}

    def test_a_restored_backup_is_found(self, path: Path, tmp_path: Path) -> None:
        shutil.copy(path, tmp_path / "backup")
        with opened(path) as ledger:
            play(ledger, 10)
        shutil.copy(tmp_path / "backup", path)
        refused(path, "entry 8 is not the one that was anchored: the ledger is an old copy")

    def test_a_cut_tail_is_found(self, path: Path) -> None:
        tamper(path, "DELETE FROM entries WHERE position > 4", "DELETE FROM replies WHERE rowid = 3")
        refused(path, "entry 6 is not the one that was anchored")
        assert any("anchored" in str(problem) for problem in verify(path))

    def test_a_whole_scope_cut_out_is_found(self, path: Path) -> None:
        tamper(path, "DELETE FROM entries", "DELETE FROM replies")
        with pytest.raises(LedgerError, match="entry 6 is not the one that was anchored"), opened(path) as ledger:
            ledger.open_scope("site", owner="")
        assert len(verify(path)) == 1

    def test_a_whole_log_is_read(self, path: Path, tmp_path: Path) -> None:
        crashed = tmp_path / "crashed" / path.name
        crashed.parent.mkdir()
        with opened(path) as ledger:
            play(ledger, 10)
            for name in (path, default_anchors(path), path.with_name(path.name + "-wal")):
                shutil.copy(name, crashed.parent)
        assert verify(crashed) == []
        with opened(crashed) as ledger:
            assert charged(ledger) == 4

    def test_a_deleted_log_is_found(self, path: Path, tmp_path: Path) -> None:
        """What was not yet moved from the log into the file is gone, and the chain that is left is whole."""
        crashed = tmp_path / "crashed" / path.name
        crashed.parent.mkdir()
        with opened(path) as ledger:
            play(ledger, 10)
            for name in (path, default_anchors(path)):  # as after a crash: the log was not moved
                shutil.copy(name, crashed.parent)
        refused(crashed, "entry 8 is not the one that was anchored")

    @pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 500, 4_152, 9_000, 12_000])
    def test_a_log_cut_anywhere_is_found(self, path: Path, tmp_path: Path, length: int) -> None:
        crashed = tmp_path / "crashed" / path.name
        crashed.parent.mkdir()
        log = path.with_name(path.name + "-wal")
        with opened(path) as ledger:
            for number in range(10, 13):
                play(ledger, number)
            assert log.stat().st_size > 12_000
            for name in (path, default_anchors(path), log):
                shutil.copy(name, crashed.parent)
        os.truncate(crashed.with_name(log.name), length)
        refused(crashed, "was anchored")

    def test_a_lost_anchor_is_never_taken_for_none(self, path: Path) -> None:
        """Rule: a client that lost its anchor refuses."""
        default_anchors(path).unlink()
        with pytest.raises(LedgerError, match="anchor is missing; run `veil ledger recover`"):
            opened(path)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{}",
            b"\xff\xfe",
            b'{"version": 2, "anchors": {}}',
            b'{"version": 1, "anchors": {"site": {"position": -1, "hash": ""}}}',
            b'{"version": 1, "anchors": {"site": {"position": 1e400, "hash": "00"}}}',
            b'{"version": 1, "anchors": {}, "anchors": {}}',
            b"[" * 100_000,
        ],
    )
    def test_a_damaged_anchor_is_never_taken_for_none(self, path: Path, text: bytes) -> None:
        default_anchors(path).write_bytes(text)
        with pytest.raises(LedgerError, match="anchor is damaged"):
            opened(path)
        assert any("anchor is damaged" in str(problem) for problem in verify(path))

    def test_a_scope_whose_anchor_was_lost_stays_closed(self, path: Path) -> None:
        write_anchors(default_anchors(path), {"site": None})
        with pytest.raises(LedgerError, match="its anchor was lost"), opened(path) as ledger:
            reserve(ledger, 10)

    def test_a_crash_between_entry_and_anchor_does_no_harm(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with opened(path) as ledger, monkeypatch.context() as patch:
            patch.setattr("privacy.ledger.store.write_anchors", lambda *_: (_ for _ in ()).throw(LedgerError("full")))
            with pytest.raises(LedgerError, match="full"):
                reserve(ledger, 10)
        with opened(path) as ledger:
            assert reserve(ledger, 10).again  # type: ignore[union-attr]
            assert charged(ledger) == 4

    def test_an_anchor_that_was_put_back_while_in_use_is_found(self, path: Path) -> None:
        old = default_anchors(path).read_bytes()
        with opened(path) as ledger:
            play(ledger, 10)
            default_anchors(path).write_bytes(old.replace(b'"position": 6', b'"position": 5'))
            with pytest.raises(LedgerError, match="was anchored"):
                play(ledger, 11)

    def test_an_anchor_on_another_disk_outlasts_the_whole_folder(self, tmp_path: Path) -> None:
        folder, anchors = tmp_path / "folder", tmp_path / "other disk.json"
        folder.mkdir()
        path = folder / "ledger"
        with Ledger.create(path, anchors=anchors) as ledger:
            ledger.open_scope("site", owner="")
            play(ledger, 0)
        shutil.copytree(folder, tmp_path / "backup")
        with Ledger.open(path, anchors=anchors) as ledger:
            play(ledger, 1)
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "backup", folder)
        with pytest.raises(LedgerError, match="an old copy"), Ledger.open(path, anchors=anchors) as ledger:
            reserve(ledger, 2)

    def test_a_reader_needs_no_new_anchor(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger"
        Ledger.create(path).close()
        with Ledger.open(path, read_only=True, anchors=default_anchors(path)):
            assert not default_anchors(path).exists()

    def test_two_processes_leave_the_later_anchor(self, path: Path) -> None:
        with opened(path) as one, opened(path) as two:
            for number in range(10, 20):
                play(one if number % 2 else two, number)
            assert read_anchors(default_anchors(path)) == {"site": one.head("site")}


class TestInUse:
    def test_a_backup_put_in_place_while_in_use_is_found(self, path: Path, tmp_path: Path) -> None:
        shutil.copy(path, tmp_path / "backup")
        with opened(path) as ledger:
            play(ledger, 10)
            (tmp_path / "backup").replace(path)
            with pytest.raises(LedgerError, match="another file was put in its place"):
                reserve(ledger, 11)

    def test_a_backup_copied_over_it_while_in_use_costs_nothing(self, path: Path, tmp_path: Path) -> None:
        """The same file with other content. What this process knows is not forgotten."""
        shutil.copy(path, tmp_path / "backup")
        with opened(path) as ledger:
            play(ledger, 10)
            in_child(lambda: shutil.copyfile(tmp_path / "backup", path))
            try:
                reserve(ledger, 11)
                assert charged(ledger) == 5
            except LedgerError:
                pass
        if not verify(path):
            with opened(path) as ledger:
                assert charged(ledger) == 5

    def test_opening_it_twice_in_a_process_keeps_the_locks_of_the_first(self, path: Path) -> None:
        """Whoever opens and closes the file without SQLite loses them, and the next process removes the log."""
        with opened(path) as ledger:
            play(ledger, 10)
            for _ in range(2):
                opened(path).close()
                verify(path)
            script = (
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM entries').fetchone()"
            )
            subprocess.run([sys.executable, "-c", script, str(path)], check=True)
            assert path.with_name(path.name + "-wal").exists()
            play(ledger, 11)
        with opened(path) as ledger:
            assert charged(ledger) == 5

    def test_a_file_removed_while_in_use_is_found(self, path: Path) -> None:
        with opened(path) as ledger:
            reserve(ledger, 10)
            path.unlink()
            with pytest.raises(LedgerError, match="the ledger is gone"):
                ledger.commit("site", task(10).id, b"x", fields=FIELDS)

    def test_an_entry_changed_while_in_use_is_found(self, path: Path) -> None:
        with opened(path) as ledger:
            reserve(ledger, 10)
            tamper(path, ("UPDATE entries SET hash = ? WHERE position = 7", ("0" * 64,)))
            with pytest.raises(LedgerError, match="entry 7 was changed or removed while"):
                reserve(ledger, 11)


class TestWriting:
    """A write that fails leaves what was there, and can be tried again."""

    def test_a_full_disk(self, path: Path) -> None:
        def fill() -> tuple[list[str], int]:
            failures = []
            with opened(path) as ledger:
                head = ledger.head("site")
                resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))
                for number in range(10, 14):
                    try:
                        play(ledger, number, reply=bytes(3_000))
                    except LedgerError as error:
                        failures.append(str(error))
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert ledger.holds(head)
                count = charged(ledger)
                reserve(ledger, 20)  # there is room again
                assert charged(ledger) == count + 1
                return failures, count

        failures, count = in_child(fill)
        assert failures
        assert all("disk" in failure or "room" in failure for failure in failures)
        with opened(path) as ledger:
            assert charged(ledger) == count + 1
        assert verify(path) == []

    def test_a_full_disk_in_a_batch_undoes_the_batch(self, path: Path) -> None:
        def fill() -> str:
            with opened(path) as ledger:
                ledger.head("site")
                connection = ledger._store._db
                pages = connection.execute("PRAGMA page_count").fetchone()[0]
                connection.execute(f"PRAGMA max_page_count = {pages}")
                try:
                    with ledger.batch():
                        reserve(ledger, 10)
                        for number in range(11, 15):
                            try:
                                play(ledger, number, reply=bytes(30_000))
                            except LedgerError:
                                continue
                except LedgerError as error:
                    return str(error)
                return f"kept {charged(ledger)}"

        outcome = in_child(fill)
        with opened(path) as ledger:
            # SQLite undoes a failed statement or the whole transaction: the ledger says which.
            assert outcome == f"kept {charged(ledger)}" or charged(ledger) == 3
        assert verify(path) == []

    def test_a_full_disk_for_the_anchor(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with opened(path) as ledger:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(LedgerError, match="can't write the ledger's anchor"):
                    reserve(ledger, 10)
            assert sidecars(path) == ["-shm", "-wal", ".anchor"]
            assert reserve(ledger, 10).again  # type: ignore[union-attr]

    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_a_file_or_folder_that_may_only_be_read(self, what: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="veil-test-"))
        try:
            path = folder / "ledger"
            with Ledger.create(path) as ledger:
                ledger.open_scope("site", owner="")
                play(ledger)
            path.chmod(0o444 if what == "file" else 0o666)
            folder.chmod(0o777 if what == "file" else 0o555)

            def as_anybody() -> int:
                if os.geteuid() == 0:  # root may write everything
                    os.seteuid(65534)
                with pytest.raises(LedgerError, match=r"can't be written|can't be opened"), Ledger.open(path) as ledger:
                    reserve(ledger, 1)
                with Ledger.open(path, read_only=True) as ledger:
                    return charged(ledger)

            assert in_child(as_anybody) == 1
        finally:
            folder.chmod(0o700)
            shutil.rmtree(folder)

    def test_a_process_that_holds_the_lock_too_long_is_named(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger_file, "BUSY_SECONDS", 0.01)
        with opened(path) as one, opened(path) as two, one.batch():
            with pytest.raises(LedgerError, match="another process has held it"):
                reserve(two, 10)
            reserve(one, 10)

    def test_a_reply_that_is_too_large(self, path: Path) -> None:
        with opened(path) as ledger:
            ledger._store._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
            reserve(ledger, 10)
            with pytest.raises(LedgerError, match="larger than a ledger can store"):
                ledger.commit("site", task(10).id, bytes(200_000), fields=FIELDS)
            assert ledger.commit("site", task(10).id, b"x", fields=FIELDS) == b"x"

    def test_a_signal_just_after_begin_loses_nothing_later(self, path: Path) -> None:
        with opened(path) as ledger:
            ledger._store._db.execute("BEGIN IMMEDIATE")  # as if KeyboardInterrupt had struck here
            reserve(ledger, 10)
        with opened(path) as ledger:
            assert charged(ledger) == 4


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*.new"))


def test_the_anchor_checks_its_own_fields() -> None:
    make: Callable[..., Anchor] = Anchor
    for bad in ({"position": -1}, {"position": True}, {"hash": "A" * 64}, {"scope": ""}):
        with pytest.raises(ValueError, match=r"anchor|scope"):
            make(**{"scope": "site", "position": 0, "hash": "a" * 64, **bad})
