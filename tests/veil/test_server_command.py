"""`veil server`: a real home and command, with sites in this process in the place of the link."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.datasets.digits import load as load_digits
from security.certificates import Peer
from security.frames import ACCEPTED, PENDING, Goodbye
from security.home_lock import holding
from security.homes import ServerHome
from security.revocation import revoked_here
from server import service
from server.doors import Doors
from server.mailbox import Mailbox, Payload, Task
from server.operator import ask
from server.queue import Queue
from shared_models.cards import KNOWN
from shared_models.faults import Fault
from shared_models.plan_data import DataPlan
from tests.server.fake_link import FakeLink, StoppableGrid, Words
from tests.veil.test_main import run
from veil.commands.server_console import ServerConsole

SMALL = [
    text
    for key in (
        "model.name=mlp",
        "model.options.hidden=[8]",
        "data.partition.clients=3",
        "training.steps=2",
        "federation.rounds=2",
        "privacy.trust=none",
    )
    for text in ("--set", key)
]


class LinkInTest(FakeLink):
    """A fake link with what a service needs beside."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__(sites)
        self.closed: list[tuple[str, Goodbye]] = []
        self.farewell: Goodbye | None = None
        self.is_serving = False
        self.doors: Any = None
        self.before: Callable[[Message], object] = lambda message: None

    def start(self) -> int:
        self.is_serving = True
        return 18443

    def stop(self, *, why: Goodbye = Goodbye.SHUTDOWN) -> None:
        self.is_serving, self.farewell = False, why

    def traffic(self) -> tuple[int, int]:
        return 100, 200

    def barred(self, site: str) -> Goodbye | None:
        return self.doors.bars(site, None)

    def connected(self) -> Mapping[str, Any]:
        return {site: self._connection(site) for site in sorted(self.there)}

    def close_site(self, site: str, why: Goodbye) -> None:
        self.closed.append((site, why))
        self.there.discard(site)
        self.says(site, -1)

    def _connection(self, site: str) -> SimpleNamespace:
        until = time.time() + 90 * 86400
        peer = Peer(
            federation="pilot",
            role="site",
            name=site,
            serial=1,
            not_before=0.0,
            not_after=until,
            identity="0" * 64,
            fingerprint="0" * 64,
        )
        return SimpleNamespace(
            peer=peer, since=time.time(), silent=1.0, received=10, sent=2_000_000, tasks=0, software="0.1.0"
        )


