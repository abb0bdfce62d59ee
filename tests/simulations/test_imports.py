"""What a run imports: a plan without privacy pays for no accountant, no DP-SGD engine, no library it doesn't use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Each takes a good part of a second to import, some several.
HEAVY = (
    "datasets",
    "dp_accounting",
    "flwr_datasets",
    "jinja2",
    "mlflow",
    "matplotlib",
    "opacus",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "security.secure_sum.messages_pb2",
    "sklearn",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "torch.distributed.tensor",
    "wandb",
)

ROUND = """
import sys
from pathlib import Path
from server.observer import Silent
from shared_models.plan import Plan
from simulations.run import Settings, start_run

class FirstRound(Silent):
    def round_done(self, record):
        print(record.round, record.updates, *(name for name in {heavy!r} if name in sys.modules))

plan = Plan.model_validate({{
    "data": {{
        "name": "npz",
        "path": "data.npz",
        "partition": {{"kind": "iid", "clients": 5}},
        "card": {{"classes": ["a", "b"], "input_shape": [4]}},
    }},
    "model": {{"name": "mlp", "options": {{"hidden": [3]}}}},
    "training": {{"expected_batch_size": 4, "optimizer": {optimizer!r}, "device": "cpu"}},
    "privacy": {{"trust": "none"}},
    "federation": {{"rounds": 1}},
    "evaluation": {{"where": "none"}},  # metrics are scikit-learn's
}})
start_run(plan, Path("run"), Settings(engine="inline", observer=FirstRound()))
"""


def said(code: str, folder: Path) -> str:
    """What a new process prints."""
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_round_without_privacy_imports_nothing_that_only_others_need(tmp_path: Path, optimizer: str) -> None:
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((60, 4)).astype(np.float32), np.arange(60) % 2
    np.savez(tmp_path / "data.npz", x=x, y=y)
    assert said(ROUND.format(heavy=HEAVY, optimizer=optimizer), tmp_path) == "1 5"


@pytest.mark.parametrize("module", ["simulations.run", "simulations.worker", "client.app"])
def test_neither_do_those_who_only_begin(tmp_path: Path, module: str) -> None:
    assert said(f"import {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))", tmp_path) == ""
