"""A reply that was said to be stored is there after any crash; half of one never is; a question has one answer."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.errors import UsageError
from security.frames import Taken
from server.mailbox import PART, GoneError, Mailbox, Payload, Settled, Spool, State, Task
from server.mailbox_file import MailboxError

MODEL = Payload.of(b"model")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mailbox.sqlite"


@pytest.fixture
def mailbox(path: Path, clock: Clock) -> Iterator[Mailbox]:
    mailbox = Mailbox.open(path, clock=clock)
    yield mailbox
    mailbox.close()


def task(
    name: str,
    site: str = "north",
    *,
    run: str = "ab",
    kind: str = "train",
    group: str = "1",
    payload: Payload = MODEL,
    seconds: float | None = None,
) -> Task:
    header = f"head of {name}".encode()
    return Task(id=name, site=site, run=run, kind=kind, group=group, header=header, payload=payload, seconds=seconds)


def answer(mailbox: Mailbox, name: str, payload: bytes, site: str = "north") -> Taken:
    """What becomes of a reply that comes in pieces of 100,000 bytes."""
    spool = mailbox.begin_reply(name, site, b"reply's head")
    if isinstance(spool, Taken):
        return spool
    for start in range(0, len(payload), 100_000):
        mailbox.add_reply_chunk(spool, payload[start : start + 100_000])
    return mailbox.finish_reply(spool)


def heads(mailbox: Mailbox, site: str = "north", run: str = "ab") -> list[str]:
    return [head.id for head in mailbox.open_tasks(site, run)]


def rows(path: Path, table: str) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        db.close()


# --- what is asked


def test_a_site_finds_its_own_tasks_of_a_run_oldest_first(mailbox: Mailbox) -> None:
    mailbox.post([task("a"), task("b", "south"), task("c", run="cd")])
    mailbox.post([task("d", seconds=60.0)])
    assert heads(mailbox) == ["a", "d"]
    assert heads(mailbox, "south") == ["b"]
    assert heads(mailbox, run="cd") == ["c"]
    assert heads(mailbox, "east") == []
    first, last = mailbox.open_tasks("north", "ab")
    assert (first.header, first.digest, first.size, first.seconds) == (b"head of a", MODEL.digest, 5, None)
    assert last.seconds == 60.0


def test_a_payload_is_written_once_for_all_sites_of_a_round(mailbox: Mailbox, path: Path) -> None:
    large = Payload.of(os.urandom(3 * PART + 1))
    mailbox.post([task(f"t{number}", f"site-{number}", payload=large) for number in range(50)])
    assert rows(path, "payloads") == 1
    assert rows(path, "parts") == 4
    parts = list(mailbox.payload(large.digest))
    assert [len(part) for part in parts] == [PART, PART, PART, 1]
    assert b"".join(parts) == large.data


def test_an_empty_payload_is_a_payload(mailbox: Mailbox) -> None:
    empty = Payload.of(b"")
    mailbox.post([task("a", payload=empty)])
    assert list(mailbox.payload(empty.digest)) == []
    assert answer(mailbox, "a", b"") is Taken.STORED
    reply = mailbox.reply("a")
    assert reply is not None
    assert reply.payload == b""


def test_a_batch_is_posted_whole_or_not_at_all(mailbox: Mailbox) -> None:
    broken = task("b", payload=Payload(None, b"x" * 32))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mailbox.post([task("a"), broken])
    assert heads(mailbox) == []


def test_asking_again_changes_nothing(mailbox: Mailbox) -> None:
    mailbox.post([task("a"), task("b")])
    answer(mailbox, "a", b"update")
    mailbox.post([task("a"), task("b")])
    assert heads(mailbox) == ["b"]
    reply = mailbox.reply("a")
    assert reply is not None
    assert reply.payload == b"update"


def test_what_was_recalled_or_refused_can_be_asked_again(mailbox: Mailbox) -> None:
    mailbox.post([task("a"), task("b")])
    mailbox.recall(["a"])
    assert mailbox.refuse("b", "north", 1007)
    assert heads(mailbox) == []
    mailbox.post([task("a"), task("b")])
    assert heads(mailbox) == ["a", "b"]
    assert mailbox.settled(["a", "b"]) == []
    assert answer(mailbox, "a", b"late, but asked again") is Taken.STORED


def test_a_sites_number_stays_the_same_for_ever(mailbox: Mailbox, path: Path) -> None:
    numbers = {site: mailbox.node(site) for site in ("north", "south", "north")}
    assert min(numbers.values()) > 1  # Flower's server is node 1
    assert len(set(numbers.values())) == 2
    mailbox.close()
    again = Mailbox.open(path)
    try:
        assert {site: again.node(site) for site in ("south", "north")} == numbers
        assert again.node("east") not in numbers.values()
    finally:
        again.close()


# --- what comes back


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 5])
def test_a_reply_is_read_as_it_came(mailbox: Mailbox, path: Path, size: int) -> None:
    payload = os.urandom(size)
    mailbox.post([task("a")])
    assert mailbox.reply("a") is None
    assert answer(mailbox, "a", payload) is Taken.STORED
    reply = mailbox.reply("a")
    assert reply is not None
    assert (reply.header, reply.payload) == (b"reply's head", payload)
    assert rows(path, "parts") == 1 + -(-size // PART)


def test_an_unfinished_reply_is_held_on_the_disk_and_counts_for_nothing(mailbox: Mailbox, path: Path) -> None:
    mailbox.post([task("a")])
    spool = mailbox.begin_reply("a", "north", b"")
    assert isinstance(spool, Spool)
    for _ in range(100):
        mailbox.add_reply_chunk(spool, bytes(100_000))
        assert len(spool.rest) <= PART
    assert rows(path, "parts") > 15
    assert mailbox.reply("a") is None
    assert heads(mailbox) == ["a"]
    mailbox.drop_reply(spool)
    mailbox.drop_reply(spool)
    assert rows(path, "parts") == 1
    assert answer(mailbox, "a", b"whole") is Taken.STORED


def test_a_task_has_one_reply_and_the_first_counts(mailbox: Mailbox) -> None:
    mailbox.post([task("a")])
    one, two = (mailbox.begin_reply("a", "north", b"") for _ in range(2))
    assert isinstance(one, Spool)
    assert isinstance(two, Spool)
    for spool, data in ((one, b"one"), (two, bytes(3 * PART))):
        mailbox.add_reply_chunk(spool, data)
    assert mailbox.finish_reply(one) is Taken.STORED
    assert mailbox.finish_reply(two) is Taken.KNOWN
    reply = mailbox.reply("a")
    assert reply is not None
    assert reply.payload == b"one"
    assert answer(mailbox, "a", b"three") is Taken.KNOWN


def test_who_was_not_asked_changes_nothing(mailbox: Mailbox) -> None:
    mailbox.post([task("a")])
    assert answer(mailbox, "a", b"forged", site="south") is Taken.UNASKED
    assert answer(mailbox, "never asked", b"forged") is Taken.UNASKED
    assert not mailbox.refuse("a", "south", 1007)
    assert heads(mailbox) == ["a"]
    answer(mailbox, "a", b"honest")
    assert answer(mailbox, "a", b"forged", site="south") is Taken.UNASKED  # nor does it learn that there is one


def test_after_its_deadline_a_reply_is_unasked(mailbox: Mailbox, clock: Clock) -> None:
    mailbox.post([task("a", seconds=10.0), task("b", seconds=10.0)])
    spool = mailbox.begin_reply("a", "north", b"")
    assert isinstance(spool, Spool)
    clock.now += 9.9
    assert [head.seconds for head in mailbox.open_tasks("north", "ab")] == [pytest.approx(0.1)] * 2
    assert answer(mailbox, "b", b"in time") is Taken.STORED
    clock.now += 0.2
    assert mailbox.finish_reply(spool) is Taken.UNASKED
    assert answer(mailbox, "a", b"late") is Taken.UNASKED
    assert heads(mailbox) == []


def test_recalled_tasks_take_no_reply(mailbox: Mailbox) -> None:
    mailbox.post([task("a"), task("b")])
    spool = mailbox.begin_reply("a", "north", b"")
    assert isinstance(spool, Spool)
    mailbox.recall(["a"])
    mailbox.recall([])
    assert mailbox.finish_reply(spool) is Taken.UNASKED
    assert mailbox.wanted("north", ["a", "b", "c"]) == {"b"}
    answer(mailbox, "b", b"reply")
    mailbox.recall(["b"])  # too late for that: it is there
    assert mailbox.wanted("north", ["a", "b", "c"]) == {"b"}
    assert mailbox.wanted("south", ["a", "b", "c"]) == set()


def test_what_was_settled_is_told_in_the_order_of_arrival(mailbox: Mailbox) -> None:
    mailbox.post([task(name) for name in "abcde"])
    answer(mailbox, "d", b"")
    mailbox.refuse("b", "north", 1007)
    answer(mailbox, "a", b"")
    mailbox.recall(["e"])
    assert mailbox.settled("abcde") == [
        Settled(id="d", state=State.REPLIED, fault=0),
        Settled(id="b", state=State.REFUSED, fault=1007),
        Settled(id="a", state=State.REPLIED, fault=0),
        Settled(id="e", state=State.RECALLED, fault=0),
    ]
    assert mailbox.settled(["c", "unknown"]) == []
    assert mailbox.waiting("ab", "train") == {"c": "north"}


# --- what is forgotten


def test_the_newest_groups_of_a_kind_are_kept(mailbox: Mailbox, path: Path) -> None:
    for number in range(1, 6):
        for kind in ("train", "evaluate"):
            payload = Payload.of(f"{kind} {number}".encode() * PART)
            mailbox.post([task(f"{kind}-{number}", kind=kind, group=str(number), payload=payload)])
            answer(mailbox, f"{kind}-{number}", bytes(PART + 1))
    mailbox.forget("ab", kind="train", keep=2)
    assert [name for name in (f"train-{n}" for n in range(1, 6)) if mailbox.reply(name)] == ["train-4", "train-5"]
    assert all(mailbox.reply(f"evaluate-{number}") for number in range(1, 6))
    mailbox.forget("another run")
    assert mailbox.kinds("ab") == ["evaluate", "train"]
    mailbox.forget("ab")
    assert [rows(path, table) for table in ("tasks", "payloads", "parts")] == [0, 0, 0]


def test_a_payload_stays_while_a_task_needs_it(mailbox: Mailbox) -> None:
    mailbox.post([task("a", group="1"), task("b", group="2"), task("c", run="cd")])
    mailbox.forget("ab", kind="train", keep=1)
    assert list(mailbox.payload(MODEL.digest)) == [b"model"]
    mailbox.forget("ab")
    assert list(mailbox.payload(MODEL.digest)) == [b"model"]
    mailbox.forget("cd")
    with pytest.raises(GoneError):
        list(mailbox.payload(MODEL.digest))


def test_a_payload_that_is_forgotten_while_it_is_sent_never_turns_into_another(mailbox: Mailbox) -> None:
    mailbox.post([task("a", payload=Payload.of(b"a" * 2 * PART))])
    reading = mailbox.payload(Payload.of(b"a" * 2 * PART).digest)
    assert next(reading) == b"a" * PART
    mailbox.forget("ab")
    mailbox.post([task("b", payload=Payload.of(b"b" * 2 * PART))])
    with pytest.raises(GoneError):
        next(reading)


# --- crashes and other misfortunes

_KILLED_WHILE_SPOOLING = """
import sys
from pathlib import Path
from server.mailbox import Mailbox, Payload, Task
mailbox = Mailbox.open(Path(sys.argv[1]))
payload = Payload.of(b"model")
mailbox.post([Task(id=name, site="north", run="ab", kind="train", group="1", header=b"", payload=payload)
              for name in ("whole", "half", "small half")])
