"""Labels from the last layer: exact without protection, whatever the training; near chance with noise."""

from __future__ import annotations

import pytest
import torch

from security.errors import UsageError
from simulations.attacks.reconstruction.labels import label_accuracy, labels_seen
from simulations.attacks.reconstruction.overheard import Round
from simulations.attacks.reconstruction.replay import replay_of, tensors_of
from tests.simulations.attacks.reconstruction.plans import LOCAL, played


def accuracies(round_: Round) -> list[float]:
    found = []
    for seen in round_.overheard:
        own = round_.records_behind(seen)
        replay = replay_of(round_.plan, seen.start, records=len(own), client=seen.client, clients=1)
        own = own.take(replay.touched)
        dummies = torch.rand(own.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        found.append(label_accuracy(labels_seen(replay, tensors_of(seen.movement), dummies), own.y))
    return found


@pytest.mark.parametrize("images", [1, 4, 8])
def test_labels_are_exact_of_one_step(images: int) -> None:
    assert accuracies(played(images=images, cohort=8)) == [1.0] * 8


@pytest.mark.parametrize(
    "overrides", [("training.steps=5", "training.momentum=0.9"), ("training.label_smoothing=0.1",)]
)
def test_labels_are_found_through_several_steps_and_smoothing(overrides: tuple[str, ...]) -> None:
    found = accuracies(played(*overrides, images=4, cohort=8))
    assert sum(found) / len(found) > 0.9


def test_noise_at_epsilon_1_leaves_about_chance() -> None:
    # Of ten classes. Of 60 labels by chance, 18 or more are right in less than one of 100,000 cases.
    found = accuracies(played(*LOCAL, "privacy.epsilon=1", cohort=60))
    assert sum(found) < 18


def test_accuracy_is_the_overlap_of_lists() -> None:
    assert label_accuracy(torch.tensor([3, 1, 1]), torch.tensor([1, 3, 1])) == 1.0
    assert label_accuracy(torch.tensor([1, 1, 1, 1]), torch.tensor([1, 2, 3, 9])) == 0.25
    assert label_accuracy(torch.tensor([0]), torch.tensor([9])) == 0.0


def test_a_last_layer_without_bias_is_refused() -> None:
    round_ = played()
    seen = round_.overheard[0]
    replay = replay_of(round_.plan, seen.start, records=1, client=seen.client, clients=1)
    del replay.start["layers.3.bias"]
    with pytest.raises(UsageError, match="no bias"):
        labels_seen(replay, tensors_of(seen.movement), torch.zeros(1, 1, 8, 8, dtype=torch.float64))
