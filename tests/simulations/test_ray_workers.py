"""Ray's actors: one run's, whatever becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")

import ray
from ray.exceptions import RayActorError

from client.datasets.client_records import SharedRecords
from security.errors import RunError, UsageError
from simulations import run
from simulations.early_ray import early_workers
from simulations.ray_workers import RayOptions, RayWorkers
from simulations.run import Settings, start_run
from simulations.shared_data import Shared
from simulations.worker import DEFAULT_APP
from tests.simulations.conftest import PlanMaker

pytestmark = pytest.mark.ray


def end_of(actor: object) -> None:
    """Returns once an actor is gone."""
    with pytest.raises(RayActorError):
        ray.get(actor.rest.remote(), timeout=60)  # type: ignore[attr-defined]


def test_actors_serve_one_run_and_say_so_to_a_second(ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("privacy.trust=none")
    with early_workers(workers=1, most=3) as actors:
        assert len(actors.actors) == 1
        settings = Settings(engine="ray", workers=1, actors=actors)
        start_run(plan, tmp_path / "one", settings)
        with pytest.raises(UsageError, match="these actors have served a run"):
            start_run(plan, tmp_path / "two", settings)
    assert not (tmp_path / "two").exists()


def test_no_more_actors_start_than_there_are_clients(ray_cluster: Path) -> None:
    with early_workers(workers=3, most=2) as actors:
        assert len(actors.actors) == 2


def test_actors_of_another_app_are_refused_before_anything_is_made(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    with early_workers(workers=1) as actors:
        settings = Settings(engine="ray", workers=1, actors=actors, app="tests.simulations.faulty_app:app")
        with pytest.raises(UsageError, match=r"started for client\.app:app can't run tests\.simulations"):
            start_run(small_plan(), tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_data_that_can_t_be_read_ends_the_actors_too(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: object) -> None:
        raise UsageError("no such file")

    monkeypatch.setattr(run, "load_data", fail)
    with early_workers(workers=1) as actors:
        (actor,) = actors.actors
        with pytest.raises(UsageError, match="no such file"):
            start_run(small_plan(), tmp_path / "run", Settings(engine="ray", workers=1, actors=actors))
        end_of(actor)


def test_records_that_ray_can_t_hold_are_one_line(ray_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: object) -> None:
        raise ray.exceptions.ObjectStoreFullError("Failed to put object; its size is 9 GB.\nand more")

    workers = RayWorkers(RayOptions(workers=1), app=DEFAULT_APP, most=1)
    monkeypatch.setattr(ray, "put", full)
    records = SharedRecords(x=np.zeros((1, 1), np.float32), y=np.zeros(1, np.int64), sizes={"0": 1})
    with pytest.raises(RunError, match=r"Ray can't hold the clients' records: .*9 GB.*--engine inline") as caught:
        workers.share(Shared(plan_digest="", train=records))
    assert "\n" not in str(caught.value)
    workers.shut_down()
