"""Every network that a plan can name takes part in a whole run of each kind: its model moves, no claim is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.run_folder import read_parameters
from shared_models.example_form import ExampleForm
from shared_models.parameters import get_parameters
from shared_models.plan_file import plan_from
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.run import Settings, start_run
from tests.shared_models.zoo import NAMES, examples, forms, labels

CLIENTS, EACH = 6, 12
PRIVACY: dict[str, dict[str, Any]] = {
    "no privacy": {"trust": "none"},
    "record, local": {"trust": "local", "epsilon": 20.0},
    "record, distributed": {"trust": "distributed", "epsilon": 20.0},
    "client, distributed": {"unit": "client", "trust": "distributed", "epsilon": 50.0},
    "client, central": {"unit": "client", "trust": "central", "epsilon": 50.0},
}
SMALL: dict[str, dict[str, Any]] = {
    "convnet": {"channels": [4, 8], "hidden": 8},
    "transformer": {"dim": 12, "heads": 3, "depth": 1},
    "vit": {"dim": 12, "heads": 3, "depth": 1},
    "recurrent": {"hidden": 8},
}


def form_of(name: str) -> ExampleForm:
    """A small one of values, which an .npz holds."""
    return next(form for form in forms(name) if form.vocabulary is None)


@pytest.mark.parametrize("privacy", PRIVACY)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_trained(name: str, privacy: str, tmp_path: Path) -> None:
    form = form_of(name)
    n = CLIENTS * EACH
    np.savez(tmp_path / "data.npz", x=examples(form, n).numpy(), y=labels(form, n).numpy())
    data = {
        "name": "npz",
        "path": str(tmp_path / "data.npz"),
        "partition": {"kind": "iid", "clients": CLIENTS},
        "card": {"classes": [str(i) for i in range(form.classes)], "input_shape": list(form.shape)},
    }
    plan = resolve(
        plan_from(
            {
                "name": "zoo",
                "data": data,
                "model": {"name": name, "options": SMALL.get(name, {})},
                "training": {"steps": 1, "expected_batch_size": 4, "sample_rate": 0.5},
                "privacy": PRIVACY[privacy],
                "federation": {"rounds": 1},
                "evaluation": {"where": "server"},
                **({"secure_sum": {"masks": False}} if "distributed" in privacy else {}),
            },
            where="test",
        )
    )
    folder, _ = start_run(plan, tmp_path / "run", Settings(engine="inline"))
    summary = folder.read_summary()
    assert (summary["rounds"], summary["stopped"], summary["faults"]) == (1, None, [])
    before, after = get_parameters(build_for(plan)), read_parameters(folder.model)
    moved = {key: float(np.abs(after[key] - before[key]).max()) for key in before}
    assert all(np.isfinite(change) for change in moved.values())
    assert any(change > 0 for change in moved.values())
    if privacy == "no privacy":
        assert summary["privacy"].get("epsilon_max") is None
    else:
        assert 0 < summary["privacy"]["epsilon_max"] <= PRIVACY[privacy]["epsilon"]
