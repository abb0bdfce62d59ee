"""What the study times is what it says: the times themselves are nobody's test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from security.errors import RunError
from shared_models.faults import Fault
from shared_models.protocol import LAYOUT_DIGEST, PLAN_DIGEST
from simulations.attacks.side_channels.clocks import in_turns
from simulations.attacks.side_channels.one_client import Clients
from simulations.attacks.side_channels.paced import paced_times
from simulations.attacks.side_channels.timing import _rounds_plan, some_records, step_of, step_plan
from simulations.attacks.side_channels.worlds import plan_in


def test_both_are_measured_as_often_and_neither_is_always_first() -> None:
    called: list[str] = []
    one, other = in_turns(lambda: called.append("a"), lambda: called.append("b"), trials=50)
    assert len(one) == len(other) == 50
    counted = called[-100:]
    firsts = counted[::2]
    assert counted.count("a") == counted.count("b") == 50
    assert {firsts.count("a"), firsts.count("b")}.isdisjoint({0, 50})


def test_clients_are_granted_each_of_their_rounds_and_refused_for_what_is_wrong(tmp_path: Path) -> None:
    clients = Clients(_rounds_plan(0), {"0": some_records(30), "1": some_records(0)}, tmp_path)
    for client in ("0", "1", "0"):
        assert not clients.granted(client).has_error()
    assert clients.ask("0", **{PLAN_DIGEST: "0" * 64}).error.code == Fault.PLAN_MISMATCH
    assert clients.ask("0", **{LAYOUT_DIGEST: "0" * 64}).error.code == Fault.MODEL_MISMATCH
    assert not clients.granted("1", "evaluate").has_error()
    for _ in range(18):
        clients.granted("0")
    with pytest.raises(RunError, match="did not answer"):
        clients.granted("0")  # the plan has no more rounds


@pytest.mark.parametrize("size", [1.0, 1e37, 1e-40])
def test_a_step_is_the_private_trainers(size: float) -> None:
    change = step_of(step_plan("linear"), some_records(16, size=size))()
    assert isinstance(change, dict)
    assert all(np.isfinite(value).all() for value in change.values())


def test_rule_12_no_reply_of_a_site_that_asks_for_it_leaves_before_its_time(tmp_path: Path) -> None:
    short, long = paced_times(plan_in("no privacy", tmp_path / "none.csv"), every=0.02, trials=3)
    assert len(short) == len(long) == 3
    assert min(*short, *long) >= 0.02
