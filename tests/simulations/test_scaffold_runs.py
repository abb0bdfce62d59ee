"""SCAFFOLD as runs: against an implementation of its own in NumPy, towards the optimum, resumed, and on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

import simulations.run
from client.datasets.partition import client_records
from client.workplace import split_key
from security.errors import UsageError
from server.checkpoint import load_checkpoint
from server.cohort import sample_cohort
from shared_models.flower_messages import states_from_bytes
from shared_models.plan import Plan
from simulations.inline_grid import InlineGrid
from simulations.run import Settings, resume_run, start_run
from tests.simulations.conftest import PlanMaker
from tests.simulations.test_run import INLINE, StopAfter, model_bytes

Vector = npt.NDArray[np.float64]
DECAY = 0.1
DRIFTING = (
    "model.name=linear",
    "model.options.hidden=",
    "data.partition.kind=pathological",
    "data.partition.alpha=",
    "training.momentum=0",
    "training.steps=20",
    "training.learning_rate=0.2",
    f"training.weight_decay={DECAY}",  # so that there is one optimum
    "training.expected_batch_size=5000",  # every step sees all of a client's records: there is no chance in it
    "federation.weighting=uniform",
    "evaluation.where=none",
)
SCAFFOLD = "federation.strategy=scaffold"


class World:
    """Softmax regression with weight decay on each client's records, in NumPy: parameters are (classes, 1 + values)."""

    def __init__(self, plan: Plan) -> None:
        found = client_records(plan.data, seed=plan.seed, split_key=split_key(plan))
        self.clients = list(found)
        self._x = {c: np.c_[np.ones(len(r)), r.x.numpy().reshape(len(r), -1)].astype(float) for c, r in found.items()}
        self._y = {c: r.y.numpy() for c, r in found.items()}
        self.start = np.zeros((10, 65))

    def gradient(self, client: str, at: Vector) -> Vector:
        x, y = self._x[client], self._y[client]
        logits = x @ at.T
        likely = np.exp(logits - logits.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        likely[np.arange(len(y)), y] -= 1
        gradient: Vector = likely.T @ x / len(y) + DECAY * at
        return gradient

    def optimum(self) -> Vector:
        at = self.start
        for _ in range(4000):
            at = at - 0.2 * np.mean([self.gradient(client, at) for client in self.clients], axis=0)
        return at

    def scaffold(self, plan: Plan, eta: float = 1.0) -> Vector:
        """Algorithm 1 of the paper, option II, as it stands there."""
        x, c = self.start, np.zeros_like(self.start)
        own = {client: np.zeros_like(self.start) for client in self.clients}
        steps, rate = plan.training.local_steps, plan.training.learning_rate
        for number in range(1, plan.federation.rounds + 1):
            changes, gains = [], []
            for client in sample_cohort(plan, number, self.clients):
                y = x
                for _ in range(steps):
                    y = y - rate * (self.gradient(client, y) - own[client] + c)
                after = own[client] - c + (x - y) / (steps * rate)
                changes.append(y - x)
                gains.append(after - own[client])
                own[client] = after
            x = x + eta * np.mean(changes, axis=0)
            c = c + len(gains) / len(self.clients) * np.mean(gains, axis=0)
        return x


def parameters(folder: Path) -> Vector:
    found = load_file(folder / "model" / "model.safetensors")
    return np.c_[found["layer.bias"], found["layer.weight"]].astype(float)


@pytest.mark.parametrize("eta", [1.0, 0.7])
def test_a_run_is_the_papers_algorithm(small_plan: PlanMaker, tmp_path: Path, eta: float) -> None:
    """In part of the clients a round; to float32's rounding over 5 rounds of 20 steps."""
    cohort = ("federation.cohort.sampling=fixed", "federation.cohort.size=4")
    plan = small_plan(*DRIFTING, SCAFFOLD, *cohort, "federation.rounds=5", f"federation.strategy_options.eta={eta}")
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    expected = World(plan).scaffold(plan, eta)
    assert np.abs(parameters(folder.path) - expected).max() < 1e-4 * np.abs(expected).max()


def test_it_goes_to_the_optimum_where_averaging_stops_beside_it(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Ten clients of two classes each, many local steps: all is deterministic, and distances are over the optimum."""
    world = World(small_plan(*DRIFTING))
    optimum = world.optimum()
    distances = {}
    for name, extra in {"fedavg": (), "scaffold": (SCAFFOLD,)}.items():
        plan = small_plan(*DRIFTING, *extra, "federation.rounds=25")
        folder, _ = start_run(plan, tmp_path / name, INLINE)
        distances[name] = np.linalg.norm(parameters(folder.path) - optimum) / np.linalg.norm(optimum)
    assert distances["fedavg"] > 0.5
    assert distances["scaffold"] < 0.1


@pytest.mark.parametrize(
    "overrides",
    [(), ("privacy.trust=local", "privacy.noise=reproducible", "federation.weighting=")],
    ids=["plain", "private"],
)
def test_it_resumes_to_the_same_model(small_plan: PlanMaker, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    cohort = ("federation.cohort.sampling=fixed", "federation.cohort.size=6", "training.expected_batch_size=20")
    plan = small_plan(*DRIFTING, SCAFFOLD, *cohort, "training.steps=4", "federation.rounds=4", *overrides)
    whole, _ = start_run(plan, tmp_path / "whole", INLINE)
    with pytest.raises(KeyboardInterrupt):
        start_run(plan, tmp_path / "broken", replace(INLINE, observer=StopAfter(2)))
    broken, outcome = resume_run(tmp_path / "broken", INLINE)
    assert outcome is not None
    assert model_bytes(broken.path) == model_bytes(whole.path)
    averaging = small_plan(*DRIFTING, *cohort, "training.steps=4", "federation.rounds=4", *overrides)
    fedavg, _ = start_run(averaging, tmp_path / "fedavg", INLINE)
    assert model_bytes(fedavg.path) != model_bytes(whole.path)


@pytest.mark.ray
@pytest.mark.parametrize("trust", ["none", "local"])
def test_it_is_the_same_on_ray(small_plan: PlanMaker, ray_cluster: Path, tmp_path: Path, trust: str) -> None:
    plan = small_plan(
        *DRIFTING,
        SCAFFOLD,
        "training.steps=4",
        f"privacy.trust={trust}",
        "privacy.noise=reproducible",
        "federation.cohort.sampling=fixed",
        "federation.cohort.size=6",
    )
    inline, _ = start_run(plan, tmp_path / "inline", INLINE)
    ray, _ = start_run(plan, tmp_path / "ray", Settings(engine="ray", workers=2))
    assert model_bytes(ray.path) == model_bytes(inline.path)


class Losing(InlineGrid):
    """Loses the replies of clients 3 and 5 in round 2: they have trained, and nobody hears of it."""

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        for reply in super()._deliver(messages, timeout):
            lost = reply.metadata.group_id == "2" and self._clients[reply.metadata.src_node_id] in ("3", "5")
            if not (lost and reply.metadata.message_type == "train"):
                yield reply


@pytest.mark.parametrize("trust", ["none", "local"])
def test_the_servers_variate_stays_the_mean_of_the_clients_though_replies_are_lost(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    """A client's variate counts what the server's does, or corrections would not add up to nothing ever after."""
    monkeypatch.setattr(simulations.run, "InlineGrid", Losing)
    plan = small_plan(
        *DRIFTING,
        SCAFFOLD,
        "training.steps=4",
        f"privacy.trust={trust}",
        "privacy.noise=reproducible",
        "federation.rounds=5",
        "federation.cohort.sampling=poisson",
        "federation.cohort.rate=0.7",
    )
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert [fault["reason"] for fault in outcome.state.faults if fault["round"] == 2] == ["timed-out"] * 2
    checkpoint = load_checkpoint(folder.checkpoints, plan.digest())
    assert checkpoint is not None
    assert checkpoint.strategy is not None
    states = states_from_bytes(checkpoint.attachments["clients.json"])
    total: Any = 0
    for client, state in states.items():
        of, variates = state["veil-variates-of"], state["veil-variates"]
        counted = outcome.state.client(client).counted
        name = {of["before"]: "before", of["after"]: "after"}[counted]  # type: ignore[index]
        total = total + variates[name].numpy().astype(float)  # type: ignore[union-attr]
    mean = np.concatenate([checkpoint.strategy[f"c.{name}"].ravel() for name in ("layer.weight", "layer.bias")])
    assert np.abs(mean - total / 10).max() < 1e-5 * np.abs(mean).max()
    assert np.abs(mean).max() > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.trust=distributed", r"privacy\.trust = 'distributed' hides; allowed: none, local"),
        ("privacy.trust=central", r"privacy\.trust = 'central' hides; allowed: none, local"),
        ("training.optimizer=adam", r"training\.optimizer = 'adam': .*allowed: 'sgd'"),
        ("training.momentum=0.5", r"training\.momentum = 0\.5: .*allowed: 0\.0"),
        ("training.proximal_mu=0.1", r"training\.proximal_mu = 0\.1: .*allowed: 0\.0"),
        ("federation.weighting=examples", r"federation\.weighting = 'examples': .*allowed: 'uniform'"),
        ("federation.wire=int8", r"federation\.wire = 'int8': .*allowed: 'float32'"),
        ("federation.strategy_options.eta=0", r"scaffold refuses them: eta = 0"),
        ("federation.strategy_options.population=3", r"scaffold has no such option; allowed: eta"),
    ],
)
def test_what_variates_are_not_defined_for_is_refused(
    small_plan: PlanMaker, tmp_path: Path, override: str, message: str
) -> None:
    unit = ("privacy.unit=client",) if "trust" in override else ()
    with pytest.raises(UsageError, match=message):
        start_run(small_plan(*DRIFTING, SCAFFOLD, override, *unit), tmp_path / "run", INLINE)
    assert not (tmp_path / "run").exists()
