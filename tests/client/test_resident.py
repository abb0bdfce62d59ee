"""`veil client run` as a process: killed at any point, told to end, with a home that will not do. With real keys, real
training and a real ledger, at small size."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.notes import read_status
from client.outbox import Outbox, OutboxError
from client.resident import work_at
from privacy.ledger import Ledger, default_anchors
from security.credentials import server_credentials
from security.errors import UsageError
from security.frames import ACCEPTED, Answer, Goodbye
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS
from tests.client.conftest import content_of, plan_of
from tests.client.link_client import offer_of, read, task_id, task_of
from tests.client.link_home import Pilot
from tests.client.link_server import LinkServer, Over, Stream, eventually

SLOW = 120.0  # seconds: several processes may be starting on this machine


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(privacy={"noise": "secret", "noise_multiplier": None, "epsilon": 5.0})


@pytest.fixture
def pilot(tmp_path: Path) -> Pilot:
    return Pilot(tmp_path)


@pytest.fixture
def server(pilot: Pilot, plan: Plan) -> Iterator[LinkServer]:
    with LinkServer(server_credentials(pilot.server)) as found:
        pilot.settle(found.address, plan)
        yield found


class Process:
    """A client's process."""

    def __init__(self, pilot: Pilot, *options: str, point: str = "never") -> None:
        command = [sys.executable, "-m", "tests.client.link_process", point, str(pilot.site.path), *options]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = ""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.wait()

    def wait(self) -> int:
        output, _ = self.popen.communicate(timeout=SLOW)
        self.output += output or ""
        return self.popen.returncode


def joined(server: LinkServer, plan: Plan) -> Stream:
    """The stream of a client that has accepted the plan."""
    stream = server.stream(timeout=SLOW)
    stream.welcome()
    stream.say(offer_of(plan))
    assert stream.hear(Answer, timeout=SLOW).code == ACCEPTED
    return stream


def round_of(plan: Plan, number: int) -> tuple[str, bytes, bytes]:
    return task_of(plan, number, content=content_of(plan, number, run="ab"))


def books(pilot: Pilot) -> tuple[list[str], Counter[Any]]:
    """Kinds of the ledger's entries, and what was charged."""
    path = pilot.site.ledger
    with Ledger.open(path, anchors=default_anchors(path), read_only=True) as ledger:
        (scope,) = ledger.scopes()
        charged: Counter[Any] = Counter()
        for balance in ledger.balances(scope):
            for own in ledger.account(scope, balance).plans:
                charged.update(dict(own.charged))
        return [entry.kind for entry in ledger.entries(scope)], charged


# --- kills ----------------------------------------------------------------------------------------------------------


def test_a_client_killed_anywhere_in_a_round_charges_it_once_and_gives_the_one_reply(
    pilot: Pilot, server: LinkServer, plan: Plan
) -> None:
    task, once = round_of(plan, 1), {plan.train_release(): 1}
    for point, kinds in (
        ("training", ["open", "policy", "reserve"]),
        ("committed", ["open", "policy", "reserve", "commit"]),
    ):
        with Process(pilot, point=point) as process:
            stream = joined(server, plan)
            assert stream.hello.holding == ()
            stream.send(*task)
            assert process.wait() == -signal.SIGKILL
            with pytest.raises(Over):
                stream.hear(Answer)
        assert books(pilot) == (kinds, once)
    # The ledger has the reply now, the outbox has not: it comes from there, and is not computed anew.
    with Process(pilot, point="receipt") as process:
        stream = joined(server, plan)
        assert stream.hello.holding == ()
        stream.send(*task)
        begin, payload = stream.reply()
        assert process.wait() == -signal.SIGKILL
    assert books(pilot) == (kinds, once)
    first = read(begin.header, payload)
    # Now the outbox has it as well: it comes without being asked for, once its plan is accepted.
    with Process(pilot, "--until-done") as process:
        stream = server.stream(timeout=SLOW)
        assert stream.welcome().holding == (task[0],)
        stream.say(offer_of(plan))
        assert stream.hear(Answer, timeout=SLOW).code == ACCEPTED
        begin, again = stream.reply()
        assert again == payload
        stream.send(*round_of(plan, 2))
        second = stream.reply()
        stream.end(Goodbye.DONE)
        assert process.wait() == 0
    assert not first.has_error()
    assert second[0].id == task_id("train 2")
    assert first.content.array_records[ARRAYS] != read(second[0].header, second[1]).content.array_records[ARRAYS]
    kinds, charged = books(pilot)
    assert kinds == ["open", "policy", "reserve", "commit", "reserve", "commit"]
    assert charged == {plan.train_release(): 2}
    outbox = Outbox.open(pilot.site.outbox)
    assert outbox.replies() == ()
    outbox.close()


