"""The summary: figures that an independent accountant confirms, and words that say what they are worth."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from flwr.app import Message

from privacy.report.catalogue import upper
from server import summary as module
from server.claim import NO_PRIVACY, Remark
from server.replies import ClientFault
from server.run_folder import RunFolder
from server.run_state import RunState
from server.summary import privacy_summary, summarise, versions
from shared_models.faults import Fault
from shared_models.plan import Plan
from tests.server.conftest import (
    PRIVATE,
    Answer,
    Player,
    StreamingFakeGrid,
    counts,
    error,
    learns,
    learns_privately,
    make_plan,
)

CLIENTS = ["north", "south"]
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
STOPS = [None, "target", "plateau", "budget", "failed"]
PLAN = make_plan(
    {"data": {"partition": {"kind": "iid", "clients": 2}}},
    PRIVATE,
    {"training": {"sample_rate": 0.2, "steps": 5}, "federation": {"rounds": 10}, "privacy": {"epsilon": 50.0}},
)
PLAIN = make_plan({"federation": {"rounds": 10}})


def pld(plan: Plan, rounds: int) -> float:
    """Epsilon by dp_accounting itself: nothing of Veil is used but the plan's constants."""
    step = dp_event.PoissonSampledDpEvent(
        plan.training.sample_rate, dp_event.GaussianDpEvent(plan.privacy.noise_multiplier)
    )
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    accountant.compose(dp_event.SelfComposedDpEvent(step, plan.training.local_steps * rounds))
    return float(accountant.get_epsilon(plan.privacy.delta))


def rdp(plan: Plan, rounds: int) -> float:
    step = dp_event.PoissonSampledDpEvent(
        plan.training.sample_rate, dp_event.GaussianDpEvent(plan.privacy.noise_multiplier)
    )
    accountant = RdpAccountant()
    accountant.compose(dp_event.SelfComposedDpEvent(step, plan.training.local_steps * rounds))
    return float(accountant.get_epsilon(plan.privacy.delta))


def state(rounds: int, *, north: int = 0, south: int = 0, fault: ClientFault | None = None) -> RunState:
    """Books after so many rounds: each client took part in some, and one of them may have failed once."""
    found = RunState(round=rounds)
    for client, count in (("north", north), ("south", south)):
        for number in range(1, count + 1):
            found.note_client(number, client, None)
            found.client(client).rounds += 1
    if fault is not None:
        found.note_client(rounds, fault.client, fault)
    return found


def rows(plan: Plan, books: RunState, stopped: str | None = None) -> dict[str, dict[str, Any]]:
    found = privacy_summary(plan, books, stopped=stopped, clients=CLIENTS)
    return {row["id"]: row for row in found["clients"]}


# --- figures ------------------------------------------------------------------------------------------------------


def test_rule_4_the_claimed_epsilon_is_what_dp_accounting_says() -> None:
    found = rows(PLAN, state(10, north=10, south=3))
    for client, rounds in (("north", 10), ("south", 3)):
        assert found[client]["epsilon"] == pytest.approx(pld(PLAN, rounds), abs=1e-6)
        assert found[client]["rdp_epsilon"] == pytest.approx(rdp(PLAN, rounds), abs=1e-6)
        assert found[client]["record_epsilon"] == found[client]["epsilon"]
        assert found[client]["charged_rounds"] == found[client]["rounds"] == rounds
    assert found["north"]["epsilon"] > found["south"]["epsilon"] > 0


def test_the_largest_epsilon_is_that_of_the_client_charged_most() -> None:
    found = privacy_summary(PLAN, state(10, north=2, south=7), stopped=None, clients=CLIENTS)
    assert found["epsilon_max"] == found["clients"][1]["epsilon"]
    assert privacy_summary(PLAN, RunState(), stopped=None, clients=[])["epsilon_max"] == 0.0


def test_a_client_that_was_never_asked_has_spent_nothing() -> None:
    assert rows(PLAN, state(10, north=1))["south"] == {
        "id": "south",
        "epsilon": 0.0,
        "rdp_epsilon": 0.0,
        "record_epsilon": 0.0,
        "person_epsilon": None,
        "budget": 50.0,
        "rounds": 0,
        "charged_rounds": 0,
        "charged_evaluations": 0,
        "refused": 0,
        "withdrawn_rounds": [],
        "unprotected_rounds": [],
        "head": None,
        "statement": None,
    }


