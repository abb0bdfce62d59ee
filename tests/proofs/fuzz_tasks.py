"""Hostile tasks and offers for a site, and hostile replies for a server.

Tasks are spoiled Flower messages to the real ClientApp, its guard and its ledger, as bytes. They go the way that an
agent sends them (`client/running.py`). Each gets a good reply, all of whose fields are planned, or one of the fixed
codes; what a refusal costs is nothing.
"""

from __future__ import annotations

import io
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.proto.error_pb2 import Error as ProtoError
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from client.egress import planned_fields
from client.policy import SitePolicy
from client.running import Answer, Runner, is_query
from client.workplace import made_workplace
from privacy.ledger import Entry
from privacy.ledger.check import verify
from privacy.statement import verify_statement
from security.errors import UsageError
from security.frames import ACCEPTED
from server.replies import ClientFault, read_counts, read_reply
from shared_models.faults import Fault
from shared_models.flower_messages import (
    act_as_server,
    header_from_bytes,
    header_to_bytes,
    message_from_bytes,
    payload_to_bytes,
    reply_from_bytes,
)
from shared_models.parameters import Layout, from_arrays
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, write_plan
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    HEAD_HASH,
    HEAD_POSITION,
    LAYOUT_DIGEST,
    LEDGER,
    METRICS,
    PLAN_DIGEST,
    ROUND,
    RUN,
    STATEMENT_TEXT,
    WEIGHT,
)
from shared_models.resolve import resolve
from shared_models.wire import decode_update, update_arrays
from tests.client.conftest import content_of, layout_of, plan_of, question
from tests.client.real_site import DATA, FEDERATION, SITE, Authority, Running, settings_text, started, write_rows

Outcomes = Counter[str]

SCOPE: Final = "patients"
_OPEN = f'[release]\nentrust = ["{FEDERATION}"]\ncounts = true\nstatement = "full"\n'
_APPROVED = '[approval]\nplans = "policy"\n'
_BLOCK: Final = 40  # tasks of one plan
_KINDS = ("train", "evaluate", "query.identify", "query.statement")
_OTHER_KINDS = (
    "",
    "train.",
    "train.more",
    "query",
    "query.",
    "query.nothing",
    "system",
    "TRAIN",
    "x" * 5000,
    "evaluate\x00",
)
_PRIVATE: dict[str, Any] = {"noise": "secret", "noise_multiplier": 3.0}


def plans() -> dict[str, Plan]:
    """The plans that the site is asked to work on."""
    at_clients = {"where": "clients", "count_noise": 10.0, "every": 1}
    return {
        "private": plan_of(privacy=_PRIVATE, evaluation=at_clients),
        "private, top-k": plan_of(privacy=_PRIVATE, federation={"wire": "top-k", "top_fraction": 0.1}),
        "without privacy": plan_of(False, evaluation={"where": "clients"}),
    }


def tasks(rng: random.Random, number: int, folder: Path, *, epsilon: float) -> Outcomes:
    """So many hostile tasks for a new site with this budget; then its ledger is checked from its first entry."""
    with _site(folder, epsilon) as running:
        attack = _Attack(rng, running)
        for _ in range(number):
            attack.one()
        attack.check_ledger(epsilon)
        attack.check_alive()
    return attack.found


def replies(rng: random.Random, number: int, folder: Path) -> Outcomes:
    """So many hostile replies to a server, made of a site's good ones: what it takes is within its bounds."""
    found: Outcomes = Counter()
    with _site(folder, 500.0) as running:
        attack = _Attack(rng, running)
        good = []
        for name in attack.plans:
            for kind in ("train", "evaluate"):
                header, payload = attack.good[name][kind]
                answer, _ = attack._ask(name, header, payload)
                assert answer is not None
                good.append((name, kind, header_from_bytes(header), answer.payload))
    for _ in range(number):
        name, kind, asked, payload = rng.choice(good)
        _, hostile = spoiled_task(rng, b"", payload)
        found[_taken(attack.plans[name], kind, asked, hostile)] += 1
    return found


