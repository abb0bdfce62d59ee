"""FedBuff as runs: against an implementation of its own in NumPy, resumed, on Ray, private, with clients missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

import simulations.run
from client.offers import OfferError, check_beyond_policy
from client.site_settings import SiteSettings
from privacy.central_sum import ClippedSum
from security.errors import RunError
from server.asynchronous import Arrivals
from server.federation import Federation
from server.observer import Silent
from server.replies import Head, Update
from server.run_folder import RunFolder
from shared_models.parameters import get_parameters
from shared_models.plan import Plan
from shared_models.plan_asynchronous import participations_of, schedule
from shared_models.plan_central import central_grid
from shared_models.plan_data import numbered
from shared_models.plan_personal import shared_layout
from shared_models.registry import build_for
from simulations.inline_grid import InlineGrid
from simulations.run import Settings, resume_run, start_run
from tests.simulations.conftest import PlanMaker, config_of
from tests.simulations.ledger_reading import reserved
from tests.simulations.test_run import INLINE, StopAfter, model_bytes
from tests.simulations.test_scaffold_runs import DRIFTING, World, parameters

PACE = (
    "federation.asynchronous.buffer=4",
    "federation.asynchronous.concurrency=7",
    "federation.asynchronous.spread=1.0",
    "training.momentum=0",
    "federation.rounds=8",
)
LOCAL = ("privacy.trust=local", "privacy.noise=reproducible")
CENTRAL = ("privacy.trust=central", "privacy.unit=client", "privacy.noise=reproducible", "privacy.delta=1e-3")


def steps_of(plan: Plan) -> Any:
    return schedule(plan, numbered(10))


def test_a_run_is_the_papers_algorithm(small_plan: PlanMaker, tmp_path: Path) -> None:
    """w <- w + 1/K sum of (1 + staleness)^-a (y - w_v), each y trained from the model w_v it was given; to float32."""
    more = ("training.steps=5", "federation.asynchronous.exponent=0.7", "federation.weighting=")
    plan = small_plan(*DRIFTING, *PACE, *more)
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    world, models, rate = World(plan), [np.zeros((10, 65))], plan.training.learning_rate
    ages = []
    for number, step in enumerate(steps_of(plan), start=1):
        moved = np.zeros((10, 65))
        for arrival in step:
            y = models[arrival.version]
            for _ in range(5):
                y = y - rate * world.gradient(arrival.client, y)
            ages.append(number - 1 - arrival.version)
            moved += (1.0 + ages[-1]) ** -0.7 * (y - models[arrival.version]) / 4
        models.append(models[-1] + moved)
    assert max(ages) >= 2  # or old models weren't needed
    assert np.abs(parameters(folder.path) - models[-1]).max() < 1e-4 * np.abs(models[-1]).max()
    told = [line["asynchronous"] for line in folder.read_metrics()]
    assert [one["most_staleness"] for one in told] == [max(ages[i : i + 4]) for i in range(0, len(ages), 4)]
    assert [one["time"] for one in told] == sorted(one["time"] for one in told)


def test_with_clients_of_one_speed_it_is_fedavg_to_the_bit(small_plan: PlanMaker, tmp_path: Path) -> None:
    alike = ("buffer=10", "concurrency=10", "spread=0.0", "jitter=0.0")
    paced = small_plan(*(f"federation.asynchronous.{key}" for key in alike))
    plain = small_plan("federation.weighting=uniform")
    found, expected = start_run(paced, tmp_path / "a", INLINE)[0], start_run(plain, tmp_path / "b", INLINE)[0]
    assert model_bytes(found.path) == model_bytes(expected.path)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federation.strategy=fedadam", "federation.strategy_options.eta=0.01"),
        LOCAL,
        CENTRAL,
        ("federation.wire=float16",),
        ("personal.kind=ditto",),
    ],
    ids=["plain", "fedadam", "local", "central", "float16", "ditto"],
)
def test_an_interrupted_run_resumes_to_the_same_model(
    small_plan: PlanMaker, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Old models that clients are still at work on are in the checkpoint."""
    plan = small_plan(*PACE, *overrides)
    late = [a for number, step in enumerate(steps_of(plan), start=1) if number > 5 for a in step if a.version < 4]
    assert late  # the resumed run asks with models from before
    whole, _ = start_run(plan, tmp_path / "whole", INLINE)
    with pytest.raises(KeyboardInterrupt):
        start_run(plan, tmp_path / "broken", replace(INLINE, observer=StopAfter(5)))
    broken, outcome = resume_run(tmp_path / "broken", INLINE)
    assert outcome is not None
    assert model_bytes(broken.path) == model_bytes(whole.path)
    told = [[{**line, "seconds": 0, "evaluation": 0} for line in folder.read_metrics()] for folder in (broken, whole)]
    assert told[0] == told[1]


