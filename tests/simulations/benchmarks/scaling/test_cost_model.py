"""A sum of costs, found again from what it was made of."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from simulations.benchmarks.scaling.cost_model import CostModel, Load, fit

TRUE = CostModel(start=3.0, client=2e-3, round=0.05, client_round=1e-3, byte=2e-9, error=0.0)
LOADS = [
    load
    for clients in (100, 1000, 10_000)
    for size in (1e4, 1e6)
    for warm in [Load(rounds=1, client_rounds=clients, bytes=clients * size)]
    for load in (warm, replace(warm, starts=1, clients=clients))
]


def test_what_it_takes_is_a_sum() -> None:
    load = Load(starts=1, clients=10, rounds=2, client_rounds=20, bytes=1e9)
    assert TRUE.seconds(load) == pytest.approx(3 + 10 * 2e-3 + 2 * 0.05 + 20 * 1e-3 + 2)


def test_the_costs_that_times_were_made_of_are_found_again() -> None:
    found = fit([(load, TRUE.seconds(load)) for load in LOADS])
    assert asdict(found) == pytest.approx(asdict(TRUE), rel=1e-6, abs=1e-9)


def test_times_that_scatter_move_it_by_no_more_than_they_scatter() -> None:
    """Errors are relative: what matters little in the longest run is still known from the short ones."""
    scatter = np.random.default_rng(1).uniform(0.95, 1.05, len(LOADS))
    found = fit([(load, TRUE.seconds(load) * part) for load, part in zip(LOADS, scatter, strict=True)])
    assert found.client_round == pytest.approx(TRUE.client_round, rel=0.1)
    assert found.start == pytest.approx(TRUE.start, rel=0.1)
    assert 0 < found.error < 0.1
    million = Load(rounds=1, client_rounds=10**6, bytes=10**10)
    assert found.seconds(million) == pytest.approx(TRUE.seconds(million), rel=0.1)


def test_nothing_costs_less_than_nothing() -> None:
    """A plain fit of these would have a larger network save time."""
    times = [(load, 1.0 + 1e-3 * load.client_rounds * (0.9 if load.bytes > 5e6 else 1.0)) for load in LOADS]
    assert min(asdict(fit(times)).values()) >= 0


@pytest.mark.parametrize(
    "loads",
    [
        [],
        LOADS[:2],
        [load for load in LOADS if load.starts == 0],
        [replace(load, bytes=8.0 * load.client_rounds) for load in LOADS],
    ],
    ids=["none", "one size", "no start", "one network"],
)
def test_loads_that_do_not_tell_costs_apart_are_refused(loads: list[Load]) -> None:
    with pytest.raises(ValueError, match="vary sizes and the network"):
        fit([(load, TRUE.seconds(load)) for load in loads])


def test_a_load_that_took_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="took no time"):
        fit([(load, 0.0) for load in LOADS])
