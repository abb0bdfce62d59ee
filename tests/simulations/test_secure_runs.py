"""Whole runs with secure sums: the sum is the plain one, what leaves is random, and every attempt is paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

import client.secure_update
from client.trainer import train_plain
from client.workplace import Workplace, workplace
from privacy.ledger.check import verify
from privacy.lifetime import Balance
from privacy.noise import ReproducibleNoise
from privacy.secure_encoding import decode, encode
from privacy.statement import verify_statement
from server.run_folder import RunFolder, read_parameters
from shared_models.faults import Fault
from shared_models.flower_messages import error_reply
from shared_models.parameters import Parameters, get_parameters, in_order, unflat
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, MASKED, SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK
from shared_models.registry import build_for
from shared_models.seeds import derive_key
from simulations.run import Settings, start_run
from simulations.worker import Worker
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import bodies, committed, reserved
from tests.simulations.test_compressed_runs import same_bits
from tests.simulations.test_run_ledger import CutOffError, gone_on

INLINE = Settings(engine="inline")
CLIENTS = [str(number) for number in range(6)]
SECURE = (
    "data.partition.clients=6",
    "model.options.hidden=[]",
    "training.steps=1",
    "federation.rounds=2",
    "privacy.unit=client",
    "privacy.trust=distributed",
    "privacy.noise=reproducible",
    "secure_sum.corrupt=0.0",
)

Reply = Callable[[str, str, Message], Message | None]


def secure_plan(small_plan: PlanMaker, *changes: str) -> Plan:
    return small_plan(*SECURE, *changes)


def in_the_open(plan: Plan, place: Workplace, start: Parameters, clients: list[str], number: int) -> Parameters:
    """The model after a round, its sum computed of numbers that nobody masked."""
    total = np.zeros(plan.secure.dimension, np.uint32)
    for name in clients:
        total += contribution(plan, place, start, name, number)
    mean = decode(total, plan.sum_grid(), survivors=len(clients), size=place.layout.size)
    return {name: np.asarray(start[name] + delta, np.float32) for name, delta in unflat(mean, place.layout).items()}


def initial(plan: Plan) -> Parameters:
    return get_parameters(build_for(plan))


def contribution(plan: Plan, place: Workplace, start: Parameters, name: str, number: int) -> np.ndarray:
    """What a client adds: its clipped change on the grid, with its share of noise."""
    change, _ = train_plain(place.model, start, place.records(name), plan, round_number=number, client=name)
    flat = np.concatenate([value.ravel() for _, value in in_order(change, place.layout)])
    noise = ReproducibleNoise(derive_key(plan.seed, "noise", name, number))
    return encode(flat, plan.sum_grid(), bits=32, noise=noise)


def meddle(monkeypatch: pytest.MonkeyPatch, change: Reply) -> None:
    """Have some clients' replies be others: an error says that nothing arrived in time."""
    original = Worker.handle

    def handle(self: Worker, metadata: Any, content: Any, name: str, state: Any, *company: Any) -> Any:
        reply, new = original(self, metadata, content, name, state, *company)
        changed = change(name, metadata.message_type, reply)
        return (reply, new) if changed is None else (changed, new)

    monkeypatch.setattr(Worker, "handle", handle)


def lost(message: Message) -> Message:
    """A reply that never came: the client has done its part all the same."""
    return error_reply(message.metadata, Fault.UNREACHABLE)


def fails_in(kind: str, names: list[str], times: int) -> Reply:
    """The replies of these clients to messages of a type are lost, the first so many times."""
    counts: Counter[str] = Counter()

    def change(name: str, found: str, reply: Message) -> Message | None:
        if found != kind or name not in names:
            return None
        counts[name] += 1
        return lost(reply) if counts[name] <= times else None

    return change


