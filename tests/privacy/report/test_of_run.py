"""A run's report: figures that the accountant confirms, and a verdict that no fact is stronger than."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from privacy import accountant
from privacy.mechanisms import DpSgd, Gaussian, NoisyCounts, SkellamSum
from privacy.report import Facts, facts_of_run, figures
from privacy.report.accounts import BalanceFacts
from tests.privacy.report import examples
from tests.privacy.report.examples import (
    DELTA,
    ROUND,
    SITES,
    charge,
    failed,
    ledger,
    metrics,
    plan,
    remark,
    row,
    summary,
)

PLD = "PLD, pessimistic, interval 0.001"


def only(facts: Facts) -> BalanceFacts:
    (balance,) = facts.balances
    return balance


def statuses(facts: Facts) -> dict[str, str]:
    return {one.code: one.status for one in facts.conditions}


def run(rows: list[dict[str, Any]], *, rounds: int, plan_: dict[str, Any] | None = None, **more: Any) -> Facts:
    inputs = {key: more.pop(key) for key in ("ledgers", "statements") if key in more}
    return facts_of_run(
        plan=plan_ or plan(), summary=summary(rows, rounds=rounds, **more), metrics=metrics(rounds), **inputs
    )


class TestVerdict:
    def test_a_deployed_run_whose_conditions_are_all_met_claims_its_largest_epsilon(self) -> None:
        facts = facts_of_run(**examples.deployed())
        verdict = only(facts).verdict
        assert facts.status == verdict.status == "stands"
        assert verdict.epsilon == accountant.epsilon({ROUND: 12}, DELTA).epsilon
        assert verdict.basis is not None
        assert (verdict.basis.unit, verdict.basis.trust, verdict.basis.delta) == ("record", "local", DELTA)
        assert (verdict.basis.relation, verdict.basis.accountant) == ("add or remove one unit", PLD)
        assert verdict.left == pytest.approx(4.0 - verdict.epsilon)
        assert "not-met" not in statuses(facts).values()

    def test_a_simulation_is_not_a_claim(self) -> None:
        assert facts_of_run(**examples.simulated()).status == "simulated"

    def test_a_run_is_a_deployment_only_if_its_summary_says_so(self) -> None:
        found = summary([row("a", 3)], rounds=3)
        for said in ({**found, "setting": "simulation"}, {k: v for k, v in found.items() if k != "setting"}):
            facts = facts_of_run(plan=plan(), summary=said, metrics=metrics(3))
            assert facts.status == "simulated"
            assert statuses(facts)["deployed"] == "not-met"

    def test_noise_that_others_may_know_is_no_simulation(self) -> None:
        facts = run([row("a", 3)], rounds=3, withdrawn=[remark("secret-noise")])
        assert facts.status == "withdrawn"
        assert (
            run([row("a", 3)], rounds=3, withdrawn=[examples.SIMULATED, remark("secret-noise")]).status == "simulated"
        )

    @pytest.mark.parametrize("reason", [remark("something-newer", "no version before knew it"), examples.SERVERS_CODE])
    def test_any_other_reason_withdraws_the_claim(self, reason: dict[str, Any]) -> None:
        facts = run([row("a", 3)], rounds=3, withdrawn=[examples.SIMULATED, reason])
        assert facts.status == "withdrawn"

    def test_without_privacy_nobody_is_protected(self) -> None:
        facts = facts_of_run(**examples.plain())
        assert facts.status == "none"
        assert facts.balances == facts.charged == ()
        assert {one.kind for one in facts.released} == {"unprotected"}

    def test_a_run_that_charged_nothing_yet_is_empty(self) -> None:
        facts = run([row("a", 0)], rounds=0)
        assert facts.status == "empty"
        assert only(facts).meaning is None

    def test_a_client_withdrawn_by_itself_is_left_out_of_the_claim(self) -> None:
        facts = run([row("a", 3), row("b", 9), row("c", 5)], rounds=9, withdrawn=[failed("b")])
        verdict = only(facts).verdict
        assert (verdict.status, verdict.clients, verdict.clients_withdrawn) == ("stands", 3, 1)
        assert verdict.epsilon == accountant.epsilon({ROUND: 5}, DELTA).epsilon
        assert {one.client: one.withdrawn for one in only(facts).accounts} == {
            "a": (),
            "b": ("no-client-failed",),
            "c": (),
        }

    def test_all_clients_withdrawn_by_themselves_withdraw_the_claim(self) -> None:
        assert run([row("a", 3), row("b", 9)], rounds=9, withdrawn=[failed("a", "b")]).status == "withdrawn"

    def test_a_client_without_a_verified_statement_is_left_out_of_the_claim(self) -> None:
        facts = facts_of_run(**examples.remote())
        verdict = only(facts).verdict
        assert (verdict.status, verdict.clients, verdict.clients_withdrawn) == ("stands", 4, 1)
        assert {one.client: one.withdrawn for one in only(facts).accounts if one.withdrawn} == {"Doubs": ("stated",)}

    def test_what_is_assumed_is_told_of_every_figure(self) -> None:
        for example in (examples.deployed, examples.simulated, examples.remote):
            found = statuses(facts_of_run(**example()))
            assert {code for code, status in found.items() if status == "assumed"} == {
                "noise-testimony",
                "batch-independence",
                "record-not-person",
            }
        without = examples.remote()["summary"]
        bare = {**without, "privacy": {k: v for k, v in without["privacy"].items() if k != "assumptions"}}
        facts = facts_of_run(plan=plan(), summary=bare, metrics=metrics(12))
        assert statuses(facts)["batch-independence"] == "assumed"  # nor can a summary leave it out

    def test_one_client_without_a_price_leaves_no_largest_epsilon(self) -> None:
        nothing = row("b", 1) | {"epsilon": None, "rdp_epsilon": None, "record_epsilon": None}
        lacking = [remark("priced", "spent too much for an epsilon to be computed: clients a", "a")]
        facts = run([row("a", 3), nothing], rounds=3)
        assert only(facts).verdict.epsilon is None
        assert only(facts).accounts[0].client == "b"
        assert run([row("a", 3), nothing], rounds=3, withdrawn=lacking).status == "stands"

    def test_what_is_left_is_of_the_client_that_has_least(self) -> None:
        verdict = only(run([row("a", 9), row("b", 3, budget=0.7)], rounds=9)).verdict
        spent = accountant.epsilon({ROUND: 3}, DELTA).epsilon
        assert (verdict.budget, verdict.left) == (0.7, 0.7 - spent)


class TestBooks:
    def test_the_ledgers_epsilon_is_computed_anew(self) -> None:
        facts = run([row("a", 3) | {"epsilon": 0.0, "rdp_epsilon": 0.0}], rounds=3, ledgers=[ledger("a", 3)])
        account = only(facts).accounts[0]
        assert account.epsilon == accountant.epsilon({ROUND: 3}, DELTA).epsilon
        assert account.rdp_epsilon == accountant.epsilon({ROUND: 3}, DELTA).rdp_epsilon

    def test_a_ledger_that_holds_more_than_the_summary_withdraws_that_claim(self) -> None:
        facts = run([row("a", 3), row("b", 3)], rounds=3, ledgers=[ledger("a", 4), ledger("b", 3)])
        assert statuses(facts)["books-agree"] == "not-met"
        accounts = {one.client: one for one in only(facts).accounts}
        assert accounts["a"].withdrawn == ("books-agree",)
        assert accounts["a"].epsilon == accountant.epsilon({ROUND: 4}, DELTA).epsilon
        assert accounts["b"].withdrawn == ()

    def test_a_summary_that_claims_more_than_was_charged_keeps_its_claim(self) -> None:
        # A stop that depends on the data claims the planned rounds (rule 4).
        facts = run([row("a", 20)], rounds=3, stopped="target", ledgers=[ledger("a", 3)])
        assert statuses(facts)["books-agree"] == "met"
        assert statuses(facts)["planned-rounds-claimed"] == "met"
        assert only(facts).verdict.epsilon == accountant.epsilon({ROUND: 20}, DELTA).epsilon
        assert only(facts).meaning == figures.meaning(Counter({ROUND: 20}), failure=DELTA)

    def test_a_reservation_without_a_commit_counts_as_spent_and_a_refusal_does_not(self) -> None:
        charges = (charge(1), charge(2, status="reserved"), charge(3, status="refused", reason="policy"))
        account = only(run([row("a", 2)], rounds=3, ledgers=[ledger("a", 2, charges=charges)])).accounts[0]
        assert account.epsilon == accountant.epsilon({ROUND: 2}, DELTA).epsilon
        assert (account.charged_rounds, account.open_rounds) == (2, 1)

    def test_charges_of_other_plans_are_not_of_this_run(self) -> None:
        charges = (charge(1), charge(1, plan="aa" * 32), charge(2, plan="aa" * 32))
        facts = run([row("a", 1)], rounds=1, ledgers=[ledger("a", 1, charges=charges)])
        assert only(facts).accounts[0].epsilon == accountant.epsilon({ROUND: 1}, DELTA).epsilon

    def test_training_and_evaluation_are_charged_together(self) -> None:
        counts = NoisyCounts(noise=30.0)
        both = accountant.epsilon({ROUND: 2, counts: 2}, DELTA)
        charges = tuple(
            charge(number, release, phase=phase)
            for number in (1, 2)
            for release, phase in ((ROUND, "train"), (counts, "evaluate"))
        )
        facts = run([row("a", 2) | {"epsilon": both.epsilon}], rounds=2, ledgers=[ledger("a", 2, charges=charges)])
        assert only(facts).accounts[0].epsilon == both.epsilon
        assert [(one.mechanism, one.phase, one.most, one.total) for one in facts.charged] == [
            ("dp-sgd", "train", 2, 2),
            ("noisy-counts", "evaluate", 2, 2),
        ]
        assert only(facts).paths[0].points[-1].value == both.epsilon

    def test_epsilons_of_unlike_units_are_never_added(self) -> None:
        client = Gaussian(noise_multiplier=9.0)
        charges = (charge(1), charge(1, client, phase="mean", unit="client", trust="central"))
        facts = run([row("a", 1)], rounds=1, ledgers=[ledger("a", 1, charges=charges)])
        record, whole = facts.balances
        assert record.verdict.epsilon == accountant.epsilon({ROUND: 1}, DELTA).epsilon
        assert whole.verdict.epsilon == accountant.epsilon({client: 1}, DELTA).epsilon
        assert (whole.basis.unit, whole.basis.trust) == ("client", "central")
        assert {one.who: one.outcome for one in whole.coalitions}["server"] == "breaks"

    def test_a_secure_sum_is_claimed_by_rdp_and_names_its_honest_clients(self) -> None:
        share = SkellamSum(noise_share=40.0, honest=3, l2_sensitivity=8.0, dimension=10)
        charges = tuple(charge(number, share, trust="distributed") for number in (1, 2))
        spent = accountant.epsilon({share: 2}, DELTA)
        rows = [row(site, 2) | {"epsilon": spent.epsilon} for site in SITES]
        facts = run(rows, rounds=2, trust="distributed", ledgers=[ledger(site, 2, charges=charges) for site in SITES])
        assert only(facts).verdict.epsilon == spent.epsilon
        assert only(facts).basis.accountant.startswith("RDP")
        found = {one.who: one for one in only(facts).coalitions}
        assert found["server"].outcome == "stands"
        assert found["server-and-clients"].outcome == "depends"
        assert dict(found["server-and-clients"].values) == {"honest": "3", "clients": "4"}
        assert statuses(facts)["honest-clients"] == "unchecked"

    def test_a_charge_without_a_price_leaves_no_claim(self) -> None:
        charges = (charge(1, releases=(({"mechanism": "magic"}, 1),)),)
        facts = run([row("a", 1), row("b", 1)], rounds=1, ledgers=[ledger("a", 1, charges=charges), ledger("b", 1)])
        account = next(one for one in only(facts).accounts if one.client == "a")
        assert (account.epsilon, account.withdrawn) == (None, ("priced",))
        assert facts.charged[0].epsilon is not None
        assert next(one for one in facts.charged if one.mechanism == "magic").epsilon is None

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"verified": False}, "ledgers-verified"),
            ({"withdrawn": True}, "no-gap"),
            ({"charges": (charge(1, status="reserved", reason="client-failed"),)}, "no-client-failed"),
            ({"fields": (examples.FieldView(name="train-loss", kind="unprotected", count=1),)}, "nothing-unprotected"),
        ],
    )
    def test_what_a_ledger_admits_withdraws_its_clients_claim(self, changes: dict[str, Any], code: str) -> None:
        facts = run([row("a", 1), row("b", 1)], rounds=1, ledgers=[ledger("a", 1, **changes), ledger("b", 1)])
        withdrawn = {one.client: one.withdrawn for one in only(facts).accounts}
        assert withdrawn == {"a": (code,), "b": ()}

    def test_what_is_entrusted_is_disclosed_and_withdraws_nothing_else(self) -> None:
        fields = (examples.FieldView(name="train-loss", kind="entrusted", count=1, receiver="hub"),)
        facts = run([row("a", 1)], rounds=1, ledgers=[ledger("a", 1, fields=fields)])
        assert statuses(facts)["entrusted"] == "outside"
        assert facts.status == "stands"
        assert [(one.kind, one.receiver) for one in facts.released] == [("entrusted", "hub")]

    def test_a_statement_that_does_not_hold_withdraws_its_clients_claim(self) -> None:
        false = examples.statement("a", verified=False, problem="forged")
        facts = run([row("a", 1), row("b", 1)], rounds=1, statements=[false, examples.statement("b")])
        assert {one.client: one.withdrawn for one in only(facts).accounts} == {"a": ("statements-verified",), "b": ()}

    def test_what_the_server_has_against_a_statement_stands_beside_its_signature(self) -> None:
        rows = [row("a", 1, statement="not verified: signed by another key"), row("b", 1, statement="verified")]
        facts = run(rows, rounds=1, statements=[examples.statement("a"), examples.statement("b")])
        assert [(one.verified, one.problem) for one in facts.statements] == [
            (True, "signed by another key"),
            (True, None),
        ]

    @pytest.mark.parametrize(("position", "lacking"), [(2, False), (3, True), (4, True)])
    def test_a_statement_about_an_entry_that_the_ledger_lacks_withdraws_the_claim(
        self, position: int, lacking: bool
    ) -> None:
        # One round makes a ledger whose head is entry 3; the statement's hash is not that head's.
        facts = run(
            [row("a", 1)], rounds=1, ledgers=[ledger("a", 1)], statements=[examples.statement("a", position=position)]
        )
        assert (statuses(facts)["statements-match"] == "not-met") is lacking


class TestWithoutLedgers:
    """What the server of a deployment knows: its own books alone."""

    def test_training_and_evaluation_are_charged_by_the_summary(self) -> None:
        counts = NoisyCounts(noise=40.0)
        both = accountant.epsilon({ROUND: 12, counts: 3}, DELTA).epsilon
        example = examples.remote()
        top = {**example["summary"]["privacy"]["clients"][0], "epsilon": both}
        facts = facts_of_run(
            plan=example["plan"], summary=summary([top], rounds=12), metrics=metrics(12), statements=()
        )
        assert [(one.mechanism, one.phase, one.most, one.total) for one in facts.charged] == [
            ("dp-sgd", "train", 12, 12),
            ("noisy-counts", "evaluate", 3, 3),
        ]
        assert only(facts).meaning == figures.meaning(Counter({ROUND: 12, counts: 3}), failure=DELTA)

    def test_every_value_that_left_is_listed(self) -> None:
        released = {one.name: (one.kind, one.count) for one in facts_of_run(**examples.remote()).released}
        assert released["arrays"] == ("charged", 12 + 11 + 10 + 9)
        assert released["metrics.correct"] == released["metrics.total"] == ("charged", None)
        assert released["epsilon"] == ("public", None)

    def test_so_is_what_left_unprotected(self) -> None:
        asked = plan(privacy={"unprotected": ["train-loss"]})
        for rounds, found in (([], None), ([1, 2], ("unprotected", 2))):
            facts = run([row("a", 2, unprotected_rounds=rounds)], rounds=2, plan_=asked)
            assert {one.name: (one.kind, one.count) for one in facts.released}.get("metrics.train-loss") == found


class TestSelection:
    @pytest.mark.parametrize("how", ["public", "charged"])
    def test_a_choice_that_costs_nothing_or_was_paid_for_is_a_condition_met(self, how: str) -> None:
        assert statuses(run([row("a", 1)], rounds=1, selection=how))["selection"] == "met"

    def test_a_choice_by_looking_at_the_data_is_not_covered_and_no_condition_says_otherwise(self) -> None:
        found = statuses(run([row("a", 1)], rounds=1, selection="uncharged", disclosed=[remark("selection-uncharged")]))
        assert found["selection-uncharged"] == "outside"
        assert "selection" not in found


class TestPaths:
    def test_without_ledgers_the_servers_own_figures_are_shown(self) -> None:
        facts = facts_of_run(**examples.simulated())
        (path,) = only(facts).paths
        assert path.client is None
        assert [point.at for point in path.points] == list(range(1, 13))
        assert path.forecast[-1].at == 20

    def test_largest_median_and_lowest_are_shown_and_equal_histories_once(self) -> None:
        assert [path.which for path in only(facts_of_run(**examples.deployed())).paths] == [
            "largest",
            "median",
            "lowest",
        ]
        same = run([row(site, 5) for site in SITES], rounds=5, ledgers=[ledger(site, 5) for site in SITES])
        assert [path.which for path in only(same).paths] == ["largest"]

    def test_the_forecast_stops_at_the_budget_of_its_client(self) -> None:
        facts = run([row("a", 5, budget=1.0)], rounds=5, ledgers=[ledger("a", 5)])
        (path,) = only(facts).paths
        assert path.last_covered is not None
        assert accountant.epsilon({ROUND: path.last_covered}, DELTA).epsilon <= 1.0
        assert accountant.epsilon({ROUND: path.last_covered + 1}, DELTA).epsilon > 1.0
        assert only(facts).budget_line == 1.0

    def test_a_thousand_clients_ask_the_accountant_no_more_than_their_few_histories_need(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        example = examples.big(200, 30)
        asked: set[tuple[object, float]] = set()
        epsilon = accountant.epsilon

        def counted(releases: Any, delta: float) -> Any:
            asked.add((accountant.history(releases), delta))
            return epsilon(releases, delta)

        monkeypatch.setattr(accountant, "epsilon", counted)
        facts = facts_of_run(**example)
        assert len(only(facts).accounts) == 200
        assert len(asked) < 80


class TestPeople:
    def test_person_and_record_stand_side_by_side(self) -> None:
        both = DpSgd(noise_multiplier=2.0, sample_rate=1.0, steps=1, records_per_unit=3)
        person, record = (
            accountant.epsilon({both: 2}, DELTA).epsilon,
            accountant.epsilon({DpSgd(noise_multiplier=2.0, sample_rate=1.0, steps=1): 2}, DELTA).epsilon,
        )
        rows = [row("a", 2, release=both, record_epsilon=record, person_epsilon=person)]
        facts = run(rows, rounds=2, unit="person, at most 3 records each", sample_rate=1.0, steps_a_round=1)
        account = only(facts).accounts[0]
        assert only(facts).basis.unit == "person:3"
        assert (account.record_epsilon, account.person_epsilon) == (record, person)
        assert statuses(facts)["person-bounded"] == "met"

    def test_without_a_bound_the_unit_is_no_person(self) -> None:
        assert statuses(facts_of_run(**examples.deployed()))["record-not-person"] == "assumed"


class TestLists:
    def test_refusals_and_faults_are_told_apart_and_counted_once(self) -> None:
        facts = facts_of_run(**examples.troubled())
        found = {(one.kind, one.reason, one.client): one.rounds for one in facts.incidents}
        assert found == {
            ("fault", "client-failed", "Birs"): (3,),
            ("fault", "timed-out", "Aare"): (2, 3, 4, 7),
            ("refused", "budget-exhausted", "Canal"): (9, 10, 11, 12),
        }

    def test_parameters_say_what_no_claim_can_rest_on(self) -> None:
        facts = run([row("a", 1)], rounds=1, plan_=plan(privacy={"noise": "reproducible"}))
        found = {one.key: (one.value, one.status) for one in facts.parameters}
        assert found["privacy.noise"] == ("reproducible", "not-met")
        assert found["privacy.delta"] == ("1e-05", "met")

    def test_utility_stands_beside_the_epsilon_of_its_round(self) -> None:
        utility = facts_of_run(**examples.deployed()).utility
        assert utility is not None
        assert utility.points[4].epsilon == accountant.epsilon({ROUND: 5}, DELTA).epsilon
        assert utility.metric == "accuracy"
        assert utility.higher_is_better

    def test_a_run_that_was_never_evaluated_has_no_utility(self) -> None:
        found = summary([row("a", 1)], rounds=1) | {"final": None}
        assert facts_of_run(plan=plan(), summary=found, metrics=[]).utility is None

    def test_accountants_stand_side_by_side(self) -> None:
        claimed, check = only(facts_of_run(**examples.deployed())).estimates
        spent = accountant.epsilon({ROUND: 12}, DELTA)
        assert (claimed.accountant, claimed.epsilon, claimed.claimed) == (PLD, spent.epsilon, True)
        assert (check.epsilon, check.claimed) == (spent.rdp_epsilon, False)
