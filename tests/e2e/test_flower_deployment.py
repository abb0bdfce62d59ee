"""Veil over Flower's own deployment engine, with TLS and a key for each node, as the documentation says to do it."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.run_folder import RunFolder
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from tests.e2e.flower_engine import Engine, free_port, missing_commands
from tests.simulations.ledger_reading import committed, reserved

pytestmark = [
    pytest.mark.flower,
    pytest.mark.skipif(bool(missing_commands()), reason=f"not installed: {', '.join(missing_commands())}"),
]
ROOT = Path(__file__).resolve().parents[2]
NODES = ("north", "south")
STRANGERS = {
    "stranger": "[code: 2004] Failed to activate SuperNode",
    "keyless": "[code: 2001] SuperNode authentication is enabled",
}
TINY = (
    "data.partition.clients=2",
    "federation.min_clients=2",
    "federation.rounds=1",
    "model.name=mlp",
    "training.steps=2",
)
PLAIN = (*TINY, "privacy.trust=none")
PRIVATE = (*TINY, "privacy.noise=reproducible")


@dataclass(frozen=True)
class Deployment:
    """A SuperLink, the two SuperNodes that it knows, and two that it doesn't."""

    engine: Engine
    address: str
    strangers: dict[str, subprocess.Popen[bytes]]

    def nodes(self) -> list[str]:
        """The state of each node that the SuperLink knows."""
        listed = self.engine.flwr("supernode", "list", "lab", "--format", "json")
        return [node["status"] for node in json.loads(listed)["nodes"]]

    def run(self, overrides: tuple[str, ...]) -> RunFolder:
        """The digits under `flwr run`; its folder."""
        folder = RunFolder(self.engine.folder / f"run-{len(list(self.engine.folder.glob('run-*')))}")
        config = f'set="{" ".join(overrides)}" out="{folder.path}"'
        app = str(ROOT / "simulations" / "flower_app")
        said = self.engine.flwr("run", app, "lab", "--stream", "--run-config", config)
        logs = [self.engine.log(name) for name in ("superlink", *NODES)]
        assert folder.summary.exists(), "\n".join([said, *logs])
        return folder


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    engine = Engine(tmp_path_factory.mktemp("flower"))
    try:
        yield deploy(engine)
    finally:
        engine.close()


def deploy(engine: Engine) -> Deployment:
    make_keys(engine.folder, "server", "127.0.0.1")
    for name in (*NODES, "stranger"):
        make_keys(engine.folder, "node", name)
    port = free_port()
    address = f"127.0.0.1:{port}"
    link = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth"]
    link += ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    engine.start("superlink", *link, "--database", "state.db", "--disable-runtime-dependency-installation", port=port)
    engine.connect("lab", address=address, root_certificates=engine.folder / "ca.pem")
    for name in NODES:
        engine.flwr("supernode", "register", f"{name}.pub", "lab", "--name", name)
    for number, name in enumerate((*NODES, *STRANGERS)):
        own = free_port()
        node = ["flower-supernode", "--superlink", address, "--root-certificates", "ca.pem", "--port", str(own)]
        node += ["--node-config", f"partition-id={number % 2} num-partitions=2"]
        if name != "keyless":
            node += ["--auth-supernode-private-key", name]
        engine.start_only(name, *node)
    found = Deployment(engine, address, {name: engine.process(name) for name in STRANGERS})
    engine.wait(lambda: found.nodes() == ["online"] * len(NODES), "both nodes are online", by="superlink")
    return found


def make_keys(folder: Path, *arguments: str) -> None:
    """Run the script that the documentation gives."""
    documents = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    (script,) = re.findall(r'```python\n("""[^"]*`flower_keys\.py .*?)```', documents, flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=folder, check=True, timeout=60)


def test_the_server_shows_a_certificate_of_its_authority(deployment: Deployment) -> None:
    def ask(context: ssl.SSLContext) -> int:
        with urllib.request.urlopen(f"https://{deployment.address}/health", context=context, timeout=10) as answer:
            return int(answer.status)

    trusting = ssl.create_default_context(cafile=deployment.engine.folder / "ca.pem")
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    assert ask(trusting) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(ssl.create_default_context())


def apps(deployment: Deployment, name: str) -> list[Path]:
    """The code that the server brought to a node."""
    return list(deployment.engine.home(name).glob("apps/*"))


@pytest.mark.parametrize("overrides", [PLAIN, PRIVATE], ids=["no privacy", "reproducible noise"])
def test_the_model_is_the_simulations_bit_for_bit(
    deployment: Deployment, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    inline, _ = start_run(find_plan("digits", overrides), tmp_path / "inline", Settings(engine="inline"))
    found = deployment.run(overrides)
    assert all(apps(deployment, name) for name in NODES)
    assert found.model.read_bytes() == inline.model.read_bytes()
    assert reserved(found.ledger) == reserved(inline.ledger) != {}
    assert committed(found.ledger) == committed(inline.ledger)
    summary, expected = found.read_summary(), inline.read_summary()
    assert summary["final"] == expected["final"]
    assert summary["faults"] == []
    assert summary["privacy"]["claim"] is None
    if overrides == PRIVATE:
        assert {row["statement"] for row in summary["privacy"]["clients"]} == {"verified"}
        lacking = {reason["code"] for reason in summary["privacy"]["withdrawn"]}
        assert lacking - {reason["code"] for reason in expected["privacy"]["withdrawn"]} == {"own-code"}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_node_that_is_not_registered_does_nothing(deployment: Deployment, name: str) -> None:
    assert deployment.strangers[name].wait(timeout=60) != 0
    assert STRANGERS[name] in deployment.engine.log(name)
    assert deployment.nodes() == ["online"] * len(NODES)
    assert not apps(deployment, name)
