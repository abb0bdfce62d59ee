"""Whole runs of joint steps: DP-SGD over all clients' records as if one trusted server held them, by secure sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

import client.app
import client.contribution
from client.workplace import workplace
from privacy.accountant import epsilon
from privacy.ledger.check import verify
from privacy.lifetime import Balance
from privacy.mechanisms import DpSgd, RoundedGaussianSum
from privacy.noise import SecretNoise
from privacy.statement import verify_statement
from server.run_folder import RunFolder, read_parameters
from shared_models.parameters import Parameters, get_parameters, set_parameters, unflat
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import SECURE_KEYS, SECURE_SURVIVORS
from shared_models.registry import build_for
from simulations.run import start_run
from tests.client.conftest import Silence
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import bodies, committed, reserved
from tests.simulations.test_compressed_runs import same_bits
from tests.simulations.test_run_ledger import INLINE, CutOffError, Diary, gone_on
from tests.simulations.test_secure_runs import fails_in, meddle

FALSE_ALARM = 1e-6
CLIENTS = [str(number) for number in range(6)]
RECORDS = 1441  # of digits that are trained on; a sixth of them is the public batch size of each client
JOINT = (
    'data.partition={kind="iid", clients=6}',
    "model.options.hidden=[]",
    "training.momentum=0.0",
    "training.steps=1",
    "training.sample_rate=1.0",
    "training.learning_rate=0.5",
    "training.expected_batch_size=240",
    "federation.rounds=3",
    "evaluation.every=3",
    "privacy.unit=example",
    "privacy.trust=distributed",
    "privacy.epsilon=4.0",
    "privacy.noise=reproducible",
    "secure_sum.corrupt=0.0",
)
NO_MASKS = "secure_sum.masks=false"
MOMENTUM = (
    "federation.strategy=fedavgm",
    "federation.strategy_options={server_momentum=0.9, server_learning_rate=1.0}",
)
ADAM = ("federation.strategy=fedadam", "federation.strategy_options={eta=0.05, tau=0.001}")


def joint_plan(small_plan: PlanMaker, *changes: str) -> Plan:
    taken = {change.partition("=")[0] for change in changes}
    return small_plan(*(change for change in JOINT if change.partition("=")[0] not in taken), *changes)


def model_after(plan: Plan, folder: Path) -> Parameters:
    found, outcome = start_run(plan, folder, INLINE)
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    return read_parameters(found.model)


def silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling is as ever, but no noise is added."""
    for module in (client.app, client.contribution):
        monkeypatch.setattr(module, "noise_of", lambda *_: Silence(b"coins"))


def pooled(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    place = workplace(write_plan(plan))
    parts = [place.records(name) for name in place.client_ids()]
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])


def centrally(plan: Plan, rate: Callable[[int], float], momentum: float = 0.9) -> Parameters:
    """Full-batch gradient descent with momentum on all records in one place, in float64; the sum over 6 x 240."""
    model = build_for(plan)
    initial = get_parameters(model)
    set_parameters(model, initial)
    model = model.double()
    x, y = pooled(plan)
    trained = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in trained]
    for number in range(1, plan.federation.rounds + 1):
        loss = nn.functional.cross_entropy(model(x.double()), y, reduction="sum") / (6 * 240)
        gradients = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for p, v, g in zip(trained, velocity, gradients, strict=True):
                v.mul_(momentum).add_(g, alpha=rate(number))
                p.sub_(v)
    return {name: value.astype(np.float32) for name, value in get_parameters(model).items()}


def difference(one: Parameters, other: Parameters) -> npt.NDArray[np.float64]:
    return np.concatenate([(one[name].astype(np.float64) - other[name]).ravel() for name in one])


# --- with and without masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [(), MOMENTUM, ADAM], ids=["fedavg", "fedavgm", "fedadam"])
def test_masks_change_nothing_of_the_model(small_plan: PlanMaker, tmp_path: Path, strategy: tuple[str, ...]) -> None:
    masked = model_after(joint_plan(small_plan, *strategy), tmp_path / "masked")
    unmasked = model_after(joint_plan(small_plan, *strategy, NO_MASKS), tmp_path / "unmasked")
    assert same_bits(masked, unmasked)
    assert not same_bits(masked, get_parameters(build_for(joint_plan(small_plan))))


def test_a_network_of_several_layers_is_trained_too(small_plan: PlanMaker, tmp_path: Path) -> None:
    plans = [
        joint_plan(small_plan, "model.options.hidden=[8]", "federation.rounds=1", *more) for more in ((), (NO_MASKS,))
    ]
    one, other = (model_after(plan, tmp_path / str(i)) for i, plan in enumerate(plans))
    assert same_bits(one, other)


