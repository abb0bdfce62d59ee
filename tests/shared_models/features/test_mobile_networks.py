"""Pretrained image networks: their published weights fit, and see what they were trained to see."""

from __future__ import annotations

import pytest
import torch

from shared_models.cards import KNOWN
from shared_models.downloads.fetch import fetched
from shared_models.features.encoders import ENCODERS, _as_imagenet
from shared_models.features.mobile_networks import efficientnet_lite0, mobilenet_v2
from tests.shared_models.fetching import fetch_or_skip

NETWORKS = {"mobilenet-v2": mobilenet_v2, "efficientnet-lite0": efficientnet_lite0}
PARAMETERS = {"mobilenet-v2": 3_504_872, "efficientnet-lite0": 4_652_008}
PALACE = 698  # of ImageNet's classes: the Summer Palace in Beijing is on one of scikit-learn's photographs


@pytest.fixture
def cache() -> None:
    """The user's own cache folder: in place of the one that tests of this folder have."""


@pytest.fixture(scope="module", autouse=True)
def _there() -> None:
    fetch_or_skip(*NETWORKS)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_photograph_is_recognised(name: str) -> None:
    """By the classifier that comes with the weights: were one layer in the wrong place, nothing would be."""
    from sklearn.datasets import load_sample_image

    network = NETWORKS[name]().eval()
    (path,) = fetched(name).values()
    weight, bias = list(torch.load(path, weights_only=True).values())[-2:]
    assert sum(p.numel() for p in network.parameters()) + weight.numel() + bias.numel() == PARAMETERS[name]
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        logits = network(_as_imagenet(pixels[..., :427, 106:533], side=224)) @ weight.T + bias
    assert PALACE in logits[0].topk(2).indices  # by chance once in five hundred


def test_features_are_of_brightness_whatever_the_card_calls_its_zero() -> None:
    card = KNOWN["fashion-mnist"]
    images = torch.rand(3, 1, 28, 28)
    found = ENCODERS["mobilenet-v2"].features((images - card.mean) / card.std, card)
    assert found.shape == (3, 1280)
    with torch.no_grad():
        expected = mobilenet_v2().eval()(_as_imagenet(images))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
