"""The same plan and seed give the same model wherever clients run (principle 4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.run_folder import RunFolder
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from tests.e2e.flower_engine import Engine, free_port
from tests.simulations.ledger_reading import committed, reserved

pytest.importorskip("ray")
APP = Path(__file__).resolve().parents[2] / "simulations" / "flower_app"
PLAIN = ("federation.rounds=2", "training.steps=4", "privacy.trust=none")
PRIVATE = ("federation.rounds=2", "training.steps=4", "privacy.noise=reproducible")
INT8 = ("federation.wire=int8",)
SECURE = (
    "federation.rounds=2",
    "training.steps=4",
    "privacy.unit=client",
    "privacy.trust=distributed",
    "privacy.noise=reproducible",
    "model.name=mlp",
    "model.options.hidden=[]",
)
IN_COMPANIES = ("model.name=mlp", "data.partition.clients=13", "evaluation.where=clients", "training.company=5")
TOP_K = ("federation.wire=top-k", "federation.top_fraction=0.01")  # what round 1 left out is added in round 2


def model(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.ray
@pytest.mark.parametrize(
    "overrides",
    [PLAIN, (*PLAIN, *IN_COMPANIES, *INT8), (*PLAIN, *INT8), (*PRIVATE, *TOP_K), (*SECURE, "secure_sum.rotation=true")],
    ids=["no privacy", "in companies, int8", "int8", "top-k and noise", "secure sum, rotated"],
)
def test_veils_own_grids_agree_bit_for_bit(ray_cluster: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plan = find_plan("digits", overrides)
    settings = [
        Settings(engine="inline"),
        Settings(engine="ray", workers=2),
    ]
    models = [
        model(start_run(plan, tmp_path / str(number), setting)[0].path) for number, setting in enumerate(settings)
    ]
    for number in range(3):  # killed workers leave SQLite's log behind; a ledger alone must be the whole of it
        assert not list((tmp_path / str(number)).glob("ledger.sqlite-*"))
    for other in models[1:]:
        assert {name: value.tobytes() for name, value in other.items()} == {
            name: value.tobytes() for name, value in models[0].items()
        }


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Flower's own server for simulations, offline, on a port of its own."""
    engine, port = Engine(tmp_path_factory.mktemp("flower")), free_port()
    command = ["flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    try:
        engine.start("superlink", *command, "--host", "127.0.0.1", "--port", str(port), port=port)
        engine.connect("sim", address=f"127.0.0.1:{port}", insecure=True)
        yield engine
    finally:
        engine.close()


def flower_run(out: Path, overrides: tuple[str, ...], engine: Engine) -> Path:
    """The same plan under `flwr run`; its folder."""
    said = engine.flwr(
        *("run", str(APP), "sim", "--stream"),
        *("--federation-config", "num-supernodes=10 client-resources-num-cpus=1"),
        *("--run-config", f'set="{" ".join(overrides)}" out="{out}"'),
    )
    assert (out / "summary.json").exists(), said + engine.log("superlink")
    return out


@pytest.mark.ray
@pytest.mark.flower
@pytest.mark.parametrize("overrides", [(*PRIVATE, "evaluation.where=clients"), SECURE], ids=["private", "secure sum"])
def test_flowers_own_engine_agrees(tmp_path: Path, flower: Engine, overrides: tuple[str, ...]) -> None:
    """To six digits in the model, and to the last entry in the books."""
    inline, _ = start_run(find_plan("digits", overrides), tmp_path / "inline", Settings(engine="inline"))
    found = RunFolder(flower_run(tmp_path / "flower", overrides, flower))
    expected, other = model(inline.path), model(found.path)
    assert other.keys() == expected.keys()
    assert max(float(np.abs(other[name] - expected[name]).max()) for name in expected) <= 1e-6
    assert reserved(found.ledger) == reserved(inline.ledger) != {}
    assert committed(found.ledger) == committed(inline.ledger)
    summary = found.read_summary()
    assert summary["final"] == inline.read_summary()["final"]
    assert {row["statement"] for row in summary["privacy"]["clients"]} == {"verified"}
    assert "own-code" in {reason["code"] for reason in summary["privacy"]["withdrawn"]}
    assert sorted(found.read_statements()) == [str(number) for number in range(10)]
