"""The daemon: a queue of plans, the sites of each, and going on after whatever ended it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from flwr.app import Message

from security.errors import RunError, UsageError
from security.frames import ACCEPTED, PENDING
from server.daemon import Daemon
from server.queue import Queue
from server.run_folder import RunFolder, read_parameters
from server.settings import ServerSettings
from shared_models.faults import Fault
from shared_models.plan import Plan
from simulations.run import Settings, start_run
from tests.server.conftest import same_bits
from tests.server.fake_link import SITES, FakeLink, Notes, StoppableGrid, Words, small_plan, test_part

FAST = {"wait": {"seconds": 0.05}}


def identity_of(site: str) -> str:
    """The public key of a site's identity."""
    return hashlib.sha256(site.encode()).hexdigest()


class Killed(BaseException):
    """The process ends here, as by kill -9: nothing more is written."""


class Bench:
    """A server's home, and daemons that come and go in it."""

    def __init__(self, path: Path) -> None:
        self.home = path / "home"
        self.home.mkdir()
        self.ledgers = path
        self.link = FakeLink()
        self.asked: list[Words] = []
        self.members: list[tuple[str, ...]] = []
        self.forgotten: list[str] = []
        self.sites: Sequence[str] = SITES
        self.before: Callable[[Message], object] = lambda message: None
        self.load_test: Callable[[Plan], object] = test_part
        self.notes = Notes()

    def _before(self, message: Message) -> None:
        self.before(message)

    @property
    def queue(self) -> Queue:
        """As it is on the disk."""
        return Queue.read(self.home, self.home / "queue.json")

    def daemon(self, **settings: object) -> Daemon:
        """A new process, so to speak."""
        queue = self.queue

        def grid(run: str, members: Sequence[str]) -> StoppableGrid:
            self.members.append(tuple(members))
            plan = queue.plan(queue.entry(run))
            made = StoppableGrid(members, plan, self.ledgers / f"ledger-{run}.sqlite", self.asked)
            made.before = self._before
            return made

        return Daemon(
            queue=queue,
            settings=ServerSettings.model_validate({"federation": "test", **FAST, **settings}),
            link=self.link,
            grid=grid,
            forget=self.forgotten.append,
            sites=lambda: {site: identity_of(site) for site in self.sites},
            load_test=self.load_test,  # type: ignore[arg-type]
            watcher=self.notes,
        )

    def folder(self, place: int = 0) -> RunFolder:
        return RunFolder(self.queue.folder(self.queue.entries[place]))

    @property
    def states(self) -> list[str]:
        return [entry.state for entry in self.queue.entries]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_run_on_sites_is_the_simulated_run_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    plan = small_plan()
    daemon = bench.daemon()
    entry = daemon.submit(plan)
    assert daemon.run() == 0
    assert bench.states == ["done"]
    assert bench.members == [SITES]
    simulated, _ = start_run(plan, tmp_path / "simulated", Settings(engine="inline"))
    assert same_bits(read_parameters(bench.folder().model), read_parameters(simulated.model))
    assert bench.folder().path == bench.home / entry.folder
    assert bench.folder().read_plan().digest() == entry.digest
    assert bench.forgotten == [entry.run]  # nobody asks for its replies any more


