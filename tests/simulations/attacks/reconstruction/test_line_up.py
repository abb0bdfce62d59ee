"""The line-up and the sum of clipped gradients in small parts: the formula in one piece says the same."""

from __future__ import annotations

import pytest
import torch

from simulations.attacks.reconstruction import line_up, replay
from simulations.attacks.reconstruction.inversion import flat
from simulations.attacks.reconstruction.labels import labels_seen
from simulations.attacks.reconstruction.line_up import ahead, scores_of
from simulations.attacks.reconstruction.replay import replay_of, tensors_of
from tests.simulations.attacks.reconstruction.plans import LOCAL, played

CLIPPED = (*LOCAL, "privacy.epsilon=8", "privacy.clipping_norm=0.5")


@pytest.mark.parametrize("overrides", [(), CLIPPED], ids=["plain", "clipped"])
def test_scores_are_those_of_the_formula_however_few_are_in_memory(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = played(*overrides, images=4)
    seen = round_.overheard[0]
    own, movement = round_.records_behind(seen), tensors_of(seen.movement)
    again = replay_of(round_.plan, seen.start, records=len(own), client=seen.client, clients=1)
    own = own.take(again.touched)
    x = torch.cat([own.x, round_.others.x]).double()
    y = torch.cat([own.y, round_.others.y])
    each = torch.cat([one.flatten(1) for one in again.of_each(again.start, x, y).values()], dim=1).detach()
    each = -again.rate / (again.divisor or len(own)) * each
    left = flat(movement) - len(own) * each.mean(0)
    wanted = (each - each.mean(0)) @ left - (each - each.mean(0)).square().sum(1) / 2
    for at_once in (1, 7 * each.shape[1], 2**26):
        monkeypatch.setattr(line_up, "_VALUES", at_once)
        found = scores_of(again, movement, x, y, records=len(own))
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))
    assert ahead(found, torch.arange(len(own))) == ahead(wanted, torch.arange(len(own)))


def test_weight_decay_is_no_sign_of_a_record() -> None:
    """Whatever its weight, a movement without noise ranks candidates alike, and tells the same classes."""
    ranks, classes = [], []
    for decay in ("training.weight_decay=0.0", "training.weight_decay=10.0"):
        round_ = played(decay, images=4)
        seen = round_.overheard[0]
        own = round_.records_behind(seen)
        again = replay_of(round_.plan, seen.start, records=len(own), client=seen.client, clients=1)
        own = own.take(again.touched)
        x, y = torch.cat([own.x, round_.others.x]).double(), torch.cat([own.y, round_.others.y])
        ranks.append(scores_of(again, tensors_of(seen.movement), x, y, records=len(own)))
        classes.append(labels_seen(again, tensors_of(seen.movement), torch.zeros_like(own.x).double()))
    assert torch.equal(*classes)
    assert torch.allclose(*ranks, rtol=1e-4, atol=1e-4 * float(ranks[0].abs().max()))


@pytest.mark.parametrize("at_once", [1, 3000, 2**26])
def test_clipped_gradients_add_up_in_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    round_ = played(*CLIPPED, images=4)
    seen = round_.overheard[0]
    again = replay_of(round_.plan, seen.start, records=10, client=seen.client, clients=1)
    x, y = round_.others.x[:10].double(), round_.others.y[:10]
    whole = flat(again.movement(x, y)).detach()
    monkeypatch.setattr(replay, "_VALUES", at_once)
    with torch.no_grad():
        assert torch.allclose(flat(again.movement(x, y)), whole, rtol=1e-10, atol=1e-14)
