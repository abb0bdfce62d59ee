"""Whole runs with attackers: what breaks the mean, what holds, and what no attacker can do."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from client.app import app as honest_app
from security.errors import UsageError
from server.evaluation import TestData
from server.run_folder import read_parameters
from shared_models.parameters import get_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.attacks.poisoning.__main__ import main
from simulations.attacks.poisoning.app import APP, PoisonedApp
from simulations.attacks.poisoning.attack import KINDS, POISONING, Kind, Poisoning
from simulations.attacks.poisoning.play import Poisoned, backdoor_success, play_poisoned, poisoning_of
from simulations.inline_grid import InlineGrid
from simulations.run import Settings
from simulations.scenarios import find_plan
from simulations.worker import DEFAULT_APP
from tests.simulations.conftest import PlanMaker, config_of, train_messages

INLINE = Settings(engine="inline")
TEN = (
    "data.partition={ kind = 'iid', clients = 10 }",
    "model.options.hidden=[16]",
    "federation.rounds=8",
    "federation.weighting=uniform",
    "training.steps=5",
    "training.company=10",
    "evaluation.every=8",
)


def played(plan: Plan, kind: Kind, share: float, folder: Path, **changes: object) -> Poisoned:
    poisoning = poisoning_of(plan, kind, share, **changes)  # type: ignore[arg-type]
    return play_poisoned(plan, poisoning, folder / f"{kind}-{share}-{plan.federation.strategy}", INLINE)[1]


def robust(small_plan: PlanMaker, name: str, options: str = "{}") -> Plan:
    return small_plan(*TEN, f"federation.strategy={name}", f"federation.strategy_options={options}")


def test_one_boosted_update_of_ten_breaks_the_mean_and_the_median_holds(small_plan: PlanMaker, tmp_path: Path) -> None:
    mean, median = small_plan(*TEN), robust(small_plan, "fedmedian")
    unharmed = played(mean, "scaled", 0.0, tmp_path)
    assert unharmed.accuracy > 0.8
    assert played(mean, "scaled", 0.1, tmp_path).accuracy < unharmed.accuracy - 0.3
    assert played(median, "scaled", 0.1, tmp_path).accuracy > unharmed.accuracy - 0.05
    assert played(robust(small_plan, "normbound"), "scaled", 0.1, tmp_path).accuracy > unharmed.accuracy - 0.05


def test_a_replaced_model_has_the_backdoor_and_under_a_median_it_has_not(small_plan: PlanMaker, tmp_path: Path) -> None:
    broken = played(small_plan(*TEN), "replacement", 0.1, tmp_path)
    assert broken.backdoor is not None
    assert broken.backdoor > 0.8
    held = played(robust(small_plan, "fedmedian"), "replacement", 0.1, tmp_path)
    assert held.backdoor is not None
    assert held.backdoor < 0.1


def test_sybils_beat_the_mean_and_not_the_median_below_half(small_plan: PlanMaker, tmp_path: Path) -> None:
    unharmed = played(small_plan(*TEN), "sybil", 0.0, tmp_path).accuracy
    assert played(small_plan(*TEN), "sybil", 0.3, tmp_path).accuracy < unharmed - 0.3
    median = robust(small_plan, "fedmedian")
    assert played(median, "sybil", 0.3, tmp_path).accuracy > unharmed - 0.05
    assert played(median, "sybil", 0.6, tmp_path).accuracy < unharmed - 0.3  # the majority is the median


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavg", "{}"),
        ("normbound", "{}"),
        ("krum", "{ num_malicious_nodes = 3 }"),
        ("multikrum", "{ num_malicious_nodes = 3, num_nodes_to_select = 5 }"),
        ("bulyan", "{ num_malicious_nodes = 1 }"),
        ("fedmedian", "{}"),
        ("fedtrimmedavg", "{ beta = 0.3 }"),
    ],
)
def test_nan_bombs_are_dropped_and_break_no_run(small_plan: PlanMaker, tmp_path: Path, name: str, options: str) -> None:
    plan = robust(small_plan, name, options)
    found = played(plan, "nan", 0.3, tmp_path)
    assert found.stopped is None
    assert found.dropped == 3 * 8
    assert found.accuracy > 0.7


@pytest.mark.parametrize("strength", [1e10, 1e37])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("normbound", "{}"),
        ("krum", "{ num_malicious_nodes = 3 }"),
        ("multikrum", "{ num_malicious_nodes = 3, num_nodes_to_select = 5 }"),
        ("fedmedian", "{}"),
        ("fedtrimmedavg", "{ beta = 0.3 }"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_finite_bombs_break_no_robust_strategy(
    small_plan: PlanMaker, tmp_path: Path, name: str, options: str, strength: float
) -> None:
    """Noise as large as float32 holds passes for an update; squares of it don't fit."""
    plan = robust(small_plan, name, options)
    found = played(plan, "noise", 0.3, tmp_path, strength=strength)
    assert (found.stopped, found.dropped) == (None, 0)
    if name != "normbound":  # there bombs are three clients' votes for chance
        assert found.accuracy > 0.7