def test_a_deployed_run_is_not_called_simulated(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.submit(small_plan("privacy.trust=local", "federation.rounds=1"))
    assert daemon.run() == 0
    told = json.dumps(bench.folder().read_summary()["privacy"])
    assert "simulated" not in told


def test_the_offer_names_no_path_of_this_machine(bench: Bench, tmp_path: Path) -> None:
    daemon = bench.daemon()
    entry = daemon.submit(small_plan(f"data.path={tmp_path}", "federation.rounds=1", "evaluation.where=none"))
    bench.link.answer = lambda site, plan: None  # nobody: only the offer is looked at
    with pytest.raises(RunError):
        daemon.run()
    ((run, text, digest),) = bench.link.offers
    assert (run, digest) == (entry.run, entry.digest)
    assert str(tmp_path) not in text


# --- who takes part


def test_a_run_waits_until_everybody_has_accepted(bench: Bench) -> None:
    bench.link = FakeLink(("0",), lambda site, plan: PENDING if site == "1" else ACCEPTED)
    daemon = bench.daemon(wait={"seconds": 60})
    daemon.submit(small_plan("federation.rounds=1"))
    steps: list[Callable[[], None]] = [
        lambda: bench.link.comes("1"),
        lambda: bench.link.comes("2"),
        lambda: bench.link.says("1", ACCEPTED),
    ]
    told: list[str] = []

    def waiting(entry: object, text: str) -> None:
        told.append(text)
        threading.Thread(target=steps.pop(0)).start()

    bench.notes.waiting = waiting  # type: ignore[method-assign]
    assert daemon.run() == 0
    assert told == [
        "1 of 3 sites have accepted; 1: not connected, 2: not connected",
        "1 of 3 sites have accepted; 1: its owner has yet to approve (veil client approve), 2: not connected",
        "2 of 3 sites have accepted; 1: its owner has yet to approve (veil client approve)",
    ]
    assert bench.members == [SITES]


def test_patience_ends_with_who_is_missing_and_why(bench: Bench) -> None:
    answers = {"0": ACCEPTED, "1": int(Fault.POLICY_UNIT)}
    bench.link = FakeLink(("0", "1", "2"), lambda site, plan: answers.get(site))
    daemon = bench.daemon()
    daemon.submit(small_plan())
    daemon.submit(small_plan())
    expected = r"1 of 3 sites have accepted the plan within 0.05 s, 3 are needed \(1: refuses \(policy-unit\), 2: "
    with pytest.raises(RunError, match=expected):
        daemon.run()
    assert bench.states == ["failed", "waiting"]
    assert bench.asked == []
    assert bench.queue.entries[0].members == ()


def test_as_many_sites_as_the_settings_ask_for_are_enough(bench: Bench) -> None:
    bench.link = FakeLink(("0", "2"))
    daemon = bench.daemon(wait={"sites": 2, "seconds": 60})
    daemon.submit(small_plan("federation.rounds=1"))
    assert daemon.run() == 0
    assert bench.members == [("0", "2")]
    assert list(bench.queue.entries[0].members) == ["0", "2"]


def test_more_sites_than_there_are_is_said_before_anybody_is_waited_for(bench: Bench) -> None:
    daemon = bench.daemon(wait={"sites": 4, "seconds": 60})
    daemon.submit(small_plan())
    with pytest.raises(UsageError, match=r"wait\.sites asks for more than the 3 sites"):
        daemon.run()


def test_members_are_on_disk_before_the_first_message(bench: Bench) -> None:
    seen: list[tuple[str, tuple[str, ...]]] = []
    bench.before = lambda message: seen.append((bench.queue.entries[0].state, bench.queue.entries[0].members))
    daemon = bench.daemon()
    daemon.submit(small_plan("federation.rounds=1"))
    daemon.run()
    assert seen[0] == ("running", SITES)


# --- what is refused before anybody is asked


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("evaluation.baselines=true", "evaluation.baselines is for simulations"),
        ("privacy.noise=reproducible", r"privacy\.noise = 'reproducible' is for simulations"),
        ("privacy.client_budgets.0=1.0", "privacy.client_budgets is for simulations"),
        ("federation.min_clients=3", "federation.min_clients = 3 is more than the 2 sites"),
    ],
)
def test_a_plan_for_simulations_is_refused(bench: Bench, override: str, text: str) -> None:
    bench.sites = SITES[:2]
    with pytest.raises(UsageError, match=text):
        bench.daemon().submit(small_plan("privacy.trust=local", override))
    assert bench.queue.entries == ()


def test_without_test_data_a_plan_judged_at_the_server_is_refused(bench: Bench) -> None:
    bench.load_test = lambda plan: None
    with pytest.raises(UsageError, match=r"server has no test data for data\.name = 'digits'; name it in server\.toml"):
        bench.daemon().submit(small_plan())
    bench.daemon().submit(small_plan("evaluation.where=none"))


