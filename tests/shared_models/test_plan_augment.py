"""What a plan may say of changed copies: nothing that would fail with a record (rule 5)."""

from __future__ import annotations

from typing import Any

import pytest

from privacy.mechanisms import DpSgd
from security.errors import UsageError
from shared_models.example_form import ExampleForm
from shared_models.plan import Plan
from shared_models.plan_augment import AugmentPlan, copies_of
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve


def plan(**changes: Any) -> Plan:
    return plan_from({"model": {"name": "mlp"}, "privacy": {"epsilon": 3.0}, **changes}, where="test")


def test_copies_cost_nothing() -> None:
    """The release, its noise and its price are those of the plan without them."""
    augment = {"copies": 8, "shift": 1}
    one, many = (resolve(plan(training={"augment": found})) for found in (None, augment))
    assert isinstance(many.train_release(), DpSgd)
    assert one.train_release() == many.train_release()
    assert one.privacy == many.privacy
    assert one.digest() != many.digest()
    assert (copies_of(one), copies_of(many)) == (1, 8)


@pytest.mark.parametrize(
    ("shape", "augment", "error"),
    [
        ((3, 8, 8), {"shift": 8}, "moves examples"),
        ((13,), {"shift": 1}, "no places to move along"),
        ((13,), {"flip": True}, "no images"),
        ((6, 128), {"flip": True}, "no images"),
        ((4, 128), {"turn": 0.1}, "no signals of three axes"),
        ((3, 8, 8), {"turn": 0.1}, "no signals of three axes"),
    ],
)
def test_what_an_example_has_no_room_for_is_refused(
    shape: tuple[int, ...], augment: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        AugmentPlan(**augment).check(ExampleForm(shape=shape, classes=2))


def test_tokens_are_not_changed() -> None:
    with pytest.raises(ValueError, match="tokens have no values to change"):
        AugmentPlan(jitter=0.1).check(ExampleForm(shape=(16,), classes=2, vocabulary=50))


@pytest.mark.parametrize(
    ("shape", "augment"),
    [
        ((1, 28, 28), {"copies": 4, "shift": 3, "flip": True, "scale": 0.1, "jitter": 0.1}),
        ((6, 128), {"shift": 16, "scale": 0.2, "turn": 0.3}),
        ((13,), {"jitter": 0.1}),
    ],
)
def test_what_fits_is_allowed(shape: tuple[int, ...], augment: dict[str, Any]) -> None:
    AugmentPlan(**augment).check(ExampleForm(shape=shape, classes=2))


def test_copies_that_are_all_alike_are_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.augment: copies that are all alike teach nothing"):
        plan(training={"augment": {"copies": 4}})


def test_a_plan_for_examples_without_room_is_refused_when_it_is_resolved() -> None:
    with pytest.raises(UsageError, match=r"training\.augment: shift = 9 moves examples of \(1, 8, 8\) out of sight"):
        resolve(plan(training={"augment": {"shift": 9}}))


def test_what_a_feature_map_made_is_not_changed() -> None:
    with pytest.raises(UsageError, match=r"training\.augment: what a feature map has made of records isn't changed"):
        resolve(plan(model={"name": "linear"}, features={"name": "scattering"}, training={"augment": {"shift": 1}}))
