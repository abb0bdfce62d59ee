"""The resident client, against a server on frames: what it says, what it works on, and what it never does twice."""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from client import agent as agent_module
from client import working as working_module
from client.dialing import Backoff
from client.outbox import Outbox, OutboxError
from security.chunks import chunks
from security.frames import (
    ACCEPTED,
    PENDING,
    Answer,
    Beat,
    Begin,
    Chunk,
    Goodbye,
    Offer,
    Recall,
    Receipt,
    Taken,
    Welcome,
    encode,
)
from shared_models.faults import Fault
from shared_models.flower_messages import state_from_bytes
from shared_models.plan import Plan
from shared_models.protocol import SECURE_KEYS, SECURE_UNMASK
from shared_models.resolve import resolve
from tests.client import link_app
from tests.client.conftest import CARD, plan_of
from tests.client.link_client import Client, offer_of, read, refuse_credentials, task_id, task_of
from tests.client.link_server import LinkServer, Over, Stream, begin_of, eventually

SECRET = "patient-4711"


def at_work(client: Client, server: LinkServer, plan: Plan) -> Stream:
    """The stream of a client that was let in and has accepted the plan."""
    if not hasattr(client, "_thread"):
        client.start()
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    return stream


def fault_of(begin: Begin, payload: bytes) -> Fault:
    reply = read(begin.header, payload)
    assert reply.has_error()
    assert not reply.error.reason
    return Fault(reply.error.code)


def large_reply(message: Message) -> RecordDict:
    """Some four megabytes that don't get smaller."""
    return RecordDict({"config": ConfigRecord({"data": os.urandom(1 << 22)})})


@pytest.fixture(scope="module")
def plan() -> Plan:
    sections = {
        "data": {"name": "csv", "path": "x.csv", "card": CARD, "partition": {"kind": "iid", "clients": 3}},
        "model": {"name": "mlp", "options": {"hidden": [3]}},
        "privacy": {"epsilon": 8.0},
        "federation": {"rounds": 20},
    }
    return resolve(Plan.model_validate(sections))


@pytest.fixture
def server() -> Iterator[LinkServer]:
    with LinkServer() as found:
        yield found


