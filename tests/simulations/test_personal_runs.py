"""Personal models as runs: what leaves, what stays, what it is worth, resumed and on Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict

import simulations.run
from client.private_trainer import train_private
from client.trainer import train_plain
from client.workplace import split_key, workplace
from security.errors import UsageError
from server.run_folder import RunFolder
from server.summary import versions
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from simulations.inline_grid import InlineGrid
from simulations.results import load_run
from simulations.run import Settings, resume_run, start_run
from tests.client.local_training import Scripted
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import reserved
from tests.simulations.test_run import INLINE, StopAfter, model_bytes

SMALL = (
    "data.partition.kind=pathological",
    "data.partition.alpha=",
    "training.momentum=0",
    "training.steps=4",
    "training.learning_rate=0.2",
    "evaluation.where=none",
)
PRIVATE = ("privacy.trust=local", "privacy.noise=reproducible")
KINDS = ("head", "finetune", "ditto")
SECRET = "patient-4711"


class Listening(InlineGrid):
    """Keeps all that leaves a client."""

    heard: list[Message]

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        for reply in super()._deliver(messages, timeout):
            type(self).heard.append(reply)
            type(self).grid = self  # type: ignore[attr-defined]
            yield reply


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> type[Listening]:
    """The grid of inline runs, until the test is over."""
    Listening.heard = []
    monkeypatch.setattr(simulations.run, "InlineGrid", Listening)
    return Listening


def states(grid: type[Listening]) -> dict[str, RecordDict]:
    return dict(grid.grid.states)  # type: ignore[attr-defined]


def own(state: RecordDict) -> Parameters:
    record = state["veil-personal"]
    assert isinstance(record, ArrayRecord)
    return {name: array.numpy() for name, array in record.items()}


# --- what leaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [(), PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_personal_model_is_in_any_reply(
    small_plan: PlanMaker, tmp_path: Path, listening: type[Listening], kind: str, trust: tuple[str, ...]
) -> None:
    """Neither under its name nor as bytes; and every reply to the last model says the same, whoever gives it."""
    plan = small_plan(*SMALL, f"personal.kind={kind}", *trust)
    start_run(plan, tmp_path / "run", INLINE)
    place = workplace(write_plan(plan))
    assert len(states(listening)) == 10
    secrets = [array.tobytes() for state in states(listening).values() for array in own(state).values()]
    kinds = {"train": 0, "query.personalise": 0}
    for reply in listening.heard:
        kind_of = reply.metadata.message_type
        assert not reply.has_error(), kind_of
        if kind_of == "train":
            assert list(reply.content.array_records["arrays"]) == [name for name, _ in place.layout.entries]
        if kind_of == "query.personalise":
            assert {name: list(record) for name, record in reply.content.items()} == {"config": ["client-id"]}
        if kind_of in kinds:
            kinds[kind_of] += 1
        for record in reply.content.array_records.values():
            sent = b"".join(array.data for array in record.values())
            assert not any(secret in sent for secret in secrets)
    assert kinds == {"train": 30, "query.personalise": 10}
    if kind == "head":
        assert place.own.keys() == {"layers.3.weight", "layers.3.bias"}
        assert not place.own.keys() & {name for name, _ in place.layout.entries}
        assert load_run(tmp_path / "run").summary["personal"]["shared_accuracy"] is None
        with pytest.raises(UsageError, match="a whole model is at each client"):
            load_run(tmp_path / "run").model()


@pytest.mark.parametrize("trust", [(), PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("kind", ["finetune", "ditto"])
def test_beside_a_personal_model_the_shared_one_and_the_books_are_as_without(
    small_plan: PlanMaker, tmp_path: Path, kind: str, trust: tuple[str, ...]
) -> None:
    """Nothing that leaves follows from it: the same bits, the same charges."""
    at_clients = (*SMALL, "evaluation.where=clients", *trust)
    without, _ = start_run(small_plan(*at_clients), tmp_path / "without", INLINE)
    beside, _ = start_run(small_plan(*at_clients, f"personal.kind={kind}"), tmp_path / "with", INLINE)
    assert model_bytes(beside.path) == model_bytes(without.path)
    found, expected = beside.read_summary(), without.read_summary()
    assert found["final"] == expected["final"]
    assert [row["epsilon"] for row in found["privacy"]["clients"]] == [
        row["epsilon"] for row in expected["privacy"]["clients"]
    ]
    assert reserved(beside.ledger) == reserved(without.ledger) != {}
    assert found["personal"]["kind"] == kind
    assert expected["personal"] is None


@pytest.mark.parametrize("kind", ["finetune", "ditto"])
def test_a_personal_model_that_fails_changes_no_reply_and_tells_no_record(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: type[Listening], kind: str
) -> None:
    """Rule 5: the failure may hang on the data, so nobody outside hears of it; the log names its place."""

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("client.app.finetune", fails)
    monkeypatch.setattr("client.personal._trained", fails)
    plan = small_plan(*SMALL, f"personal.kind={kind}", *PRIVATE)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    assert not any(reply.has_error() for reply in listening.heard)
    assert not any("veil-personal" in state for state in states(listening).values())
    log = folder.client_log.read_text()
    assert "the client's own model failed: ValueError at" in log
    for path in folder.path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


# --- what it is ---------------------------------------------------------------------------------------------------


def test_fine_tuning_is_plain_training_of_the_last_model(
    small_plan: PlanMaker, tmp_path: Path, listening: type[Listening]
) -> None:
    plan = small_plan(*SMALL, "personal.kind=finetune", "personal.epochs=3", "personal.learning_rate=0.05", *PRIVATE)
    _, outcome = start_run(plan, tmp_path / "run", INLINE)
    place = workplace(write_plan(plan))
    training = plan.training.model_copy(update={"steps": None, "epochs": 3, "learning_rate": 0.05})
    alone = plan.model_copy(update={"training": training})
    for name in ("0", "7"):
        change, _ = train_plain(
            place.model,
            outcome.parameters,
            place.records(name),
            alone,
            round_number=3,
            client=f"{name} for itself",
        )
        expected = {key: outcome.parameters[key] + value for key, value in change.items()}
        found = own(states(listening)[name])
        assert {key: value.tobytes() for key, value in found.items()} == {
            key: value.tobytes() for key, value in expected.items()
        }


def test_ditto_is_the_papers_algorithm(small_plan: PlanMaker, tmp_path: Path, listening: type[Listening]) -> None:
    """v <- v - rate (gradient of v + pull (v - w)), from the model w that was sent, in NumPy; full batches."""
    pull, rate, steps, rounds = 0.7, 0.2, 4, 3
    plan = small_plan(
        *SMALL,
        "model.name=linear",
        "model.options.hidden=",
        "training.expected_batch_size=5000",
        "federation.weighting=uniform",
        "personal.kind=ditto",
        f"personal.pull={pull}",
    )
    _, outcome = start_run(plan, tmp_path / "run", INLINE)
    place = workplace(write_plan(plan))
    rows = {c: place.records(c) for c in place.client_ids()}

    def gradient(client: str, at: np.ndarray) -> np.ndarray:
        x = np.c_[np.ones(len(rows[client])), rows[client].x.numpy().reshape(len(rows[client]), -1)].astype(float)
        logits = x @ at.T
        likely = np.exp(logits - logits.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        likely[np.arange(len(x)), rows[client].y.numpy()] -= 1
        return likely.T @ x / len(x)

    w = np.zeros((10, 65))
    v = dict.fromkeys(rows, w)
    for _ in range(rounds):
        for client in rows:
            for _ in range(steps):
                v[client] = v[client] - rate * (gradient(client, v[client]) + pull * (v[client] - w))
        moved = []
        for client in rows:
            y = w
            for _ in range(steps):
                y = y - rate * gradient(client, y)
            moved.append(y)
        w = np.mean(moved, axis=0)
    for client, state in states(listening).items():
        found = np.c_[own(state)["layer.bias"], own(state)["layer.weight"]]
        assert np.abs(found - v[client]).max() < 1e-5
    shared = np.c_[outcome.parameters["layer.bias"], outcome.parameters["layer.weight"]]
    assert np.abs(shared - w).max() < 1e-5
    assert max(float(np.abs(v[client] - w).max()) for client in rows) > 0.05


def judged(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = folder.read_summary()["personal"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_worth_it_where_clients_differ(small_plan: PlanMaker, tmp_path: Path, kind: str) -> None:
    """Two classes each: one model for all guesses among ten, one's own among two. (Deterministic: one seed.)"""
    plan = small_plan(*SMALL, "training.steps=10", f"personal.kind={kind}", "federation.rounds=4")
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    found = judged(folder)
    assert found["accuracy"] > 0.9
    assert found["shared_accuracy"] is None or found["shared_accuracy"] < found["accuracy"] - 0.1
    rows = found["clients"]
    assert found["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in rows]))
    place = workplace(write_plan(plan))
    assert {row["id"]: row["examples"] for row in rows} == {c: len(place.held_out(c)) for c in place.client_ids()}


@pytest.mark.parametrize("where", ["server", "clients", "none"])
def test_nobody_is_judged_on_what_it_trained_on(small_plan: PlanMaker, where: str) -> None:
    """Rule 10: three parts by keyed hashes that have no record in common, and leave none out."""
    plan = small_plan(*SMALL, "personal.kind=finetune", f"evaluation.where={where}")
    test, clients = simulations.run.load_data(plan)
    place = workplace(write_plan(plan))

    def rows(x: torch.Tensor) -> list[bytes]:
        return [row.numpy().tobytes() for row in x.flatten(1)]

    train = [row for client in clients for row in rows(place.records(client).x)]
    held_out = [row for client in clients for row in rows(place.held_out(client).x)]
    kept = rows(test.x) if where == "server" else []
    assert not set(train) & set(held_out)
    assert not (set(train) | set(held_out)) & set(kept)
    assert len(train) + len(held_out) + len(kept) == 1797
    for part, whole in ((held_out, train + held_out), *([(kept, train + held_out + kept)] if kept else [])):
        assert 0.13 < len(part) / len(whole) < 0.27  # a fifth: 5 deviations of 1797 coins and fewer


# --- a head under privacy -----------------------------------------------------------------------------------------


def head_plan(small_plan: PlanMaker, *more: str) -> Plan:
    return small_plan(
        *SMALL,
        "personal.kind=head",
        *PRIVATE,
        "privacy.epsilon=",
        "privacy.noise_multiplier=1.0",
        "training.expected_batch_size=1",
        "training.learning_rate=1.0",
        *more,
    )


@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
def test_rule_1_one_record_moves_body_and_head_together_by_no_more_than_the_clip(
    small_plan: PlanMaker, engine: str
) -> None:
    """Neighbours in one step, at rate 1 and batch size 1, and the same noise: only the record differs."""
    clip = 0.01
    plan = head_plan(small_plan, f"privacy.clipping_norm={clip}", "training.steps=1", f"training.dp_engine={engine}")
    place = workplace(write_plan(plan))
    records = place.records("3").take(range(9))
    start = {name: p.detach().numpy().copy() for name, p in place.model.named_parameters()}

    def moved(batch: list[int]) -> Parameters:
        noise = Scripted(batch, noise=0.5)
        return train_private(place.model, start, records, plan, round_number=1, noise=noise)

    for extra in range(4, 9):
        one, other = moved([0, 1, 2, 3]), moved([0, 1, 2, 3, extra])
        parts = {name: float(np.square(other[name].astype(float) - one[name]).sum()) for name in one}
        whole = sum(parts.values()) ** 0.5
        body = sum(parts[name] for name, _ in place.layout.entries) ** 0.5
        assert clip * 0.5 < whole <= clip * 1.001  # float32's rounding of parameters
        assert body <= whole


def test_a_heads_steps_are_made_of_what_the_noise_has_covered(small_plan: PlanMaker, tmp_path: Path) -> None:
    """The head must not follow the raw records, or later gradients of the body would tell of them what no clip bounds.

    With a clip of almost nothing and noise to match, head and body stay where they were. A head that had trained by
    itself, without noise, would have gone as far as it does without privacy.
    """
    moved = {}
    for name, overrides in {"private": (*PRIVATE, "privacy.clipping_norm=1e-6"), "plain": ()}.items():
        plan = small_plan(*SMALL, "personal.kind=head", *overrides)
        place = workplace(write_plan(plan))
        grids: list[InlineGrid] = []

        def judge(_: Plan, grid: InlineGrid, __: Any, grids: list[InlineGrid] = grids) -> None:
            grids.append(grid)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulations.run, "judge_personal", judge)
            start_run(plan, tmp_path / name, INLINE)
        moved[name] = max(
            float(np.abs(value - place.own[key]).max())
            for state in grids[0].states.values()
            for key, value in own(state).items()
        )
    assert moved["plain"] > 0.05
    assert 0 < moved["private"] < 1e-4