def test_test_data_that_is_gone_is_found_out_before_anybody_is_asked(bench: Bench) -> None:
    bench.daemon().submit(small_plan())
    bench.load_test = lambda plan: None
    with pytest.raises(UsageError, match="no test data"):
        bench.daemon().run()
    assert bench.link.offers == []


# --- going on


def die_in_round(bench: Bench, number: int, asked: int) -> None:
    """Kill the daemon when so many of a round have been asked."""

    def kill(message: Message) -> None:
        of_round = [words for words in bench.asked if words[2] == str(number)]
        if message.metadata.group_id == str(number) and len(of_round) == asked:
            raise Killed

    bench.before = kill


@pytest.mark.parametrize("trust", ["none", "local"])
def test_after_a_kill_the_same_sites_are_asked_in_the_same_words(bench: Bench, tmp_path: Path, trust: str) -> None:
    plan = small_plan(f"privacy.trust={trust}", "federation.rounds=2")
    bench.link = FakeLink(("0", "1"))
    die_in_round(bench, 2, 1)
    daemon = bench.daemon(wait={"sites": 2})
    daemon.submit(plan)
    with pytest.raises(Killed):
        daemon.run()
    assert bench.states == ["running"]
    killed_at = len(bench.asked)

    bench.before = lambda message: None
    bench.link = FakeLink(SITES)  # one more is there by now
    assert bench.daemon(wait={"sites": 2}).run() == 0
    assert bench.members == [("0", "1"), ("0", "1")]
    assert {offer[0] for offer in bench.link.offers} == {bench.queue.entries[0].run}
    trained = [words for words in bench.asked if words[1] == "train"]
    before, after = trained[: len([w for w in bench.asked[:killed_at] if w[1] == "train"])], trained
    assert len(before) == 3
    assert len(after) == 5
    assert len(set(after)) == 4  # two sites, two rounds: who was asked twice was asked the same
    charged = bench.folder().read_summary()["privacy"]["clients"]
    assert [row["charged_rounds"] for row in charged] == ([2, 2] if trust == "local" else [0, 0])


def test_members_that_stay_away_do_not_keep_a_run_from_going_on(bench: Bench) -> None:
    die_in_round(bench, 2, 0)
    daemon = bench.daemon()
    daemon.submit(small_plan("federation.rounds=2"))
    with pytest.raises(Killed):
        daemon.run()
    bench.before = lambda message: None
    bench.link = FakeLink(("0",))
    assert bench.daemon().run() == 0
    assert bench.notes.of("waiting") == ["1 of 3 sites have accepted; 1: not connected, 2: not connected"]


def test_a_kill_between_the_last_round_and_the_queue_plays_nothing_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = bench.daemon()
    daemon.submit(small_plan("federation.rounds=1"))

    def killed(*args: object, **changes: object) -> None:
        if changes.get("state") == "done":
            raise Killed
        original(*args, **changes)

    original = Queue.update
    monkeypatch.setattr(Queue, "update", killed)
    with pytest.raises(Killed):
        daemon.run()
    monkeypatch.undo()
    asked = len(bench.asked)
    assert bench.states == ["running"]
    assert bench.daemon().run() == 0
    assert bench.states == ["done"]
    assert len(bench.asked) == asked


def test_a_stop_in_a_round_can_be_gone_on_with(bench: Bench) -> None:
    daemon = bench.daemon()
    bench.before = lambda message: daemon.stop() if message.metadata.group_id == "2" else None
    daemon.submit(small_plan())
    daemon.submit(small_plan("federation.rounds=1"))
    assert daemon.run() == 0
    assert bench.states == ["stopped", "waiting"]
    assert bench.queue.entries[0].reason == "the server was stopped"
    assert bench.folder().read_metrics()[-1]["round"] == 1
    bench.before = lambda message: None
    assert bench.daemon().run() == 0
    assert bench.states == ["done", "done"]
    assert [line["round"] for line in bench.folder().read_metrics()] == [1, 2, 3]