@pytest.fixture
def client(server: LinkServer, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(agent_module, "_LAST_WORDS_SECONDS", 0.5)
    link_app.reset()
    found = Client(tmp_path, server, plan)
    yield found
    link_app.go_on.set()
    if hasattr(found, "_thread"):
        if found._thread.is_alive():
            found.stop()
        found._thread.join(20)


# --- one task -------------------------------------------------------------------------------------------------------


def test_a_task_comes_back_as_its_reply_under_the_same_id(client: Client, server: LinkServer, plan: Plan) -> None:
    client.start()
    stream = server.stream()
    hello = stream.welcome()
    assert (hello.site, hello.federation, hello.software, hello.holding) == ("berlin", "pilot", "1.0", ())
    assert hello.largest == client.largest
    assert stream.offer(offer_of(plan)) == Answer(run="ab", digest=plan.digest(), code=ACCEPTED)
    task, header, payload = task_of(plan)
    stream.send(task, header, payload)
    begin, reply = stream.reply()
    assert begin.id == task
    found = read(begin.header, reply)
    assert found.metadata.reply_to_message_id == task
    assert found.content.metric_records["metrics"]["epsilon"] == 0.5
    eventually(lambda: client.outbox.replies() == ())
    assert client.end() == 0
    stream.wait_until_over()


def test_the_app_is_told_plan_and_site_and_nothing_of_other_clocks(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    lived: list[float] = []

    def look(message: Message) -> RecordDict:
        lived.append(message.metadata.created_at + message.metadata.ttl - time.time())
        return RecordDict()

    link_app.work.append(look)
    task, _, payload = task_of(plan)
    old = read(*task_of(plan)[1:]).metadata
    old.created_at, old.ttl = 1.0, 1.0  # of a server whose clock stands at 1970
    from shared_models.flower_messages import header_to_bytes

    stream.send(task, header_to_bytes(old), payload)
    begin, reply = stream.reply()
    assert not read(begin.header, reply).has_error()
    assert lived[0] > 86400
    (context,) = link_app.contexts
    assert dict(context.run_config) == {"plan": offer_of(plan).plan, "site": "berlin"}
    assert dict(context.node_config) == {"client-id": "berlin"}
    assert context.node_id == 7


def test_large_messages_travel_whole_with_what_compression_was_agreed(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.start()
    stream = server.stream()
    assert "zstd" in stream.welcome(compression="zstd").compression
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    sent = os.urandom(1 << 21) + bytes(1 << 21)
    task = task_of(plan, content=RecordDict({"config": ConfigRecord({"data": sent})}))
    link_app.work.append(lambda message: RecordDict({"config": ConfigRecord(dict(message.content["config"]))}))
    stream.send(*task, compression="zstd")
    begin, reply = stream.reply(compression="zstd")
    assert read(begin.header, reply).content.config_records["config"]["data"] == sent


def test_what_the_app_remembers_of_a_run_is_kept_with_its_replies(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    for number in (1, 2):
        stream.send(*task_of(plan, number))
        stream.reply()
    stream.offer(offer_of(plan, run="cd"))
    stream.send(*task_of(plan, 3))
    stream.reply()
    eventually(lambda: client.status.unsent == 0)
    client.end()
    outbox = Outbox.open(client.folder / "outbox.sqlite")
    seen = {run: state_from_bytes(outbox.state(run)).config_records["memory"]["seen"] for run in ("ab", "cd")}
    outbox.close()
    assert seen == {"ab": 2, "cd": 1}


def test_what_fails_in_the_app_is_a_code_without_text_and_the_client_goes_on(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    def fail(message: Message) -> RecordDict:
        raise RuntimeError(SECRET)

    stream = at_work(client, server, plan)
    link_app.work.append(fail)
    stream.send(*task_of(plan, 1))
    begin, reply = stream.reply()
    assert fault_of(begin, reply) is Fault.CLIENT_FAILED
    assert SECRET.encode() not in begin.header + reply
    stream.send(*task_of(plan, 2))
    begin, reply = stream.reply()
    assert not read(begin.header, reply).has_error()
    assert client.end() == 0
    assert SECRET not in (client.folder / "client.log").read_text() + "".join(client.lines)
    (failure,) = [line for line in client.log if line["level"] == "warning"]
    assert failure["event"].startswith(f"the app failed: RuntimeError at {__file__}:")
    assert client.status.faults == {"client-failed": 1}


@pytest.mark.parametrize("kind", ["evaluate", "query.other", "train.other"])
def test_a_kind_of_task_that_the_app_does_not_know_is_answered_with_a_code(
    client: Client, server: LinkServer, plan: Plan, kind: str
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan, kind=kind))
    assert fault_of(*stream.reply()) is Fault.CLIENT_FAILED


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, b"\x0a\x02\x08\x01"])
def test_what_is_no_message_of_flowers_is_answered_with_a_code(
    client: Client, server: LinkServer, plan: Plan, payload: bytes
) -> None:
    stream = at_work(client, server, plan)
    task, header, _ = task_of(plan)
    stream.send(task, header, payload)
    assert fault_of(*stream.reply()) is Fault.CLIENT_FAILED
    assert link_app.begun == []


def test_a_task_without_a_head_is_dropped_and_one_that_is_damaged_is_answered_with_a_code(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(task_id("a"), b"\xff", b"x")
    task, header, payload = task_of(plan)
    head = begin_of(task, header, payload + b"x")
    stream.say(head, *chunks(task, [payload + b"y"]))
    begin, reply = stream.reply()
    assert (begin.id, fault_of(begin, reply)) == (task, Fault.CLIENT_FAILED)
    assert link_app.begun == []


# --- nothing twice --------------------------------------------------------------------------------------------------


def test_a_task_in_work_is_not_sent_again_nor_begun_again_after_the_line_broke(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    task = task_of(plan)
    stream.send(*task)
    assert link_app.entered.wait(10)
    stream.cut()
    stream = server.stream()
    assert stream.welcome().holding == (task[0],)
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    stream.send(*task)  # a server that sends it all the same
    stream.send(*task)
    link_app.go_on.set()
    begin, reply = stream.reply()
    assert begin.id == task[0]
    assert not read(begin.header, reply).has_error()
    assert stream.is_quiet(0.3)
    assert link_app.begun == [task[0]]


def test_a_reply_is_sent_on_every_stream_until_the_server_has_it(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    _, first = stream.reply(taken=None)
    for _ in range(2):
        stream.cut()
        stream = server.stream()
        assert stream.welcome().holding == (task_id("train 1"),)
        assert stream.offer(offer_of(plan)).code == ACCEPTED
        begin, again = stream.reply(taken=None)
        assert (begin.id, again) == (task_id("train 1"), first)
    stream.say(Receipt(id=task_id("train 1"), taken=Taken.KNOWN))
    eventually(lambda: client.outbox.replies() == ())
    stream.cut()
    stream = server.stream()
    assert stream.welcome().holding == ()
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    assert stream.is_quiet(0.3)


@pytest.mark.parametrize("taken", [Taken.STORED, Taken.KNOWN, Taken.UNASKED, Taken.TOO_LARGE])
def test_a_receipt_ends_a_reply(client: Client, server: LinkServer, plan: Plan, taken: Taken) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    stream.reply(taken=taken)
    eventually(lambda: client.outbox.replies() == ())
    assert stream.is_quiet(0.2)


def test_a_reply_that_comes_damaged_is_sent_again_but_not_for_ever(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    for _ in range(3):
        stream.reply(taken=Taken.DAMAGED)
    eventually(lambda: client.outbox.replies() == ())
    assert stream.is_quiet(0.2)
    eventually(lambda: client.status.faults == {"reply-damaged": 1})


def test_a_receipt_in_the_middle_of_a_reply_ends_its_sending(client: Client, server: LinkServer, plan: Plan) -> None:
    stream = at_work(client, server, plan)
    link_app.work.append(large_reply)
    stream.send(*task_of(plan, 1))
    begin = stream.hear(Begin)
    stream.say(Receipt(id=begin.id, taken=Taken.TOO_LARGE))
    stream.send(*task_of(plan, 2))
    sent = 0
    while isinstance(frame := stream.hear(Chunk | Begin), Chunk):  # type: ignore[arg-type]
        sent += 1
    assert frame.id == task_id("train 2")
    assert sent < begin.size / (1 << 17)  # not all of it
    assert stream.hear(Chunk).id == task_id("train 2")


def test_a_task_whose_reply_is_stored_is_answered_from_the_disk_by_the_next_process(
    client: Client, server: LinkServer, plan: Plan, tmp_path: Path
) -> None:
    stream = at_work(client, server, plan)
    task = task_of(plan)
    stream.send(*task)
    _, first = stream.reply(taken=None)
    client.end()
    after = Client(tmp_path, server, plan).start()
    stream = server.stream()
    assert stream.welcome().holding == (task[0],)
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    begin, again = stream.reply(taken=None)
    assert (begin.id, again) == (task[0], first)
    stream.send(*task)  # a server that hasn't listened to what this site holds
    stream.send(*task_of(plan, 2))
    assert stream.reply()[0].id == task_id("train 2")
    assert link_app.begun == [task[0], task_id("train 2")]
    after.end()


# --- only what the owner still allows -------------------------------------------------------------------------------


def left_behind(client: Client, server: LinkServer, plan: Plan, *kinds: str) -> None:
    """A client that has ended with replies which the server did not take."""
    stream = at_work(client, server, plan)
    for kind in kinds:
        stream.send(*task_of(plan, kind=kind))
        stream.reply(taken=None)
    client.end()


def test_a_reply_made_from_data_waits_until_its_plan_is_accepted_on_this_stream(
    client: Client, server: LinkServer, plan: Plan, tmp_path: Path
) -> None:
    left_behind(client, server, plan, "train")
    after = Client(tmp_path, server, plan).start()
    stream = server.welcomed()
    assert stream.is_quiet(0.3)
    stream.send(*task_of(plan))  # a server that asks for it once more, and offers nothing
    assert stream.is_quiet(0.3)
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    assert stream.reply(taken=None)[0].id == task_id("train 1")
    stream.cut()
    stream = server.welcomed()  # of this process the plan is known already
    assert stream.is_quiet(0.3)
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    assert stream.reply()[0].id == task_id("train 1")
    eventually(lambda: after.outbox.replies() == ())
    after.end()


@pytest.mark.parametrize("code", [PENDING, int(Fault.POLICY_ENTRUST)])
def test_a_reply_of_a_plan_that_the_owner_allows_no_more_stays_and_leaves_once_it_is_allowed_again(
    client: Client, server: LinkServer, plan: Plan, tmp_path: Path, code: int
) -> None:
    left_behind(client, server, plan, "train")
    after = Client(tmp_path, server, plan)
    after.owner.verdict.code, after.owner.allowing = code, False
    after.start()
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == code
    assert stream.is_quiet(0.3)
    assert [reply.id for reply in after.outbox.replies()] == [task_id("train 1")]
    after.owner.verdict.code, after.owner.allowing = ACCEPTED, True
    stream.cut()
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    assert stream.reply()[0].id == task_id("train 1")
    after.end()


def test_what_no_data_went_into_leaves_without_an_offer(
    client: Client, server: LinkServer, plan: Plan, tmp_path: Path
) -> None:
    left_behind(client, server, plan, "query.statement", "train.other", "train")
    after = Client(tmp_path, server, plan).start()
    stream = server.welcomed()
    assert [stream.reply()[0].id for _ in range(2)] == [task_id("query.statement 1"), task_id("train.other 1")]
    assert stream.is_quiet(0.3)
    after.end()


def test_a_change_of_mind_while_connected_holds_what_is_not_yet_on_its_way(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_HELD_SECONDS", 0.05)
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    stream.send(*task_of(plan))
    assert link_app.entered.wait(10)
    client.owner.allowing = False
    link_app.go_on.set()
    line = "a reply is kept back: policy, approval or data in site.toml no longer allow it"
    eventually(lambda: line in client.lines)
    assert client.owner.seen[-1] == ("metrics.epsilon", "metrics.num-examples")
    assert stream.is_quiet(0.3)
    assert client.lines.count(line) == 1
    client.owner.allowing = True
    begin, reply = stream.reply()
    assert begin.id == task_id("train 1")
    assert not read(begin.header, reply).has_error()


def test_a_plan_that_was_accepted_before_is_considered_anew_if_the_owner_allows_it_no_more(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    stream.reply(taken=None)
    stream.cut()
    client.owner.allowing, client.owner.verdict.code = False, int(Fault.POLICY_ENTRUST)
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == Fault.POLICY_ENTRUST
    assert stream.is_quiet(0.3)
    assert len(client.outbox.replies()) == 1


def test_replies_of_another_plan_stay_behind_and_are_let_go_with_the_next_call(
    client: Client, server: LinkServer, plan: Plan, tmp_path: Path
) -> None:
    left_behind(client, server, plan, "train")
    other = plan_of()
    after = Client(tmp_path, server, other).start()
    stream = server.stream()
    assert stream.welcome().holding == (task_id("train 1"),)
    assert stream.offer(offer_of(other)).code == ACCEPTED
    assert stream.is_quiet(0.3)
    stream.cut()
    assert server.stream().welcome().holding == ()
    assert after.outbox.replies() == ()
    after.end()


# --- time -----------------------------------------------------------------------------------------------------------


def test_a_task_is_recalled_while_it_waits_while_it_comes_and_not_while_it_is_in_work(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    stream.send(*task_of(plan, 1))
    assert link_app.entered.wait(10)
    stream.send(*task_of(plan, 2))
    third, header, payload = task_of(plan, 3)
    stream.say(begin_of(third, header, payload))
    stream.say(*(Recall(id=task_id(f"train {number}")) for number in (1, 2, 3)))
    stream.say(*chunks(third, [payload]))  # already on its way
    stream.send(*task_of(plan, 4))
    eventually(lambda: any("recalled" in line for line in client.lines))
    link_app.go_on.set()
    assert [stream.reply()[0].id for _ in range(2)] == [task_id("train 1"), task_id("train 4")]
    assert link_app.begun == [task_id("train 1"), task_id("train 4")]


def test_a_task_whose_time_is_over_before_it_begins_is_dropped(client: Client, server: LinkServer, plan: Plan) -> None:
    now = [0.0]
    client.clock = lambda: now[0]
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    stream.send(*task_of(plan, 1))
    assert link_app.entered.wait(10)
    stream.send(*task_of(plan, 2), seconds=10.0)
    stream.send(*task_of(plan, 3), seconds=30.0)
    stream.send(*task_of(plan, 4))
    eventually(lambda: sum("  task " in line for line in client.lines) == 4)
    now[0] = 20.0
    link_app.go_on.set()
    assert [stream.reply()[0].id for _ in range(3)] == [task_id(f"train {number}") for number in (1, 3, 4)]
    eventually(lambda: client.status.faults == {"too-late": 1})


def test_the_clock_on_the_wall_may_be_set_and_nothing_happens_but_a_note(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = at_work(client, server, plan)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 400 * 86400.0)
    stream.send(*task_of(plan, 1), seconds=3600.0)
    stream.reply()
    monkeypatch.setattr(time, "time", lambda: real() - 400 * 86400.0)
    stream.send(*task_of(plan, 2), seconds=3600.0)
    stream.reply()
    assert link_app.begun == [task_id("train 1"), task_id("train 2")]
    stream.cut()
    server.stream().welcome(clock=real())
    eventually(lambda: any("clock is 9600.0 h behind the server's" in line for line in client.lines))


def test_work_waits_while_the_site_may_not_work_but_questions_are_answered(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.why = "outside of the hours 22:00-06:00"
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan, 1))
    stream.send(*task_of(plan, 2, kind="query.statement"))
    begin, _ = stream.reply()
    assert begin.id == task_id("query.statement 2")
    eventually(lambda: client.status.waiting == "outside of the hours 22:00-06:00")
    assert link_app.begun == [begin.id]
    assert client.lines.count("waiting: outside of the hours 22:00-06:00") == 1
    client.why = None
    assert stream.reply()[0].id == task_id("train 1")
    eventually(lambda: client.status.waiting is None)


def test_outside_of_its_hours_a_site_begins_no_secure_sum_but_finishes_one(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.why = "outside of the hours 22:00-06:00"
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan, 1, kind=SECURE_KEYS))
    stream.send(*task_of(plan, 1, kind=SECURE_UNMASK))
    assert stream.reply()[0].id == task_id(f"{SECURE_UNMASK} 1")
    assert link_app.begun == [task_id(f"{SECURE_UNMASK} 1")]
    client.why = None
    assert stream.reply()[0].id == task_id(f"{SECURE_KEYS} 1")
    client.end()
    # The short phases are details; the terminal shows a line for the training.
    steps = [line for line in client.lines if line.startswith("  round 1: ")]
    assert [line.rpartition(" in ")[0] for line in steps] == [
        "  round 1: helped to open the sum",
        "  round 1: offered keys for a secure sum",
    ]


def test_work_does_not_wait_longer_than_its_time(client: Client, server: LinkServer, plan: Plan) -> None:
    client.why, client.look_again = "on battery", 3600.0
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan, 1), seconds=0.2)
    eventually(lambda: client.status.faults == {"too-late": 1})
    eventually(lambda: client.status.waiting is None)
    assert link_app.begun == []


def test_nobody_is_asked_all_the_time_whether_the_site_may_work(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.why, client.look_again = "on battery", 0.1
    asked: list[float] = []
    reason = working_module.Working._reason

    def counted(self: Any, size: int) -> Any:
        asked.append(time.monotonic())
        return reason(self, size)

    monkeypatch.setattr(working_module.Working, "_reason", counted)
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    eventually(lambda: len(asked) >= 4)
    assert min(later - earlier for earlier, later in itertools.pairwise(asked)) > 0.05


# --- offers ---------------------------------------------------------------------------------------------------------


def test_an_accepted_plan_is_accepted_again_at_once_and_another_text_of_its_digest_is_looked_at(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    for _ in range(2):
        assert stream.offer(offer_of(plan)).code == ACCEPTED
    assert len(client.owner.asked) == 1
    client.owner.verdict.code = int(Fault.PLAN_MISMATCH)
    forged = Offer(run="ab", plan=offer_of(plan).plan + "\n# another", digest=plan.digest())
    assert stream.offer(forged).code == Fault.PLAN_MISMATCH
    assert client.owner.asked[1] == forged.plan
    stream.send(*task_of(plan))
    assert fault_of(*stream.reply()) is Fault.PLAN_MISMATCH
    assert link_app.begun == []


def test_a_plan_that_waits_for_its_owner_is_answered_twice(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.considering._APPROVAL_SECONDS", 0.05)
    client.owner.verdict.code, client.owner.verdict.reason = PENDING, "waits for `veil client approve home`"
    client.start()
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == PENDING
    stream.send(*task_of(plan, 1))
    assert fault_of(*stream.reply()) is Fault.PLAN_MISMATCH
    eventually(lambda: client.status.answer == "pending")
    assert f"plan digits ({plan.digest()[:16]}): waits for `veil client approve home`" in client.lines
    client.owner.verdict.code = ACCEPTED
    client.owner.approved = True
    assert stream.hear(Answer).code == ACCEPTED
    stream.send(*task_of(plan, 2))
    begin, reply = stream.reply()
    assert not read(begin.header, reply).has_error()


def test_a_plan_is_refused_with_a_code_and_its_owner_reads_why(client: Client, server: LinkServer, plan: Plan) -> None:
    client.owner.verdict.code = int(Fault.POLICY_RESOURCES)
    client.owner.verdict.reason = "training.threads = 4, the site gives 1 (resources.threads)"
    client.start()
    assert server.welcomed().offer(offer_of(plan)).code == Fault.POLICY_RESOURCES
    line = f"plan digits ({plan.digest()[:16]}): refused: policy-resources: {client.owner.verdict.reason}"
    eventually(lambda: line in client.lines)
    eventually(lambda: client.status.answer == "policy-resources")


def test_a_plan_that_breaks_the_owners_judgement_is_refused_and_the_client_lives(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.owner.error = RecursionError(SECRET)
    client.start()
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == Fault.CLIENT_FAILED
    client.owner.error = None
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    assert client.end() == 0
    assert SECRET not in (client.folder / "client.log").read_text() + "".join(client.lines)


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_task_that_is_larger_than_the_site_takes_is_refused_unread(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.largest = 1000
    stream = at_work(client, server, plan)
    task, header, _ = task_of(plan)
    stream.send(task, header, bytes(1001))
    assert fault_of(*stream.reply()) is Fault.POLICY_RESOURCES
    assert link_app.begun == []


def test_tasks_that_there_is_no_room_for_come_with_the_next_stream(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.largest = 2000
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    tasks = {
        number: task_of(plan, number, content=RecordDict({"x": ConfigRecord({"x": bytes(900)})}))
        for number in range(1, 6)
    }
    stream.send(*tasks[1])
    assert link_app.entered.wait(10)
    for number in (2, 3, 4, 5):
        stream.send(*tasks[number])
    eventually(lambda: sum("  task " in line for line in client.lines) == 3)
    link_app.go_on.set()
    assert [stream.reply()[0].id for _ in range(3)] == [tasks[number][0] for number in (1, 2, 3)]
    with pytest.raises(Over):
        stream.hear(Begin)
    stream = server.welcomed()
    assert stream.offer(offer_of(plan)).code == ACCEPTED
    for number in (4, 5):
        stream.send(*tasks[number])
    assert [stream.reply()[0].id for _ in range(2)] == [tasks[number][0] for number in (4, 5)]
    assert len(link_app.begun) == 5


def test_a_server_that_takes_no_replies_fills_no_disk_with_them(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_MOST_HOLDING", 3)
    client.start()
    stream = server.welcomed()
    for number in range(1, 7):  # no plan was accepted: each is refused at once
        stream.send(*task_of(plan, number))
    for number in range(1, 4):
        assert stream.reply(taken=None)[0].id == task_id(f"train {number}")
    assert stream.is_quiet(0.3)
    assert len(client.outbox.replies()) == 3


def test_a_full_disk_makes_work_wait_and_then_go_on(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_module, "_DISK_SECONDS", 0.05)
    real = working_module.shutil.disk_usage
    monkeypatch.setattr(working_module.shutil, "disk_usage", lambda path: real(path)._replace(free=3 << 20))
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    text = f"the disk of {client.folder} has 3 MB left, a round needs 16"
    eventually(lambda: client.status.waiting == text)
    assert link_app.begun == []
    monkeypatch.setattr(working_module.shutil, "disk_usage", real)
    assert stream.reply()[0].id == task_id("train 1")


def test_a_disk_that_is_full_after_work_loses_nothing_and_nothing_is_begun_again(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_module, "_DISK_SECONDS", 0.05)
    stream = at_work(client, server, plan)
    page = client.outbox._db.execute("PRAGMA max_page_count").fetchone()[0]
    client.outbox._db.execute("PRAGMA max_page_count = 20")
    link_app.work.append(large_reply)
    stream.send(*task_of(plan))
    eventually(lambda: any("no room left" in line for line in client.lines))
    assert sum("no room left" in line for line in client.lines) == 1
    eventually(lambda: client.status.working)
    client.outbox._db.execute(f"PRAGMA max_page_count = {page}")
    begin, reply = stream.reply()
    assert not read(begin.header, reply).has_error()
    assert link_app.begun == [begin.id]


def test_a_client_that_ends_on_a_full_disk_leaves_the_task_for_the_next_time(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    client.outbox._db.execute("PRAGMA max_page_count = 20")
    link_app.work.append(large_reply)
    stream.send(*task_of(plan))
    eventually(lambda: any("no room left" in line for line in client.lines))
    assert client.end() == 0
    with pytest.raises(Over):
        stream.hear(Begin)


def test_an_outbox_that_breaks_ends_the_client_with_one_line(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OutboxError("outbox.sqlite: is damaged; move it away")

    stream = at_work(client, server, plan)
    monkeypatch.setattr(client.outbox, "store", broken)
    stream.send(*task_of(plan))
    with pytest.raises(OutboxError, match="is damaged"):
        client.wait()


# --- beats ----------------------------------------------------------------------------------------------------------


def test_the_links_beats_go_on_while_torch_computes(plan: Plan, tmp_path: Path) -> None:
    link_app.reset()

    def compute(message: Message) -> RecordDict:
        # Long kernels, and Python between them.
        one, end = torch.rand(700, 700), time.monotonic() + 2.0
        with torch.no_grad():
            while time.monotonic() < end:
                one = torch.nn.functional.normalize(one @ one)
        return RecordDict()

    with LinkServer(beat_seconds=0.1) as server:
        client = Client(tmp_path, server, plan).start()
        stream = server.welcomed()
        over = threading.Event()
        threading.Thread(target=lambda: [stream.say(Beat()) for _ in iter(lambda: over.wait(0.05), True)]).start()
        try:
            assert stream.offer(offer_of(plan)).code == ACCEPTED
            link_app.work.append(compute)
            before = time.monotonic()
            stream.send(*task_of(plan))
            stream.reply()
            took = time.monotonic() - before
        finally:
            over.set()
        heard = [beat for beat in stream.beats if before <= beat <= before + took]
        assert took >= 2.0
        assert len(heard) >= 0.4 * took / 0.1
        client.end()


def test_who_hears_nothing_for_three_beats_calls_anew(client: Client, server: LinkServer, plan: Plan) -> None:
    client.start()
    begun = time.monotonic()
    silent = server.welcomed(beat_seconds=0.1)
    again = server.stream()
    assert 0.2 < time.monotonic() - begun < 10
    silent.wait_until_over()
    assert len(silent.beats) >= 1
    again.welcome()
    assert any("connection to" in line and "lost (silent)" in line for line in client.lines)


# --- the end of a stream --------------------------------------------------------------------------------------------


EVIL = {
    "no frame": b"\xff\xff",
    "nothing": b"",
    "a second welcome": encode(Welcome(software="1", beat_seconds=1.0, clock=0.0)),
    "a site's word": encode(Answer(run="ab", digest=task_id("x"), code=0)),
    "a chunk of nothing": encode(Chunk(id=task_id("x"), offset=0, data=b"x")),
}


@pytest.mark.parametrize("what", EVIL)
def test_a_server_that_says_something_out_of_place_is_left_and_called_again(
    client: Client, server: LinkServer, plan: Plan, what: str
) -> None:
    stream = at_work(client, server, plan)
    stream.say_bytes(EVIL[what])
    stream.wait_until_over()
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    stream.reply()


NO_WELCOME = {
    **{what: data for what, data in EVIL.items() if what != "a second welcome"},
    "a compression that was not offered": encode(
        Welcome(software="1", beat_seconds=1.0, clock=0.0, compression="lzma")
    ),
    "a beat": encode(Beat()),
}


@pytest.mark.parametrize("what", NO_WELCOME)
def test_a_server_that_begins_otherwise_than_with_a_welcome_is_left_and_called_again(
    client: Client, server: LinkServer, plan: Plan, what: str
) -> None:
    client.start()
    stream = server.stream()
    stream.say_bytes(NO_WELCOME[what])
    stream.wait_until_over()
    at_work(client, server, plan)


FINAL = [code for code in Goodbye if code.is_final]


@pytest.mark.parametrize("why", FINAL)
def test_a_final_goodbye_ends_the_client_with_a_line_that_says_what_to_do(
    client: Client, server: LinkServer, why: Goodbye
) -> None:
    client.start()
    server.stream().end(why)
    assert client.wait() == 1
    assert client.lines[-1].startswith(f"refused by {server.address}: {why.reason}: ")
    assert not client.status.running


def test_a_client_that_ends_while_the_app_works_knows_that_it_does(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    stream.send(*task_of(plan))
    assert link_app.entered.wait(10)
    stream.end(Goodbye.REVOKED)
    assert client.wait() == 1
    assert client._agent.is_working, "whoever closes the ledger now pulls it from under the app"
    link_app.go_on.set()
    eventually(lambda: not client._agent.is_working)


@pytest.mark.parametrize("why", [code for code in Goodbye if not code.is_final])
@pytest.mark.parametrize("welcomed", [True, False])
def test_any_other_goodbye_passes(client: Client, server: LinkServer, plan: Plan, why: Goodbye, welcomed: bool) -> None:
    client.backoff = Backoff(first=0.01, longest=0.02)
    client.start()
    stream = server.welcomed() if welcomed else server.stream()
    stream.end(why)
    at_work(client, server, plan)
    assert any(f"{server.address}: {why.reason}: " in line for line in client.lines)
    assert client.explained == 0


def test_a_client_may_end_once_all_is_done_and_finishes_what_is_in_work(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.until_done = True
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    stream.send(*task_of(plan))
    assert link_app.entered.wait(10)
    stream.end(Goodbye.DONE)
    stream.wait_until_over()
    assert client.code is None
    link_app.go_on.set()
    assert client.wait() == 0
    assert any(line.startswith("done: the server has played all its plans") for line in client.lines)
    outbox = Outbox.open(client.folder / "outbox.sqlite")
    assert [reply.id for reply in outbox.replies()] == [task_id("train 1")]
    outbox.close()


def test_a_good_connection_ends_the_long_waits_and_a_short_one_does_not(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[bool] = []

    class Watched(Backoff):
        def reset(self) -> None:
            resets.append(True)
            super().reset()

    client.backoff = Watched(first=0.01, longest=0.01)
    at_work(client, server, plan).cut()
    stream = at_work(client, server, plan)
    assert resets == []
    monkeypatch.setattr(agent_module, "_GOOD_SECONDS", 0.0)
    stream.cut()
    at_work(client, server, plan)
    assert resets == [True]


def test_a_connection_on_which_a_reply_was_delivered_was_good_however_short(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    resets: list[bool] = []

    class Watched(Backoff):
        def reset(self) -> None:
            resets.append(True)
            super().reset()

    client.backoff = Watched(first=0.01, longest=0.01)
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    stream.reply(taken=Taken.STORED)
    eventually(lambda: client.outbox.replies() == ())
    stream.cut()
    stream = at_work(client, server, plan)
    assert resets == [True]
    stream.cut()
    at_work(client, server, plan)
    assert resets == [True]


# --- nobody there ---------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_called_until_it_is_there_and_the_reason_is_printed_once(
    plan: Plan, tmp_path: Path
) -> None:
    link_app.reset()
    with LinkServer() as server:
        port = server.port
    client = Client(tmp_path, server, plan)
    client.explanation = "127.0.0.1: nobody listens there; does the server run, and is the port right?"
    client.start()
    eventually(lambda: client.explained >= 3)
    assert client.lines.count(client.explanation) == 1
    assert not client.status.connected
    with LinkServer(port=port) as server:
        at_work(client, server, plan)
        eventually(lambda: client.status.connected)
        assert client.end() == 0


def test_keys_that_can_not_be_read_are_named_and_tried_again(client: Client, server: LinkServer, plan: Plan) -> None:
    good, client.credentials = client.credentials, refuse_credentials
    client.start()
    eventually(lambda: "keys/tls.key: no such file" in client.lines)
    client.credentials = good
    client._agent._dial._credentials = good  # type: ignore[attr-defined]
    at_work(client, server, plan)
    assert client.lines.count("keys/tls.key: no such file") == 1


# --- ending ---------------------------------------------------------------------------------------------------------


def test_a_client_without_work_ends_at_once_and_hangs_up(client: Client, server: LinkServer, plan: Plan) -> None:
    stream = at_work(client, server, plan)
    begun = time.monotonic()
    assert client.end() == 0
    assert time.monotonic() - begun < 5
    with pytest.raises(Over):
        stream.hear(Begin)
    assert (client.status.running, client.status.connected) == (False, False)


def test_a_client_that_nobody_answers_ends_at_once(client: Client, server: LinkServer) -> None:
    client.start()
    server.stream()  # which says nothing
    begun = time.monotonic()
    assert client.end() == 0
    assert time.monotonic() - begun < 5


def test_what_is_in_work_is_finished_stored_and_sent_and_nothing_is_begun(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    link_app.go_on.clear()
    stream.send(*task_of(plan, 1))
    assert link_app.entered.wait(10)
    stream.send(*task_of(plan, 2))
    eventually(lambda: sum("  task " in line for line in client.lines) == 2)
    client.stop()
    assert stream.is_quiet(0.2)
    stream.send(*task_of(plan, 3))
    link_app.go_on.set()
    assert stream.reply()[0].id == task_id("train 1")
    with pytest.raises(Over):
        stream.hear(Begin)
    assert client.wait() == 0
    assert link_app.begun == [task_id("train 1")]


def test_a_server_that_does_not_take_the_last_reply_is_not_waited_for_long(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    stream.reply(taken=None)
    assert client.end() == 0
    outbox = Outbox.open(client.folder / "outbox.sqlite")
    assert len(outbox.replies()) == 1
    outbox.close()


# --- what is said ---------------------------------------------------------------------------------------------------


def test_the_terminal_shows_a_line_for_connection_offer_and_round(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan, 3))
    stream.reply()
    client.end()
    calm = [line for line in client.lines if not line.startswith("  ")]
    assert calm[:2] == [
        f"connected to {server.address} as berlin",
        f"plan digits ({plan.digest()[:16]}): accepted: 20 rounds, epsilon 8 at delta 1e-05",
    ]
    assert calm[2].startswith("round 3/20  trained ")
    assert calm[2].endswith(" s  epsilon so far 0.5 of 8")
    assert len(calm) == 3


def test_what_protects_nobody_says_so_in_every_line(client: Client, server: LinkServer) -> None:
    plain = plan_of(private=False)
    client.owner.verdict.plan = plain
    link_app.work.append(lambda _: RecordDict())
    stream = at_work(client, server, plain)
    stream.send(*task_of(plain, 1))
    stream.reply()
    client.end()
    calm = [line for line in client.lines if not line.startswith("  ")]
    assert len(calm) == 3
    assert all(line.endswith("no privacy") for line in calm[1:])


def test_status_says_how_things_stand(client: Client, server: LinkServer, plan: Plan) -> None:
    client.start()
    stream = server.stream()
    assert (client.status.connected, client.status.server) == (False, server.address)
    stream.welcome()
    eventually(lambda: client.status.connected)
    stream.offer(offer_of(plan))
    link_app.go_on.clear()
    stream.send(*task_of(plan, 3))
    eventually(lambda: client.status.working)
    link_app.go_on.set()
    stream.reply(taken=None)
    eventually(lambda: client.status.unsent == 1)
    found = client.status
    assert (found.run, found.plan, found.digest, found.answer) == ("ab", "digits", plan.digest(), "accepted")
    assert (found.round, found.rounds, found.epsilon, found.epsilon_planned) == (3, 20, 0.5, 8.0)
    assert (found.running, found.working, found.waiting, found.faults) == (True, False, None, {})
    assert found.process == os.getpid()
    assert (client.folder / "status.json").stat().st_mode & 0o777 == 0o600


def test_the_log_is_json_lines_for_the_owner_alone_without_a_strangers_text(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.start()
    stream = server.stream()
    stream.welcome(software="evil")
    stream.say_bytes(SECRET.encode())
    stream = at_work(client, server, plan)
    stream.send(task_id("x"), SECRET.encode(), SECRET.encode())
    stream.send(*task_of(plan, 2, kind=f"train.{SECRET}".replace("-", "_")))
    stream.reply()
    client.end()
    assert all({"time", "level", "event"} <= set(line) for line in client.log)
    text = (client.folder / "client.log").read_text() + json.dumps(client.lines)
    assert SECRET not in text
    assert SECRET.replace("-", "_") not in text
    assert (client.folder / "client.log").stat().st_mode & 0o777 == 0o600


def test_a_status_that_can_not_be_written_is_noted_once_and_stops_nothing(
    client: Client, server: LinkServer, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = at_work(client, server, plan)
    monkeypatch.setattr("security.private_files._write", full)
    for number in (1, 2):
        stream.send(*task_of(plan, number))
        stream.reply()
    eventually(lambda: any("status.json: can't be written (No space left on device)" in line for line in client.lines))
    assert sum("status.json" in line for line in client.lines) == 1