def offers(rng: random.Random, number: int, folder: Path) -> Outcomes:
    """So many hostile plans for a site: each gets a fixed code, and its owner a line that can be printed."""
    found: Outcomes = Counter()
    with _site(folder, 500.0) as running:
        good = [(write_plan(plan), plan.digest()) for plan in plans().values()]
        for text, digest in good:
            assert running.site.consider(text, digest).code == ACCEPTED
        for _ in range(number):
            text, digest = rng.choice(good)
            text = _spoiled_plan(rng, text)
            if rng.random() < 0.7:  # else most would be refused for their digest alone
                with suppress(UsageError):
                    digest = parse_plan(text, where="").digest()
            verdict = running.site.consider(text, digest)
            assert verdict.reason.isprintable()
            assert len(verdict.reason) < 1000
            if verdict.code == ACCEPTED:
                assert verdict.plan is not None
                assert verdict.plan.digest() == digest == resolve(verdict.plan).digest()
            found["accepted" if verdict.code == ACCEPTED else Fault(verdict.code).reason] += 1
    return found


def _spoiled_plan(rng: random.Random, text: str) -> str:
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(lines))
        key, equals, _ = lines[place].partition(" = ")
        match rng.randrange(6):
            case 0:
                data = _spoiled_bytes(rng, lines[place].encode())
                lines[place] = data.decode("utf-8", "replace")
            case 1:
                del lines[place]
            case 2:
                lines.insert(place, lines[rng.randrange(len(lines))])
            case 3:
                lines.insert(place, rng.choice(_LINES))
            case _ if equals:
                lines[place] = f"{key} = {rng.choice(_WORDS)}"
    return "\n".join(lines)


_WORDS: Final = (
    *("0", "1", "-1", "2", "9" * 19, "9" * 5000, "0.0", "1e-300", "1e300", "inf", "nan", "true", "[]", "{}", "[[]]"),
    *(
        '""',
        '"none"',
        '"local"',
        '"../../etc/passwd"',
        '"\\u001b[2J"',
        '"\\u202e"',
        "1979-05-27",
        "'x\x07'",
        "[1, 'a']",
    ),
    *("[" * 5000, "{a=" * 5000, "'" + "x" * 70_000 + "'", "[4096, 4096]", "[1000000000, 1000000000]"),
)
_LINES: Final = (
    *("extra = 1", '"\\u001b[2J" = 1', "[extra]", "[[extra]]", "a.b.c.d.e.f.g = 1", ".".join("a" * 5000) + " = 1"),
    *(
        "[privacy]",
        "[data.card]",
        "privacy.epsilon = 1e-9",
        "privacy.noise = 'reproducible'",
        "\x00",
        "\ufeff",
        "#" * 9999,
    ),
)


def _taken(plan: Plan, kind: str, asked: Metadata, payload: bytes) -> str:
    """What a server makes of a reply: as `LinkGrid` and the rounds read it."""
    try:
        reply = reply_from_bytes(asked, bytearray(payload))
    except ValueError:
        return "no message"
    if kind == "evaluate":
        counts = read_counts(reply, SITE, plan)
        return counts.fault.reason if isinstance(counts, ClientFault) else "counts taken"
    update = read_reply(reply, SITE, layout_of(plan), plan)
    if isinstance(update, ClientFault):
        return update.fault.reason
    assert all(np.isfinite(value).all() for value in update.delta.values())
    return "update taken"


@contextmanager
def _site(folder: Path, epsilon: float) -> Iterator[Running]:
    home = Authority(folder / "authority").admit(folder / "home")
    budget = f'[[budget]]\nunit = "record"\ntrust = "local"\nepsilon = {epsilon}\ndelta = 1e-5\n'
    home.settings.write_text(settings_text(budget, _OPEN, DATA, _APPROVED))
    write_rows(home.path / "rows.csv", rows=20)
    made_workplace.cache_clear()
    act_as_server(1)
    running = started(home)
    try:
        yield running
    finally:
        running.site.close()


