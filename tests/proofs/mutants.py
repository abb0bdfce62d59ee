"""The implementation broken on purpose, in each of the ways that would silently void a claim; and what notices.

    python -m tests.proofs.mutants --out docs/evidence/mutants.txt

A mutant changes one thing while it runs. An *audit* notices by a lower bound above the claim; a *test* by failing, in a
process of its own, where it passes without the mutant.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from privacy.audit.finding import Finding, is_broken
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.audit.audit import Options, audit, of_one_round
from simulations.run import Settings
from simulations.scenarios import find_plan

ROOT: Final = Path(__file__).parents[2]
MUTANT: Final = "VEIL_MUTANT"
"""Environment variable that names the mutant a test process runs under."""

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One way to break the implementation.

    Attributes:
        name: of it.
        patch: breaks it.
        audits: names in `AUDITS` that notice.
        tests: node ids of tests that notice.
    """

    name: str
    patch: Patch
    audits: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def _less_noise(patch: pytest.MonkeyPatch) -> None:
    from privacy.noise.source import _AesNoise

    whole = _AesNoise.grid_normal
    patch.setattr(_AesNoise, "grid_normal", lambda self, shape, scale, **how: whole(self, shape, scale / 10, **how))


def _no_clipping(patch: pytest.MonkeyPatch) -> None:
    from privacy.dpsgd import clipping

    def towards(gradients: Sequence[Any], norm: float, *, most: float, stable: float = 0.0) -> Tensor:
        return torch.full((len(gradients[0]),), most, dtype=torch.float64)

    patch.setattr(clipping, "towards", towards)


def _clipping_per_batch(patch: pytest.MonkeyPatch) -> None:
    from privacy.dpsgd import clipping

    def towards(gradients: Sequence[Any], norm: float, *, most: float, stable: float = 0.0) -> Tensor:
        length = float(torch.cat([rows.double().sum(0) for rows in gradients]).norm())
        return torch.full((len(gradients[0]),), min(most, norm / max(length, 1e-12)), dtype=torch.float64)

    patch.setattr(clipping, "towards", towards)


def _later_rounds_uncharged(patch: pytest.MonkeyPatch) -> None:
    from privacy.ledger import Ledger

    whole = Ledger.reserve

    def reserve(self: Ledger, scope: str, task: Any, **charge: Any) -> Any:
        return whole(self, scope, task, **(charge if task.round <= 1 else {}))

    patch.setattr(Ledger, "reserve", reserve)


def _noise_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    from privacy.noise.source import _AesNoise

    whole, drawn = _AesNoise.grid_normal, {}

    def grid_normal(self: Any, shape: Any, scale: float, **how: Any) -> Tensor:
        key = (id(self), tuple(shape), scale)
        if key not in drawn:
            drawn[key] = whole(self, shape, scale, **how)
        return drawn[key].clone()

    patch.setattr(_AesNoise, "grid_normal", grid_normal)


def _noise_of_another_client(patch: pytest.MonkeyPatch) -> None:
    from shared_models.seeds import derive_key

    patch.setattr(
        "client.noise.derive_key", lambda seed, purpose, client, number: derive_key(seed, purpose, "", number)
    )


def _a_fresh_accountant(patch: pytest.MonkeyPatch) -> None:
    from privacy.lifetime import multiset

    patch.setattr("privacy.ledger.chain.multiset", lambda charged: multiset(dict.fromkeys(charged, 1)))


def _batches_of_a_fixed_size(patch: pytest.MonkeyPatch) -> None:
    from privacy.noise.source import _AesNoise

    def bernoulli(self: Any, n: int, rate: float) -> Tensor:
        order = np.argsort(self.uniform(n), kind="stable")[: round(n * rate)]
        return torch.from_numpy(np.sort(order).astype(np.int64))

    patch.setattr(_AesNoise, "bernoulli", bernoulli)


def _shares_left_out(patch: pytest.MonkeyPatch) -> None:
    """Clients round as they should, and leave out their shares of the noise."""
    from client.noise import noise_of as whole

    class Left:
        """Of a source, all but its noise."""

        def __init__(self, source: Any) -> None:
            self._source = source

        def grid_normal(self, shape: Sequence[int], scale: float, **how: Any) -> Tensor:
            return torch.zeros(tuple(shape), dtype=torch.int64)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._source, name)

    def noise_of(plan: Plan, purpose: str, client: str, number: int) -> Any:
        return Left(whole(plan, purpose, client, number))

    patch.setattr("client.contribution.noise_of", noise_of)


def _a_metric_uncharged(patch: pytest.MonkeyPatch) -> None:
    import client.app
    from shared_models.protocol import METRICS, TRAIN_LOSS

    whole = client.app._train

    def train(*given: Any) -> Any:
        reply = whole(*given)
        reply.metric_records[METRICS][TRAIN_LOSS] = 1.0
        return reply

    patch.setattr(client.app, "_train", train)


def _an_open_door(patch: pytest.MonkeyPatch) -> None:
    """The same, and the guard no longer looks at what leaves."""
    from client.egress import classify as whole
    from shared_models.protocol import METRICS, TRAIN_LOSS

    def classify(reply: RecordDict, **given: Any) -> Any:
        listed = RecordDict(dict(reply))
        listed[METRICS] = MetricRecord({k: v for k, v in reply.metric_records[METRICS].items() if k != TRAIN_LOSS})
        return whole(listed, **given)

    _a_metric_uncharged(patch)
    patch.setattr("client.guard.classify", classify)


