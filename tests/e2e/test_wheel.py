"""The built wheel, installed away from the sources, beside a user's own `server.py` and `client/`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import environment

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--set", "federation.rounds=1", "--set", "training.steps=1", "--set", "model.name=mlp")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel alone; its dependencies come from this environment."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "veil"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in files.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(dist.glob("veil_fl-*.whl"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return site


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A user's folder with files that have our packages' names."""
    (tmp_path / "server.py").write_text("raise SystemExit('the decoy server.py was imported')\n")
    for name in ("client", "simulations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the decoy {name} was imported')\n")
    return tmp_path


def run(arguments: list[str], site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**environment(), "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_the_command_runs_in_a_folder_with_decoys(site: Path, decoys: Path, engine: str) -> None:
    result = run([str(site / "bin" / "veil"), "simulate", "digits", *TINY, "--engine", engine, "--json"], site, decoys)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rounds"] == 1


def test_a_script_beside_decoys_is_refused_by_name_and_path(site: Path, decoys: Path) -> None:
    (decoys / "mine.py").write_text("from veil import Plan, simulate\n")
    result = run(["mine.py"], site, decoys)
    assert result.returncode != 0
    assert f"Veil's package 'client' is hidden by {decoys / 'client' / '__init__.py'}" in result.stderr
    assert "the decoy" not in result.stderr


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_plain_script_uses_the_api(site: Path, tmp_path: Path, engine: str) -> None:
    (tmp_path / "mine.py").write_text(
        "from veil import Plan, load_run, simulate\n"
        "plan = Plan.load('digits', ['federation.rounds=2', 'training.steps=1', 'model.name=mlp'])\n"
        f"run = simulate(plan, out='here', engine='{engine}')\n"
        "print(len(run.metrics), sum(p.numel() for p in run.model().parameters()), run.report['trust'])\n"
        "print(load_run('here').summary['rounds'])\n"
    )
    result = run(["mine.py"], site, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2", "6570", "local", "2"]


def test_the_wheel_is_typed_and_holds_what_it_needs(site: Path) -> None:
    for name in ("veil/py.typed", "simulations/scenarios/digits.toml", "client/datasets/data/heart_disease_uci.csv"):
        assert (site / name).is_file(), name
    assert not (site / "tests").exists()
    assert not (site / "docs").exists()