@dataclass
class _Attack:
    """One site under attack.

    Attributes:
        answered: payloads of requests that had a good reply, with it.
        found: how many tasks came to what.
    """

    rng: random.Random
    running: Running
    answered: list[tuple[str, bytes, bytes, bytes]] = field(default_factory=list)
    found: Outcomes = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.plans = plans()
        self.runner = Runner(SITE)
        self.policy: SitePolicy = self.running.site.settings.policy
        self.ledger = self.running.site.books().ledger
        self.good = {
            name: {kind: _good_task(plan, kind, 1, "run-1") for kind in _KINDS} for name, plan in self.plans.items()
        }
        self.name = ""
        self.states = dict.fromkeys(self.plans, b"")
        self.reserved = 0

    def one(self) -> None:
        """One task: sent, answered, and its answer held against the ledger."""
        rng = self.rng
        if self.answered and rng.random() < 0.03:
            name, header, payload, reply = rng.choice(self.answered)
            again, entries = self._ask(name, header, payload)
            assert again is not None
            assert entries == [], "a request was charged again"
            assert again.payload == reply or again.fault is Fault.REPLY_GONE, "a request was answered in two ways"
            self.found["asked again: " + ("the same reply" if again.fault is None else again.fault.reason)] += 1
            return
        if self.found.total() % _BLOCK == 0:  # a site has one plan's network built at a time
            self.name = rng.choice(list(self.plans))
        name, kind = self.name, rng.choice(("train", *_KINDS))
        header, payload = self.good[name][kind]
        if rng.random() < 0.3:
            header, payload = _good_task(self.plans[name], kind, rng.randint(1, 3), f"run-{rng.randrange(99)}")
        header, payload = spoiled_task(rng, header, payload)
        answer, entries = self._ask(name, header, payload)
        self.found[self._judged(name, header, payload, answer, entries)] += 1

    def check_ledger(self, budget: float) -> None:
        """The chain verifies, and everything that was charged was reserved, within the budget."""
        path = self.running.home.ledger
        problems = verify(path)
        assert not problems, problems[0]
        charged, plan = 0, self.plans["private"]
        for balance in self.ledger.balances(SCOPE) if SCOPE in self.ledger.scopes() else ():
            for own in self.ledger.account(SCOPE, balance).plans:
                charged += sum(times for _, times in own.charged)
            assert balance == plan.balance
        assert charged == self.reserved, "what was charged is not what was reserved"
        statement, _ = self._ask("private", *self.good["private"]["query.statement"])
        assert statement is not None
        text = message_from_bytes(statement.header, statement.payload).content.config_records[CONFIG][STATEMENT_TEXT]
        said = verify_statement(str(text), owner=self.running.site.books().owner(SCOPE).public_hex)
        assert all(one.spent.epsilon <= budget and one.spent.fraction <= 1 for one in said.balances)

    def check_alive(self) -> None:
        """An honest request is still answered: by training, or because the budget is spent."""
        header, payload = self.good["without privacy"]["train"]
        answer, _ = self._ask("without privacy", header, payload)
        assert answer is not None
        assert answer.fault is None

    # --- within

    def _ask(self, name: str, header: bytes, payload: bytes) -> tuple[Answer | None, list[Entry]]:
        """The answer, None if there was nobody to answer to; and what was written into the ledger."""
        before, text = self._position(), write_plan(self.plans[name])
        is_query(header)
        try:
            self.runner.refusal(header=header, fault=Fault.POLICY_RESOURCES)
            answer = self.runner.answer(header=header, payload=bytearray(payload), plan=text, state=self.states[name])
        except ValueError:
            answer = None
        if answer is not None:
            self.states[name] = answer.state
        return answer, self.ledger._store.entries(SCOPE, before + 1, self._position()) if self._position() >= 0 else []

    def _position(self) -> int:
        return self.ledger.head(SCOPE).position if SCOPE in self.ledger.scopes() else -1

    def _judged(self, name: str, header: bytes, payload: bytes, answer: Answer | None, entries: list[Entry]) -> str:
        kinds = [str(entry.body.get("reason", entry.kind)) for entry in entries if entry.kind not in ("open", "policy")]
        if answer is None:
            assert not kinds, "somebody who can't be answered was charged"
            return "no head that could be answered"
        reply = message_from_bytes(answer.header, answer.payload)
        if reply.has_error():
            fault = Fault(reply.error.code)
            assert not reply.error.reason, "a text left"
            assert fault is answer.fault
            if fault.is_refusal:
                assert kinds in ([], [fault.reason]), f"{fault.reason} cost something: {kinds}"
            else:
                assert fault is Fault.CLIENT_FAILED
                assert kinds in ([], ["reserve", "client-failed"]), f"{fault.reason}: {kinds}"
                self._reserves(name, kinds)
            return fault.reason + (" (charged)" if "reserve" in kinds else "")
        self._check_fields(name, answer.kind, reply, message_from_bytes(header, payload))
        if answer.kind.startswith("query."):
            assert kinds == [], "a query was charged"
            return f"{answer.kind} answered"
        assert kinds in (["reserve", "commit"], []), kinds
        if kinds:
            assert entries[-2].position == reply.content.config_records[LEDGER][HEAD_POSITION]
            self._reserves(name, kinds)
            if self.plans[name].is_private and len(self.answered) < 500:
                self.answered.append((name, header, payload, answer.payload))
        return f"{answer.kind} " + ("answered and charged" if kinds else "answered as before, at no charge")

    def _reserves(self, name: str, kinds: list[str]) -> None:
        self.reserved += self.plans[name].is_private and "reserve" in kinds

    def _check_fields(self, name: str, kind: str, reply: Message, asked: Message) -> None:
        """Nothing but what the owner was told; and what is constant under privacy is."""
        plan, content = self.plans[name], reply.content
        left = {(ARRAYS if record == ARRAYS else f"{record}.{key}") for record in content for key in content[record]}
        if kind.startswith("query."):
            assert left <= {f"{CONFIG}.{CLIENT_ID}", f"{CONFIG}.{STATEMENT_TEXT}"}, left
            assert content.config_records[CONFIG].get(CLIENT_ID, SITE) == SITE
            return
        told = planned_fields(plan, self.policy)
        assert left <= set(told), f"{left - set(told)} left"
        assert {f"{LEDGER}.{HEAD_HASH}", f"{LEDGER}.{HEAD_POSITION}"} < left
        if plan.is_private and kind == "train":
            assert content.metric_records[METRICS][WEIGHT] == 1
            layout = layout_of(plan)
            assert list(content.array_records[ARRAYS]) == list(update_arrays(layout))
            update = decode_update(content.array_records[ARRAYS], layout)
            if _is_tame(asked, layout):
                assert all(np.isfinite(value).all() for value in update.values()), "an update that isn't finite"