@pytest.mark.parametrize("stopped", ["target", "plateau"])
def test_rule_4_a_stop_that_depends_on_the_data_claims_the_planned_rounds(stopped: str) -> None:
    found = rows(PLAN, state(4, north=4, south=1), stopped)
    assert (found["north"]["rounds"], found["north"]["charged_rounds"]) == (4, 10)
    assert found["north"]["epsilon"] == pytest.approx(pld(PLAN, 10), abs=1e-6)
    assert found["south"]["charged_rounds"] == 1 + 6  # it might have been drawn in each round to come


def test_rule_4_so_does_a_failure_for_nobody_can_know_what_it_hung_on() -> None:
    """Nine rounds and the failed tenth, or three and the failed fourth: ten in all."""
    for done in (9, 3, 0):
        books = state(done, north=done)
        books.note_client(done + 1, "north", ClientFault("north", Fault.CLIENT_FAILED))
        assert rows(PLAN, books, "failed")["north"]["charged_rounds"] == 10
    resumed = state(3, north=3)
    for _ in range(2):  # round 4 failed, was played again and failed again: it is charged once
        resumed.note_client(4, "north", ClientFault("north", Fault.UNREACHABLE))
    assert rows(PLAN, resumed, "failed")["north"]["charged_rounds"] == 10


def test_of_a_round_that_failed_only_those_are_charged_who_were_asked_and_did_not_refuse() -> None:
    books = state(3, north=3, south=3)
    books.note_client(4, "south", ClientFault("south", Fault.POLICY_RATE, refused=True))
    found = rows(PLAN, books, "failed")
    assert found["north"]["charged_rounds"] == found["south"]["charged_rounds"] == 3 + 6


@pytest.mark.parametrize("stopped", [None, "budget"])
def test_any_other_end_claims_what_was_charged(stopped: str | None) -> None:
    """A refusal depends on plan, policy and ledger alone (rule 5)."""
    assert rows(PLAN, state(4, north=4), stopped)["north"]["charged_rounds"] == 4


def test_of_rounds_to_come_only_those_count_that_the_budget_would_have_allowed() -> None:
    plan = make_plan(
        PRIVATE, {"federation": {"rounds": 10}, "privacy": {"epsilon": 50.0, "budget": pld(PLAN, 6) + 1e-6}}
    )
    plan = plan.model_copy(update={"training": PLAN.training})
    assert pld(PLAN, 7) > plan.client_budget("north")
    for played, claimed in ((2, 6), (6, 6), (7, 7)):
        row = rows(plan, state(played, north=played), "target")["north"]
        assert row["charged_rounds"] == claimed
        assert row["epsilon"] == pytest.approx(pld(PLAN, claimed), abs=1e-6)
        assert row["budget"] == plan.privacy.budget
    found = rows(plan, state(4, north=4), "target")["north"]
    assert found["epsilon"] <= found["budget"]


def test_a_budget_above_the_plans_epsilon_allows_no_more_than_the_plan() -> None:
    plan = make_plan(PRIVATE, {"privacy": {"epsilon": 3.0, "budget": 9.0}})
    assert rows(plan, RunState())["north"]["budget"] == 3.0


def test_each_client_has_its_own_budget() -> None:
    plan = make_plan(PRIVATE, {"privacy": {"epsilon": 3.0, "budget": 2.0, "client_budgets": {"1": 0.5}}})
    found = privacy_summary(plan, RunState(), stopped=None, clients=["0", "1"])["clients"]
    assert [row["budget"] for row in found] == [2.0, 0.5]


# --- evaluations at clients ---------------------------------------------------------------------------------------

JUDGED = make_plan(
    {"data": {"partition": {"kind": "iid", "clients": 2}}},
    PRIVATE,
    {"training": {"sample_rate": 0.2, "steps": 5}, "federation": {"rounds": 10}, "privacy": {"epsilon": 50.0}},
    {"evaluation": {"where": "clients", "every": 2, "count_noise": 5.0}},
)


