"""Rule 3: what amplification by a cohort is worth, and between which neighbours it holds."""

import math

import pytest
from dp_accounting.rdp import RdpAccountant

from privacy.accountant import RDP_ACCOUNTANT, epsilon
from privacy.mechanisms import ClientLevel, DpSgd, Gaussian


def poisson(noise: float, rate: float, rounds: int) -> ClientLevel:
    return ClientLevel(noise_multiplier=noise, cohort="poisson", rate=rate, rounds=rounds)


def fixed(noise: float, size: int, of: int, rounds: int) -> ClientLevel:
    return ClientLevel(noise_multiplier=noise, cohort="fixed", size=size, of=of, rounds=rounds)


def test_the_figure_of_the_design() -> None:
    """1000 clients, cohorts of 5 %, noise 1, 100 rounds."""
    spent = epsilon([poisson(1.0, 0.05, 100)], 1e-4)
    assert spent.epsilon == pytest.approx(2.870, abs=1e-3)
    assert spent.relation == "add or remove one unit"


def test_a_poisson_cohort_is_a_poisson_batch_of_clients() -> None:
    assert poisson(1.3, 0.1, 7).event() == DpSgd(noise_multiplier=1.3, sample_rate=0.1, steps=7).event()
    assert poisson(1.3, 1.0, 7).event() == DpSgd(noise_multiplier=1.3, sample_rate=1.0, steps=7).event()


def test_all_clients_in_every_round_are_the_plain_gaussian_mechanism() -> None:
    full = ClientLevel(noise_multiplier=10.0, cohort="full", rounds=20)
    assert epsilon([full], 1e-5) == epsilon([Gaussian(noise_multiplier=10.0, releases=20)], 1e-5)


def test_a_fixed_cohort_is_priced_by_rdp_for_replacing_a_client() -> None:
    spent = epsilon([fixed(4.0, 50, 1000, 10)], 1e-5)
    assert spent.relation == "replace one unit"
    assert spent.accountant == RDP_ACCOUNTANT
    assert spent.epsilon == spent.rdp_epsilon
    assert math.isfinite(spent.epsilon)


def test_replacing_a_client_moves_the_sum_by_two_clipping_norms() -> None:
    """The library's noise multiplier is over the distance that neighbours lie apart: with the noise over the clipping
    norm, as McMahan et al. give it, the price would be far too low."""
    orders = [2.0, 4.0, 16.0]
    right = (
        RdpAccountant(orders, fixed(4.0, 50, 1000, 1).relation.of_dp_accounting())
        .compose(fixed(4.0, 50, 1000, 1).event())
        ._rdp
    )
    # Lower bound: the release is a mixture with weight q of a shift of 2, seen by chi-square at order 2.
    q, shift = 0.05, 2 / 4.0
    assert right[0] >= math.log1p(q**2 * math.expm1((shift / 2) ** 2))
    everyone = epsilon([fixed(4.0, 1000, 1000, 1)], 1e-5).epsilon
    assert everyone == pytest.approx(epsilon([Gaussian(noise_multiplier=2.0)], 1e-5).rdp_epsilon, rel=1e-6)


def test_sampling_is_worth_something() -> None:
    sizes = [epsilon([fixed(4.0, size, 1000, 10)], 1e-5).epsilon for size in (10, 100, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cohort": "some"}, "cohort must be poisson, fixed or full"),
        ({"cohort": "poisson"}, "a poisson cohort needs rate"),
        ({"cohort": "poisson", "rate": 0.1, "size": 3}, "a poisson cohort has no size"),
        ({"cohort": "fixed", "size": 3}, "a fixed cohort needs of"),
        ({"cohort": "fixed", "size": 3, "of": 2}, "size must be at most of"),
        ({"cohort": "full", "rate": 1.0}, "a full cohort has no rate"),
    ],
)
def test_each_cohort_says_what_it_needs_and_no_more(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClientLevel(noise_multiplier=1.0, **values)  # type: ignore[arg-type]


def test_described_for_a_person() -> None:
    assert poisson(1.0, 0.05, 100).describe() == (
        "DP-FedAvg: 100 rounds on Poisson cohorts of rate 0.05, noise multiplier 1"
    )
    assert fixed(1.0, 5, 100, 1).describe() == (
        "DP-FedAvg: 1 round on fixed cohorts of 5 of 100 clients, noise multiplier 1"
    )
    full = ClientLevel(noise_multiplier=2.0, cohort="full", rounds=2)
    assert full.describe() == "DP-FedAvg: 2 rounds on all clients, noise multiplier 2"