@pytest.mark.ray
@pytest.mark.parametrize("overrides", [(), LOCAL, CENTRAL], ids=["plain", "local", "central"])
def test_it_is_the_same_on_ray(
    small_plan: PlanMaker, ray_cluster: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    plan = small_plan(*PACE, *overrides)
    inline, _ = start_run(plan, tmp_path / "inline", INLINE)
    ray, _ = start_run(plan, tmp_path / "ray", Settings(engine="ray", workers=2))
    assert model_bytes(ray.path) == model_bytes(inline.path)


def test_a_client_under_local_privacy_pays_for_each_of_its_updates(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan(*PACE, *LOCAL, "federation.asynchronous.participations=5")
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    expected = Counter(
        (arrival.client, "train", number) for number, step in enumerate(steps_of(plan), start=1) for arrival in step
    )
    assert reserved(folder.ledger) == expected
    found = folder.read_summary()["privacy"]
    charged = {row["id"]: row["charged_rounds"] for row in found["clients"]}
    assert charged == {c: sum(client == c for client, _, _ in expected) for c in numbered(10)}
    assert max(charged.values()) == participations_of(plan) == 5
    most = max(row["epsilon"] for row in found["clients"])
    assert most == found["epsilon_max"] <= 8.0
    assert most == pytest.approx(8.0, abs=0.02)
    assert found["claim"] is None  # simulated


def test_a_run_that_stops_early_claims_what_was_planned(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Rule 4: the stop looks at the data. But no client ever had more before it than it may give."""
    plan = small_plan(*PACE, *LOCAL, "evaluation.target=0.0")
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.round) == ("target", 1)
    rows = folder.read_summary()["privacy"]["clients"]
    assert {row["charged_rounds"] for row in rows} == {participations_of(plan)}
    assert max(row["epsilon"] for row in rows) <= 8.0


def test_at_a_trusted_server_everybody_pays_once_before_the_first_round(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan(*PACE, *CENTRAL)
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    paid = Counter({job: times for job, times in reserved(folder.ledger).items() if job[1] == "enrol"})
    assert paid == Counter({(client, "enrol", 0): 1 for client in numbered(10)})
    found = folder.read_summary()["privacy"]
    assert {row["charged_rounds"] for row in found["clients"]} == {participations_of(plan)}
    assert {row["epsilon"] for row in found["clients"]} == {found["epsilon_max"]}
    assert found["epsilon_max"] <= 8.0
    assert found["central"]["expected_cohort"] == 4
    assert "participation-schema" in {remark["code"] for remark in found["assumptions"]}
    assert "participation" in {remark["code"] for remark in found["disclosed"]}


@pytest.mark.parametrize("length", [0.3, 1.0, 1e20])
def test_whatever_a_client_sends_it_moves_a_step_by_no_more_than_the_clip(small_plan: PlanMaker, length: float) -> None:
    """What the price counts on: one update of a client in a step, which counts 1 at most, clipped by the server."""
    plan = small_plan(*PACE, *CENTRAL, "privacy.clipping_norm=0.5")
    arrivals, model = Arrivals(plan, numbered(10)), build_for(plan)
    layout = shared_layout(plan, model)
    grid = central_grid(plan, layout.size)
    values = get_parameters(model)
    norm = float(np.sqrt(sum(np.square(v.astype(float)).sum() for v in values.values())))
    delta = {name: (v * (length / norm)).astype(np.float32) for name, v in values.items()}
    for number, step in enumerate(steps_of(plan), start=1):
        for arrival in step:
            update = Update(
                client=arrival.client,
                delta=delta,
                weight=1,
                epsilon=0.0,
                train_loss=None,
                received=0,
                head=Head(1, "0" * 64),
            )
            total = ClippedSum(grid, layout.size)
            weighed = arrivals.weigh(number, update).delta
            total.add(np.concatenate([weighed[name].ravel() for name, _ in layout.entries]))
            moved = float(np.linalg.norm(total.total.astype(float))) * grid.step
            assert moved <= 0.5
            weight = (1.0 + number - 1 - arrival.version) ** -0.5
            assert moved <= length * weight * (1 + 1e-6) + grid.step * np.sqrt(layout.size)


class Losing(InlineGrid):
    """Loses every update of client 3."""

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        for reply in super()._deliver(messages, timeout):
            if self._clients[reply.metadata.src_node_id] != "3" or reply.metadata.message_type != "train":
                yield reply


@pytest.mark.parametrize("overrides", [(), LOCAL, CENTRAL], ids=["plain", "local", "central"])
def test_who_is_lost_is_missing_from_its_steps_and_the_run_goes_on(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """The schedule doesn't hang on who answers, so who doesn't says nothing by it."""
    monkeypatch.setattr(simulations.run, "InlineGrid", Losing)
    plan = small_plan(*PACE, *overrides)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.round) == (None, 8)
    absent = ["3" in {arrival.client for arrival in step} for step in steps_of(plan)]
    assert any(absent)
    lines = folder.read_metrics()
    if overrides == CENTRAL:  # there an update that is missing is one of zeros
        assert {line["updates"] for line in lines} == {None}
        return
    assert [line["updates"] for line in lines] == [3 if missing else 4 for missing in absent]
    assert [line["faults"] for line in lines] == [
        [{"client": "3", "reason": "timed-out"}] if missing else [] for missing in absent
    ]


# --- where it doesn't belong --------------------------------------------------------------------------------------


def test_a_deployed_site_refuses_it(small_plan: PlanMaker) -> None:
    settings = SiteSettings.model_validate({"site": "a", "budget_scope": "a", "server": {"address": "127.0.0.1:1"}})
    with pytest.raises(OfferError, match=r"federation\.asynchronous: for simulations alone"):
        check_beyond_policy(small_plan(*PACE), settings)


def test_a_deployed_server_refuses_it(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan(*PACE)
    folder = RunFolder(tmp_path / "run")
    folder.create(plan)
    model = build_for(plan)
    grid = InlineGrid(numbered(10), config=config_of(plan, tmp_path))
    federation = Federation(
        plan=plan,
        grid=grid,
        layout=shared_layout(plan, model),
        initial=get_parameters(model),
        evaluate=None,
        folder=folder,
        observer=Silent(),
        simulated=False,
    )
    with pytest.raises(RunError, match="for simulations alone"):
        federation.run()
    grid.close()


def test_its_metrics_keep_to_their_schema(small_plan: PlanMaker, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    folder, _ = start_run(small_plan(*PACE, "federation.rounds=2"), tmp_path / "run", INLINE)
    schema = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "metrics.schema.json").read_text())
    for line in folder.read_metrics():
        jsonschema.validate(line, schema)
    assert load_file(folder.model)
