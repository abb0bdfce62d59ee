"""A statement is what the owner said, all of it and nothing else, and its numbers are the ledger's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from privacy.accountant import epsilon
from privacy.canonical_json import canonical
from privacy.ledger import Ledger
from privacy.lifetime import Balance, Limit
from privacy.statement import Detail, Statement, make_statement, understated, verify_statement
from security.errors import UsageError
from security.identity import Identity
from tests.privacy.ledger.cases import LIMIT, OTHER_PLAN, PERSONS, RECORDS, RELEASE, play

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "statement.schema.json"
OWNER = Identity.derive(b"sixteen bytes ..", "site")
DETAILS: tuple[Detail, ...] = ("epsilon", "totals", "full")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger", durable=False) as ledger:
        ledger.open_scope("site", owner=OWNER.public_hex)
        ledger.set_policy("site", {"budget": 8.0}, "d" * 64)
        for number in range(3):
            play(ledger, number)
        play(ledger, 3, plan=OTHER_PLAN)
        play(ledger, 4, balance=PERSONS, limit=Limit(epsilon=3.0, delta=1e-6))
        yield ledger


def signed(change: Any, statement: Statement) -> dict[str, Any]:
    """A statement that its own owner changed and signed again."""
    data = {key: value for key, value in statement.to_json().items() if key != "signature"}
    data = change(json.loads(json.dumps(data)))
    message = b"veil statement 1\n" + canonical(data).encode()
    return {**data, "signature": OWNER.sign(message).hex()}


class TestWhatItSays:
    @pytest.mark.parametrize("detail", DETAILS)
    def test_it_is_read_as_it_was_made(self, ledger: Ledger, detail: Any) -> None:
        statement = make_statement(ledger, "site", OWNER, detail=detail)
        for form in (statement.text, statement.text.encode(), statement.to_json()):
            assert verify_statement(form, owner=OWNER.public_hex) == statement

    def test_its_numbers_are_those_of_the_limit(self, ledger: Ledger) -> None:
        statement = make_statement(ledger, "site", OWNER)
        assert statement.anchor == ledger.head("site")
        assert (statement.owner, statement.policy) == (OWNER.public_hex, "d" * 64)
        records, persons = statement.balances
        assert (records.balance, records.budget) == (RECORDS, LIMIT)
        assert records.spent == LIMIT.spent(ledger.account("site", RECORDS))
        assert records.spent.charged_epsilon == epsilon({RELEASE: 4}, 1e-5).epsilon
        assert (persons.balance, persons.budget) == (PERSONS, Limit(epsilon=3.0, delta=1e-6))

    def test_the_policys_budgets_come_first_and_untouched_ones_are_named(self, ledger: Ledger) -> None:
        clients = Balance(unit="client", trust="central")
        limits = {RECORDS: Limit(epsilon=9, delta=1e-5), clients: Limit(epsilon=1.0, delta=1e-5)}
        found = {item.balance: item for item in make_statement(ledger, "site", OWNER, limits).balances}
        assert found[RECORDS].budget.epsilon == 9.0
        assert (found[clients].spent.epsilon, found[clients].spent.proof) == (0.0, "nothing-charged")
        assert found[PERSONS].budget.epsilon == 3.0

    def test_each_detail_says_no_more_than_it_should(self, ledger: Ledger) -> None:
        texts = {detail: make_statement(ledger, "site", OWNER, detail=detail).text for detail in DETAILS}
        assert "dp-sgd" not in texts["epsilon"]
        assert "dp-sgd" in texts["totals"]
        for detail in ("epsilon", "totals"):
            assert "noise_multiplier" not in texts[detail]
            assert OTHER_PLAN not in texts[detail]
        full = verify_statement(texts["full"])
        assert {item.balance: item.account for item in full.balances} == {
            balance: ledger.account("site", balance) for balance in (RECORDS, PERSONS)
        }
        assert verify_statement(texts["totals"]).balances[0].totals == {"dp-sgd": 4}

    def test_it_is_of_one_moment_while_others_write(self, ledger: Ledger) -> None:
        with Ledger.open(ledger.path) as other:
            for number in range(10, 15):
                play(other, number)
                statement = make_statement(ledger, "site", OWNER, detail="full")
                assert statement.anchor == other.head("site")
                assert statement.balances[0].totals == {"dp-sgd": 4 + number - 9}

    def test_a_bound_that_does_not_exist_is_null(self, ledger: Ledger) -> None:
        ledger.append_recovery("site", {"acknowledged": [], "charges": [], "withdrawn": True})
        statement = make_statement(ledger, "site", OWNER, detail="full")
        assert statement.to_json()["balances"][0]["spent"]["epsilon"] is None
        read = verify_statement(statement.text)
        assert read.withdrawn
        assert read.balances[0].spent.epsilon == math.inf
        assert read.balances[0].account == ledger.account("site", RECORDS)


class TestWhoMaySign:
    def test_only_the_scopes_owner(self, ledger: Ledger) -> None:
        with pytest.raises(UsageError, match="is another's"):
            make_statement(ledger, "site", Identity.create())

    def test_a_scope_of_nobody_is_signed_by_nobody(self, ledger: Ledger) -> None:
        ledger.open_scope("nobody's", owner="")
        with pytest.raises(UsageError, match="is another's"):
            make_statement(ledger, "nobody's", OWNER)

    def test_a_statement_by_somebody_else_is_not_the_owners(self, ledger: Ledger) -> None:
        statement = make_statement(ledger, "site", OWNER)
        with pytest.raises(UsageError, match="another key than its owner's"):
            verify_statement(statement.text, owner=Identity.create().public_hex)


class TestTampering:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"epsilon":8.0', '"epsilon":7.0'),
            ('"position":11', '"position":12'),
            ('"scope":"site"', '"scope":"site 2"'),
            ('"unit":"record"', '"unit":"client"'),
            ('"withdrawn":false', '"withdrawn":true'),
            ('"dp-sgd":4', '"dp-sgd":3'),
            ('"time":"2', '"time":"1'),
            ('"fraction":0', '"fraction":1'),
        ],
    )
    def test_a_changed_word_breaks_the_signature(self, ledger: Ledger, old: str, new: str) -> None:
        text = make_statement(ledger, "site", OWNER, detail="totals").text
        assert old in text
        with pytest.raises(UsageError, match=r"signature is wrong|can't be read"):
            verify_statement(text.replace(old, new))

    def test_any_changed_character_is_noticed(self, ledger: Ledger) -> None:
        statement = make_statement(ledger, "site", OWNER)
        text, accepted = statement.text, 0
        for place in range(len(text)):
            changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
            try:
                assert verify_statement(changed) == statement  # the 17th digit of a float may not matter
                accepted += 1
            except UsageError:
                continue
        assert accepted < 5

    def test_another_layout_says_the_same(self, ledger: Ledger) -> None:
        statement = make_statement(ledger, "site", OWNER, detail="full")
        assert verify_statement(json.dumps(statement.to_json(), indent=2)) == statement

    def test_a_signature_of_something_else_is_not_one_of_a_statement(self, ledger: Ledger) -> None:
        statement = make_statement(ledger, "site", OWNER)
        data = {key: value for key, value in statement.to_json().items() if key != "signature"}
        for prefix in (b"", b"veil plan 1\n", b"veil statement 2\n"):
            signature = OWNER.sign(prefix + canonical(data).encode()).hex()
            with pytest.raises(UsageError, match="signature is wrong"):
                verify_statement({**data, "signature": signature})

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            "null",
            "not json",
            '{"version":1,"version":1}',
            '{"version":NaN}',
            "[" * 100_000,
            "9" * 10_000,
            b"\xff",
            " " * (1 << 24) + " ",
        ],
    )
    def test_what_is_no_statement_is_one_clear_error(self, text: str | bytes) -> None:
        with pytest.raises(UsageError, match="the statement can't be read") as caught:
            verify_statement(text)
        assert "\n" not in str(caught.value)


def _set(*path: Any, to: Any) -> Any:
    def change(data: Any) -> Any:
        node = data
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to
        return data

    return change


class TestForm:
    """Even its owner can't sign what has no meaning."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (_set("version", to=2), "version is not 1"),
            (_set("version", to=True), "version must be int"),
            (_set("more", to=1), "must have the keys"),
            (_set("owner", to="A" * 64), "owner is no public key"),
            (_set("scope", to=""), "scope's name"),
            (_set("policy", to="x"), "policy or time"),
            (_set("time", to="now"), "policy or time"),
            (_set("detail", to="all"), "detail is none of"),
            (_set("detail", to="totals"), "don't go with its detail|doesn't go with its detail"),
            (_set("anchor", "position", to=-1), "position"),
            (_set("anchor", "position", to=1.0), "position must be int"),
            (_set("anchor", "hash", to=""), "hash"),
            (_set("past", to=None), "past doesn't go"),
            (_set("past", 0, to=[1]), "no list of positions"),
            (_set("past", 0, 0, to=99), "not before its anchor"),
            (_set("balances", 1, to={}), "a balance must have the keys"),
            (_set("balances", 0, "relation", to="replace one"), "relation is not known"),
            (_set("balances", 0, "budget", "epsilon", to=-1.0), "epsilon must be"),
            (_set("balances", 0, "budget", "epsilon", to=8), "epsilon must be float"),
            (_set("balances", 0, "spent", "epsilon", to=-1.0), "out of range"),
            (_set("balances", 0, "spent", "delta", to=2.0), "out of range"),
            (_set("balances", 0, "spent", "fraction", to=1.5), "out of range"),
            (_set("balances", 0, "totals", to={"dp-sgd": 1}), "don't come to its totals"),
            (_set("balances", 0, "totals", to={"dp-sgd": 0}), "no counts"),
            (_set("balances", 0, "plans", 0, "delta", to=0.0), "out of range"),
            (_set("balances", 0, "plans", 0, "proof", to="plan"), "envelope doesn't go"),
            (_set("balances", 0, "plans", 0, "charged", to=[]), "at least one"),
            (_set("balances", 0, "plans", 0, "charged", 0, 1, to=0), "count"),
            (_set("withdrawn", to=True), "claimed though the claim was withdrawn"),
        ],
    )
    def test_a_wrong_value_is_named(self, ledger: Ledger, change: Any, said: str) -> None:
        statement = make_statement(ledger, "site", OWNER, detail="full")
        with pytest.raises(UsageError, match=said):
            verify_statement(signed(change, statement))

    def test_a_balance_named_twice(self, ledger: Ledger) -> None:
        statement = make_statement(ledger, "site", OWNER)
        with pytest.raises(UsageError, match="names a balance twice"):
            verify_statement(signed(lambda data: {**data, "balances": data["balances"] * 2}, statement))

    def test_an_epsilon_below_what_the_charges_cost_is_found(self, ledger: Ledger) -> None:
        """At detail "full" the arithmetic can be done again by anybody."""
        statement = make_statement(ledger, "site", OWNER, detail="full")
        assert understated(statement) == ()
        lie = verify_statement(signed(_set("balances", 0, "spent", "epsilon", to=1.0), statement))
        assert understated(lie) == (RECORDS,)
        assert understated(make_statement(ledger, "site", OWNER)) == ()