# --- as accurate as DP-SGD in one place ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        ((), lambda number: 0.5),
        (('training.schedule={kind="step", every=1, factor=0.5}',), lambda number: 0.5**number),
    ],
    ids=["constant", "step"],
)
def test_without_noise_and_clipping_it_is_gradient_descent_on_all_records(
    small_plan: PlanMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: tuple[str, ...],
    rate: Callable[[int], float],
) -> None:
    """Whoever holds a record: full batches with momentum, to the accuracy of floats."""
    plan = joint_plan(small_plan, "privacy.clipping_norm=50.0", "federation.rounds=5", NO_MASKS, *MOMENTUM, *schedule)
    silenced(monkeypatch)
    found = model_after(plan, tmp_path / "run")
    assert len(pooled(plan)[1]) == RECORDS
    expected = centrally(plan, rate)
    moved = np.linalg.norm(difference(expected, get_parameters(build_for(plan))))
    assert moved > 0.1
    assert np.linalg.norm(difference(found, expected)) < 2e-6 * moved
    assert np.linalg.norm(difference(found, centrally(plan, rate, momentum=0.0))) > 0.1 * moved


def test_how_records_are_dealt_to_clients_changes_nothing_of_the_step(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike averaged local training: very unequal clients, one of them with hardly a record, make the same step."""
    silenced(monkeypatch)
    even = joint_plan(small_plan, NO_MASKS, "training.expected_batch_size=1000")
    skew = 'data.partition={kind="dirichlet", clients=6, alpha=0.2}'
    uneven = joint_plan(small_plan, NO_MASKS, "training.expected_batch_size=1000", skew)
    one, other = (model_after(plan, tmp_path / name) for name, plan in (("even", even), ("uneven", uneven)))
    assert np.abs(difference(one, other)).max() < 1e-6


def test_when_all_are_honest_the_noise_is_that_of_dp_sgd_in_one_place(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step with all six shares counted on, and one step of DP-SGD on the pooled records by one client, both less
    the same step without noise. Chi-square and F test over 15,010 coordinates; false alarm twice in a million."""
    wide = ("model.options.hidden=[200]", "federation.rounds=1", "privacy.epsilon=2.0", "privacy.clipping_norm=0.5")
    joint = joint_plan(small_plan, *wide, "secure_sum.honest=1.0", NO_MASKS)
    z = joint.privacy.noise_multiplier
    assert z is not None
    assert joint.secure_parameters().honest == 6
    changes = (
        'data.partition={kind="iid", clients=1}',
        "privacy.trust=local",
        "training.expected_batch_size=1440",
        "privacy.epsilon=2.001",
    )
    alone = tuple(change for change in JOINT if not change.startswith(("secure_sum", "privacy.epsilon")))
    taken = {change.partition("=")[0] for change in (*changes, *wide)}
    central = small_plan(
        *(change for change in alone if change.partition("=")[0] not in taken),
        *(change for change in wide if not change.startswith("privacy.epsilon")),
        *changes,
    )
    assert central.privacy.noise_multiplier == pytest.approx(z, rel=5e-3)
    noisy = [model_after(plan, tmp_path / f"noisy-{i}") for i, plan in enumerate((joint, central))]
    silenced(monkeypatch)
    silent = [model_after(plan, tmp_path / f"silent-{i}") for i, plan in enumerate((joint, central))]
    moved = np.linalg.norm(difference(silent[1], get_parameters(build_for(joint))))
    assert np.linalg.norm(difference(*silent)) < 1e-4 * moved  # nothing but rounding, and the order of additions
    noises = [difference(one, other) * 1440 / 0.5 for one, other in zip(noisy, silent, strict=True)]
    d = len(noises[0])
    assert d == 15_010
    squares = [float(noise @ noise) for noise in noises]
    assert (
        stats.f.ppf(FALSE_ALARM / 2, d, d) * 0.99 < squares[0] / squares[1] < stats.f.isf(FALSE_ALARM / 2, d, d) * 1.01
    )
    release = joint.train_release()
    assert isinstance(release, RoundedGaussianSum)
    # All of the sum's noise is priced; what rounding costs beyond z C is a hundredth at most.
    deviation = release.noise_share * math.sqrt(6) * joint.sum_grid().step
    assert z * 0.5 <= deviation <= z * 0.5 * 1.011
    assert stats.chi2.ppf(FALSE_ALARM / 2, d) < squares[0] / deviation**2 < stats.chi2.isf(FALSE_ALARM / 2, d)


# --- who drops out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [(), (NO_MASKS,)], ids=["masks", "no masks"])
def test_a_client_that_drops_out_of_a_step_is_not_in_its_mean_and_has_paid(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: tuple[str, ...]
) -> None:
    plan = joint_plan(small_plan, "federation.rounds=1", *masks)
    vectors: dict[str, npt.NDArray[Any]] = {}
    original = client.contribution.contribution

    def watched(place: Any, site: Any, *given: Any, **named: Any) -> Any:
        vectors[site.client] = original(place, site, *given, **named)
        return vectors[site.client]

    monkeypatch.setattr(client.app, "contribution", watched)
    monkeypatch.setattr("client.secure_update.contribution", watched)
    meddle(monkeypatch, fails_in("train", ["3"], times=1))
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert [fault["client"] for fault in outcome.state.faults] == ["3"]
    assert sorted(vectors) == CLIENTS
    total = np.sum([vectors[name] for name in CLIENTS if name != "3"], axis=0, dtype=np.uint32).view(np.int32)
    step = -0.5 * total * plan.sum_grid().step / (5 * 240)
    start = get_parameters(build_for(plan))
    delta = unflat(step, workplace(write_plan(plan)).layout)
    expected = {name: (value + delta[name]).astype(np.float32) for name, value in start.items()}
    assert np.abs(difference(read_parameters(folder.model), expected)).max() < 1e-6
    assert reserved(folder.ledger) == committed(folder.ledger) == {(name, "train", 1): 1 for name in CLIENTS}
    rows = folder.read_summary()["privacy"]["clients"]
    assert {row["charged_rounds"] for row in rows} == {1}
    assert [row["rounds"] for row in rows] == [1, 1, 1, 0, 1, 1]


def test_one_that_falls_out_before_it_was_asked_for_gradients_has_paid_nothing(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, fails_in(SECURE_KEYS, ["3"], times=1))
    folder, _ = start_run(joint_plan(small_plan, "federation.rounds=1"), tmp_path / "run", INLINE)
    assert reserved(folder.ledger) == {(name, "train", 1): 1 for name in CLIENTS if name != "3"}


# --- what is paid --------------------------------------------------------------------------------------------------


def exact_epsilon(mu: float, delta: float) -> float:
    """Of Gaussian mechanisms with sensitivity over noise mu together (Balle & Wang 2018, theorem 8)."""

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta)

    return float(brentq(excess, 0, mu * mu + 20 * mu, xtol=1e-12))