class Site:
    """What a test sees of the machine that the server runs on."""

    def __init__(self, home: ServerHome, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.link = LinkInTest(("0", "1", "2"))
        self.asked: list[Words] = []
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What `veil server ARGUMENTS` prints."""
        found = run("server", *arguments)
        self.said = self._capsys.readouterr()
        assert found == code, self.said.err
        return self.said.out

    @property
    def path(self) -> str:
        return str(self.home.path)

    @property
    def states(self) -> list[str]:
        return [entry.state for entry in self.queue.entries]

    @property
    def queue(self) -> Queue:
        return Queue.read(self.home.path, self.home.queue)

    def set(self, text: str, instead: str) -> None:
        """Change the settings."""
        before = self.home.settings.read_text()
        assert text in before
        self.home.settings.write_text(before.replace(text, instead))


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of three sites."""
    folder = tmp_path_factory.mktemp("kits")
    description = folder / "federation.toml"
    description.write_text('name = "pilot"\nsites = ["0", "1", "2"]\n[server]\naddress = "127.0.0.1:18443"\n')
    assert run("provision", "kits", str(description), "--out", str(folder)) == 0
    return folder


@pytest.fixture
def site(
    provisioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    shutil.copytree(provisioned / "server", tmp_path / "home")
    found = Site(ServerHome(tmp_path / "home"), capsys)

    def grid(link: LinkInTest, mailbox: object, *, run: str, members: Sequence[str], deadline: float) -> StoppableGrid:
        assert link.offered is not None
        made = StoppableGrid(members, link.offered, tmp_path / f"ledger-{run}.sqlite", found.asked)
        made.before = found.link.before
        return made

    def link(*, doors: Doors, **_: object) -> LinkInTest:
        found.link.doors = doors
        return found.link

    monkeypatch.setattr(service, "LinkServer", link)
    monkeypatch.setattr(service, "LinkGrid", grid)
    monkeypatch.setenv("COLUMNS", "200")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield found
    assert {number: signal.getsignal(number) for number in before} == before
    with holding(found.home.lock, "a server that should have ended"):
        assert not found.home.socket.exists()


@pytest.fixture
def when_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Do something on another thread, once the server waits for sites."""

    def later(act: Callable[[], object]) -> None:
        original = ServerConsole.waiting

        def waiting(self: ServerConsole, entry: Any, text: str) -> None:
            monkeypatch.setattr(ServerConsole, "waiting", original)
            original(self, entry, text)
            threading.Thread(target=act).start()

        monkeypatch.setattr(ServerConsole, "waiting", waiting)

    return later


# --- start


def test_a_run_is_shown_as_a_simulation_is(site: Site) -> None:
    out = site("start", site.path, "digits", *SMALL)
    assert out.startswith(
        "serving pilot at port 18443\ndigits: 3 clients, 2 rounds, no privacy\nround 1/2  clients 3/3  "
    )
    assert "done: all 2 rounds" in out
    assert "privacy: none" in out
    assert site.states == ["done"]
    assert site.link.farewell is Goodbye.DONE
    assert (site.queue.folder(site.queue.entries[0]) / "report.html").is_file()


def test_the_summary_as_json(site: Site) -> None:
    found = json.loads(site("start", site.path, "digits", *SMALL, "--json"))
    assert found["rounds"] == 2
    assert found["setting"] == "deployment"
    assert Path(found["folder"]).parent == site.home.runs


def test_several_plans_and_an_exhausted_budget_exit_with_3(site: Site, tmp_path: Path) -> None:
    plan = tmp_path / "own.toml"
    plan.write_text(
        'name = "own"\n[data]\npartition = { kind = "iid", clients = 3 }\n[model]\nname = "mlp"\n'
        "[training]\nsteps = 2\n[privacy]\nepsilon = 8.0\nbudget = 6.5\n[federation]\nrounds = 3\n"
    )
    out = site("start", site.path, str(plan), "digits", *SMALL[:-2], "--set", "federation.rounds=3", code=3)
    assert "a privacy budget is exhausted" in out
    assert "digits: 3 clients, 3 rounds" in out
    assert site.states == ["done", "done"]


def test_nothing_is_queued_if_one_plan_is_wrong(site: Site) -> None:
    site("start", site.path, "digits", "hospitals", code=2)
    assert "hospitals: evaluation.baselines is for simulations" in site.said.err
    assert site.queue.entries == ()


def test_wrong_use_is_one_line(site: Site, tmp_path: Path) -> None:
    for arguments, text in (
        (["start", site.path], "give a PLAN, or --stay"),
        (["start", site.path, "--set", "seed=1"], "--set changes a plan; give one"),
        (["start", str(tmp_path), "digits"], f"{tmp_path}: is no server's home (server.toml is missing)"),
        (["start", site.path, "digit"], "digit: no such scenario or plan file; did you mean digits?"),
        (["stop", site.path], f"{site.path}: no server runs here"),
        (["submit", site.path, "digits"], f"{site.path}: no server runs here"),
        (["drop", site.path, "abc"], "abc: no such run in the queue; known: none"),
    ):
        site(*arguments, code=2)
        assert text in site.said.err
        assert len(site.said.err.splitlines()) == 1


def test_settings_of_another_federation_are_refused(site: Site) -> None:
    site.set('federation = "pilot"', 'federation = "other"')
    site("start", site.path, "digits", code=2)
    assert "federation = 'other', but this home belongs to 'pilot'" in site.said.err


def test_an_expired_certificate_is_said_before_anything_listens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 400 * 86400
    monkeypatch.setattr(service.time, "time", lambda: later)
    site("start", site.path, "digits", code=2)
    assert "server.pem: has expired; renew it" in site.said.err


def test_a_certificate_that_expires_soon_is_warned_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = time.time() + 360 * 86400
    monkeypatch.setattr(service.time, "time", lambda: soon)
    monkeypatch.setattr("server.status.time.time", lambda: soon)
    site("start", site.path, "digits", *SMALL)
    assert "note: the server's certificate expires in 5 days; renew it" in site.said.err
    assert '"warning": "certificate-expires"' in site.home.log.read_text()


def test_a_renewal_that_is_not_taken_is_said(site: Site, when_waiting: Callable[[Callable[[], object]], None]) -> None:
    """The new certificate's date would hide that the old one is shown to sites until it expires."""
    site.link.answer = lambda name, plan: PENDING if name == "2" else ACCEPTED
    found: list[str] = []

    def carry_over() -> None:
        site.home.tls_key.chmod(0o644)  # as a copy often is
        found.extend(ask(site.home.socket, {"ask": "status"})["status"]["server"]["warnings"])
        site.link.says("2", ACCEPTED)

    when_waiting(carry_over)
    site("start", site.path, "digits", *SMALL)
    assert len(found) == 1
    assert "others on this machine may read this private key" in found[0]


def test_what_a_killed_server_had_no_time_to_forget_is_forgotten(site: Site) -> None:
    """Else the messages of a run that is over, or was dropped, would fill the disk for ever."""
    mailbox = Mailbox.open(site.home.mailbox)
    task = Task(
        id="a" * 64, site="0", run="ab12", kind="train", group="1", header=b"", payload=Payload.of(b"model"), seconds=60
    )
    mailbox.post([task])
    assert mailbox.runs() == ["ab12"]
    mailbox.close()
    site("start", site.path, "digits", *SMALL)
    mailbox = Mailbox.open(site.home.mailbox)
    assert mailbox.runs() == []
    mailbox.close()


# --- the server's own test data


def test_the_servers_own_file_judges_the_model(site: Site) -> None:
    x = load_digits(DataPlan(name="digits"), KNOWN["digits"])[0]
    np.savez(site.home.path / "own.npz", x=(x.x[:50].numpy() * 8 + 8), y=np.zeros(50, dtype=np.int64))
    with site.home.settings.open("a") as settings:
        settings.write('\n[[data]]\nname = "digits"\nformat = "npz"\npath = "own.npz"\n')
    found = json.loads(site("start", site.path, "digits", *SMALL, "--json"))
    assert "auc" not in found["final"]  # one class alone: these are the file's records and no others


def test_own_data_that_is_missing_is_said_before_anybody_is_asked(site: Site) -> None:
    with site.home.settings.open("a") as settings:
        settings.write('\n[data]\nname = "digits"\nformat = "npz"\npath = "nowhere.npz"\n')
    site("start", site.path, "digits", *SMALL, code=2)
    assert "nowhere.npz: the data for data.name = 'digits' does not exist" in site.said.err
    assert site.link.offers == []


def test_a_plan_on_others_data_needs_test_data_or_another_evaluation(site: Site, tmp_path: Path) -> None:
    plan = tmp_path / "own.toml"
    plan.write_text(
        '[data]\nname = "csv"\npath = "theirs.csv"\n[data.card]\nclasses = ["no", "yes"]\ntarget = "outcome"\n'
        '[data.card.columns]\nage = { kind = "numeric", low = 0, high = 100 }\n[model]\nname = "mlp"\n'
    )
    site("start", site.path, str(plan), code=2)
    assert "the server has no test data for data.name = 'csv'; name it in server.toml" in site.said.err


# --- stop, resume, drop


def test_stop_and_resume(site: Site, when_waiting: Callable[[Callable[[], object]], None]) -> None:
    site.link.there = {"0"}
    codes: list[int] = []
    when_waiting(lambda: codes.append(run("server", "stop", site.path)))
    site("start", site.path, "digits", *SMALL)
    assert f"stopped; go on with: veil server resume {site.path}" in site.said.err
    assert site.states == ["stopped"]
    assert site.link.farewell is Goodbye.SHUTDOWN

    site("start", site.path, "digits", code=2)
    label = site.queue.entries[0].run
    assert f"the run {label} (digits) is not over; go on with: veil server resume {site.path}" in site.said.err

    site.link.there = {"0", "1", "2"}
    assert "done: all 2 rounds" in site("resume", site.path)
    assert site.states == ["done"]
    site("resume", site.path)
    assert "nothing to go on with" in site.said.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_stop_does(
    site: Site, number: signal.Signals, when_waiting: Callable[[Callable[[], object]], None]
) -> None:
    site.link.there = set()
    when_waiting(lambda: os.kill(os.getpid(), number))
    site("start", site.path, "digits", *SMALL)
    assert site.states == ["stopped"]


def test_a_failed_run_says_how_to_go_on(site: Site) -> None:
    site.set("seconds = 86400.0", "seconds = 0.05")
    answers = {"0": ACCEPTED, "1": PENDING, "2": int(Fault.POLICY_APPROVAL)}
    site.link.answer = lambda name, plan: answers[name]
    site("start", site.path, "digits", *SMALL, code=1)
    assert site.said.err.splitlines()[-1] == (
        "error: 1 of 3 sites have accepted the plan within 0.05 s, 3 are needed (2: refuses (policy-approval), "
        f"1: its owner has yet to approve (veil client approve)); go on with: veil server resume {site.path}"
    )
    label = site.queue.entries[0].run
    assert f"dropped {label}" in site("drop", site.path, label)
    assert site.queue.entries == ()


# --- while it runs


def test_a_second_server_is_refused(site: Site, when_waiting: Callable[[Callable[[], object]], None]) -> None:
    site.link.there = {"0"}
    codes: list[int] = []

    def second() -> None:
        codes.append(run("server", "resume", site.path))
        ask(site.home.socket, {"ask": "stop"})

    when_waiting(second)
    site("start", site.path, "digits", *SMALL)
    assert codes == [2]
    assert f"error: {site.path}: is in use by a running server; stop that first\n" in site.said.err


def test_status_of_a_running_server(site: Site, when_waiting: Callable[[Callable[[], object]], None]) -> None:
    site.link.there = {"0", "1"}
    answers = {"0": ACCEPTED, "1": int(Fault.POLICY_UNIT)}
    site.link.answer = lambda name, plan: answers[name]
    found: list[dict[str, Any]] = []

    def look() -> None:
        found.append(ask(site.home.socket, {"ask": "status"})["status"])
        assert ask(site.home.socket, {"ask": "health"})["healthy"] is True
        run("server", "status", site.path)
        ask(site.home.socket, {"ask": "stop"})

    when_waiting(look)
    out = site("start", site.path, "digits", *SMALL)
    assert "serving pilot at 0.0.0.0:18443, since 2" in out
    assert "digits: 1 of 3 sites have accepted; 1: refuses (policy-unit), 2: not connected" in out
    (status,) = found
    assert status["server"]["up"] is True
    assert status["server"]["certificate"]["days"] > 300
    rows = {row["site"]: row for row in status["sites"]}
    assert [rows[name]["plan"] for name in "012"] == ["accepted", "refused: policy-unit", "none"]
    assert [rows[name]["connected"] for name in "012"] == [True, True, False]
    assert rows["0"]["software"] == "0.1.0"
    shown = {line.split()[0]: line for line in out.splitlines() if line[:2] in ("0 ", "1 ", "2 ")}
    assert re.fullmatch(r"0 +for \d+ s +1 s ago +accepted +0 +10 B +2 MB +90 d +0\.1\.0 *", shown["0"])
    assert re.fullmatch(r"2 +no +- +none +0 +- +- +- +- *", shown["2"])
    (entry,) = status["queue"]
    assert (entry["state"], entry["round"], entry["rounds"]) == ("waiting", 0, 2)


def test_round_progress_is_in_the_status(site: Site) -> None:
    seen: list[Any] = []
    site.link.before = lambda message: seen.append(ask(site.home.socket, {"ask": "status"})["status"]["queue"][0])
    site("start", site.path, "digits", *SMALL)
    last = seen[-1]
    assert (last["round"], last["state"], len(last["members"])) == (1, "running", 3)
    assert last["metric"]["name"] == "accuracy"
    assert {key: last["phase"][key] for key in ("kind", "round", "asked", "answered")} == {
        "kind": "train",
        "round": 2,
        "asked": 3,
        "answered": 2,
    }


def test_status_when_no_server_runs_is_from_the_files(site: Site) -> None:
    site("start", site.path, "digits", *SMALL)
    out = site("status", site.path)
    assert f"no server runs in {site.path}; what its files say of pilot:" in out
    (label,) = (entry.run for entry in site.queue.entries)
    line = next(line for line in out.splitlines() if line.startswith(label))
    assert line.split()[1:6] == ["digits", "done", "2/2", "accuracy", line.split()[5]]
    status = json.loads(site("status", site.path, "--json"))
    assert status["server"]["up"] is False
    assert status["queue"][0]["round"] == 2
    assert [row["site"] for row in status["sites"]] == ["0", "1", "2"]


def test_a_run_that_was_cut_off_is_shown_so(site: Site) -> None:
    site("start", site.path, "digits", *SMALL)
    queue = site.queue
    queue.update(queue.entries[0].run, state="running")
    assert " cut off  2/2 " in site("status", site.path)


def test_a_server_that_stays_takes_plans(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = threading.Event()
    original, serving = ServerConsole.ends, ServerConsole.serving

    def ends(self: ServerConsole, entry: Any, folder: Any) -> None:
        original(self, entry, folder)
        ended.set()

    def work() -> None:
        run("server", "submit", site.path, "digits", *SMALL)
        run("server", "submit", site.path, "hospitals")
        ended.wait(60)
        ask(site.home.socket, {"ask": "stop"})

    def begun(self: ServerConsole, port: int) -> None:
        serving(self, port)
        threading.Thread(target=work).start()

    monkeypatch.setattr(ServerConsole, "ends", ends)
    monkeypatch.setattr(ServerConsole, "serving", begun)
    out = site("start", site.path, "--stay")
    (label,) = (entry.run for entry in site.queue.entries)
    assert f"queued digits as run {label}; folder: {site.home.runs}" in out
    assert "done: all 2 rounds" in out
    assert "error: hospitals: evaluation.baselines is for simulations" in site.said.err
    assert site.states == ["done"]


def test_figures_and_health(site: Site, when_waiting: Callable[[Callable[[], object]], None]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site.set("port = 0", f"port = {port}")
    site.link.there = {"0"}
    seen: list[str] = []

    def look() -> None:
        for path in ("metrics", "health"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as answer:
                seen.append(answer.read().decode())
        ask(site.home.socket, {"ask": "stop"})

    when_waiting(look)
    site("start", site.path, "digits", *SMALL)
    assert "veil_sites_connected 1.0" in seen[0]
    assert 'veil_link_bytes_total{direction="out"} 200.0' in seen[0]
    assert seen[1] == "healthy\n"


# --- revoke


def test_a_revoked_site_is_cut_off_at_once(site: Site, when_waiting: Callable[[Callable[[], object]], None]) -> None:
    site.link.there = {"0", "1"}
    site.set('sites = "all" ', "sites = 3")
    when_waiting(lambda: run("server", "revoke", site.path, "1"))
    # The others go on without it as soon as they are enough; here three were asked for, and there are two.
    site.set("seconds = 86400.0", "seconds = 2.0")
    out = site("start", site.path, "digits", *SMALL, code=1)
    assert "1 is kept out of this server; its connection was closed" in out
    assert site.link.closed == [("1", Goodbye.REVOKED)]
    assert set(revoked_here(site.home)) == {"1"}
    assert "1 of 2 sites have accepted" in site.said.err


def test_a_site_can_be_revoked_while_no_server_runs(site: Site) -> None:
    assert "no server runs now, the next one won't let it in" in site("revoke", site.path, "2")
    out = site("start", site.path, "digits", *SMALL)
    assert "digits: 2 clients" in out
    assert "revoked" in site("status", site.path)


def test_an_unknown_site_is_answered_with_the_known_ones(site: Site) -> None:
    site("revoke", site.path, "3", code=2)
    assert "3: no such site in " in site.said.err
    assert "known: 0, 1, 2" in site.said.err
    assert not site.home.revoked_here.exists()
