"""Attackers in secure sums: masks hide what they put in, and nobody clips it for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.trainer import train_plain
from client.workplace import workplace
from privacy.secure_encoding import decode
from server.run_folder import read_parameters
from shared_models.parameters import unflat
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from simulations.attacks.poisoning.attack import Poisoning
from simulations.attacks.poisoning.in_sums import added_to_sum
from simulations.attacks.poisoning.play import play_poisoned
from simulations.run import Settings
from tests.simulations.conftest import PlanMaker
from tests.simulations.test_compressed_runs import same_bits
from tests.simulations.test_secure_runs import CLIENTS, initial, secure_plan

INLINE = Settings(engine="inline")
ATTACK = Poisoning(kind="replacement", attackers=("4",), clients=6, classes=10)


def direct(plan: Plan, update: np.ndarray, words: np.ndarray, *, keeps_norm: bool = False) -> np.ndarray:
    """What an attacker without an update of its own would send."""
    nothing = np.zeros_like(update)
    return added_to_sum(words, update, nothing, plan, round_number=1, attempt=b"", keeps_norm=keeps_norm)


def test_under_masks_the_sum_is_as_if_there_were_none_and_no_site_or_server_objects(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    """One of six adds what it likes to its masked vector: exactly that is in the sum, and nobody finds it out."""
    models = []
    for masks in ("true", "false"):
        plan = secure_plan(small_plan, f"secure_sum.masks={masks}")
        folder, found = play_poisoned(plan, ATTACK, tmp_path / masks, INLINE)
        assert (found.stopped, found.dropped) == (None, 0)
        models.append(read_parameters(folder.model))
    assert same_bits(*models)


def test_one_client_that_does_not_clip_is_the_mean(small_plan: PlanMaker) -> None:
    """Whatever five honest clients say, the sixth sets the mean: its update needs only be six times the wish."""
    plan = secure_plan(small_plan)
    place, grid, size = workplace(write_plan(plan)), plan.sum_grid(), plan.secure.dimension
    assert size is not None
    generator = np.random.default_rng(3)
    honest = generator.integers(-grid.bound, grid.bound, size).astype(np.uint32)
    wish = generator.normal(0, 10 * plan.privacy.clipping_norm, size).astype(np.float32)
    total = direct(plan, wish * 6, honest)
    mean = decode(total, grid, survivors=6, size=size)
    other = decode(honest, grid, survivors=6, size=size)
    np.testing.assert_allclose(mean, wish + other, atol=grid.step + 1e-4)
    assert np.linalg.norm(mean) > 50 * plan.privacy.clipping_norm
    assert unflat(mean, place.layout).keys() == initial(plan).keys()


def test_an_attacker_whose_guard_clips_moves_the_mean_by_a_clipping_norm_at_most(small_plan: PlanMaker) -> None:
    plan = secure_plan(small_plan)
    grid, size = plan.sum_grid(), plan.secure.dimension
    assert size is not None
    wish = np.random.default_rng(3).normal(0, 100, size).astype(np.float32)
    total = direct(plan, wish, np.zeros(size, np.uint32), keeps_norm=True)
    moved = float(np.linalg.norm(decode(total, grid, survivors=6, size=size).astype(np.float64)))
    assert moved == pytest.approx(plan.privacy.clipping_norm / 6, rel=1e-3)


def test_past_half_the_ring_a_coordinate_turns_round(small_plan: PlanMaker) -> None:
    """The ring alone bounds an attacker: 2^31 steps of the sum, thousands of clipping norms."""
    plan = secure_plan(small_plan)
    grid, size = plan.sum_grid(), plan.secure.dimension
    assert size is not None
    assert plan.secure.bits == 32
    none = np.zeros(size, np.uint32)
    room = 2.0**31 * grid.step
    assert room / 6 > 1000 * plan.privacy.clipping_norm
    for part, expected in ((0.999, 0.999), (1.001, -0.999), (2.0, 0.0), (2.5, 0.5)):
        asked = np.full(size, part * room, np.float32)
        mean = decode(direct(plan, asked, none), grid, survivors=1, size=size)
        np.testing.assert_allclose(mean / room, expected, atol=1e-6)
    for bad in (np.inf, -np.inf, np.nan):  # no number of the ring stands for these
        assert np.isfinite(
            decode(direct(plan, np.full(size, bad, np.float32), none), grid, survivors=1, size=size)
        ).all()


def test_a_step_of_a_joint_sum_goes_where_the_attacker_wants(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Sums of gradients too: a hundred times its update, turned round, is in the step; within the ring."""
    joint = [
        "data.partition.clients=6",
        "model.options.hidden=[]",
        "federation.rounds=1",
        "training.steps=1",
        "training.momentum=0.0",
        "privacy.trust=distributed",
        "privacy.noise=reproducible",
        "secure_sum.corrupt=0.0",
        "secure_sum.masks=false",
        "training.sample_rate=1.0",
    ]
    plan = small_plan(*joint)
    assert plan.is_joint
    loud = Poisoning(kind="sign-flip", attackers=("4",), clients=6, classes=10, strength=100.0)
    quiet = Poisoning(kind="sign-flip", attackers=(), clients=6, classes=10)
    honest, _ = play_poisoned(plan, quiet, tmp_path / "honest", INLINE)
    folder, _ = play_poisoned(plan, loud, tmp_path / "loud", INLINE)
    start, after, without = initial(plan), read_parameters(folder.model), read_parameters(honest.model)
    moved = np.concatenate([(after[name] - without[name]).ravel() for name in start])
    place = workplace(write_plan(plan))
    own, _ = train_plain(place.model, start, place.records("4"), plan, round_number=1, client="4")
    wished = np.concatenate([own[name].ravel() for name in start]) * -100 / len(CLIENTS)
    assert np.dot(moved, wished) / np.linalg.norm(moved) / np.linalg.norm(wished) > 0.999
    assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(wished), rel=0.01)