whole = mailbox.begin_reply("whole", "north", b"head")
for _ in range(8):
    mailbox.add_reply_chunk(whole, b"w" * 300_000)
half = mailbox.begin_reply("half", "north", b"")
small = mailbox.begin_reply("small half", "north", b"")
mailbox.add_reply_chunk(half, b"h" * 300_000)
mailbox.finish_reply(whole)
mailbox.add_reply_chunk(small, b"s")
for _ in range(8):
    mailbox.add_reply_chunk(half, b"h" * 300_000)
print("spooled", flush=True)
while True:
    mailbox.add_reply_chunk(half, b"h" * 300_000)
"""


def test_a_kill_in_the_middle_of_a_reply_drops_that_half_and_nothing_else(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED_WHILE_SPOOLING, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"spooled\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    process.stdout.close()
    assert rows(path, "payloads") == 3  # the half one's are on the disk
    mailbox = Mailbox.open(path)
    try:
        assert [rows(path, table) for table in ("tasks", "payloads", "parts")] == [3, 2, 1 + 5]
        reply = mailbox.reply("whole")
        assert reply is not None
        assert (reply.header, reply.payload) == (b"head", b"w" * 2_400_000)
        assert answer(mailbox, "whole", b"again") is Taken.KNOWN
        assert heads(mailbox) == ["half", "small half"]
        assert answer(mailbox, "half", b"now whole") is Taken.STORED
    finally:
        mailbox.close()


def test_a_damaged_reply_is_not_handed_out(mailbox: Mailbox, path: Path) -> None:
    mailbox.post([task("a")])
    answer(mailbox, "a", b"update")
    db = sqlite3.connect(path)
    db.execute("UPDATE parts SET data = CAST('updatf' AS BLOB) WHERE data = CAST('update' AS BLOB)")
    assert db.total_changes == 1
    db.commit()
    db.close()
    with pytest.raises(MailboxError, match="damaged"):
        mailbox.reply("a")


def test_an_error_of_the_disk_leaves_other_replies_alone(mailbox: Mailbox, path: Path) -> None:
    """As on a full disk: the reply that is coming in is lost, and may come again."""
    mailbox.post([task("a"), task("b")])
    answer(mailbox, "a", b"a" * PART * 2)
    limited = sqlite3.connect(path)
    (pages,) = limited.execute("PRAGMA page_count").fetchone()
    limited.close()
    for db in (mailbox._file._durable, mailbox._file._parts):
        db.execute(f"PRAGMA max_page_count = {pages + 4}")
    spool = mailbox.begin_reply("b", "north", b"")
    assert isinstance(spool, Spool)
    with pytest.raises(MailboxError, match="SQLITE_FULL"):
        mailbox.add_reply_chunk(spool, b"b" * PART * 2)
    mailbox.drop_reply(spool)
    reply = mailbox.reply("a")
    assert reply is not None
    assert reply.payload == b"a" * PART * 2
    for db in (mailbox._file._durable, mailbox._file._parts):
        db.execute("PRAGMA max_page_count = 1000000")
    assert answer(mailbox, "b", b"b" * PART * 2) is Taken.STORED


def test_other_files_are_not_taken_for_mailboxes(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(UsageError, match="is no mailbox"):
        Mailbox.open(other)
    text = tmp_path / "text"
    text.write_text("no database at all, but long enough to be looked at " * 10)
    with pytest.raises(MailboxError, match="SQLITE_NOTADB"):
        Mailbox.open(text)
    with pytest.raises(MailboxError):
        Mailbox.open(tmp_path / "missing" / "mailbox.sqlite")


def test_only_its_owner_may_read_it(mailbox: Mailbox, path: Path) -> None:
    mailbox.post([task("a")])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_closed_mailbox_says_so(mailbox: Mailbox) -> None:
    mailbox.close()
    mailbox.close()
    for use in (lambda: mailbox.post([task("a")]), lambda: mailbox.reply("a"), lambda: mailbox.node("north")):
        with pytest.raises(MailboxError, match="closed"):
            use()


def test_many_threads_at_once(mailbox: Mailbox, path: Path) -> None:
    """Sixteen sites answer while others read and old rounds are forgotten."""
    sites = [f"site-{number}" for number in range(16)]
    failures: list[BaseException] = []

    def site_works(site: str) -> None:
        try:
            for number in range(6):
                name, payload = f"{site} {number}", f"{site} {number}".encode() * 40_000
                mailbox.post([task(name, site, group=str(number), payload=Payload.of(str(number).encode() * PART))])
                assert answer(mailbox, name, payload, site) is Taken.STORED
                reply = mailbox.reply(name)
                assert reply is not None
                assert reply.payload == payload
                mailbox.forget(f"another {number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=site_works, args=(site,)) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert rows(path, "tasks") == 96
    assert rows(path, "payloads") == 96 + 6