class TestSchema:
    def validator(self) -> jsonschema.Draft202012Validator:
        found = json.loads(SCHEMA.read_text())
        jsonschema.Draft202012Validator.check_schema(found)
        return jsonschema.Draft202012Validator(found)

    @pytest.mark.parametrize("detail", DETAILS)
    def test_every_statement_is_as_described(self, ledger: Ledger, detail: Any) -> None:
        validator = self.validator()
        data = make_statement(ledger, "site", OWNER, detail=detail).to_json()
        validator.validate(json.loads(json.dumps(data)))
        ledger.append_recovery("site", {"acknowledged": [], "charges": [], "withdrawn": True})
        validator.validate(make_statement(ledger, "site", OWNER, detail=detail).to_json())
        for key in data:
            with pytest.raises(jsonschema.ValidationError):
                validator.validate({name: value for name, value in data.items() if name != key})
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**data, "more": 1})

    def test_it_is_closed_and_describes_each_property(self) -> None:
        def objects(node: Any) -> Iterator[dict[str, Any]]:
            if isinstance(node, dict):
                if node.get("type") == "object" and "properties" in node:
                    yield node
                for child in node.values():
                    yield from objects(child)
            elif isinstance(node, list):
                for child in node:
                    yield from objects(child)

        found = json.loads(SCHEMA.read_text())
        for node in objects(found):
            assert node["additionalProperties"] is False or node is found["$defs"]["release"]
            for key, value in node["properties"].items():
                target = found["$defs"][value["$ref"].split("/")[-1]] if "$ref" in value else value
                assert target.get("description"), key
