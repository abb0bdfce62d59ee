"""Runs with compressed updates: after a kill the same model, and nothing added twice. On Ray: tests/e2e."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.federation import Outcome
from server.run_folder import RunFolder
from shared_models.flower_messages import states_from_bytes
from shared_models.parameters import Parameters
from simulations.run import start_run
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import bodies
from tests.simulations.test_run_ledger import CLIENTS, INLINE, CutOffError, Diary, broken, gone_on, once_each

INT8 = ("federation.wire=int8",)
TOP = ("federation.wire=top-k", "federation.top_fraction=0.05")
REPRODUCIBLE = ("privacy.trust=local", "training.steps=1", "privacy.noise=reproducible")
FORMS = pytest.mark.parametrize("form", [INT8, TOP], ids=["int8", "top-k"])
PRIVACY = pytest.mark.parametrize("privacy", [(), REPRODUCIBLE], ids=["no privacy", "reproducible noise"])
VALUES = 64 * 8 + 8 + 8 * 10 + 10  # of the small network


def same_bits(one: Parameters, other: Parameters) -> bool:
    return {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in other.items()
    }


def states(folder: RunFolder) -> dict[str, int]:
    """Of which round the newest checkpoint keeps a remainder, by client."""
    newest = sorted(folder.checkpoints.glob("round-*"))[-1]
    found = states_from_bytes((newest / "clients.json").read_bytes())
    return {
        client: int(state.config_records["veil-left-out-of"]["round"])  # type: ignore[arg-type]
        for client, state in found.items()
        if len(state)
    }


# --- runs that go well ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "strategy"),
    [
        (TOP, ("federation.strategy=fedprox", "training.proximal_mu=0.1")),
        (TOP, ("federation.strategy=fedadam", "federation.strategy_options.eta=0.1")),
        (TOP, ("federation.strategy=multikrum", "federation.strategy_options.num_malicious_nodes=1")),
        (INT8, ("federation.strategy=fedmedian",)),
    ],
    ids=["top-k fedprox", "top-k fedadam", "top-k multikrum", "int8 fedmedian"],
)
def test_every_kind_of_strategy_learns_from_them(
    small_plan: PlanMaker, tmp_path: Path, form: tuple[str, ...], strategy: tuple[str, ...]
) -> None:
    keys = (*form, *strategy, "training.steps=20", "federation.rounds=8", "data.partition.alpha=100.0")
    folder, outcome = start_run(small_plan(*keys), tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    lines = folder.read_metrics()
    assert lines[-1]["evaluation"]["accuracy"] > 0.4  # of ten classes
    up = {INT8: VALUES + 4 * 4 + 256, TOP: round(VALUES * 0.05) * 8 + 256}[form]
    assert {line["bytes_up"] for line in lines} == {10 * up}


# --- killed, and gone on with -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["training", "sending"])
@FORMS
def test_without_privacy_a_round_that_was_cut_off_ends_in_the_same_model(
    small_plan: PlanMaker, tmp_path: Path, where: str, form: tuple[str, ...]
) -> None:
    plan = small_plan(*form)
    _, expected = start_run(plan, tmp_path / "whole", INLINE)
    broken(plan, tmp_path / "run", where)
    folder, outcome = gone_on(tmp_path / "run")
    assert outcome.state.faults == []
    assert same_bits(outcome.parameters, expected.parameters)
    assert not folder.client_log.exists()  # nothing was lost


@FORMS
@PRIVACY
def test_a_run_that_was_cut_off_between_rounds_ends_in_the_same_model(
    small_plan: PlanMaker, tmp_path: Path, form: tuple[str, ...], privacy: tuple[str, ...]
) -> None:
    """The checkpoint keeps what was left out."""
    plan = small_plan(*privacy, *form)
    whole, expected = start_run(plan, tmp_path / "whole", INLINE)
    with pytest.raises(CutOffError):
        start_run(plan, tmp_path / "run", replace(INLINE, observer=Diary(last=2)))
    folder = RunFolder(tmp_path / "run")
    assert states(folder) == (dict.fromkeys(CLIENTS, 2) if form is TOP else {})
    folder, outcome = gone_on(tmp_path / "run")
    assert same_bits(outcome.parameters, expected.parameters)
    assert states(folder) == states(whole)
    assert not folder.client_log.exists()


@pytest.mark.parametrize("where", ["training", "sending"])
def test_under_privacy_eight_bits_that_were_stored_are_sent_again(
    small_plan: PlanMaker, tmp_path: Path, where: str
) -> None:
    plan = small_plan(*REPRODUCIBLE, *INT8)
    _, expected = start_run(plan, tmp_path / "whole", INLINE)
    broken(plan, tmp_path / "run", where)
    folder, outcome = gone_on(tmp_path / "run")
    assert same_bits(outcome.parameters, expected.parameters)
    assert once_each(folder.ledger, 3)


@pytest.mark.parametrize(("where", "lost"), [("training", CLIENTS[:5]), ("sending", CLIENTS[:6])])
def test_under_privacy_a_stored_reply_whose_remainder_died_uses_up_what_was_kept_before(
    small_plan: PlanMaker, tmp_path: Path, where: str, lost: list[str]
) -> None:
    """Clients 0 to 4 (5) had committed round 2; their states died with the process. They say so, and begin anew."""
    plan = small_plan(*REPRODUCIBLE, *TOP)
    broken(plan, tmp_path / "run", where)
    folder, outcome = gone_on(tmp_path / "run")
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    assert once_each(folder.ledger, 3)
    assert len(bodies(folder.ledger, "commit")) == 30
    assert states(folder) == dict.fromkeys(CLIENTS, 3)
    said = folder.client_log.read_text().splitlines()
    assert said == [
        f"round 2  client {client}: what updates before round 2 left out is dropped: the reply was made before, and "
        "what it left out was not kept"
        for client in lost
    ]
    # As if those clients had never kept anything up to round 2, and all others had.
    _, expected = forgetful(small_plan, tmp_path, lost)
    assert same_bits(outcome.parameters, expected.parameters)


def forgetful(small_plan: PlanMaker, tmp_path: Path, clients: list[str]) -> tuple[RunFolder, Outcome]:
    """The unbroken run, in which some clients' states are emptied after round 2."""
    from simulations.worker import Worker

    handle = Worker.handle

    def handling(self: Worker, metadata, content, client, state, *company):  # type: ignore[no-untyped-def]
        if client in clients and metadata.group_id == "3":
            state = type(state)()
        return handle(self, metadata, content, client, state, *company)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "handle", handling)
        return start_run(small_plan(*REPRODUCIBLE, *TOP), tmp_path / "forgetful", INLINE)


def test_what_top_k_leaves_out_matters(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Else the tests above would see nothing."""
    _, kept = start_run(small_plan(*REPRODUCIBLE, *TOP), tmp_path / "kept", INLINE)
    _, dropped = forgetful(small_plan, tmp_path, CLIENTS[:1])
    assert max(float(np.abs(kept.parameters[name] - value).max()) for name, value in dropped.parameters.items()) > 0