_LOCAL = (
    *("model.name=mlp", "model.options.hidden=[8]", "training.steps=1", "training.sample_rate=1"),
    *("training.expected_batch_size=100", "federation.rounds=4", "privacy.epsilon=2"),
)
_SUM = ("data.partition.clients=10", "federation.rounds=4", "privacy.epsilon=2")
_LARGER = (*_LOCAL, "model.options.hidden=[32]")

AUDITS: Final[dict[str, Callable[[int], list[Finding]]]] = {
    "one round, local": lambda runs: _one_round("digits", _LOCAL, runs),
    "one round, secure sum": lambda runs: _one_round("digits-secure", _SUM, runs),
    "canaries in a run, local": lambda canaries: _whole_run("digits", _LARGER, canaries),
}
"""By name, from a number of runs, or of canaries, to what was found."""

_SECRET: Final = bytes(range(32))
_BUDGET = "tests/client/test_guard.py::test_a_budget_for_three_of_ten_rounds_plays_three"
_TRAINER = "tests/client/test_private_trainer.py::"
_SIZE = f"{_TRAINER}test_the_noise_of_two_clients_is_independent_and_of_the_claimed_size"
_MOVED = f"{_TRAINER}test_rule_1_one_record_more_moves_a_step_by_no_more_than_the_clipping_norm"

MUTANTS: Final = (
    Mutant(name="noise x 0.1", patch=_less_noise, audits=tuple(AUDITS), tests=(_SIZE,)),
    Mutant(
        name="no clipping",
        patch=_no_clipping,
        audits=("one round, local", "canaries in a run, local"),
        tests=(_MOVED,),
    ),
    Mutant(
        name="clipping per batch, not per example",
        patch=_clipping_per_batch,
        tests=(
            "tests/privacy/dpsgd/test_clipping.py::"
            "test_one_example_moves_the_sum_by_its_own_rounded_gradient_and_at_most_the_clipping_norm",
        ),
    ),
    Mutant(name="rounds after the first uncharged", patch=_later_rounds_uncharged, tests=(_BUDGET,)),
    Mutant(
        name="noise reused between steps",
        patch=_noise_of_the_step_before,
        tests=("tests/privacy/noise/test_source.py",),
    ),
    Mutant(name="noise reused between clients", patch=_noise_of_another_client, tests=("tests/client/test_app.py",)),
    Mutant(name="a fresh accountant each round", patch=_a_fresh_accountant, tests=(_BUDGET,)),
    Mutant(
        name="batches of a fixed size, charged as Poisson",
        patch=_batches_of_a_fixed_size,
        tests=("tests/privacy/dpsgd/test_sampling.py::test_the_size_of_a_batch_is_binomial",),
    ),
    Mutant(name="shares of a secure sum's noise left out", patch=_shares_left_out, audits=("one round, secure sum",)),
    Mutant(name="a metric added, uncharged", patch=_a_metric_uncharged, tests=("tests/client/test_app.py",)),
    Mutant(
        name="a metric added, and no look at what leaves",
        patch=_an_open_door,
        tests=("tests/client/test_egress.py::test_principle_1_no_value_leaves_unclassified",),
    ),
)


def _one_round(scenario: str, overrides: Sequence[str], runs: int) -> list[Finding]:
    plan = resolve(find_plan(scenario, overrides))
    return of_one_round(plan, runs, _SECRET, alpha=1e-3)


def _whole_run(scenario: str, overrides: Sequence[str], canaries: int) -> list[Finding]:
    plan = resolve(find_plan(scenario, overrides))
    options = Options(canaries=canaries, mislabelled=0, rounds=0, secret=_SECRET)
    with tempfile.TemporaryDirectory() as place:
        return audit(plan, Path(place) / "run", Settings(engine="inline"), options, say=lambda _: None).findings


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """Inside, this process is the mutant."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.patch(patch)
        yield


def fails(test: str, mutant: str | None) -> bool:
    """Whether a test fails, in a process of its own, under a mutant or without one."""
    environment = {**os.environ, MUTANT: mutant or ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n0"]
    found = subprocess.run(
        [*command, "-p", "tests.proofs.mutant_plugin", test],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode not in (0, 1):
        raise RuntimeError(f"{test} can't be run: {found.stdout[-500:]} {found.stderr[-500:]}")
    return found.returncode == 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all mutants and write the table; 1 if one was not noticed by all that should."""
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.mutants", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    lines, missed = [f"{'mutant':48s}noticed by"], 0
    for mutant in (None, *MUTANTS):
        with broken(mutant) if mutant is not None else pytest.MonkeyPatch.context():
            audits = {name: AUDITS[name](given.runs) for name in (mutant.audits if mutant is not None else AUDITS)}
        tests = mutant.tests if mutant is not None else tuple(sorted({t for one in MUTANTS for t in one.tests}))
        said = [
            f"audit {name}, {one.method}: epsilon >= {one.epsilon:.2f}, claimed {one.claimed:.2f}: {one.verdict}"
            for name, both in audits.items()
            for one in both
        ]
        found = {test: fails(test, mutant.name if mutant is not None else None) for test in tests}
        said += [f"{test}: {'fails' if failed else 'passes'}" for test, failed in found.items()]
        noticed = [is_broken(both) for both in audits.values()] + list(found.values())
        missed += sum(noticed) if mutant is None else len(noticed) - sum(noticed)
        name = "(none: all is sound)" if mutant is None else mutant.name
        lines += [f"{name if i == 0 else '':48s}{text}" for i, text in enumerate(said)]
        print("\n".join(lines[-len(said) :]), flush=True)
    text = "\n".join(lines) + f"\n{len(MUTANTS)} mutants; {missed} surprises\n"
    if given.out is not None:
        given.out.write_text(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