def _is_tame(asked: Message, layout: Layout) -> bool:
    """Whether the model is one that can be trained: what is not finite, or huge, makes a change that is neither."""
    arrays = from_arrays(asked.content.array_records[ARRAYS], layout)
    return all(np.isfinite(array).all() and (np.abs(array) < 1e30).all() for array in arrays.values())


def _good_task(plan: Plan, kind: str, number: int, run: str) -> tuple[bytes, bytes]:
    """Head and payload of a good task."""
    content = question(plan) if kind.startswith("query.") else content_of(plan, number, run=run)
    message = Message(content, 7, kind, group_id=str(number))
    message.metadata.__dict__["_message_id"] = sha256(kind.encode()).hexdigest()
    return header_to_bytes(message.metadata), payload_to_bytes(message)


# --- how they are spoiled


def spoiled_task(rng: random.Random, header: bytes, payload: bytes) -> tuple[bytes, bytes]:
    """A task with something wrong in its bytes, its records, its arrays, its words or its head; sometimes nothing."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.random()
        if way < 0.15:
            payload = _spoiled_bytes(rng, payload)
        elif way < 0.22:
            header = _spoiled_bytes(rng, header)
        elif way < 0.3:
            header = _other_head(rng, header)
        else:
            payload = _other_content(rng, payload)
    return header, payload


def _spoiled_bytes(rng: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0 | 1 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 2:
                del found[place : place + rng.choice((1, 3, 50))]
            case 3:
                found[place:place] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                found[place:place] = b"\xff" * rng.randrange(1, 11)
            case _:
                found = found[:place]
    return bytes(found)


def _other_head(rng: random.Random, header: bytes) -> bytes:
    try:
        found = ProtoMessage.FromString(header)
    except Exception:  # its bytes were spoiled before
        return header
    head = found.metadata
    match rng.randrange(7):
        case 0:
            head.message_type = rng.choice((*_KINDS, *_OTHER_KINDS))
        case 1:
            head.ttl = rng.choice((-1.0, 0.0, 1e300, float("nan"), float("inf")))
        case 2:
            head.created_at = rng.choice((-1.0, 0.0, 1e300, float("nan")))
        case 3:
            head.dst_node_id = rng.choice((0, 1, 2**64 - 1))
        case 4:
            head.run_id = rng.choice((0, 2**64 - 1))
        case 5:
            head.reply_to_message_id = "x" * rng.choice((1, 4000))
        case _:
            found.ClearField("metadata")
    return bytes(found.SerializeToString())


def _other_content(rng: random.Random, payload: bytes) -> bytes:
    try:
        found = ProtoMessage.FromString(payload)
    except Exception:  # its bytes were spoiled before
        return payload
    rng.choice(_WAYS)(rng, found)
    return bytes(found.SerializeToString())


Spoil = Callable[[random.Random, ProtoMessage], None]


def _config(found: ProtoMessage) -> Any:
    """The request's words, or None where they were spoiled before."""
    return next((item.config_record for item in found.content.items if _is(item, CONFIG, "config_record")), None)


