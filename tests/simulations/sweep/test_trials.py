"""Trials are fixed and good before one runs; a charged search stays within the plan's epsilon (rules 4 and 11)."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation

from privacy import accountant
from privacy.mechanisms import Release
from security.errors import UsageError
from simulations.sweep.space import Point, parse_axes, points
from simulations.sweep.trials import Trial, planned_of, trials_of

SMALL = ("model.name=mlp", "federation.rounds=3", "training.steps=2")


def grid(*texts: str) -> list[Point]:
    return points(parse_axes(texts), samples=None, random=False, seed=7)


def together(trials: list[Trial]) -> Counter[Release]:
    return sum((planned_of(trial.plan) for trial in trials), Counter())


def test_every_trial_says_uncharged_whatever_the_plan_says() -> None:
    asked = (*SMALL, "privacy.selection=public")
    found = trials_of("digits", asked, grid("training.learning_rate=0.1,0.2"), charge=False)
    assert [trial.plan.privacy.selection for trial in found] == ["uncharged", "uncharged"]
    assert [trial.plan.training.learning_rate for trial in found] == [0.1, 0.2]
    assert [trial.name for trial in found] == ["trial-01", "trial-02"]
    assert {trial.plan.privacy.epsilon for trial in found} == {8.0}  # each has the plan's own


UNLIKE = {
    "steps": ((), ("training.steps=1,2,4", "training.sample_rate=0.1,0.25")),
    "counts at clients": (("evaluation.where=clients", "evaluation.count_noise=20"), ("training.steps=1,3",)),
    "people": (
        ("privacy.unit=client", "privacy.trust=central", "federation.rounds=4"),
        ("federation.rounds=2,4", "privacy.clipping_norm=0.5,1"),
    ),
    "secure sums": (
        ("privacy.unit=client", "privacy.trust=distributed", "privacy.epsilon=40"),
        ("federation.rounds=1,2", "privacy.clipping_norm=0.5,1"),
    ),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_all_trials_of_a_charged_search_together_stay_within_the_plan(kind: str) -> None:
    more, over = UNLIKE[kind]
    found = trials_of("digits", (*SMALL, *more), grid(*over), charge=True)
    alone = trials_of("digits", (*SMALL, *more), grid(*over), charge=False)
    asked = alone[0].plan.privacy.epsilon
    assert asked is not None
    delta = alone[0].plan.privacy.delta
    cost = accountant.epsilon(together(found), delta).epsilon
    assert cost <= asked
    assert cost > 0.98 * asked, "the budget is used"
    assert accountant.epsilon(together(alone), delta).epsilon > asked, "or there would have been nothing to charge"
    noises = {trial.plan.privacy.noise_multiplier for trial in found}
    assert len(noises) == 1
    assert {trial.plan.privacy.selection for trial in found} == {"charged"}
    assert all((trial.plan.privacy.epsilon or math.inf) < asked for trial in found)


def test_the_charged_figure_is_dp_accountings_own() -> None:
    """Nothing of Veil's accountant is used to check it; one step of noise less would be above the budget."""
    found = trials_of("digits", SMALL, grid("training.steps=1,2", "training.sample_rate=0.1,0.25"), charge=True)
    noise = found[0].plan.privacy.noise_multiplier
    assert noise is not None

    def cost(multiplier: float) -> float:
        pld = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
        for trial in found:
            training = trial.plan.training
            event = dp_event.PoissonSampledDpEvent(training.sample_rate, dp_event.GaussianDpEvent(multiplier))
            pld.compose(dp_event.SelfComposedDpEvent(event, training.local_steps * 3))
        return float(pld.get_epsilon(1e-5))

    assert cost(noise) == pytest.approx(8.0, rel=2e-3)
    assert cost(noise - 0.01) > 8.0


def test_a_charged_search_is_the_same_each_time() -> None:
    over = grid("training.learning_rate=0.1,0.2")
    first, second = (trials_of("digits", SMALL, over, charge=True) for _ in range(2))
    assert [trial.plan.digest() for trial in first] == [trial.plan.digest() for trial in second]


def test_all_that_is_refused_is_told_before_anything_starts_with_key_and_what_was_tried() -> None:
    over = grid("training.learning_rate=0.1,-1", "training.stps=3")
    with pytest.raises(UsageError) as error:
        trials_of("digits", SMALL, over, charge=False)
    lines = str(error.value).splitlines()
    assert "training.learning_rate=-1 training.stps=3: digits: training.learning_rate = -1" in "\n".join(lines)
    assert all("training.stps: unknown key; did you mean steps?" in line or "-1: should be" in line for line in lines)
    many = grid(f"training.learning_rate={','.join(str(-number) for number in range(1, 30))}")
    with pytest.raises(UsageError) as error:
        trials_of("digits", SMALL, many, charge=False)
    assert len(str(error.value).splitlines()) == 11
    assert "and 19 more" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "over", "charge", "said"),
    [
        ((), "privacy.selection=public,charged", False, "how settings were chosen is what the sweep itself says"),
        ((), "name=a,b", False, "trials have names of their own"),
        (("evaluation.where=none",), "training.steps=1,2", False, "trials that nothing judges can't be compared"),
        ((), "privacy.epsilon=1,2", True, "epsilon and delta are for the whole search"),
        ((), "privacy.delta=1e-5,1e-6", True, "epsilon and delta are for the whole search"),
        (("privacy.trust=none",), "training.steps=1,2", True, "without privacy, which nothing pays for"),
        (("privacy.epsilon=", "privacy.noise_multiplier=2"), "training.steps=1,2", True, "give privacy.epsilon"),
        (("privacy.budget=3",), "training.steps=1,2", True, "limit one run each"),
        (("privacy.unit=client", "privacy.trust=central"), "seed=1,2", True, "unlike ways"),
        ((), "privacy.trust=local,none", True, "without privacy"),
    ],
)
def test_what_a_search_can_not_be(overrides: tuple[str, ...], over: str, charge: bool, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trials_of("digits", (*SMALL, *overrides), grid(over), charge=charge)