def test_every_book_has_the_price_of_the_steps(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Ledgers, statements and summary; and the figure by other means than the accountant."""
    plan = joint_plan(small_plan)
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    release = plan.train_release()
    assert isinstance(release, RoundedGaussianSum)
    assert verify(folder.ledger) == []
    charges = [body["charge"] for body in bodies(folder.ledger, "reserve")]
    assert len(charges) == 3 * len(CLIENTS)
    assert all(charge["releases"] == [[release.to_json(), 1]] for charge in charges)
    price = epsilon({release: 3}, plan.privacy.delta).epsilon
    privacy = folder.read_summary()["privacy"]
    assert (
        {row["epsilon"] for row in privacy["clients"]}
        == {row["record_epsilon"] for row in privacy["clients"]}
        == {price}
    )
    assert {row["statement"] for row in privacy["clients"]} == {"verified"}
    assert price <= plan.privacy.epsilon == 4.0
    mu = math.sqrt(3) * release.l2_sensitivity / (release.noise_share * math.sqrt(release.honest))
    exact = exact_epsilon(mu, plan.privacy.delta)
    assert exact - 1e-9 <= price <= exact + 5e-3
    for text in folder.read_statements().values():
        (balance,) = verify_statement(text).balances
        assert balance.balance == Balance(unit="record", trust="distributed")
        assert balance.totals == {"rounded-gaussian-sum": 3}


def test_without_masks_the_price_is_the_same_and_nothing_is_claimed(small_plan: PlanMaker, tmp_path: Path) -> None:
    folders = [
        start_run(joint_plan(small_plan, *more), tmp_path / str(i), INLINE)[0]
        for i, more in enumerate(((), (NO_MASKS,)))
    ]
    privacies = [folder.read_summary()["privacy"] for folder in folders]
    rows = [[(row["epsilon"], row["charged_rounds"]) for row in one["clients"]] for one in privacies]
    assert rows[0] == rows[1]
    codes = [{remark["code"] for remark in one["withdrawn"]} for one in privacies]
    assert codes[1] - codes[0] == {"masked"}
    assert all(one["claim"] is None for one in privacies)  # it was simulated


def test_poisson_batches_run_and_cost_what_steps_of_dp_sgd_cost(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are of about 5 records, some of none; secret noise."""
    plan = joint_plan(
        small_plan,
        "training.sample_rate=0.02",
        "training.expected_batch_size=5",
        "privacy.noise=secret",
        "federation.rounds=8",
        "evaluation.every=8",
        NO_MASKS,
    )
    release = plan.train_release()
    assert isinstance(release, RoundedGaussianSum)
    made: list[bool] = []
    original = SecretNoise.bernoulli

    def tossed(self: SecretNoise, n: int, rate: float) -> torch.Tensor:
        made.append(rate == 0.02)
        return original(self, n, rate)

    monkeypatch.setattr(SecretNoise, "bernoulli", tossed)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.stopped is None
    assert made == [True] * 8 * len(CLIENTS)
    known = epsilon(
        [DpSgd(noise_multiplier=release.noise_multiplier, sample_rate=0.02, steps=8)], plan.privacy.delta
    ).epsilon
    rows = folder.read_summary()["privacy"]["clients"]
    assert [row["epsilon"] for row in rows] == pytest.approx([known] * 6, abs=1e-3)


# --- resumed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [(), (NO_MASKS,)], ids=["masks", "no masks"])
@pytest.mark.parametrize("strategy", [MOMENTUM, ADAM], ids=["fedavgm", "fedadam"])
def test_a_run_that_was_killed_between_steps_goes_on_to_the_same_model(
    small_plan: PlanMaker, tmp_path: Path, masks: tuple[str, ...], strategy: tuple[str, ...]
) -> None:
    """The server's momentum is in the checkpoint: it alone knows it."""
    plan = joint_plan(small_plan, *strategy, *masks)
    whole = model_after(plan, tmp_path / "whole")
    with pytest.raises(CutOffError):
        start_run(plan, tmp_path / "run", replace(INLINE, observer=Diary(last=2)))
    folder, outcome = gone_on(tmp_path / "run")
    assert outcome.stopped is None
    assert same_bits(read_parameters(folder.model), whole)
    assert reserved(folder.ledger) == {(name, "train", number): 1 for name in CLIENTS for number in (1, 2, 3)}


def killed_in_round_2(plan: Plan, folder: Path) -> None:
    """Two clients have sent their parts of the second step; the third dies in it."""
    original, calls = client.contribution.contribution, []

    def dying(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == len(CLIENTS) + 3:
            raise CutOffError
        return original(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.app, "contribution", dying)
        patch.setattr("client.secure_update.contribution", dying)
        with pytest.raises(CutOffError):
            start_run(plan, folder, INLINE)


def test_a_step_without_masks_that_was_cut_off_is_asked_for_again_and_paid_once(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = joint_plan(small_plan, *MOMENTUM, NO_MASKS)
    whole = model_after(plan, tmp_path / "whole")
    killed_in_round_2(plan, tmp_path / "run")
    folder, _ = gone_on(tmp_path / "run")
    assert same_bits(read_parameters(folder.model), whole)
    assert reserved(folder.ledger) == {(name, "train", number): 1 for name in CLIENTS for number in (1, 2, 3)}
    assert verify(folder.ledger) == []


def test_a_step_under_masks_that_was_cut_off_takes_a_spare_attempt_and_those_asked_pay_twice(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    """Rule 2; the step itself is the one that would have been."""
    plan = joint_plan(small_plan, *MOMENTUM, "secure_sum.spare_rounds=1")
    whole = model_after(plan, tmp_path / "whole")
    killed_in_round_2(plan, tmp_path / "run")
    folder, _ = gone_on(tmp_path / "run")
    assert same_bits(read_parameters(folder.model), whole)
    twice = {name for (name, _, number), count in reserved(folder.ledger).items() if number == 2 and count == 2}
    assert twice == {"0", "1", "2"}
    rows = folder.read_summary()["privacy"]["clients"]
    assert all(row["epsilon"] <= plan.privacy.epsilon for row in rows)


# --- what comes of it ----------------------------------------------------------------------------------------------


def test_a_step_of_too_few_is_not_opened(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []
    drop = fails_in("train", CLIENTS[:4], times=1)

    def change(name: str, kind: str, reply: Any) -> Any:
        kinds.append(kind)
        return drop(name, kind, reply)

    plan = joint_plan(small_plan, "federation.rounds=1")
    meddle(monkeypatch, change)
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    assert SECURE_SURVIVORS not in kinds
    assert same_bits(read_parameters(folder.model), get_parameters(build_for(plan)))
    assert reserved(folder.ledger) == {(name, "train", 1): 1 for name in CLIENTS}


def test_what_comes_of_it_is_a_report(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, _ = start_run(joint_plan(small_plan, "federation.rounds=1"), tmp_path / "run", INLINE)
    assert isinstance(folder, RunFolder)
    text = (folder.path / "report.html").read_text()
    assert "sum of rounded Gaussians" in text
    assert "at least 3 clients are honest" in text
    assert "everything a client holds" not in text
