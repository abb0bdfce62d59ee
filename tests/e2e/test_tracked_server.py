"""A real server tells trackers of its runs: its own files' figures, and no site's name."""

from __future__ import annotations

import json
from pathlib import Path

from server.run_folder import RunFolder
from shared_models.resolve import resolve
from simulations.deployment import demo
from simulations.deployment.pilot import Pilot
from simulations.scenarios import find_plan

OVERRIDES = ("evaluation.baselines=false", "federation.rounds=3")


def test_a_servers_runs_reach_its_trackers_without_the_sites_names(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = resolve(find_plan("hospitals", OVERRIDES))
    pilot = Pilot.provision(tmp_path, demo.HOSPITALS)
    demo.configure(pilot, [plan])
    (pilot.server.path / "in-the-way").write_text("")
    # The third can't be written: that ends no run.
    tracking = {"tensorboard": "boards", "mlflow": "mlflow", "wandb": "offline:in-the-way"}
    pilot.configure_server({"tracking": tracking})
    for name in pilot.sites:
        settings = pilot.site(name).settings
        settings.write_text(settings.read_text().replace('plans = "ask"', 'plans = "policy"'))
    try:
        given = [part for override in OVERRIDES for part in ("--set", override)]
        pilot.start_server("start", str(pilot.server.path), "hospitals", *given)
        for name in pilot.sites:
            pilot.start_site(name, "--until-done")
        for name in ("server", *pilot.sites):
            assert pilot.wait(name, 200) == 0, pilot.output(name)
    finally:
        pilot.close()
    (run,) = (pilot.server.path / "runs").iterdir()
    lines = RunFolder(run).read_metrics()
    assert len(lines) == 3

    (board,) = (pilot.server.path / "boards").iterdir()
    events = EventAccumulator(str(board))
    events.Reload()
    assert [event.step for event in events.Scalars("round/evaluation.auc")] == [1, 2, 3]
    client = MlflowClient(f"sqlite:///{pilot.server.path / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(plan.name)
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_name == board.name == run.name
    assert tracked.data.tags["veil.setting"] == "deployment"
    summary = json.loads((run / "summary.json").read_text())
    assert tracked.data.metrics["summary/privacy.epsilon_max"] == summary["privacy"]["epsilon_max"]

    told = b"".join(
        path.read_bytes()
        for folder in ("boards", "mlflow")
        for path in (pilot.server.path / folder).rglob("*")
        if path.is_file()
    )
    assert b"hospitals" in told
    for secret in (*demo.HOSPITALS, str(tmp_path)):
        assert secret.encode() not in told, secret
    log = pilot.server.log.read_text()
    assert log.count('"warning": "tracker"') == 1
    assert pilot.output("server").count("tracker wandb: FileExistsError; the run goes on without it") == 1
    assert "in-the-way" not in log