def test_a_head_and_its_body_are_charged_as_one_network(small_plan: PlanMaker, tmp_path: Path) -> None:
    heads, _ = start_run(small_plan(*SMALL, *PRIVATE, "personal.kind=head"), tmp_path / "heads", INLINE)
    whole, _ = start_run(small_plan(*SMALL, *PRIVATE), tmp_path / "whole", INLINE)
    found, expected = heads.read_summary()["privacy"], whole.read_summary()["privacy"]
    for key in ("epsilon_max", "noise_multiplier", "steps_a_round"):
        assert found[key] == expected[key]
    assert found["epsilon_max"] == pytest.approx(8.0, abs=0.1)


# --- resumed, and on Ray ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [(), PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_models(
    small_plan: PlanMaker, tmp_path: Path, kind: str, trust: tuple[str, ...]
) -> None:
    cohort = ("federation.cohort.sampling=fixed", "federation.cohort.size=6")
    plan = small_plan(*SMALL, *cohort, f"personal.kind={kind}", *trust)
    whole, _ = start_run(plan, tmp_path / "whole", INLINE)
    with pytest.raises(KeyboardInterrupt):
        start_run(plan, tmp_path / "broken", replace(INLINE, observer=StopAfter(2)))
    broken, _ = resume_run(tmp_path / "broken", INLINE)
    assert model_bytes(broken.path) == model_bytes(whole.path)
    assert judged(broken) == judged(whole)


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_on_ray(small_plan: PlanMaker, ray_cluster: Path, tmp_path: Path, kind: str) -> None:
    plan = small_plan(*SMALL, f"personal.kind={kind}", *(PRIVATE if kind == "head" else ()))
    inline, _ = start_run(plan, tmp_path / "inline", INLINE)
    ray, _ = start_run(plan, tmp_path / "ray", Settings(engine="ray", workers=2))
    assert model_bytes(ray.path) == model_bytes(inline.path)
    assert judged(ray) == judged(inline)


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("personal.kind=head", "evaluation.where=server"), r"no whole model to judge; allowed: clients, none"),
        (
            ("personal.kind=head", "personal.layers=['layers.9']"),
            r"no trained layer 'layers\.9'; there are: ",
        ),
        (("personal.kind=head", "personal.layers=['layers']"), r"nothing would be shared"),
        (("personal.kind=head", "model.name=linear", "model.options.hidden="), r"nothing would be shared"),
        (("personal.kind=head", "federation.strategy=scaffold"), r"'scaffold' with personal\.kind = 'head'"),
        (("personal.kind=ditto", "privacy.trust=central", "privacy.unit=client"), r"allowed: none, local"),
        (("personal.kind=finetune", "privacy.trust=distributed"), r"allowed: none, local"),
        (("personal.kind=ditto", "personal.pull=0"), r"personal\.pull"),
        (("personal.kind=mine",), r"personal\.kind = 'mine': allowed: 'head', 'finetune', 'ditto'"),
    ],
)
def test_what_is_not_offered_is_refused(small_plan: PlanMaker, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_plan(*SMALL, *overrides)


def test_a_resolved_plan_says_which_layers_stay(small_plan: PlanMaker) -> None:
    plan = small_plan(*SMALL, "personal.kind=head")
    assert plan.personal is not None
    assert plan.personal.model_dump() == {"kind": "head", "layers": ("layers.3",)}
    assert small_plan(*SMALL, "personal.kind=head", "personal.layers=['layers.3']").digest() == plan.digest()
    assert plan.digest() != small_plan(*SMALL).digest()


def test_a_summary_keeps_to_its_schema(small_plan: PlanMaker, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    folder, _ = start_run(small_plan(*SMALL, "personal.kind=ditto", "federation.rounds=1"), tmp_path / "run", INLINE)
    schema = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "summary.schema.json").read_text())
    jsonschema.validate(folder.read_summary(), schema)
    assert folder.read_summary()["versions"] == versions()
    assert split_key(small_plan()) != b""
