"""Rule 12: where the policy asks for it, replies leave at whole multiples of a time, and nothing else tells it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client import agent as agent_module
from client.working import time_of, touches_data
from security.frames import Begin
from shared_models.flower_messages import header_from_bytes
from shared_models.plan import Plan
from shared_models.protocol import (
    CONFIG,
    PERSONALISE,
    SECURE_KEYS,
    SECURE_SHARES,
    SECURE_SURVIVORS,
    SECURE_UNMASK,
)
from tests.client import link_app
from tests.client.conftest import plan_of
from tests.client.link_client import Client, offer_of, read, task_of
from tests.client.link_server import LinkServer, Over, Stream, eventually

LONG = 3600.0
SHORT = 0.05


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def server() -> Iterator[LinkServer]:
    with LinkServer() as found:
        yield found


@pytest.fixture
def client(server: LinkServer, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(agent_module, "_LAST_WORDS_SECONDS", 0.5)
    link_app.reset()
    found = Client(tmp_path, server, plan)
    found.every = LONG
    yield found
    link_app.go_on.set()
    if hasattr(found, "_thread"):
        if found._thread.is_alive():
            found.stop()
        found._thread.join(20)


def at_work(client: Client, server: LinkServer, plan: Plan) -> Stream:
    client.start()
    stream = server.stream()
    stream.welcome()
    stream.offer(offer_of(plan))
    return stream


def fail(_: Message) -> RecordDict:
    raise RuntimeError("it fails")


@pytest.mark.parametrize(
    ("took", "every", "found"),
    [(0.0, 10.0, 10.0), (9.9, 10.0, 10.0), (10.0, 10.0, 10.0), (10.1, 10.0, 20.0), (35.0, 10.0, 40.0)],
)
def test_the_time_is_the_next_whole_multiple(took: float, every: float, found: float) -> None:
    assert time_of(took, every) == found


def test_what_data_may_go_into_takes_its_time_and_words_alone_do_not() -> None:
    assert all(map(touches_data, ("train", "train.more", "evaluate", PERSONALISE)))
    words = (SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK, "query.statement", "query.identify")
    assert not any(map(touches_data, words))


@pytest.mark.parametrize("work", [link_app.usual, fail])
def test_a_reply_is_on_the_disk_and_does_not_leave_nor_is_anything_else_begun(
    client: Client, server: LinkServer, plan: Plan, work: Any
) -> None:
    """Good or not: a failure may depend on data. What could be begun when would tell when the work was done."""
    stream = at_work(client, server, plan)
    link_app.work.append(work)
    first = task_of(plan, 1)
    stream.send(*first)
    stream.send(*task_of(plan, 2))
    stream.send(*task_of(plan, kind="query.statement"))
    eventually(lambda: [reply.id for reply in client.outbox.replies()] == [first[0]])
    eventually(lambda: len(client._agent._tasks) == 2)
    assert len(link_app.begun) == 1
    assert client.status.unsent == 0
    stream.send(*first)  # asked again, nothing more is said than that it is in hand
    assert client.end() == 0
    assert len(link_app.begun) == 1
    with pytest.raises(Over):
        stream.hear(Begin)


def test_the_next_process_sends_it(client: Client, server: LinkServer, plan: Plan) -> None:
    stream = at_work(client, server, plan)
    task = task_of(plan)
    stream.send(*task)
    eventually(lambda: len(client.outbox.replies()) == 1)
    assert client.end() == 0
    client.start()
    stream = server.stream()
    stream.welcome()
    stream.offer(offer_of(plan))
    begin, _ = stream.reply()
    assert begin.id == task[0]
    assert len(link_app.begun) == 1


def test_an_offer_is_not_answered_when_the_worker_is_free_but_when_the_time_is_over(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    stream.send(*task_of(plan))
    eventually(lambda: len(client.outbox.replies()) == 1)
    other = plan_of(training={"steps": 3})
    client.owner.verdict.plan = other
    stream.say(offer_of(other, run="cd"))
    client.owner.allowing = False  # or a quick look would do
    eventually(lambda: len(client.owner.asked) == 2)
    assert stream.is_quiet(0.2)


def test_questions_are_answered_at_once_where_nothing_is_in_work(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    stream = at_work(client, server, plan)
    task = task_of(plan, kind="query.statement")
    stream.send(*task)
    assert stream.reply()[0].id == task[0]


def test_replies_leave_when_their_time_is_over_and_the_next_is_begun(
    client: Client, server: LinkServer, plan: Plan
) -> None:
    client.every = SHORT
    stream = at_work(client, server, plan)
    for number in (1, 2):
        task = task_of(plan, number)
        stream.send(*task)
        assert stream.reply()[0].id == task[0]


def test_who_takes_longer_is_told_of_it_once(client: Client, server: LinkServer, plan: Plan) -> None:
    client.every = 1e-6
    stream = at_work(client, server, plan)
    for number in (1, 2):
        stream.send(*task_of(plan, number))
        stream.reply()
    assert client.end() == 0
    assert sum("release.every_seconds" in line for line in client.lines) == 1


@pytest.mark.parametrize("every", [0.0, SHORT])
def test_no_header_says_when_its_reply_was_made(client: Client, server: LinkServer, plan: Plan, every: float) -> None:
    client.every = every
    stream = at_work(client, server, plan)
    link_app.work.append(fail)
    for number in (1, 2):
        stream.send(*task_of(plan, number))
        begin, payload = stream.reply()
        metadata = header_from_bytes(begin.header)
        assert (metadata.created_at, metadata.ttl) == (0.0, 0.0)
        assert read(begin.header, payload).has_error() == (number == 1)


def test_replies_are_never_compressed(client: Client, server: LinkServer, plan: Plan) -> None:
    """How well a reply compresses tells of it: of a client without records, who sends zeros, that it has none."""
    client.every = 0.0
    client.start()
    stream = server.stream()
    stream.welcome(compression="zstd")
    stream.offer(offer_of(plan))
    link_app.work.append(lambda _: RecordDict({CONFIG: ConfigRecord({"data": bytes(1 << 16)})}))
    stream.send(*task_of(plan), compression="zstd")
    begin, payload = stream.reply(compression="")  # which refuses compressed chunks
    assert read(begin.header, payload).content.config_records[CONFIG]["data"] == bytes(1 << 16)