def pld_with_counts(plan: Plan, rounds: int, evaluations: int) -> float:
    """Training and noisy counts together, by dp_accounting itself; both counts move by one: sqrt 2 (rule 10)."""
    step = dp_event.PoissonSampledDpEvent(
        plan.training.sample_rate, dp_event.GaussianDpEvent(plan.privacy.noise_multiplier)
    )
    counts = dp_event.GaussianDpEvent(plan.evaluation.count_noise / 2**0.5)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    accountant.compose(dp_event.SelfComposedDpEvent(step, plan.training.local_steps * rounds))
    if evaluations:
        accountant.compose(dp_event.SelfComposedDpEvent(counts, evaluations))
    return float(accountant.get_epsilon(plan.privacy.delta))


def judged(rounds: int, *evaluations: int) -> RunState:
    books = state(rounds, north=rounds)
    for number in evaluations:
        books.note_evaluation(number, "north", None)
    return books


def test_evaluations_are_in_the_epsilon_beside_the_rounds() -> None:
    row = rows(JUDGED, judged(10, 2, 4, 6, 8, 10))["north"]
    assert (row["charged_rounds"], row["charged_evaluations"]) == (10, 5)
    assert row["epsilon"] == pytest.approx(pld_with_counts(JUDGED, 10, 5), abs=1e-6)
    assert row["epsilon"] > pld(JUDGED, 10) + 0.05


@pytest.mark.parametrize(("stopped", "evaluations"), [("target", 5), ("failed", 5), ("budget", 2), (None, 2)])
def test_rule_4_a_stop_that_depends_on_data_claims_the_evaluations_left_out_too(
    stopped: str | None, evaluations: int
) -> None:
    """After round 4; or in round 5, which failed."""
    books = judged(4, 2, 4)
    if stopped == "failed":
        books.note_client(5, "north", None)
    row = rows(JUDGED, books, stopped)["north"]
    rounds = 10 if evaluations == 5 else 4
    assert (row["charged_rounds"], row["charged_evaluations"]) == (rounds, evaluations)
    assert row["epsilon"] == pytest.approx(pld_with_counts(JUDGED, rounds, evaluations), abs=1e-6)


def test_the_evaluation_of_a_failed_round_is_still_to_come() -> None:
    """Round 6 failed after its updates came; had it gone well, its model would have been judged."""
    books = judged(5, 2, 4)
    books.note_client(6, "north", None)
    row = rows(JUDGED, books, "failed")["north"]
    assert (row["charged_rounds"], row["charged_evaluations"]) == (10, 5)


def test_what_is_to_come_is_what_the_clients_own_ledger_would_admit() -> None:
    """Its envelope is the longest beginning of the plan that the budget covers, here six rounds and three
    evaluations; within it rounds may come in any order, so a client drawn late is claimed no less."""
    limit = pld_with_counts(JUDGED, 6, 3) + 1e-6
    plan = make_plan(JUDGED.model_dump(exclude_none=True), {"privacy": {"budget": limit}})
    books = RunState(round=4)
    for number in (1, 3):
        books.note_client(number, "north", None)
    row = rows(plan, books, "target")["north"]
    assert (row["charged_rounds"], row["charged_evaluations"]) == (6, 3)
    assert row["epsilon"] <= row["budget"]


def test_failures_are_charged_and_refusals_are_not() -> None:
    failed = rows(PLAN, state(3, north=2, fault=ClientFault("north", Fault.TIMED_OUT)))["north"]
    assert (failed["rounds"], failed["charged_rounds"], failed["refused"]) == (2, 3, 0)
    assert failed["epsilon"] == pytest.approx(pld(PLAN, 3), abs=1e-6)
    refused = rows(PLAN, state(3, north=2, fault=ClientFault("north", Fault.BUDGET_EXHAUSTED, refused=True)))["north"]
    assert (refused["rounds"], refused["charged_rounds"], refused["refused"]) == (2, 2, 1)


def test_where_no_epsilon_can_be_computed_none_is_claimed() -> None:
    """Infinity is no figure, and no JSON either."""
    weak = make_plan(PRIVATE, {"privacy": {"noise_multiplier": 0.05}, "training": {"sample_rate": 0.9}})
    found = privacy_summary(weak, state(10, north=10), stopped=None, clients=CLIENTS)
    assert found["clients"][0]["epsilon"] is None
    assert found["clients"][1]["epsilon"] == 0.0
    assert found["epsilon_max"] is None
    assert [one["clients"] for one in found["withdrawn"] if one["code"] == "priced"] == [["north"]]
    json.dumps(found, allow_nan=False)


# --- words --------------------------------------------------------------------------------------------------------


