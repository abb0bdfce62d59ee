"""The epsilon after every round is that of the ledger's entries, recomputed by another library."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from privacy.accountant import epsilon
from privacy.ledger import Ledger, Reserved, Task
from privacy.lifetime import Balance, Limit, Terms, multiset
from privacy.mechanisms import DpSgd, Gaussian, NoisyCounts, Release

DELTA = 1e-5
BALANCE = Balance(unit="record", trust="local")
LIMIT = Limit(epsilon=60.0, delta=DELTA)

TRAINING = st.builds(
    DpSgd,
    noise_multiplier=st.floats(0.8, 5.0),
    sample_rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    steps=st.integers(1, 12),
)
COUNTS = st.builds(NoisyCounts, noise=st.floats(5.0, 40.0), counts=st.integers(1, 3))
GAUSSIANS = st.builds(Gaussian, noise_multiplier=st.floats(2.0, 20.0))


def recomputed(entries: Sequence[dict[str, object]]) -> float:
    """Google's accountant on what the reserve entries say, knowing nothing of our mechanisms but their JSON."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for entry in entries:
        if entry["kind"] != "reserve":
            continue
        for release, times in entry["body"]["charge"]["releases"]:  # type: ignore[index]
            accountant.compose(_event(release), times)
    return float(accountant.get_epsilon(DELTA))


def _event(release: dict[str, float]) -> dp_event.DpEvent:
    if release["mechanism"] == "dp-sgd":
        step = dp_event.GaussianDpEvent(release["noise_multiplier"])
        if release["sample_rate"] < 1:
            step = dp_event.PoissonSampledDpEvent(release["sample_rate"], step)
        return dp_event.SelfComposedDpEvent(step, int(release["steps"]))
    if release["mechanism"] == "noisy-counts":
        return dp_event.GaussianDpEvent(release["noise"] / math.sqrt(release["counts"]))
    return dp_event.GaussianDpEvent(release["noise_multiplier"])


def after_each_round(rounds: Sequence[Sequence[Release]], path: Path) -> list[tuple[float, float]]:
    """What our books say after each round, beside the recomputation from the exported entries."""
    terms = Terms(plan="a" * 64, rounds=tuple(multiset(releases) for releases in rounds), delta=DELTA)
    found = []
    with Ledger.create(path, durable=False) as ledger:
        ledger.open_scope("site", owner="")
        for number, releases in enumerate(terms.rounds, start=1):
            task = Task(
                federation="study", run="r", round=number, phase="train", client="site", request=f"{number:064x}"
            )
            answer = ledger.reserve("site", task, balance=BALANCE, terms=terms, releases=releases, limit=LIMIT)
            assert isinstance(answer, Reserved)
            (plan,) = ledger.account("site", BALANCE).plans
            entries = [{"kind": e.kind, "body": json.loads(json.dumps(e.body))} for e in ledger.entries("site")]
            found.append((epsilon(dict(plan.charged), DELTA).epsilon, recomputed(entries)))
    return found


@settings(max_examples=15, deadline=None)
@given(
    rounds=st.lists(st.lists(st.one_of(TRAINING, COUNTS, GAUSSIANS), min_size=1, max_size=3), min_size=1, max_size=5)
)
def test_epsilon_after_every_round_of_unlike_releases_is_the_other_librarys(rounds: list[list[Release]]) -> None:
    with TemporaryDirectory() as folder:
        for ours, theirs in after_each_round(rounds, Path(folder) / "ledger.sqlite"):
            # Theirs rounds every Gaussian's losses to the grid by itself, ours first puts Gaussians together.
            assert theirs * (1 - 1e-3) - 2e-3 <= ours <= theirs * (1 + 1e-6) + 1e-6


@settings(max_examples=15, deadline=None)
@given(rounds=st.lists(TRAINING.map(lambda release: [release]), min_size=1, max_size=5))
def test_epsilon_after_every_round_of_training_is_the_other_librarys_to_1e_6(rounds: list[list[Release]]) -> None:
    with TemporaryDirectory() as folder:
        for ours, theirs in after_each_round(rounds, Path(folder) / "ledger.sqlite"):
            assert math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-6)


@settings(max_examples=25, deadline=None)
@given(rounds=st.lists(st.lists(GAUSSIANS, min_size=1, max_size=3), min_size=1, max_size=6))
def test_epsilon_is_never_less_than_the_true_one(rounds: list[list[Release]]) -> None:
    """Gaussians compose to one Gaussian, whose delta is known in closed form (Balle & Wang 2018, theorem 8)."""
    with TemporaryDirectory() as folder:
        spent = after_each_round(rounds, Path(folder) / "ledger.sqlite")
    precision = 0.0
    for releases, (ours, _) in zip(rounds, spent, strict=True):
        precision += sum(1 / release.noise_multiplier**2 for release in releases if isinstance(release, Gaussian))
        mean = math.sqrt(precision)

        def excess(value: float, mean: float = mean) -> float:
            upper = norm.logcdf(mean / 2 - value / mean)
            lower = value + norm.logcdf(-mean / 2 - value / mean)
            return float(math.exp(upper) - math.exp(lower) - DELTA)

        true = 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 200.0, xtol=1e-12))
        assert true <= ours <= true * 1.001 + 2e-3