def _arrays(found: ProtoMessage) -> Any:
    """The request's model, or None where it was spoiled before."""
    arrays = next((item.array_record for item in found.content.items if _is(item, ARRAYS, "array_record")), None)
    return arrays if arrays is not None and arrays.items else None


def _is(item: Any, key: str, kind: str) -> bool:
    return bool(item.key == key and item.HasField(kind))


def _config_value(rng: random.Random, found: ProtoMessage) -> None:
    """A word of the request that is another, of another type, gone, or there twice."""
    config = _config(found)
    if config is None:
        return
    key = rng.choice((ROUND, ROUND, RUN, RUN, PLAN_DIGEST, LAYOUT_DIGEST, HEAD_POSITION, HEAD_HASH, "extra"))
    kept = [item for item in config.items if item.key != key]
    value: Any = rng.choice(_VALUES[key if key in _VALUES else "extra"])
    content = RecordDict({CONFIG: ConfigRecord({} if value is None else {key: value})})
    message = Message(content, 7, "train")
    new = _config(ProtoMessage.FromString(payload_to_bytes(message)))
    del config.items[:]
    config.items.extend([*kept, *new.items, *(new.items if rng.random() < 0.1 else ())])


_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    ROUND: (1, 2, 3, 2, 3, 0, -1, 4, 2**62, 1.0, True, "1", [1], b"1", None),
    RUN: ("run-1", "run-2", "run-3", "", "r" * 64, "r" * 65, "r" * 100_000, "\x00", 1, [], b"run", None),
    "extra": ("0" * 64, "f" * 64, "", 0, -1, 7, 2**62, 1.5, float("nan"), True, [1, 2], b"\xff", "x" * 70_000, None),
}


def _records(rng: random.Random, found: ProtoMessage) -> None:
    """Records that are gone, swapped, called by another's name, there twice, or one too many."""
    items = found.content.items
    if not items:
        return
    place = rng.randrange(len(items))
    match rng.randrange(5):
        case 0:
            del items[place]
        case 1:
            items[place].key = rng.choice((ARRAYS, CONFIG, METRICS, LEDGER, "", "x" * 1000))
        case 2:
            names = [item.key for item in items]
            for item, name in zip(items, reversed(names), strict=True):
                item.key = name
        case 3:
            items.add().CopyFrom(items[place])
            items[-1].key = rng.choice((items[place].key, "another"))
        case _:
            items[place].metric_record.Clear()
            items[place].metric_record.SetInParent()