def test_without_privacy_it_says_so_and_prints_no_figure() -> None:
    found = privacy_summary(PLAIN, state(10, north=10), stopped=None, clients=CLIENTS)
    assert found["unit"] is None
    assert found["trust"] == "none"
    assert found["claim"] is None
    assert found["withdrawn"] == [NO_PRIVACY.to_json()]
    assert "protects nobody" in NO_PRIVACY.text
    assert found["clients"][0]["rounds"] == 10
    assert {row["epsilon"] for row in found["clients"]} == {None}
    assert {row["charged_rounds"] for row in found["clients"]} == {0}


def test_principle_3_every_figure_stands_beside_what_it_means() -> None:
    found = privacy_summary(PLAN, state(10, north=10), stopped=None, clients=CLIENTS)
    assert found["unit"] == "record, not person"
    assert found["trust"] == "local"
    assert found["relation"] == "add or remove one unit"
    assert found["delta"] == PLAN.privacy.delta
    assert "PLD" in found["accountant"]
    assert "RDP beside it" in found["accountant"]
    assert (found["noise_multiplier"], found["clipping_norm"]) == (4.0, 1.0)
    assert (found["sample_rate"], found["steps_a_round"]) == (0.2, 5)
    assert found["selection"] == "uncharged"


def test_rule_9_a_simulation_claims_nothing() -> None:
    stated = dict.fromkeys(CLIENTS, "verified")
    found = privacy_summary(PLAN, state(10, north=10), stopped=None, clients=CLIENTS, statements=stated)
    assert found["claim"] is None
    assert codes(found["withdrawn"]) == ["deployed"]


def codes(remarks: list[dict[str, Any]]) -> list[str]:
    return [remark["code"] for remark in remarks]


def deployed(books: RunState, statements: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """The privacy part of a deployment's summary; unless told otherwise both clients' statements hold."""
    stated = dict.fromkeys(CLIENTS, "verified") if statements is None else statements
    given = {"stopped": None, "clients": CLIENTS, "statements": stated, "simulated": False} | more
    return privacy_summary(PLAN, books, **given)


def test_principle_3_a_deployment_that_meets_every_condition_claims_each_epsilon_with_all_that_it_means() -> None:
    found = deployed(state(10, north=10, south=3))
    assert found["withdrawn"] == []
    north, south = (upper(pld(PLAN, rounds)) for rounds in (10, 3))
    assert found["claim"] == (
        f"each record is protected against everybody, the server included: epsilon at most {north} at north, {south} "
        "at south, with delta 1e-05 (unit: record, not person; relation: add or remove one unit; accountant: PLD, "
        "pessimistic, interval 0.001; selection: uncharged), as far as the assumptions hold"
    )
    assert codes(found["assumptions"]) == ["noise-testimony", "batch-independence", "record-not-person"]


STATEMENTS = ["verified", "not verified: the ledger is shorter than the server has seen it", "none: unreachable"]


@pytest.mark.parametrize("said", [*STATEMENTS[1:], None])
def test_a_client_without_a_verified_statement_ends_the_claim_and_is_named(said: str | None) -> None:
    stated = {"north": "verified"} | ({} if said is None else {"south": said})
    found = deployed(state(3, north=3, south=3), stated)
    assert found["claim"] is None
    assert found["withdrawn"] == [
        {"code": "stated", "text": "no verified statement: clients south", "clients": ["south"]}
    ]
    assert deployed(state(3, north=3, south=0), stated)["claim"] is not None  # it was charged nothing


def test_a_gap_that_an_owner_wrote_off_ends_the_claim() -> None:
    assert codes(deployed(state(3, north=3), gaps=["north"])["withdrawn"]) == ["no-gap"]


def test_what_the_grid_does_not_meet_ends_the_claim() -> None:
    found = deployed(state(3, north=3), also_withdrawn=[Remark(code="own-code", text="the server brings the code")])
    assert found["claim"] is None
    assert codes(found["withdrawn"]) == ["own-code"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda books: books.note_client(4, "south", ClientFault("south", Fault.CLIENT_FAILED)), "no-client-failed"),
        (lambda books: books.client("south").note_unprotected(2), "nothing-unprotected"),
        (lambda books: books.client("south").contradicted.append(2), "ledgers-grow"),
    ],
)
def test_a_condition_that_fails_for_one_client_leaves_the_run_without_a_claim(
    spoil: Callable[[RunState], None], code: str
) -> None:
    books = state(3, north=3, south=3)
    spoil(books)
    found = deployed(books)
    assert found["claim"] is None
    assert [(one["code"], one["clients"]) for one in found["withdrawn"]] == [(code, ["south"])]


