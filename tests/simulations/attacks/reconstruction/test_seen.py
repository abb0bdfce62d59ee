"""What a server sees without protection, and doesn't with: images and labels of handwritten digits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from security.errors import UsageError
from simulations.attacks.reconstruction.figures import Seen, as_json, from_json
from simulations.attacks.reconstruction.inversion import Attack
from simulations.attacks.reconstruction.overheard import play_round
from simulations.attacks.reconstruction.seen import Options, attack_round
from tests.simulations.attacks.reconstruction.plans import LOCAL, SUM, one_round, played

ATTACKS = (Attack(way="zhu", iterations=100), Attack(way="geiping", iterations=250))
OPTIONS = Options(attacks=ATTACKS, inverted=2)
HELPED = dataclasses.replace(OPTIONS, given_labels=True)


def scores(seen: Seen) -> dict[str, tuple[float, float, float]]:
    return {one.way: (one.psnr, one.ssim, one.recognised) for one in seen.images}


@pytest.mark.parametrize(("images", "least"), [(1, 35.0), (4, 30.0)])
def test_without_protection_images_and_labels_are_in_plain_view(images: int, least: float) -> None:
    seen, besides = attack_round(played(images=images), OPTIONS)
    for psnr, ssim, known in scores(seen).values():
        assert psnr > least
        assert ssim > 0.95
        assert known == 1.0
    assert seen.labels == 1.0
    assert seen.line_up is not None
    assert seen.line_up > (0.98 if images == 1 else 0.9)
    assert seen.image_guess is not None
    assert seen.image_guess.psnr < 20
    assert all(np.abs(one.originals - one.found["zhu"]).max() < 0.05 for one in besides)


def test_several_local_steps_are_no_protection() -> None:
    seen, _ = attack_round(played("training.steps=4", "training.momentum=0.9", images=2), OPTIONS)
    assert seen.image_guess is not None
    for psnr, ssim, known in scores(seen).values():
        assert psnr > seen.image_guess.psnr + 3
        assert ssim > 0.85
        assert known == 1.0
    assert seen.labels == 1.0
    assert seen.line_up is None  # one step is lined up alone


def test_the_cnn_is_no_protection() -> None:
    network = ("model.name=cnn", "model.options={activation='tanh'}")
    seen, _ = attack_round(played(*network), dataclasses.replace(OPTIONS, inverted=1))
    assert all(psnr > 30 for psnr, _, _ in scores(seen).values())


def test_the_largest_values_alone_are_no_protection() -> None:
    """What isn't sent is unknown, and not zero: held against zeros, a reconstruction would be 12 dB here."""
    seen, _ = attack_round(played("federation.wire=top-k", "federation.top_fraction=0.1"), OPTIONS)
    assert all(psnr > 35 for psnr, _, _ in scores(seen).values())
    assert seen.line_up is not None
    assert seen.line_up > 0.98


@pytest.mark.parametrize("images", [1, 4])
def test_local_noise_at_epsilon_8_leaves_less_than_a_guess(images: int) -> None:
    seen, _ = attack_round(played(*LOCAL, "privacy.epsilon=8", images=images), HELPED)
    assert seen.epsilon == 8.0
    assert seen.image_guess is not None
    for psnr, ssim, known in scores(seen).values():
        assert psnr < seen.image_guess.psnr - 3
        assert ssim < 0.5
        assert known < 0.5  # of few images, told from few others


def test_an_epsilon_of_a_thousand_protects_nobody() -> None:
    seen, _ = attack_round(played(*LOCAL, "privacy.epsilon=1000"), HELPED)
    assert scores(seen)["zhu"][2] == 1.0
    assert seen.image_guess is not None
    assert scores(seen)["zhu"][0] > seen.image_guess.psnr


def test_a_sum_of_twenty_clients_leaves_less_than_a_guess() -> None:
    seen, _ = attack_round(played(*SUM, "privacy.epsilon=8", cohort=20), HELPED)
    assert (seen.movements, seen.clients) == (1, 20)
    assert seen.records >= 20
    assert seen.image_guess is not None
    for psnr, ssim, known in scores(seen).values():
        assert psnr < seen.image_guess.psnr - 3
        assert ssim < 0.5
        assert known < 0.5  # matched to each other, and told from few others


def test_figures_go_to_json_and_back() -> None:
    seen, _ = attack_round(played(), dataclasses.replace(OPTIONS, inverted=1))
    assert from_json(as_json(seen)) == seen
    for text in ("{}", "[]", "no JSON", as_json(seen).replace("veil-reconstruction-1", "veil-reconstruction-2")):
        with pytest.raises(ValueError, match="no figures of a reconstruction"):
            from_json(text)


def test_everybody_in_the_round_leaves_nobody_to_be_told_from() -> None:
    everybody = play_round(one_round("federation.cohort={sampling='all'}", images=8))
    seen, _ = attack_round(everybody, Options(attacks=ATTACKS[:1], inverted=1))
    assert (seen.others, seen.line_up) == (0, None)


def test_what_is_neither_image_nor_text_is_refused() -> None:
    table = ("data.name=heart-disease", "data.partition={kind='iid',clients=10}")
    with pytest.raises(UsageError, match="only images and texts"):
        attack_round(play_round(one_round(*table)), OPTIONS)
