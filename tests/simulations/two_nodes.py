"""A Ray cluster of two nodes on this machine, and two runs on it: one in peace, one that loses a node in mid-round.

`python -m tests.simulations.two_nodes FOLDER` plays the `plan.toml` there, and leaves the runs' folders and
`nodes.json`: the ids of the node that stays and of the one that goes, and the client that was at work on it. A process
of its own, for a process has but one Ray.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from ray.cluster_utils import Cluster

from security.errors import RunError
from shared_models.plan_file import read_plan
from simulations.run import Settings, start_run
from tests.simulations.placed_app import DOOMED

QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""How soon a silent node counts as dead; by default after a quarter of a minute."""


def main(folder: Path) -> None:
    """Play both runs."""
    plan, pipe = read_plan(folder / "plan.toml"), folder / "doomed"
    quiet = {"include_dashboard": False, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args={**quiet, "_system_config": QUICK})
    try:
        doomed = cluster.add_node(**quiet, env_vars={DOOMED: str(pipe)})
        settings = Settings(engine="ray", ray_address=cluster.address, app="tests.simulations.placed_app:app")
        start_run(plan, folder / "whole", settings)
        os.mkfifo(pipe)
        asked: list[str] = []

        def execute() -> None:
            asked.append(pipe.read_text().strip())  # waits until a client on the node is at work
            cluster.remove_node(doomed, allow_graceful=False)

        executioner = threading.Thread(target=execute, daemon=True)
        executioner.start()
        start_run(plan, folder / "broken", settings)
        if not asked:
            raise RunError("nobody was at work on the node that was to go")
        executioner.join()
        nodes = {"stays": cluster.head_node.node_id, "goes": doomed.node_id, "at_work": asked}
        (folder / "nodes.json").write_text(json.dumps(nodes))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