def test_a_run_that_charged_nothing_claims_nothing() -> None:
    found = deployed(RunState(), {})
    assert (found["claim"], found["withdrawn"]) == (None, [])


def test_versions_name_what_computed_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"python", "flwr", "torch", "opacus", "dp-accounting", "numpy"} <= versions().keys()
    monkeypatch.setattr(module, "_PACKAGES", ("no-such-package",))
    assert versions().keys() == {"python"}


def test_times_and_best_model() -> None:
    books = RunState(round=2, seconds=3.14159, first_round_seconds=2.0, evaluation={"accuracy": 0.5})
    books.progress = books.progress.after(PLAIN.evaluation, 2, 0.5)
    found = summarise(PLAIN, books, stopped=None, reason=None, clients=CLIENTS, startup_seconds=1.0)
    assert found["seconds"] == {"startup": 1.0, "first_round": 2.0, "rounds": 3.142, "total": 4.142}
    assert found["best"] == {"round": 2, "metric": "accuracy", "value": 0.5}
    assert found["final"] == {"accuracy": 0.5}
    nothing = summarise(PLAIN, RunState(), stopped="failed", reason="why", clients=[], startup_seconds=1.0)
    assert nothing["seconds"]["first_round"] is None
    assert nothing["best"] is None
    assert (nothing["stopped"], nothing["reason"]) == ("failed", "why")


