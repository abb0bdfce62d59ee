"""The outbox: whole replies or none, the app's state with them, and a clear line for what is wrong with the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from client.outbox import Outbox, OutboxError

PART = 1 << 19


def name(text: str) -> str:
    return sha256(text.encode()).hexdigest()


A, B, C = name("a"), name("b"), name("c")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    found = Outbox.open(path)
    yield found
    found.close()


def payload_of(outbox: Outbox, reply: str) -> bytes:
    return b"".join(outbox.payload(reply))


# --- replies and states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 5 * PART + 7])
def test_a_reply_is_read_as_it_was_stored_also_by_the_next_process(path: Path, outbox: Outbox, size: int) -> None:
    payload = os.urandom(size)
    outbox.store(A, header=b"head", payload=payload)
    outbox.close()
    again = Outbox.open(path)
    (reply,) = again.replies()
    assert (reply.id, reply.header, reply.size, reply.digest) == (A, b"head", size, sha256(payload).digest())
    assert again.reply(A) == reply
    assert payload_of(again, A) == payload
    again.close()


def test_replies_are_listed_in_the_order_in_which_they_were_made(outbox: Outbox) -> None:
    for reply in (B, A, C):
        outbox.store(reply, header=b"", payload=b"x")
    assert [reply.id for reply in outbox.replies()] == [B, A, C]


def test_a_reply_is_given_part_by_part(outbox: Outbox) -> None:
    outbox.store(A, header=b"", payload=bytes(3 * PART + 1))
    assert [len(part) for part in outbox.payload(A)] == [PART, PART, PART, 1]


def test_a_reply_says_of_which_plan_it_is_and_what_it_holds(outbox: Outbox) -> None:
    outbox.store(A, header=b"", payload=b"x", plan="ab" * 32, fields=["arrays", "metrics.weight"])
    outbox.store(B, header=b"", payload=b"x")
    assert [(reply.plan, reply.fields) for reply in outbox.replies()] == [
        ("ab" * 32, ("arrays", "metrics.weight")),
        ("", ()),
    ]
    assert outbox.reply(A) == outbox.replies()[0]


def test_replies_of_other_plans_go_and_those_of_none_stay(outbox: Outbox) -> None:
    for reply, plan in ((A, "one"), (B, "other"), (C, "")):
        outbox.store(reply, header=b"", payload=b"x", plan=plan)
    assert outbox.drop_other_plans("one") == (B,)
    assert [reply.id for reply in outbox.replies()] == [A, C]
    assert outbox._db.execute("SELECT DISTINCT owner FROM parts ORDER BY owner").fetchall() == sorted([(A,), (C,)])


def test_what_was_dropped_is_gone_even_while_it_is_read(outbox: Outbox) -> None:
    outbox.store(A, header=b"", payload=bytes(3 * PART))
    outbox.store(B, header=b"", payload=b"b")
    parts = outbox.payload(A)
    assert len(next(parts)) == PART
    outbox.drop(A)
    assert list(parts) == []
    assert outbox.reply(A) is None
    outbox.drop(A)
    assert [reply.id for reply in outbox.replies()] == [B]
    assert outbox._db.execute("SELECT DISTINCT owner FROM parts").fetchall() == [(B,)]


def test_another_reply_to_the_same_task_takes_the_place_of_the_first(outbox: Outbox) -> None:
    outbox.store(A, header=b"1", payload=bytes(2 * PART))
    outbox.store(A, header=b"2", payload=b"short")
    (reply,) = outbox.replies()
    assert (reply.header, payload_of(outbox, A)) == (b"2", b"short")


def test_a_runs_state_is_the_newest_one_and_none_is_empty(path: Path, outbox: Outbox) -> None:
    assert outbox.state("ab") == b""
    large = os.urandom(2 * PART + 3)
    outbox.store(A, header=b"", payload=b"", run="ab", state=b"first")
    outbox.store(B, header=b"", payload=b"", run="ab", state=large)
    outbox.store(C, header=b"", payload=b"", run="cd")
    assert (outbox.state("ab"), outbox.state("cd")) == (large, b"")
    outbox.drop(A)
    outbox.drop(B)
    outbox.close()
    again = Outbox.open(path)
    assert again.state("ab") == large
    again.close()


def test_states_of_runs_long_past_are_let_go(outbox: Outbox) -> None:
    for run in ("a", "b", "c", "d", "a", "e"):
        outbox.store(A, header=b"", payload=b"", run=run, state=run.encode())
    assert {run: outbox.state(run) for run in "abcde"} == {"a": b"a", "b": b"", "c": b"c", "d": b"d", "e": b"e"}
    assert outbox._db.execute("SELECT count(*) FROM parts").fetchone() == (4,)


@pytest.mark.parametrize("step", ["_write_parts", "_write_state"])
def test_a_reply_and_the_state_after_it_are_both_there_or_neither(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    outbox.store(A, header=b"", payload=b"a", run="ab", state=b"before")

    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(outbox, step, fail)
        for reply in (A, B):
            with pytest.raises(MemoryError):
                outbox.store(reply, header=b"", payload=b"new", run="ab", state=b"after")
    assert [reply.id for reply in outbox.replies()] == [A]
    assert (payload_of(outbox, A), outbox.state("ab")) == (b"a", b"before")


def test_several_threads_may_use_it(outbox: Outbox) -> None:
    errors: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(10):
                reply = name(f"{number}-{turn}")
                payload = os.urandom(1000 * number)
                outbox.store(reply, header=b"", payload=payload, run=str(number), state=payload)
                assert payload_of(outbox, reply) == outbox.state(str(number)) == payload
                if turn % 2:
                    outbox.drop(reply)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(outbox.replies()) == 20


def test_only_its_owner_may_read_it(path: Path, outbox: Outbox) -> None:
    outbox.store(A, header=b"", payload=b"x")
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file


# --- kills ----------------------------------------------------------------------------------------------------------

_STORES_FOR_EVER = """
    import itertools, sys
    from hashlib import sha256
    from pathlib import Path
    from client.outbox import Outbox
    outbox = Outbox.open(Path(sys.argv[1]))
    for number in itertools.count(int(sys.argv[2])):
        reply = sha256(str(number).encode()).hexdigest()
        outbox.store(reply, header=reply.encode(), payload=reply.encode() * 30000, run="ab", state=reply.encode())
        print(number, flush=True)
        if number % 3 == 2:
            outbox.drop(reply)
