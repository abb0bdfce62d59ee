"""Views of a ledger and of statements on disk, as the reports take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from privacy.accountant import epsilon
from privacy.ledger import Ledger, Reason, Task
from privacy.lifetime import Balance, Limit, Terms, multiset
from privacy.mechanisms import DpSgd, RoundedGaussianSum
from privacy.report import facts_of_ledger
from privacy.report.reading import ledger_views, statement_view
from privacy.report.render import html
from privacy.statement import make_statement
from security.identity import Identity
from tests.privacy.report.test_render import text_of

RELEASE = DpSgd(noise_multiplier=2.0, sample_rate=0.1, steps=5)
BALANCE = Balance(unit="record", trust="local")
LIMIT = Limit(epsilon=epsilon({RELEASE: 3}, 1e-5).epsilon, delta=1e-5)
TERMS = Terms(plan="a" * 64, rounds=(multiset([RELEASE]),) * 3, delta=1e-5)
OWNER = Identity.derive(b"s" * 32, "north")


def task(number: int, phase: str = "train") -> Task:
    return Task(federation="study", run="r", round=number, phase=phase, client="north", request=f"{number:064x}")


def written(path: Path) -> Path:
    """Two rounds, of which one was never committed, a refusal, and an unprotected task."""
    with Ledger.create(path, durable=False) as ledger:
        ledger.open_scope("north", owner=OWNER.public_hex)
        ledger.set_policy("north", {"site": "north"}, "c" * 64)
        for number in (1, 2):
            ledger.reserve(
                "north", task(number), balance=BALANCE, terms=TERMS, releases=multiset([RELEASE]), limit=LIMIT
            )
        ledger.commit("north", task(1).id, b"reply", fields={"arrays": "charged", "metrics.epsilon": "public"})
        ledger.refuse("north", task(3), Reason.POLICY)
        ledger.reserve("north", task(4))
        ledger.commit_unkept("north", task(4).id, sha256="ab" * 32, length=5, fields={"arrays": "entrusted"})
    return path


def test_a_view_tells_every_task_with_its_state_and_price(tmp_path: Path) -> None:
    (view,) = ledger_views(written(tmp_path / "ledger.sqlite"))
    assert view.client == "north"
    assert view.verified is True
    assert [(charge.round, charge.status, charge.reason) for charge in view.charges] == [
        (1, "committed", None),
        (2, "reserved", None),
        (3, "refused", "policy"),
        (4, "committed", None),
    ]
    assert [len(charge.releases) for charge in view.charges] == [1, 1, 0, 0]
    assert view.policy == "c" * 64


def test_a_view_tells_what_left_and_to_whom_it_was_entrusted(tmp_path: Path) -> None:
    (view,) = ledger_views(written(tmp_path / "ledger.sqlite"))
    assert {(field.name, field.kind, field.count, field.receiver) for field in view.fields} == {
        ("arrays", "charged", 1, None),
        ("metrics.epsilon", "public", 1, None),
        ("arrays", "entrusted", 1, "study"),
    }


def test_the_balance_is_that_of_the_accountant_asked_directly(tmp_path: Path) -> None:
    (view,) = ledger_views(written(tmp_path / "ledger.sqlite"))
    (balance,) = view.balances
    assert balance.charged_epsilon == epsilon({RELEASE: 2}, 1e-5).epsilon
    assert (balance.epsilon, balance.delta, balance.withdrawn) == (LIMIT.epsilon, 1e-5, False)


def test_rule_6_a_persons_balance_names_the_records_that_are_priced(tmp_path: Path) -> None:
    """A ledger's balance is of persons; how many records each has at most, its releases say. Reports show both."""
    path, balance = tmp_path / "ledger.sqlite", Balance(unit="person", trust="distributed")
    release = RoundedGaussianSum(noise_share=2000.0, honest=3, l2_sensitivity=3072.0, dimension=650, records_per_unit=3)
    limit = Limit(epsilon=10.0, delta=1e-5)
    terms = Terms(plan="a" * 64, rounds=(multiset([release]),) * 2, delta=1e-5)
    with Ledger.create(path, durable=False) as ledger:
        ledger.open_scope("north", owner=OWNER.public_hex)
        ledger.set_policy("north", {"site": "north"}, "c" * 64)
        ledger.reserve("north", task(1), balance=balance, terms=terms, releases=multiset([release]), limit=limit)
    (view,) = ledger_views(path)
    assert [one.unit for one in view.balances] == [one.unit for one in view.charges] == ["person:3"]
    page = text_of(html(facts_of_ledger(name="x", ledgers=[view])))
    assert "One person, at most 3 records at this client" in page


def test_a_damaged_scope_claims_nothing_and_says_why(tmp_path: Path) -> None:
    path = written(tmp_path / "ledger.sqlite")
    data = bytearray(path.read_bytes())
    place = data.index(b'"steps":5')
    data[place + 8] = ord("4")
    path.write_bytes(bytes(data))
    (view,) = ledger_views(path)
    assert view.verified is False
    assert view.balances == ()
    assert "hash" in view.problems[0]


def test_a_statement_that_was_changed_is_not_verified(tmp_path: Path) -> None:
    with Ledger.open(written(tmp_path / "ledger.sqlite"), durable=False) as ledger:
        statement = make_statement(ledger, "north", OWNER, detail="full")
    good = statement_view("north", statement.text)
    assert (good.verified, good.problem, good.position) == (True, None, statement.anchor.position)
    bad = statement_view("north", replace(statement, time="2020-01-01T00:00:00.000000Z").text)
    assert bad.verified is False
    assert bad.problem is not None
    assert "signature" in bad.problem