def _array(rng: random.Random, found: ProtoMessage) -> None:
    """An array that says it is another, is longer or shorter than it says, or holds what isn't one."""
    arrays = _arrays(found)
    if arrays is None:
        return
    item = rng.choice(list(arrays.items))
    array = item.value
    match rng.randrange(9):
        case 0:
            array.dtype = rng.choice(("float64", "float16", "int32", "object", "O", "", "U9", "V8", "x" * 3000))
        case 1:
            del array.shape[:]
            array.shape.extend(rng.choice(((), (0,), (-1,), (2**31 - 1,) * 8, (3, 3), (1,) * 64)))
        case 2:
            array.stype = rng.choice(("", "torch.Tensor", "pickle", "numpy.ndarray\x00"))
        case 3:
            array.data = array.data[: rng.randrange(len(array.data) + 1)]
        case 4:
            array.data += rng.randbytes(rng.choice((1, 64, 5000)))
        case 5:
            array.data = rng.choice(_NO_ARRAYS)
        case 6:
            item.key = rng.choice(("", "another", "x" * 3000, arrays.items[0].key))
        case 7:
            arrays.items.add().CopyFrom(item)
        case _:
            del arrays.items[rng.randrange(len(arrays.items))]


def _numbers(rng: random.Random, found: ProtoMessage) -> None:
    """A model of the right form that holds what no model should: a sound request all the same."""
    arrays = _arrays(found)
    if arrays is None:
        return
    bad = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0, 1.0))
    everywhere = rng.random() < 0.5
    for item in arrays.items:
        try:
            value = np.load(io.BytesIO(item.value.data), allow_pickle=False).copy()
        except Exception:  # it was spoiled before
            return
        if value.dtype.kind == "f" and value.size:
            value.reshape(-1)[: None if everywhere else 1] = bad
        item.value.data = _npy(value)


def _swapped(rng: random.Random, found: ProtoMessage) -> None:
    """The arrays in another order, or two of them with each other's bytes."""
    arrays = _arrays(found)
    if arrays is None or len(arrays.items) < 2:
        return
    one, other = rng.sample(range(len(arrays.items)), 2)
    if rng.random() < 0.5:
        first = ProtoRecordDict()
        first.items.add().array_record.items.add().CopyFrom(arrays.items[one])
        arrays.items[one].CopyFrom(arrays.items[other])
        arrays.items[other].CopyFrom(first.items[0].array_record.items[0])
    else:
        data = arrays.items[one].value.data
        arrays.items[one].value.data = arrays.items[other].value.data
        arrays.items[other].value.data = data


def _neither(rng: random.Random, found: ProtoMessage) -> None:
    """An error in place of content, beside it, or neither of them; or a head in the payload."""
    match rng.randrange(4):
        case 0:
            found.error.CopyFrom(ProtoError(code=rng.choice((0, 1001, 2**31)), reason="x" * 100))
        case 1:
            found.ClearField("content")
            found.error.CopyFrom(ProtoError(code=int(Error(1).code), reason="x"))
        case 2:
            found.ClearField("content")
        case _:
            found.metadata.message_type = "train"


def _nothing(rng: random.Random, found: ProtoMessage) -> None:
    """A good request: among bad ones it is served as ever."""


_WAYS: Final[tuple[Spoil, ...]] = (
    *(_config_value, _config_value, _config_value, _records, _array, _array, _array),
    *(_numbers, _swapped, _neither, _nothing),
)


class _Bomb:
    """Tells whether anybody has unpacked it."""

    went_off = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _go_off, ()


def _go_off() -> None:
    raise SystemExit("something was unpickled")  # nobody catches it


def _npy(value: Any, **how: Any) -> bytes:
    found = io.BytesIO()
    np.save(found, value, **how)
    return found.getvalue()


def _claims(shape: str, kind: str = "<f4") -> bytes:
    """The head of an array file that says it is of this shape, and no data."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


_NO_ARRAYS: Final = (
    b"",
    b"\x93NUMPY",
    b"PK\x03\x04" + bytes(100),  # an archive
    pickle.dumps(_Bomb()),
    _npy(np.array([_Bomb()], dtype=object), allow_pickle=True),
    _claims("(4294967296, 4294967296)"),
    _claims("(99999999999999999999999999,)"),
    _claims("(-1,)"),
    _claims("(1,)", "|O"),
    _claims("(" * 90),
    _claims("__import__('os')"),
    _npy(np.zeros((4, 3), ">f4")),
    _npy(np.asfortranarray(np.zeros((4, 3), np.float32))),
    _npy(np.zeros((4, 3), np.complex64)),
    b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + bytes(64),
)
