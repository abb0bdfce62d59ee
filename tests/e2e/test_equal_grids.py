"""The same plan and seed give the same model wherever clients run (principle 4)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.run_folder import RunFolder
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from tests.e2e.conftest import environment
from tests.simulations.ledger_reading import committed, reserved

pytest.importorskip("ray")
APP = Path(__file__).resolve().parents[2] / "simulations" / "flower_app"
PLAIN = ("federation.rounds=2", "training.steps=4", "privacy.trust=none")
PRIVATE = ("federation.rounds=2", "training.steps=4", "privacy.noise=reproducible")


def model(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.ray
@pytest.mark.parametrize("overrides", [PLAIN, PRIVATE], ids=["no privacy", "reproducible noise"])
def test_veils_own_grids_agree_bit_for_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plan = find_plan("digits", overrides)
    settings = [
        Settings(engine="inline"),
        Settings(engine="ray", workers=1),
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


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Flower's own server for simulations, offline; the environment to call `flwr` in."""
    home = tmp_path / "flower-home"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "sim"\n\n[superlink.sim]\naddress = "127.0.0.1:8000"\ninsecure = true\n'
    )
    bin_folder = str(Path(sys.executable).parent)
    env = {**environment(), "FLWR_HOME": str(home), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    env |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = ["flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    log = (tmp_path / "superlink.log").open("wb")
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True) as process:
        _wait_until_it_answers("http://127.0.0.1:8000/", process)
        yield env
        os.killpg(process.pid, 15)
    log.close()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """The server has no way to say that it is up but to answer: ask until it does, or dies."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("Flower's server did not come up")


def flower_run(out: Path, overrides: tuple[str, ...], superlink: dict[str, str]) -> Path:
    """The same plan under `flwr run`; its folder."""
    command = ["flwr", "run", str(APP), "sim", "--stream"]
    command += ["--federation-config", "num-supernodes=10 client-resources-num-cpus=1"]
    command += ["--run-config", f'set="{" ".join(overrides)}" out="{out}"']
    result = subprocess.run(
        command, env=superlink, cwd=out.parent, capture_output=True, text=True, timeout=240, check=False
    )
    assert (out / "summary.json").exists(), result.stdout + result.stderr
    return out


@pytest.mark.ray
@pytest.mark.flower
@pytest.mark.parametrize("overrides", [PLAIN, (*PRIVATE, "evaluation.where=clients")], ids=["plain", "private"])
def test_flowers_own_engine_agrees(tmp_path: Path, superlink: dict[str, str], overrides: tuple[str, ...]) -> None:
    """To six digits in the model, and to the last entry in the books."""
    inline, _ = start_run(find_plan("digits", overrides), tmp_path / "inline", Settings(engine="inline"))
    found = RunFolder(flower_run(tmp_path / "flower", overrides, superlink))
    expected, other = model(inline.path), model(found.path)
    assert other.keys() == expected.keys()
    assert max(float(np.abs(other[name] - expected[name]).max()) for name in expected) <= 1e-6
    assert reserved(found.ledger) == reserved(inline.ledger) != {}
    assert committed(found.ledger) == committed(inline.ledger)
    if overrides != PLAIN:
        summary = found.read_summary()
        assert summary["final"] == inline.read_summary()["final"]
        assert {row["statement"] for row in summary["privacy"]["clients"]} == {"verified"}
        assert any("the server brings the code" in reason for reason in summary["privacy"]["withdrawn"])
        assert sorted(found.read_statements()) == [str(number) for number in range(10)]
