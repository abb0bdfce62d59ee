"""A run whose clients are taken for sites: what it claims, in summary, report and on the console."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import simulations.run
from client.books import Books
from privacy.report import Facts
from privacy.statement import verify_statement
from security.identity import Identity
from server.app import ServerJob
from server.run_folder import RunFolder
from simulations.run import Settings, start_run
from tests.simulations.conftest import PlanMaker
from veil.commands.console import Console

CLIENTS = ("0", "1", "2")
SMALL = ("training.steps=1", "federation.rounds=2", "data.partition.clients=3")

Play = Callable[..., RunFolder]


@pytest.fixture
def play(small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays a run as a deployment, whose server knows the owners' keys or those that a test gives it."""

    def deployment(*overrides: str, keys: Mapping[str, str] = MappingProxyType({})) -> RunFolder:
        def job(*, folder: RunFolder, **given: Any) -> ServerJob:
            books = Books.of_simulation(folder.ledger)
            known = {name: books.owner(name).public_hex for name in CLIENTS} | keys
            books.ledger.close()
            identities = {name: key for name, key in known.items() if key}
            return ServerJob(**{**given, "folder": folder, "simulated": False, "identities": identities})

        monkeypatch.setattr(simulations.run, "ServerJob", job)
        folder, _ = start_run(
            small_plan(*SMALL, *(overrides or ("privacy.trust=local",))), tmp_path / "run", Settings(engine="inline")
        )
        return folder

    return deployment


def report_of(folder: RunFolder) -> Facts:
    return Facts.from_json(json.loads((folder.path / "report.json").read_text()))


def test_principle_3_a_deployed_run_claims_what_its_clients_have_signed_for(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = play()
    summary = folder.read_summary()
    privacy = summary["privacy"]
    assert summary["setting"] == "deployment"
    assert privacy["withdrawn"] == []
    assert privacy["claim"].startswith("each record is protected against everybody, the server included: epsilon at m")
    assert {row["statement"] for row in privacy["clients"]} == {"verified"}
    facts = report_of(folder)
    assert facts.status == "stands"
    assert facts.balances[0].verdict.epsilon == pytest.approx(privacy["epsilon_max"])
    Console(as_json=False).closing(folder)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"claim: {privacy['claim']}" in shown
    assert "no claim" not in shown
    assert shown.count("assumed: ") == 3


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "no key of its owner is known here"),
        (Identity.derive(bytes(16), "another").public_hex, "signed by another key"),
    ],
)
def test_rule_8_a_statement_counts_only_if_the_sites_own_key_signed_it(play: Play, key: str, said: str) -> None:
    folder = play(keys={"1": key})
    privacy = folder.read_summary()["privacy"]
    assert verify_statement(folder.read_statements()["1"])  # somebody signed it
    assert said in {row["id"]: row["statement"] for row in privacy["clients"]}["1"]
    assert privacy["claim"] is None
    assert privacy["withdrawn"] == [{"code": "stated", "text": "no verified statement: clients 1", "clients": ["1"]}]
    verdict = report_of(folder).balances[0].verdict
    assert (verdict.status, verdict.clients_withdrawn, verdict.reasons) == ("stands", 1, ("stated",))


def test_without_privacy_a_deployment_claims_nothing(play: Play) -> None:
    folder = play("privacy.trust=none")
    summary = folder.read_summary()
    assert (summary["setting"], summary["privacy"]["claim"]) == ("deployment", None)
    assert report_of(folder).status == "none"


def test_a_deployment_of_secure_sums_claims_against_the_server_and_its_report_says_the_same(play: Play) -> None:
    folder = play(
        "privacy.unit=client", "privacy.trust=distributed", "model.options.hidden=[]", "secure_sum.corrupt=0.0"
    )
    privacy = folder.read_summary()["privacy"]
    assert privacy["withdrawn"] == []
    assert "the server included, while in every sum at least 2 clients are honest" in privacy["claim"]
    assert {row["statement"] for row in privacy["clients"]} == {"verified"}
    facts = report_of(folder)
    (balance,) = facts.balances
    assert facts.status == "stands"
    assert (balance.basis.unit, balance.basis.trust) == ("client", "distributed")
    assert balance.verdict.epsilon == pytest.approx(privacy["epsilon_max"])
    assert "secure-sum" in {one.code for one in facts.conditions if one.status == "assumed"}