def test_a_stop_while_sites_are_waited_for(bench: Bench) -> None:
    bench.link = FakeLink(())
    daemon = bench.daemon(wait={"seconds": 600})
    daemon.submit(small_plan())
    bench.notes.waiting = lambda entry, text: daemon.stop()  # type: ignore[method-assign]
    assert daemon.run() == 0
    assert bench.states == ["stopped"]
    assert bench.asked == []


def test_a_failed_run_stops_the_queue_and_is_tried_again_on_resume(bench: Bench) -> None:
    plan = small_plan("federation.min_clients=3", "federation.rounds=2", "privacy.trust=local")
    bench.sites = SITES
    lost = [True]

    def fail(message: Message) -> None:
        if message.metadata.group_id == "2" and lost[0]:
            raise RunError("the line broke")

    bench.before = fail
    daemon = bench.daemon()
    first = daemon.submit(plan)
    daemon.submit(small_plan("federation.rounds=1"))
    with pytest.raises(RunError, match="the line broke"):
        daemon.run()
    assert bench.states == ["failed", "waiting"]
    assert bench.queue.entries[0].reason == "the line broke"
    lost[0] = False
    assert bench.daemon().run() == 0
    assert bench.states == ["done", "done"]
    assert bench.forgotten[0] == first.run  # before it is tried again: what made it fail must not be there still
    assert len(bench.forgotten) == 3


def test_a_run_of_too_few_good_updates_fails_with_exit_1(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.submit(small_plan("federation.min_clients=3"))
    daemon.submit(small_plan())

    def too_short(message: Message) -> None:
        message.content.config_records["config"]["plan-digest"] = "0" * 64

    bench.before = too_short
    assert daemon.run() == 1
    assert bench.states == ["failed", "waiting"]
    assert "plan-mismatch" in str(bench.queue.entries[0].reason)


def test_a_spent_budget_goes_on_with_the_next_plan_and_exits_with_3(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.submit(small_plan("privacy.trust=local", "privacy.epsilon=8", "privacy.budget=6.5", "federation.rounds=3"))
    daemon.submit(small_plan("federation.rounds=1"))
    assert daemon.run() == 3
    assert bench.states == ["done", "done"]
    assert [entry.exit_code for entry in bench.queue.entries] == [3, 0]
    assert bench.folder().read_summary()["stopped"] == "budget"


def test_a_full_disk_is_one_clear_line_and_can_be_gone_on_with(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = bench.daemon()
    daemon.submit(small_plan())
    full = [False]
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    def fill(message: Message) -> None:
        full[0] = message.metadata.group_id == "2"

    monkeypatch.setattr(os, "fsync", fsync)
    bench.before = fill
    with pytest.raises(RunError, match=r"^[^\n]*No space left on device[^\n]*$"):
        daemon.run()
    assert bench.states == ["running"]  # the queue could not be written either
    full[0] = False
    bench.before = lambda message: None
    assert bench.daemon().run() == 0
    assert [line["round"] for line in bench.folder().read_metrics()] == [1, 2, 3]


# --- staying


def test_a_server_that_stays_plays_what_is_submitted_later(bench: Bench) -> None:
    daemon = bench.daemon()
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(daemon.run(stay=True)))
    done = threading.Event()
    bench.notes.ends = lambda entry, folder: done.set()  # type: ignore[method-assign]
    thread.start()
    for _ in range(2):
        done.clear()
        daemon.submit(small_plan("federation.rounds=1"))
        assert done.wait(60)
    assert thread.is_alive()
    daemon.stop()
    thread.join(60)
    assert codes == [0]
    assert bench.states == ["done", "done"]


def test_progress_is_told_within_a_round(bench: Bench) -> None:
    daemon = bench.daemon()
    seen: list[tuple[int, str | None, int, int]] = []

    def look(message: Message) -> None:
        now = daemon.progress.now
        assert now is not None
        seen.append((now.round, now.phase, now.asked, now.answered))

    bench.before = look
    daemon.submit(small_plan("federation.rounds=2"))
    daemon.run()
    assert seen == [(r, "train", 3, n) for r in (0, 1) for n in (0, 1, 2)]
    assert daemon.progress.now is None