"""


def test_a_client_killed_while_it_stores_leaves_whole_replies_and_the_state_of_the_newest(path: Path) -> None:
    number = 0
    for delay in (0.0, 0.013, 0.029, 0.041, 0.057):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_STORES_FOR_EVER), str(path), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        stored = {int(process.stdout.readline())}
        threading.Event().wait(delay)
        process.send_signal(signal.SIGKILL)
        stored |= {int(line) for line in process.stdout.read().split()}
        process.wait()
        number = max(stored) + 2
        outbox = Outbox.open(path)
        replies = outbox.replies()
        for reply in replies:
            payload = payload_of(outbox, reply.id)
            assert (len(payload), sha256(payload).digest()) == (reply.size, reply.digest)
            assert reply.header.decode() == reply.id
        kept = {reply.id for reply in replies}
        assert {name(str(one)) for one in stored if one % 3 != 2} <= kept
        newest = outbox.state("ab").decode()
        assert newest in {name(str(max(stored))), name(str(max(stored) + 1))}
        outbox.close()


# --- what can be wrong ----------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing_and_passes(outbox: Outbox) -> None:
    outbox.store(A, header=b"", payload=b"a", run="ab", state=b"before")
    most = outbox._db.execute("PRAGMA max_page_count").fetchone()[0]
    outbox._db.execute("PRAGMA max_page_count = 16")
    with pytest.raises(OutboxError, match=r"no room left, and nothing was written; make room \(SQLITE_FULL\)") as full:
        outbox.store(B, header=b"", payload=bytes(PART), run="ab", state=b"after")
    assert full.value.passes
    assert [reply.id for reply in outbox.replies()] == [A]
    assert (payload_of(outbox, A), outbox.state("ab")) == (b"a", b"before")
    outbox._db.execute(f"PRAGMA max_page_count = {most}")
    outbox.store(B, header=b"", payload=bytes(PART), run="ab", state=b"after")
    assert outbox.state("ab") == b"after"


def test_a_disk_that_can_not_be_written_any_more_does_not_pass(outbox: Outbox) -> None:
    outbox._db.execute("PRAGMA query_only = ON")
    with pytest.raises(OutboxError, match="can't be written; give its owner the right") as error:
        outbox.store(A, header=b"", payload=b"a")
    assert not error.value.passes


def test_a_file_that_another_process_holds_is_left_alone(
    path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox._db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutboxError, match="another process holds it") as busy:
        outbox.store(A, header=b"", payload=b"a")
    assert busy.value.passes
    other.execute("ROLLBACK")
    other.close()
    outbox.store(A, header=b"", payload=b"a")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwritten(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:12288] = b"\xee" * 8192
    path.write_bytes(bytes(data))


def of_others(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE x (y)")
    other.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 2")
    other.close()


def changed(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE states ADD COLUMN more TEXT")
    other.close()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no database": (lambda path: path.write_bytes(b"\x00\xff" * 4096), "is damaged; move it away and start again"),
    "a text": (lambda path: path.write_text("patient-4711"), "is damaged; move it away and start again"),
    "cut off": (cut, "is damaged; move it away and start again"),
    "overwritten": (overwritten, "is damaged; move it away and start again"),
    "something else": (of_others, "is no outbox, or its beginning is damaged; move it away"),
    "of a newer Veil": (newer, "was written by a newer Veil; update Veil"),
    "changed tables": (changed, "is damaged; move it away and start again"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_will_not_do_is_named_in_one_line_and_left_as_it_is(path: Path, how: str) -> None:
    outbox = Outbox.open(path)
    outbox.store(A, header=b"", payload=bytes(100_000))
    outbox.close()
    breaks, line = BROKEN[how]
    breaks(path)
    before = path.read_bytes()
    with pytest.raises(OutboxError) as error:
        Outbox.open(path)
    assert not error.value.passes
    text = str(error.value)
    assert text.startswith(f"{path}: {line}")
    assert "\n" not in text
    assert "4711" not in text
    assert path.read_bytes() == before


def test_a_file_that_a_killed_client_had_just_made_is_begun_anew(path: Path) -> None:
    path.touch()
    outbox = Outbox.open(path)
    assert outbox.replies() == ()
    outbox.close()


@pytest.mark.parametrize("where", ["no folder", "a folder"])
def test_a_place_that_can_not_hold_it_is_named(tmp_path: Path, where: str) -> None:
    path = tmp_path / "none" / "outbox.sqlite" if where == "no folder" else tmp_path
    with pytest.raises(OutboxError, match="can't be written") as error:
        Outbox.open(path)
    assert str(error.value).startswith(f"{path}: ")
