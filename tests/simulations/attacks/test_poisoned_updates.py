"""What attackers make of updates and records: each as its paper says, on small vectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from client.datasets.records import Records
from security.errors import UsageError
from simulations.attacks.poisoning.attack import KINDS, Poisoning, read_poisoning, some_attackers
from simulations.attacks.poisoning.records import backdoored, flipped, with_trigger
from simulations.attacks.poisoning.updates import little_is_enough, most_deviations, noise_like, times

CLIENTS = [f"c{n}" for n in range(20)]


def poisoning(**changes: object) -> Poisoning:
    return Poisoning(**{"kind": "scaled", "attackers": ("c1",), "clients": 10, "classes": 10, **changes})  # type: ignore[arg-type]


def pictures(count: int = 40) -> Records:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((count, 1, 8, 8), generator=generator) - 0.5
    return Records(x=x, y=torch.arange(count) % 10)


# --- updates


def test_a_boosted_update_replaces_the_mean() -> None:
    """Bagdasaryan et al., equation 3: where the others' updates cancel out, the mean is the attackers' model."""
    wanted = np.array([0.5, -1.0, 2.0], np.float32)
    for attackers, clients in ((1, 10), (4, 20)):
        who = tuple(CLIENTS[:attackers])
        boost = poisoning(attackers=who, clients=clients).boost
        assert boost == clients / attackers
        honest = np.zeros((clients - attackers, 3), np.float32)
        mean = np.concatenate([honest, np.stack([times(wanted, boost)] * attackers)]).mean(axis=0)
        np.testing.assert_allclose(mean, wanted, rtol=1e-6)
    assert poisoning(strength=3.0).boost == 3.0


def test_a_turned_sign_is_exact_and_too_much_is_infinite() -> None:
    assert times(np.array([1.5, -0.25], np.float32), -4).tolist() == [-6.0, 1.0]
    assert times(np.array([3e38], np.float32), 10).tolist() == [math.inf]


def test_little_is_enough_is_mean_less_deviations() -> None:
    honest = [np.array(row, np.float32) for row in ([1, 0], [3, 0], [2, 6])]
    np.testing.assert_allclose(little_is_enough(honest, 1.5), [2 - 1.5 * math.sqrt(2 / 3), 2 - 1.5 * math.sqrt(8)])
    assert little_is_enough(honest[:1], 1.5).tolist() == [1, 0]  # one attacker alone knows no deviation
    with pytest.raises(ValueError, match="without an update"):
        little_is_enough([], 1.0)


@pytest.mark.parametrize(("clients", "attackers"), [(50, 24), (50, 12), (20, 2), (20, 8), (21, 7)])
def test_the_deviations_leave_a_majority_around_the_attackers(clients: int, attackers: int) -> None:
    """Section 3 of the paper, against scipy: Phi(z) is the share of honest clients who need not be farther out."""
    supporters = clients // 2 + 1 - attackers
    honest = clients - attackers
    z = most_deviations(clients, attackers)
    assert stats.norm.cdf(z) == pytest.approx((honest - supporters) / honest)
    assert stats.norm.sf(z) * honest + attackers == pytest.approx(clients // 2 + 1)


def test_a_majority_needs_nobody_and_no_attacker_is_none() -> None:
    assert most_deviations(20, 11) == 3.0
    for attackers in (0, 20):
        with pytest.raises(ValueError, match="attackers among"):
            most_deviations(20, attackers)


def test_noise_has_its_deviation() -> None:
    """Of 10,000 values the deviation is within 5 of its own: false alarms below 1e-6."""
    found = noise_like(10_000, 0.3, seed=4)
    assert abs(found.std() / 0.3 - 1) < 5 / math.sqrt(2 * 10_000)
    assert not np.array_equal(found, noise_like(10_000, 0.3, seed=5))


# --- records


def test_flipped_labels_are_mirrored_and_nothing_else_is_changed() -> None:
    records = pictures()
    found = flipped(records, 10)
    assert found.y.tolist() == [9 - y for y in records.y.tolist()]
    assert torch.equal(found.x, records.x)


def test_a_trigger_is_a_square_in_the_corner_of_a_copy() -> None:
    x = torch.zeros(2, 3, 5, 6)
    marked = with_trigger(x, side=2, bright=7.0)
    assert marked[:, :, 3:, 4:].eq(7.0).all()
    assert marked.sum() == 7.0 * 2 * 3 * 4
    assert x.sum() == 0
    for bad in (torch.zeros(2, 5), torch.zeros(2, 1, 1, 5)):
        with pytest.raises(UsageError, match="needs pictures"):
            with_trigger(bad, side=2, bright=1.0)


def test_half_of_an_attackers_pictures_bear_trigger_and_target() -> None:
    records = pictures()
    found = backdoored(records, target=3, side=2, bright=1.0, seed=2)
    marked = found.x[:, 0, 6:, 6:].eq(1.0).flatten(1).all(dim=1)
    assert int(marked.sum()) == len(records) // 2
    assert found.y[marked].eq(3).all()
    assert torch.equal(found.y[~marked], records.y[~marked])
    assert torch.equal(found.x[~marked], records.x[~marked])
    assert len(backdoored(pictures(0), target=3, side=2, bright=1.0, seed=2)) == 0


# --- who attacks


def test_a_larger_share_holds_the_smaller_one() -> None:
    found = [some_attackers(CLIENTS, share, seed=5) for share in (0.0, 0.1, 0.25, 0.4, 1.0)]
    assert [len(one) for one in found] == [0, 2, 5, 8, 20]
    for fewer, more in itertools.pairwise(found):
        assert more[: len(fewer)] == fewer
    assert found[-2] != some_attackers(CLIENTS, 0.4, seed=6)
    with pytest.raises(UsageError, match="from 0 to 1"):
        some_attackers(CLIENTS, 1.1, seed=5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_is_what_was_meant(kind: str) -> None:
    told = poisoning(kind=kind, attackers=("a", "b"), strength=0.5, bright=0.1, keeps_norm=True)
    assert read_poisoning(told.to_json()) == told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "rumour"}, "allowed: label-flip"),
        ({"attackers": ("a", "a")}, "name each once"),
        ({"attackers": tuple("abcdefghijk")}, "11 attackers among 10"),
        ({"target": 10}, "counted from 0"),
        ({"strength": math.nan}, "from 0"),
        ({"strength": -1.0}, "from 0"),
    ],
)
def test_an_attack_that_is_none_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        poisoning(**changes)