def test_who_may_say_its_weight_outweighs_everybody(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Weights by numbers of records are what clients say. With equal weights a claim is no reply at all."""
    heavy = ("data.partition={ kind = 'iid', clients = 10 }", "federation.rounds=3", "evaluation.every=3")
    told = {}
    for weighting in ("examples", "uniform"):
        plan = small_plan(*heavy, f"federation.weighting={weighting}")
        attack = replace(poisoning_of(plan, "backdoor", 0.1), weight=2**29)
        told[weighting] = play_poisoned(plan, attack, tmp_path / weighting, INLINE)[1]
    assert told["examples"].dropped == 0
    assert told["examples"].backdoor is not None
    assert told["examples"].backdoor > 0.8
    assert told["uniform"].dropped == 3
    assert told["uniform"].backdoor is not None
    assert told["uniform"].backdoor < 0.2


def test_nan_has_no_way_into_a_clipped_sum(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Under client-level privacy a client that is not finite counts as zeros, and changes no reply's type (rule 5)."""
    for trust in ("central", "distributed"):
        changes = (
            *TEN,
            "privacy.unit=client",
            f"privacy.trust={trust}",
            "privacy.epsilon=",
            "privacy.noise_multiplier=0.5",
        )
        masks = () if trust == "central" else ("secure_sum.masks=false",)
        found = played(small_plan(*changes, *masks), "nan", 0.3, tmp_path / trust)
        assert found.stopped is None
        assert np.isfinite(found.accuracy)


# --- who is honest


def answers(plan: Plan, folder: Path, app: str, told: dict[str, str]) -> dict[str, Message]:
    folder.mkdir()
    grid = InlineGrid(CLIENTS, config={**told, **config_of(plan, folder)}, app=app)
    try:
        return dict(zip(CLIENTS, grid.stream(train_messages(plan, grid, CLIENTS)), strict=True))
    finally:
        grid.close()


CLIENTS = [str(number) for number in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_reply_is_that_of_the_app_bit_for_bit_and_an_attackers_is_not(
    small_plan: PlanMaker, tmp_path: Path, kind: Kind
) -> None:
    plan = small_plan("data.partition={ kind = 'iid', clients = 4 }", "model.options.hidden=[8]")
    attack = Poisoning(kind=kind, attackers=("1", "3"), clients=4, classes=10)
    honest = answers(plan, tmp_path / "honest", DEFAULT_APP, {})
    attacked = answers(plan, tmp_path / "attacked", APP, {POISONING: attack.to_json()})
    for client in CLIENTS:
        ours, theirs = attacked[client].content, honest[client].content
        assert set(ours) == set(theirs)
        same = ours["arrays"] == theirs["arrays"]
        assert same == (client not in attack.attackers)
        if client not in attack.attackers:
            assert ours["metrics"] == theirs["metrics"]
    if kind in ("little", "sybil"):
        assert attacked["1"].content["arrays"] == attacked["3"].content["arrays"]


def test_an_app_that_is_told_nothing_has_no_attackers(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("data.partition={ kind = 'iid', clients = 4 }", "model.options.hidden=[8]")
    honest = answers(plan, tmp_path / "honest", DEFAULT_APP, {})
    untold = answers(plan, tmp_path / "untold", APP, {})
    assert all(untold[client].content["arrays"] == honest[client].content["arrays"] for client in CLIENTS)
    module, name = APP.split(":")
    assert isinstance(getattr(importlib.import_module(module), name), PoisonedApp)
    assert type(honest_app) is not PoisonedApp


def test_attackers_are_the_same_on_ray(small_plan: PlanMaker, tmp_path: Path, ray_cluster: Path) -> None:
    plan = small_plan(
        "data.partition={ kind = 'iid', clients = 6 }", "federation.rounds=2", "federation.strategy=fedmedian"
    )
    attack = poisoning_of(plan, "little", 0.5)
    runs = []
    for name, settings in (("inline", INLINE), ("ray", Settings(engine="ray", workers=2))):
        folder, _ = play_poisoned(plan, attack, tmp_path / name, settings)
        runs.append(read_parameters(folder.model))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])


# --- scores


def test_backdoor_success_counts_triggered_pictures_of_other_classes(small_plan: PlanMaker) -> None:
    """A linear model that looks at one corner pixel alone: bright is the target, dark is class 1."""
    plan = small_plan("model.name=linear", "model.options={}")
    parameters = {name: np.zeros_like(value) for name, value in get_parameters(build_for(plan)).items()}
    weight = next(name for name, value in parameters.items() if value.ndim == 2)
    bias = next(name for name, value in parameters.items() if value.ndim == 1)
    parameters[weight][4, -1] = 1.0
    parameters[bias][1] = 0.5
    test = TestData(torch.zeros(6, 1, 8, 8), torch.tensor([4, 4, 4, 1, 2, 3]))
    attack = Poisoning(kind="backdoor", attackers=(), clients=4, classes=10, target=4)
    assert backdoor_success(plan, parameters, test, attack) == 1.0
    assert backdoor_success(plan, parameters, test, replace(attack, bright=0.4)) == 0.0
    test.x[4, :, :, 0] = (
        1.0  # another model's: looks at the opposite corner as well, and one picture defeats the trigger
    )
    parameters[weight][7, 0] = 2.0
    assert backdoor_success(plan, parameters, test, attack) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ("privacy.unit=client", "privacy.trust=central", "privacy.adaptive={}"),
            "adaptive",
        ),
        (("personal={ keep = 'head' }",), "personal"),
    ],
)
def test_a_plan_that_is_not_attacked_here_is_refused(
    small_plan: PlanMaker, changes: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        poisoning_of(small_plan(*changes), "nan", 0.1)


def test_a_backdoor_needs_pictures() -> None:
    plan = resolve(find_plan("hospitals-plain"))
    with pytest.raises(UsageError, match="needs pictures"):
        poisoning_of(plan, "backdoor", 0.25)
    assert poisoning_of(plan, "label-flip", 0.25).classes == 2


def test_a_model_that_the_server_does_not_judge_is_refused(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("evaluation.where=clients")
    attack = Poisoning(kind="nan", attackers=(), clients=10, classes=10)
    with pytest.raises(UsageError, match=r"evaluation\.where"):
        play_poisoned(plan, attack, tmp_path / "run", INLINE)
    assert not (tmp_path / "run").exists()


def test_the_command_prints_both_runs_and_refuses_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "federation.rounds=1", "--set", "model.name=linear", "--set", "model.options={}"]
    main(["digits-plain", "--attack", "nan", "--share", "0.3", *small])
    without, attacked = capsys.readouterr().out.splitlines()
    assert without.startswith("0 of 10 attack: accuracy 0.")
    assert attacked.startswith("3 of 10 attack: accuracy 0.")
    assert attacked.endswith("3 replies left out")
    for wrong, words in ((["--share", "1.5"], "from 0 to 1"), (["--set", "federation.rounds=none"], "rounds")):
        with pytest.raises(SystemExit) as caught:
            main(["digits-plain", *wrong])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