def test_an_unprotected_update_does_not_leave_after_a_restart_without_trust_in_the_federation(
    pilot: Pilot, server: LinkServer
) -> None:
    plain = plan_of(private=False)
    pilot.change(release={"entrust": ["pilot"]})
    with Process(pilot, point="receipt") as process:
        stream = joined(server, plain)
        stream.send(*round_of(plain, 1))
        begin, payload = stream.reply()
        assert not read(begin.header, payload).has_error()
        assert process.wait() == -signal.SIGKILL
    pilot.change(release={"entrust": []})
    with Process(pilot, "--until-done") as process:
        stream = server.stream(timeout=SLOW)
        assert stream.welcome().holding == (begin.id,)
        stream.say(offer_of(plain))
        assert stream.hear(Answer, timeout=SLOW).code == Fault.POLICY_ENTRUST
        assert stream.is_quiet(0.5)
        pilot.change(release={"entrust": ["pilot"]})
        stream.say(offer_of(plain))
        assert stream.hear(Answer, timeout=SLOW).code == ACCEPTED
        assert stream.reply()[1] == payload
        stream.end(Goodbye.DONE)
        assert process.wait() == 0


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_first_signal_lets_the_task_in_work_be_finished_and_sent(
    pilot: Pilot, server: LinkServer, plan: Plan
) -> None:
    with Process(pilot, point="slow") as process:
        stream = joined(server, plan)
        stream.send(*round_of(plan, 1))
        eventually(lambda: is_working(pilot))
        process.popen.send_signal(signal.SIGTERM)
        stream.send(*round_of(plan, 2))
        assert stream.reply()[0].id == task_id("train 1")
        assert process.wait() == 0
    assert "stopping: the task in work is finished first; once more stops at once" in process.output
    assert books(pilot)[0][2:] == ["reserve", "commit"]
    assert "ended; peak memory " in process.output


def test_a_second_signal_stops_at_once(pilot: Pilot, server: LinkServer, plan: Plan) -> None:
    with Process(pilot, point="slow") as process:
        stream = joined(server, plan)
        stream.send(*round_of(plan, 1))
        eventually(lambda: has_reserved(pilot), timeout=SLOW)
        process.popen.send_signal(signal.SIGINT)
        eventually(lambda: '"stopping"' in pilot.site.log.read_text())  # signals that come together are one
        process.popen.send_signal(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
    assert books(pilot)[0][2:] == ["reserve"]
    status = read_status(pilot.site.status)
    assert status is not None
    assert not status.running


def is_working(pilot: Pilot) -> bool:
    status = read_status(pilot.site.status)
    return status is not None and status.working


def has_reserved(pilot: Pilot) -> bool:
    with Ledger.open(pilot.site.ledger, anchors=default_anchors(pilot.site.ledger), read_only=True) as ledger:
        return any(entry.kind == "reserve" for scope in ledger.scopes() for entry in ledger.entries(scope))


# --- what it takes of the machine -----------------------------------------------------------------------------------


def test_a_client_gives_way_keeps_within_its_memory_and_brings_no_simulation_with_it(
    pilot: Pilot, server: LinkServer, plan: Plan
) -> None:
    pilot.change(resources={"niceness": 7, "memory_mb": 900})
    with Process(pilot, point="greedy") as process:
        stream = server.stream(timeout=SLOW)
        stream.welcome()
        number = process.popen.pid
        assert os.getpriority(os.PRIO_PROCESS, number) == 7
        assert resource.prlimit(number, resource.RLIMIT_DATA) == (900 << 20, 900 << 20)
        idle = mapped(number)
        stream.say(offer_of(plan))
        assert stream.hear(Answer, timeout=SLOW).code == ACCEPTED
        stream.send(*round_of(plan, 1))  # it asks for more memory than there is
        begin, payload = stream.reply()
        assert Fault(read(begin.header, payload).error.code) is Fault.CLIENT_FAILED
        stream.send(*round_of(plan, 2))
        begin, payload = stream.reply()
        assert not read(begin.header, payload).has_error()
        working = mapped(number)
        # Another client of the same home would spend its budget twice.
        with pytest.raises(UsageError, match="is in use by a running client; stop that first"):
            work_at(pilot.site, None)
        stream.end(Goodbye.REVOKED)
        assert process.wait() == 1
    assert "libtorch" not in idle  # until there is a plan
    assert "/pandas/" not in idle
    assert "libtorch" in working
    assert "/ray/" not in working


def mapped(number: int) -> str:
    """The libraries that a process has loaded."""
    return Path(f"/proc/{number}/maps").read_text()


# --- homes that will not do -----------------------------------------------------------------------------------------


def test_a_broken_outbox_is_one_line_and_stays_as_it_is(pilot: Pilot, server: LinkServer) -> None:
    pilot.change(resources={"niceness": 0})
    pilot.site.outbox.write_bytes(b"\xff" * 8192)
    with pytest.raises(OutboxError) as error:
        work_at(pilot.site, None)
    assert str(error.value).startswith(f"{pilot.site.outbox}: is damaged; move it away and start again")
    assert pilot.site.outbox.read_bytes() == b"\xff" * 8192
    assert not pilot.site.status.exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"server": {"address": ""}}, "server.address"),
        ({"resources": {"memory_mb": 100}}, "resources.memory_mb = 100: less than any client needs"),
    ],
)
def test_settings_that_will_not_do_are_named_before_anything_is_made(
    pilot: Pilot, server: LinkServer, changes: dict[str, Any], line: str
) -> None:
    pilot.change(resources={"niceness": 0})
    pilot.change(**changes)
    with pytest.raises(UsageError, match=line):
        work_at(pilot.site, None)
    assert not pilot.site.outbox.exists()
    assert not pilot.site.ledger.exists()
