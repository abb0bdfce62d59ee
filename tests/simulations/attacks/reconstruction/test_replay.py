"""What the server plays again is what clients computed: to the rounding of single precision, from the true records."""

from __future__ import annotations

import pytest
import torch

from security.errors import UsageError
from simulations.attacks.reconstruction.inversion import flat
from simulations.attacks.reconstruction.overheard import Round, play_round
from simulations.attacks.reconstruction.replay import check_replayable, replay_of, tensors_of
from tests.simulations.attacks.reconstruction.plans import LOCAL, SUM, one_round, played

SEVERAL = ("training.steps=5", "training.momentum=0.9", "training.weight_decay=0.01", "training.proximal_mu=0.1")


def replayed(round_: Round) -> tuple[torch.Tensor, torch.Tensor]:
    """The first movement as it was seen, and as it is played again."""
    seen = round_.overheard[0]
    own = round_.records_behind(seen)
    clients = 1 if seen.client else len(round_.cohort)
    replay = replay_of(round_.plan, seen.start, records=len(own), client=seen.client, clients=clients)
    return flat(tensors_of(seen.movement)), flat(
        replay.movement(own.take(replay.touched).x.double(), own.take(replay.touched).y)
    ).detach()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        SEVERAL,
        (*SEVERAL, "training.expected_batch_size=3"),
        ("model.name=cnn", "model.options={activation='tanh'}", "training.label_smoothing=0.1"),
    ],
    ids=["step", "steps", "batches", "cnn"],
)
def test_without_privacy_to_the_rounding(overrides: tuple[str, ...]) -> None:
    seen, again = replayed(played(*overrides, images=8))
    assert (seen - again).norm() < 1e-5 * seen.norm()


@pytest.mark.parametrize("overrides", [(), SEVERAL], ids=["step", "steps"])
def test_without_gradients_weight_decay_is_all_that_moves_the_model(overrides: tuple[str, ...]) -> None:
    round_ = played(*overrides, "training.weight_decay=0.3", images=8)
    seen = round_.overheard[0]
    replay = replay_of(round_.plan, seen.start, records=8, client=seen.client, clients=1)
    training, factor, kept = round_.plan.training, 1.0, 0.0
    for _ in range(training.local_steps):  # of one value that was 1
        kept = training.momentum * kept + 0.3 * factor + training.proximal_mu * (factor - 1)
        factor -= replay.rate * kept
    for name, drift in replay.drift().items():
        assert torch.allclose(drift, (factor - 1) * replay.start[name].detach(), rtol=1e-9, atol=1e-12)


def test_local_noise_is_all_that_is_missing() -> None:
    round_ = played(*LOCAL, "privacy.epsilon=8", images=4)
    seen, again = replayed(round_)
    sigma = round_.plan.training.learning_rate * round_.plan.privacy.noise_multiplier / 4
    # The squared length of d normal values is d sigma^2 but for 6 standard deviations: false alarms below 1e-8.
    share = (seen - again).square().sum() / (len(seen) * sigma**2)
    assert abs(share - 1) < 6 * (2 / len(seen)) ** 0.5


def test_the_sum_is_of_all_clients_and_of_nobody_in_particular() -> None:
    round_ = played(*SUM, "privacy.epsilon=1000", cohort=6)
    assert [one.client for one in round_.overheard] == [None]
    assert len(round_.cohort) == 6 <= len(round_.records_behind(round_.overheard[0]))
    seen, again = replayed(round_)
    sigma = round_.plan.training.learning_rate * round_.plan.privacy.noise_multiplier / 6
    share = (seen - again).square().sum() / (len(seen) * sigma**2)
    assert abs(share - 1) < 0.3  # noise of shares and of rounding to the sum's grid; less than the noise would be wrong
    assert torch.cosine_similarity(seen, again, dim=0) > 0.3


def test_each_update_is_its_clients() -> None:
    round_ = played(images=8)
    assert len(round_.overheard) == len({one.client for one in round_.overheard}) == 3
    assert {one.client for one in round_.overheard} == set(round_.cohort) == set(round_.truth)
    outside = {one.tobytes() for one in round_.others.x.numpy()}
    inside = {one.tobytes() for own in round_.truth.values() for one in own.x.numpy()}
    assert outside
    assert not outside & inside


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.optimizer=adam",),
        ("training.augment={shift=1}",),
        (*LOCAL, "privacy.epsilon=8", "training.sample_rate=0.5"),
        (*LOCAL, "privacy.epsilon=8", "privacy.clipping=automatic"),
        ("model.options={hidden=[32],activation='tanh',dropout=0.5}",),
    ],
)
def test_training_that_isnt_replayed_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="doesn't replay"):
        check_replayable(one_round(*overrides))


def test_more_rounds_than_one_are_refused() -> None:
    with pytest.raises(UsageError, match=r"federation\.rounds = 2"):
        play_round(one_round("federation.rounds=2"))
