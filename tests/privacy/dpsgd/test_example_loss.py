"""The loss of single examples: against torch's own, against autograd, and how one example leaves others alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from privacy.dpsgd.clipping import ClippingMode
from privacy.dpsgd.example_loss import NO_LABEL, PLAIN, ExampleLoss
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from shared_models.example_form import PADDING

LOSSES = [PLAIN, ExampleLoss(label_smoothing=0.1), ExampleLoss(label_smoothing=0.2, class_weights=(0.5, 1.0, 3.0))]


def batch(n: int = 7, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


def text_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, 9, (4, 6), generator=generator)
    labels[1, 3:] = NO_LABEL
    labels[2] = NO_LABEL
    return logits, labels


def test_padding_is_what_no_label_stands_at() -> None:
    assert NO_LABEL == PADDING


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_has_the_sum_of_its_examples_losses_each_by_itself(loss: ExampleLoss) -> None:
    logits, labels = batch()
    alone = [float(loss(logits[i : i + 1], labels[i : i + 1])) for i in range(len(labels))]
    assert loss.of_each(logits, labels).tolist() == pytest.approx(alone, rel=1e-12)
    assert float(loss(logits, labels)) == pytest.approx(sum(alone), rel=1e-12)


def test_smoothing_and_weights_are_those_of_the_definition() -> None:
    loss, (logits, labels) = LOSSES[-1], batch()
    weights = torch.tensor(loss.class_weights, dtype=torch.float64)
    logs = torch.log_softmax(logits, 1)
    for row, label in enumerate(labels.tolist()):
        target = 0.2 / 3 * weights
        target[label] += 0.8 * weights[label]
        assert float(loss.of_each(logits, labels)[row]) == pytest.approx(-float((target * logs[row]).sum()), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_are_the_gradient_by_the_logits(loss: ExampleLoss) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(loss(logits, labels), logits)
    torch.testing.assert_close(loss.slopes(logits.detach(), labels), expected, rtol=1e-12, atol=1e-14)


def test_a_texts_loss_is_the_mean_over_its_own_places() -> None:
    logits, labels = text_batch()
    found = PLAIN.of_each(logits, labels)
    assert float(found[0]) == pytest.approx(float(functional.cross_entropy(logits[0], labels[0])))
    assert float(found[1]) == pytest.approx(float(functional.cross_entropy(logits[1, :3], labels[1, :3])))
    assert float(found[2]) == 0  # nothing but padding
    assert float(PLAIN(logits, labels)) == pytest.approx(float(found.sum()))


def test_places_without_a_label_have_no_slope() -> None:
    logits, labels = text_batch()
    logits.requires_grad_()
    (slopes,) = torch.autograd.grad(PLAIN(logits, labels), logits)
    assert not slopes[1, 3:].any()
    assert not slopes[2].any()
    assert slopes[1, :3].any(-1).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", ["flat", "per-layer", "automatic"])
def test_the_closed_form_of_a_linear_head_knows_the_loss(loss: ExampleLoss, mode: ClippingMode) -> None:
    """A linear layer by itself goes in closed form, the same with something harmless behind it doesn't."""
    torch.manual_seed(3)
    head = torch.nn.Linear(5, 3)
    behind = torch.nn.Sequential(head, torch.nn.Identity(), torch.nn.Flatten(), Scaled())
    x, (_, y) = torch.randn(7, 5), batch()
    closed, hooked = (
        clipped_gradient_sum(model.train(), [(x, y)], clipping_norm=0.7, mode=mode, loss=loss)
        for model in (torch.nn.Sequential(head), behind)
    )
    assert closed == pytest.approx(hooked, rel=1e-4, abs=1e-5)
    assert abs(closed).max() > 0.01


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def test_weights_and_places_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="a language model's tokens have no weights"):
        ExampleLoss(class_weights=(1.0,) * 9)(*text_batch())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is from 0 to below 1"),
        ({"label_smoothing": float("nan")}, "label_smoothing is from 0 to below 1"),
        ({"class_weights": (1.0, 0.0)}, "class weights are positive numbers"),
        ({"class_weights": (1.0, float("inf"))}, "class weights are positive numbers"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ExampleLoss(**options)  # type: ignore[arg-type]
