"""Records trained on in changed copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.augment import augmented
from client.datasets.records import Records
from client.private_trainer import gradient_sum, train_private
from client.trainer import most_at_once, train_plain
from shared_models.parameters import Parameters, get_parameters
from shared_models.plan_augment import AugmentPlan
from tests.client.local_training import Scripted, assert_close, flat, network, plain, private, records


def images(n: int = 6, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n * 2 * size * size, dtype=torch.float32).reshape(n, 2, size, size), torch.arange(n)


def test_without_a_table_records_are_what_they_are() -> None:
    x, y = images()
    assert augmented(x, y, None) == (x, y)


def test_copies_stand_beside_each_other_with_their_label() -> None:
    x, y = images()
    more, labels = augmented(x, y, AugmentPlan(copies=3, jitter=1e-6))
    assert more.shape == (18, 2, 5, 5)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    torch.testing.assert_close(more, x.repeat_interleave(3, 0), atol=1e-4, rtol=1e-5)


def test_no_records_stay_none() -> None:
    x, y = images()
    more, labels = augmented(x[:0], y[:0], AugmentPlan(copies=3, shift=2, flip=True, scale=0.1, jitter=0.1))
    assert len(more) == len(labels) == 0


def test_a_shifted_image_is_a_window_of_the_image_with_its_edges_drawn_out() -> None:
    x, y = images(n=1)
    copies, _ = augmented(x, y, AugmentPlan(copies=64, shift=2))
    framed = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")[0]
    windows = [framed[:, i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
    found = [next(place for place, window in enumerate(windows) if torch.equal(one, window)) for one in copies]
    assert len(set(found)) > 15  # 64 draws of 25: fewer than 16 kinds has a chance below 1e-7


def test_a_shifted_signal_moves_along_its_times() -> None:
    x = torch.arange(14, dtype=torch.float32).reshape(1, 2, 7)
    copies, _ = augmented(x, torch.zeros(1), AugmentPlan(copies=64, shift=1))
    first = sorted({tuple(int(v) for v in one[0]) for one in copies})
    assert first == [(0, 0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6, 6)]  # P(one missing) < 2e-11


def test_half_of_all_copies_are_mirrored() -> None:
    x, y = images(n=64)
    copies, _ = augmented(x, y, AugmentPlan(copies=64, flip=True))
    mirrored = [torch.equal(one, x[i // 64].flip(-1)) for i, one in enumerate(copies)]
    untouched = [torch.equal(one, x[i // 64]) for i, one in enumerate(copies)]
    assert all(a != b for a, b in zip(mirrored, untouched, strict=True))
    assert abs(sum(mirrored) - 2048) < 5 * 32  # of 4096; false alarm 6e-7


def test_a_scaled_copy_is_its_record_times_one_number_within_bounds() -> None:
    x = torch.ones(500, 4)
    copies, _ = augmented(x, torch.zeros(500), AugmentPlan(scale=0.2))
    assert bool((copies == copies[:, :1]).all())
    least, most = float(copies.min()), float(copies.max())
    assert 0.8 <= least < 0.82  # of 500 draws: false alarm 1e-11
    assert 1.18 < most <= 1.2


def test_a_turned_signal_keeps_lengths_and_angles_of_its_triples() -> None:
    x = torch.randn(50, 6, 16)
    copies, _ = augmented(x, torch.zeros(50), AugmentPlan(turn=0.5))
    before, after = (value.reshape(50, 2, 3, 16) for value in (x, copies))
    products = [torch.einsum("nsat,nsau->nstu", value, value) for value in (before, after)]
    torch.testing.assert_close(products[1], products[0], atol=1e-4, rtol=1e-4)
    # Both sensors by the same rotation, and none of them a mirror image.
    turns = [torch.linalg.lstsq(before[:, s].mT, after[:, s].mT).solution.mT for s in (0, 1)]
    torch.testing.assert_close(turns[0], turns[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.linalg.det(turns[0]), torch.ones(50), atol=1e-3, rtol=1e-3)
    traces = turns[0].diagonal(dim1=1, dim2=2).sum(1)
    angles = torch.arccos(((traces - 1) / 2).clamp(-1, 1))
    assert 0.5 < float(angles.square().mean()) / (3 * 0.5**2) < 1.6  # of 150 squares: false alarm below 1e-4


def test_jitter_is_noise_of_the_asked_size_in_each_value() -> None:
    copies, _ = augmented(torch.zeros(100, 100), torch.zeros(100), AugmentPlan(jitter=0.5))
    assert abs(float(copies.std()) - 0.5) < 0.02  # 5.6 standard errors: false alarm 2e-8


def test_the_same_seed_makes_the_same_copies_and_the_next_step_others() -> None:
    x, y = images()
    plan = AugmentPlan(copies=2, shift=1, flip=True, scale=0.1, jitter=0.1)
    made = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(4)
            made.append([augmented(x, y, plan)[0] for _ in range(2)])
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])
    assert not torch.equal(made[0][0], made[0][1])


@pytest.mark.parametrize("augment", [{"copies": 2, "shift": 1, "flip": True, "scale": 0.1}, {"jitter": 0.3}])
def test_records_are_left_as_they_are(augment: dict[str, Any]) -> None:
    x, y = images()
    before = x.clone()
    augmented(x, y, AugmentPlan(**augment))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("most", "copies", "at_once"),
    [(None, 1, None), (10, 1, 10), (None, 64, 64), (10, 4, 2), (3, 4, 1), (9999, 2, 2048)],
)
def test_so_many_records_are_copied_at_once_as_fit_the_memory(most: Any, copies: int, at_once: Any) -> None:
    """However many a client has: a number of records that ends a process would be told by its end (rule 5)."""
    augment = {"augment": {"copies": copies, "jitter": 0.1}}
    assert most_at_once(plain(max_physical_batch=most, **augment)) == at_once


# --- in local training --------------------------------------------------------------------------------------------

MIRRORED: dict[str, Any] = {"augment": {"copies": 3, "flip": True}}


def symmetric_records(n: int = 8) -> Records:
    """Images that are their own mirror images: copies of them are all alike."""
    own = records(n, (1, 8, 8))
    return Records(x=own.x + own.x.flip(-1), y=own.y)


@pytest.mark.parametrize("most", [None, 3, 1])
def test_copies_that_are_alike_train_privately_as_their_record_does(most: int | None) -> None:
    """Each record counts once, in whatever parts a batch comes."""
    model, own = network("cnn"), symmetric_records()
    start = get_parameters(model)

    def trained(**training: Any) -> Parameters:
        noise = Scripted([0, 3, 5, 6, 7], noise=0.4)
        plan = private(clip=0.05, max_physical_batch=most, **training)
        return train_private(model, start, own, plan, round_number=1, noise=noise)  # type: ignore[arg-type]

    assert_close(trained(**MIRRORED), trained())


def test_copies_that_are_alike_train_plainly_as_their_record_does() -> None:
    model, own = network("cnn"), symmetric_records()
    start = get_parameters(model)
    found = [
        train_plain(model, start, own, plain(steps=3, **training), round_number=1, client="0")
        for training in ({}, MIRRORED)
    ]
    assert_close(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)


def test_a_joint_step_takes_copies_too() -> None:
    model, own = network("cnn"), symmetric_records()
    start = get_parameters(model)
    sums = [
        gradient_sum(model, start, own, private(clip=0.05, **training), noise=Scripted([0, 3, 5]))  # type: ignore[arg-type]
        for training in ({}, MIRRORED)
    ]
    np.testing.assert_allclose(sums[1], sums[0], atol=1e-6)


def test_other_copies_train_another_model() -> None:
    model, own = network("cnn"), records(8, (1, 8, 8))
    start = get_parameters(model)
    one, other = (
        train_plain(model, start, own, plain(steps=3, **training), round_number=1, client="0")[0]
        for training in ({}, MIRRORED)
    )
    assert float(np.abs(flat(one) - flat(other)).max()) > 1e-3