# --- schemas ------------------------------------------------------------------------------------------------------


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return found


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(name))


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object in a schema."""
    if isinstance(node, dict):
        if "properties" in node and isinstance(node["properties"], dict) and node.get("type") == "object":
            yield node
        for child in node.values():
            yield from objects(child)
    elif isinstance(node, list):
        for child in node:
            yield from objects(child)


@pytest.mark.parametrize("name", ["summary", "metrics"])
def test_a_schema_is_closed_and_describes_each_property(name: str) -> None:
    found = schema(name)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(found)
    count = 0
    for node in objects(found):
        assert node["additionalProperties"] is False
        assert set(node["required"]) <= set(node["properties"])
        for key, value in node["properties"].items():
            target = found["$defs"][value["$ref"].split("/")[-1]] if "$ref" in value else value
            assert target.get("description"), key
            count += 1
    assert count > 15


def judges(trains: Answer, epsilon: float | None) -> Answer:
    """A client that judges the model too."""

    def answer(client: str, message: Message) -> list[Message]:
        judging = message.metadata.message_type == "evaluate"
        return [counts(message, 3, 7, epsilon=epsilon)] if judging else trains(client, message)

    return answer


def outputs(play: Player) -> Iterator[tuple[Plan, RunFolder, dict[str, Any]]]:
    """Real runs of each kind and each end: their folders and summaries."""

    def judge(value: float) -> Any:
        return lambda parameters: {"accuracy": value, "loss": 1.0}

    answers: dict[str, dict[str, Answer]] = {
        "good": {},
        "faulty": {"south": lambda client, message: [error(message, Fault.CLIENT_FAILED)]},
        "silent": {client: lambda client, message: [] for client in CLIENTS},
        "poor": {client: lambda client, message: [error(message, Fault.BUDGET_EXHAUSTED)] for client in CLIENTS},
    }
    for private in (False, True):
        for evaluation, kinds in (
            ({"target": 0.5}, ("good",)),
            ({"patience": 1}, ("good", "faulty")),
            ({"every": 2}, ("faulty", "silent", "poor")),
            ({"where": "none"}, ("good",)),
            ({"where": "clients"}, ("good", "faulty", "silent")),
        ):
            plan = make_plan(PRIVATE if private else {}, {"federation": {"rounds": 3}, "evaluation": evaluation})
            honest = judges(learns_privately if private else learns, 0.75 if private else None)
            for kind in kinds:
                grid = StreamingFakeGrid(CLIENTS, dict.fromkeys(CLIENTS, honest) | answers[kind])
                evaluate = None if "where" in evaluation else judge(0.9 if "target" in evaluation else 0.2)
                played = play(plan, grid, evaluate=evaluate)
                outcome = played.outcome
                found = summarise(
                    plan,
                    outcome.state,
                    stopped=outcome.stopped,
                    reason=outcome.reason,
                    clients=list(outcome.nodes),
                    startup_seconds=0.1,
                    statements=dict(zip(CLIENTS, STATEMENTS[: len(CLIENTS)], strict=True)) if private else None,
                    simulated=kind != "good",
                )
                played.folder.write_summary(found)
                yield plan, played.folder, found


def test_real_outputs_are_as_their_schemas_say(play: Player) -> None:
    seen = set()
    for plan, folder, _ in outputs(play):
        summary, lines = folder.read_summary(), folder.read_metrics()
        validator("summary").validate(summary)
        for line in lines:
            validator("metrics").validate(line)
        seen.add((plan.is_private, summary["stopped"], bool(summary["faults"])))
    assert {stopped for _, stopped, _ in seen} == set(STOPS)
    assert {(private, faults) for private, _, faults in seen} == {(a, b) for a in (False, True) for b in (False, True)}


def paths(node: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the objects are in a value."""
    if isinstance(node, dict):
        yield at
        for key, child in node.items():
            yield from paths(child, (*at, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from paths(child, (*at, i))


def inside(node: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        node = node[part]
    return node


def test_a_field_too_many_or_too_few_anywhere_is_found(play: Player) -> None:
    """Only metrics that are undefined, and packages that aren't installed, may be missing."""
    optional = {("final",), ("versions",), ("evaluation",), ("baselines", "rows", 0, "metrics")}
    remarks = ("withdrawn", "assumptions", "disclosed")
    checked = 0
    for _, folder, found in outputs(play):
        table = {"metrics": ["auc"], "rows": [{"name": "federated", "metrics": {"auc": 0.9}}]}
        values = [("summary", {**found, "baselines": table}), *(("metrics", line) for line in folder.read_metrics())]
        for name, value in values:
            check = validator(name)
            assert check.is_valid(value)
            for path in paths(value):
                spoilt = copy.deepcopy(value)
                inside(spoilt, path)["mean-age"] = 54.0
                assert not check.is_valid(spoilt), path
                checked += 1
                for key in inside(value, path) if path not in optional else ():
                    if set(path) & {*remarks} and (key in ("clients", "values") or "values" in path):
                        continue  # a remark has them where it concerns somebody, or mentions something
                    spoilt = copy.deepcopy(value)
                    del inside(spoilt, path)[key]
                    assert not check.is_valid(spoilt), (path, key)
                    checked += 1
    assert checked > 500


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("stopped",), "crash"),
        (("plan_digest",), "abc"),
        (("rounds",), -1),
        (("rounds",), 1.5),
        (("privacy", "unit"), "person"),
        (("privacy", "unit"), None),
        (("privacy", "trust"), "none"),
        (("setting",), "production"),
        (("privacy", "claim"), 3.0),
        (("privacy", "withdrawn", 0), "simulated, not a claim: all clients ran in one place"),
        (("privacy", "withdrawn", 0, "code"), "Not a code"),
        (("privacy", "withdrawn", 0, "clients"), []),
        (("privacy", "delta"), 0),
        (("privacy", "clients", 0, "epsilon"), -0.1),
        (("privacy", "clients", 0, "withdrawn_rounds"), [0]),
        (("faults", 0, "reason"), "patient 4711 has it"),
        (("privacy", "clients", 0, "statement"), "trust me"),
        (("privacy", "clients", 0, "statement"), "none: it has 54 patients"),
        (("privacy", "clients", 0, "head"), {"position": -1, "hash": "0" * 64}),
        (("privacy", "clients", 0, "unprotected_rounds"), [0]),
        (("final", "accuracy"), 1.1),
        (("final", "accuracy_low"), -0.1),
    ],
)
def test_a_wrong_value_is_found(path: tuple[str | int, ...], value: object) -> None:
    books = state(3, north=3, fault=ClientFault("south", Fault.CLIENT_FAILED))
    books.evaluation = {"accuracy": 0.5}
    found = summarise(PLAN, books, stopped=None, reason=None, clients=CLIENTS, startup_seconds=0.5)
    assert validator("summary").is_valid(found)
    inside(found, path[:-1])[path[-1]] = value
    assert not validator("summary").is_valid(found)
