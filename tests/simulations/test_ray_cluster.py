"""Several machines: the model and the books are those of one, even if a machine dies in the middle of a round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("ray")

from safetensors.numpy import load_file

from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from simulations.run import Settings, start_run
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import committed, reserved
from tests.simulations.placed_app import LAST_ROUND

pytestmark = pytest.mark.ray
CLIENTS, ROUNDS = 10, 3
WITHIN = 240.0
HOME = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cluster:
    """Two runs that were played on two nodes.

    Attributes:
        whole: folder of the one that was left in peace.
        broken: of the one that lost a node in mid-round.
        stays, goes: ids of the nodes.
        at_work: the client whose node was killed while it trained.
    """

    whole: Path
    broken: Path
    stays: str
    goes: str
    at_work: str


@pytest.fixture(scope="module")
def plan(small_plan: PlanMaker) -> Plan:
    return small_plan("privacy.trust=local", "privacy.noise=reproducible", "training.steps=1")


@pytest.fixture(scope="module")
def cluster(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Played once, in a process of its own: this one's Ray has a single node."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "plan.toml").write_text(write_plan(plan))
    command = [sys.executable, "-m", "tests.simulations.two_nodes", str(folder)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WITHIN, check=False, env=environment, cwd=HOME
    )
    assert done.returncode == 0, done.stderr[-2000:]
    nodes = json.loads((folder / "nodes.json").read_text())
    (client,) = nodes.pop("at_work")
    return Cluster(whole=folder / "whole", broken=folder / "broken", at_work=client, **nodes)


@pytest.fixture(scope="module")
def alone(plan: Plan, ray_cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a single node."""
    settings = Settings(engine="ray", workers=1)
    return start_run(plan, tmp_path_factory.mktemp("alone") / "run", settings)[0].path


@pytest.fixture(scope="module")
def inline(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without Ray."""
    return start_run(plan, tmp_path_factory.mktemp("inline") / "run", Settings(engine="inline"))[0].path


def model(folder: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(RunFolder(folder).model).items()}


def told(folder: Path) -> list[dict[str, object]]:
    """What the run tells of its rounds, but for how long they took."""
    return [{**line, "seconds": None} for line in RunFolder(folder).read_metrics()]


def places(folder: Path) -> dict[int, dict[str, list[str]]]:
    """In each round, by client: the nodes on which it trained, in order."""
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for line in (folder / "places.log").read_text().splitlines():
        node, number, client = line.split()
        found[int(number)][client].append(node)
    return found


def test_clients_train_on_both_nodes(cluster: Cluster) -> None:
    for number, clients in places(cluster.whole).items():
        assert {node for nodes in clients.values() for node in nodes} == {cluster.stays, cluster.goes}, number
        assert {len(nodes) for nodes in clients.values()} == {1}, number


def test_two_nodes_give_the_model_and_the_metrics_of_one(cluster: Cluster, alone: Path, inline: Path) -> None:
    assert model(cluster.whole) == model(alone) == model(inline)
    assert told(cluster.whole) == told(alone) == told(inline)


def test_a_node_that_dies_in_mid_round_changes_nothing(cluster: Cluster, alone: Path) -> None:
    assert RunFolder(cluster.broken).read_summary()["stopped"] is None
    assert model(cluster.broken) == model(alone)
    assert told(cluster.broken) == told(alone)


def test_who_was_on_the_dead_node_is_asked_again_on_the_other(cluster: Cluster) -> None:
    before, during, after = (places(cluster.broken)[number] for number in (1, LAST_ROUND, ROUNDS))
    assert cluster.goes in {node for nodes in before.values() for node in nodes}
    assert during.pop(cluster.at_work) == [cluster.goes, cluster.stays]
    for clients in (during, after):
        assert {tuple(nodes) for nodes in clients.values()} == {(cluster.stays,)}


def test_each_client_is_charged_once_a_round_wherever_it_trained(cluster: Cluster) -> None:
    """Principle 5: the client that the node died with had been charged, and goes on under that reservation."""
    once = {(str(client), "train", number): 1 for client in range(CLIENTS) for number in range(1, ROUNDS + 1)}
    for folder in (cluster.whole, cluster.broken):
        ledger = RunFolder(folder).ledger
        assert reserved(ledger) == committed(ledger) == once


def test_every_client_signs_for_what_it_spent(cluster: Cluster) -> None:
    for folder in (cluster.whole, cluster.broken):
        clients = RunFolder(folder).read_summary()["privacy"]["clients"]
        assert [(row["charged_rounds"], row["statement"]) for row in clients] == [(ROUNDS, "verified")] * CLIENTS