def test_the_model_is_that_of_the_plain_sum_bit_for_bit(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = secure_plan(small_plan)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    place = workplace(write_plan(plan))
    model = initial(plan)
    for number in (1, 2):
        model = in_the_open(plan, place, model, CLIENTS, number)
    assert same_bits(read_parameters(folder.model), model)


@pytest.mark.parametrize("kind", [SECURE_KEYS, SECURE_SHARES, "train", SECURE_SURVIVORS, SECURE_UNMASK])
def test_so_it_is_with_a_client_that_drops_out_in_any_phase(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan = secure_plan(small_plan, "federation.rounds=1")
    meddle(monkeypatch, fails_in(kind, ["3"], times=1))
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert [fault["client"] for fault in outcome.state.faults] == ["3"]
    late = kind in (SECURE_SURVIVORS, SECURE_UNMASK)
    place = workplace(write_plan(plan))
    there = CLIENTS if late else [name for name in CLIENTS if name != "3"]
    assert same_bits(read_parameters(folder.model), in_the_open(plan, place, initial(plan), there, 1))
    charged = reserved(folder.ledger)["3", "train", 1]
    assert charged == (0 if kind in (SECURE_KEYS, SECURE_SHARES) else 1)
    assert folder.read_summary()["privacy"]["clients"][3]["charged_rounds"] == charged


def test_what_the_server_gets_of_one_client_is_random_and_holds_nothing_of_its_update(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square over the bytes of all masked vectors; false alarm: 1 in a million runs."""
    scipy_stats = pytest.importorskip("scipy.stats")
    vectors: list[tuple[str, bytes]] = []

    def captured(name: str, kind: str, reply: Message) -> None:
        if kind == "train":
            record = reply.content[ARRAYS]
            assert isinstance(record, ArrayRecord)
            assert list(record) == [MASKED]
            vectors.append((name, record[MASKED].numpy().tobytes()))

    plan = secure_plan(small_plan, "federation.rounds=1")
    meddle(monkeypatch, captured)
    start_run(plan, tmp_path / "run", INLINE)
    assert sorted(name for name, _ in vectors) == CLIENTS
    counts = np.bincount(np.frombuffer(b"".join(raw for _, raw in vectors), np.uint8), minlength=256)
    assert scipy_stats.chisquare(counts).pvalue > 1e-6
    place = workplace(write_plan(plan))
    start = initial(plan)
    for name, raw in vectors:
        own = contribution(plan, place, start, name, 1)
        assert (
            scipy_stats.chisquare(np.bincount(own.view(np.uint8), minlength=256)).pvalue < 1e-12
        )  # a look at it would do
        seen = np.frombuffer(raw, np.uint32)
        assert np.count_nonzero(seen == own) <= 2  # of 650 numbers; more by chance in 1 of 10^13
        assert len({*np.unique(seen - own)}) > 640  # nor is one number added to all of it


def test_every_attempt_is_paid_for_and_a_spare_round_saves_the_sum(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2: the first attempt is aborted with four vectors missing; its charge stays in every book."""
    plan = secure_plan(small_plan, "federation.rounds=1", "secure_sum.spare_rounds=1")
    meddle(monkeypatch, fails_in("train", CLIENTS[:4], times=1))
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    (line,) = folder.read_metrics()
    assert (line["updates"], line["secure_sum"]["attempts"], line["secure_sum"]["charged"]) == (6, 2, 2)
    assert reserved(folder.ledger) == committed(folder.ledger) == {(name, "train", 1): 2 for name in CLIENTS}
    assert verify(folder.ledger) == []
    privacy = folder.read_summary()["privacy"]
    assert (privacy["secure_sum"]["attempts"], privacy["secure_sum"]["repeated"]) == (2, 1)
    assert {(row["statement"], row["charged_rounds"], row["rounds"]) for row in privacy["clients"]} == {
        ("verified", 2, 1)
    }
    assert privacy["clients"][0]["epsilon"] <= plan.privacy.epsilon  # type: ignore[operator]
    for text in folder.read_statements().values():
        (balance,) = verify_statement(text).balances
        assert balance.balance == Balance(unit="client", trust="distributed")
        assert balance.totals == {"rounded-gaussian-sum": 2}


def test_without_one_the_round_is_given_up_and_nothing_is_opened(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []
    drop = fails_in("train", CLIENTS[:4], times=1)

    def change(name: str, kind: str, reply: Message) -> Message | None:
        kinds.append(kind)
        return drop(name, kind, reply)

    plan = secure_plan(small_plan, "federation.rounds=1")
    meddle(monkeypatch, change)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.stopped is None
    assert (SECURE_SURVIVORS in kinds, SECURE_UNMASK in kinds) == (False, False)
    assert same_bits(read_parameters(folder.model), initial(plan))
    assert reserved(folder.ledger) == {(name, "train", 1): 1 for name in CLIENTS}


@pytest.mark.parametrize("where", ["training", "sent"])
def test_a_run_that_was_killed_begins_a_new_attempt_and_no_client_masks_twice_under_one(
    small_plan: PlanMaker, tmp_path: Path, where: str
) -> None:
    """Rule 8."""
    plan = secure_plan(small_plan, "secure_sum.spare_rounds=1", "federation.rounds=1")
    original = client.secure_update.contribution
    calls: list[int] = []

    def dying(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if where == "training" else 5):
            raise CutOffError
        return original(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.secure_update, "contribution", dying)
        with pytest.raises(CutOffError):
            start_run(plan, tmp_path / "run", INLINE)
    folder, outcome = gone_on(tmp_path / "run")
    assert outcome.state.faults == []
    tasks = Counter((body["task"]["client"], body["task"]["request"]) for body in bodies(folder.ledger, "reserve"))
    assert set(tasks.values()) == {1}  # an attempt's digest each
    first = 1 if where == "training" else 5
    assert Counter(name for name, _ in tasks) == {name: 2 if int(name) < first else 1 for name in CLIENTS}
    assert {row["charged_rounds"] for row in folder.read_summary()["privacy"]["clients"]} == {
        2
    }  # both books: the larger
    assert verify(folder.ledger) == []
    place = workplace(write_plan(plan))
    assert same_bits(read_parameters(folder.model), in_the_open(plan, place, initial(plan), CLIENTS, 1))


def test_what_comes_of_it_is_a_report(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, _ = start_run(secure_plan(small_plan, "federation.rounds=1"), tmp_path / "run", INLINE)
    assert isinstance(folder, RunFolder)
    text = (folder.path / "report.html").read_text()
    assert "everything a client holds" in text
    assert "at least 3 clients are honest" in text
