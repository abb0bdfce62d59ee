"""Sentences that depend on several facts at once: the verdict, the terms of an epsilon, names of units."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from privacy.report.accounts import BalanceFacts, Basis, Verdict
from privacy.report.catalogue import Catalogue, exact, lower, percent_left, power, upper
from privacy.report.conditions import SIMULATION
from privacy.report.facts import Condition, Facts, Incident

_RELATIONS = {"add or remove one unit": "add-or-remove-one-unit", "replace one unit": "replace-one-unit"}
_ACCOUNTANTS = {
    "pld": r"PLD, pessimistic, interval (?P<interval>[\d.]+)",
    "rdp": r"RDP, orders (?P<low>[\d.]+) to (?P<high>[\d.]+)",
    "rdp-plain": r"RDP",
    "filter": r"RDP filter at order (?P<order>[\d.]+)",
}


class Wording:
    """The facts of one report in one language."""

    def __init__(self, facts: Facts, t: Catalogue) -> None:
        self._facts = facts
        self._t = t

    def unit(self, unit: str, group: str = "unit") -> Markup:
        """What is protected, as a noun; `group` says in which place of a sentence."""
        kind, _, number = unit.partition(":")
        key = f"{group}.{kind}"
        return self._t(key, n=number) if self._t.has(key) else self._t(f"{group}.other", unit=unit, n=number)

    def trust(self, trust: str, group: str) -> Markup:
        """From whom, or who must be trusted."""
        key = f"{group}.{trust}"
        return self._t(key) if self._t.has(key) else self._t(f"{group}.other", trust=trust)

    def accountant(self, accountant: str) -> Markup:
        """An accountant's name; one that isn't known stays as it is."""
        for code, pattern in _ACCOUNTANTS.items():
            match = re.fullmatch(pattern, accountant)
            if match is not None:
                return self._t(f"accountants.{code}", **match.groupdict())
        return escape(accountant)

    def relation(self, relation: str) -> Markup:
        """The neighbouring relation; one that isn't known stays as it is."""
        if relation in _RELATIONS:
            return self._t(f"relation.{_RELATIONS[relation]}")
        return self._t("terms.relation", relation=relation)

    def terms(self, balance: BalanceFacts) -> Markup:
        """What every epsilon of a balance is about, and that it is no claim where it is none."""
        basis, status = balance.basis, balance.verdict.status
        line = self._t(
            "terms.lifetime" if self._facts.kind == "ledger" else "terms.line",
            unit=self.unit(basis.unit, "unit_short"),
            relation=self.relation(basis.relation),
            delta=power(basis.delta),
            accountant=self.accountant(basis.accountant),
            trusted=self.trust(basis.trust, "trusted"),
        )
        if status in ("simulated", "withdrawn"):
            return Markup('<strong class="{}">{}</strong>{}{}').format(
                status, self._t(f"terms.{status}"), self._t("page.gap"), line
            )
        return line

    def title(self, balance: BalanceFacts) -> Markup:
        """A balance's name, where there are several."""
        basis = balance.basis
        return self._t("terms.title", unit=self.unit(basis.unit, "Unit"), trust=self.trust(basis.trust, "trust_name"))

    def lifetimes(self, balance: BalanceFacts) -> list[Markup]:
        """What the lifetime figures beside a run's are about: one line a kind."""
        known = [one.lifetime for one in balance.accounts if one.lifetime is not None]
        if self._facts.kind == "ledger":
            return []
        kinds = dict.fromkeys((one.limit_delta or one.delta, one.proof) for one in known)
        return [
            self._t("budgets.lifetime_about", delta=power(delta), proof=self._t.name("proof", proof))
            for delta, proof in kinds
        ]

    def headlines(self) -> list[Markup]:
        """The verdict: one sentence a balance, or that nobody is protected."""
        if self._facts.balances:
            return [self._headline(one.verdict) for one in self._facts.balances]
        if self._facts.status == "none":
            return [self._t("verdict.none" if self._facts.kind == "run" else "verdict.none_ledger")]
        return [self._t("verdict.nothing")]

    def some_withdrawn(self, verdict: Verdict) -> Markup | None:
        """That the claim of some clients is withdrawn, and why."""
        if not 0 < verdict.clients_withdrawn < verdict.clients:
            return None
        reasons = [one for one in self.failing() if one.clients]
        return self._t(
            "verdict.some", n=verdict.clients_withdrawn, clients=verdict.clients, reasons=self._reasons(reasons)
        )

    def failing(self) -> list[Condition]:
        """The conditions that are not met."""
        return [one for one in self._facts.conditions if one.status == "not-met"]

    def unchecked(self) -> list[Condition]:
        """The conditions that nobody checked."""
        return [one for one in self._facts.conditions if one.status == "unchecked"]

    def assumed(self) -> list[Condition]:
        """What the claims rest on that nothing proves."""
        return [one for one in self._facts.conditions if one.status == "assumed"]

    def conditions(self) -> list[Condition]:
        """All of them, those that make or break the claim first."""
        order = ("not-met", "unchecked", "assumed", "met", "outside")
        return sorted(self._facts.conditions, key=lambda one: order.index(one.status))

    def condition(self, condition: Condition, kind: str) -> Markup:
        """Its sentence: what it needs (`need`) or what is wrong (`fail`)."""
        key = f"condition.{condition.code}.{kind}"
        if condition.code == "other" or not self._t.has(key):
            return Markup('<span lang="en">{}</span>').format(condition.text or condition.code)
        return self._t(key, **{name: _figure(value) for name, value in condition.values.items()})

    def left(self, verdict: Verdict) -> Markup:
        """What is left, as a part of a sentence."""
        if verdict.budget is None:
            return self._t("left.unlimited")
        if self._facts.kind == "ledger":
            return self._t("left.fraction", part=percent_left(verdict.fraction_left))
        if not verdict.left:
            return self._t("left.used")
        return self._t("left.some", left=lower(verdict.left))

    def left_fact(self, verdict: Verdict) -> Markup:
        """What is left, by itself."""
        if verdict.budget is None:
            return self._t("facts.no_budget")
        if self._facts.kind == "ledger":
            return self._t("facts.of_limit", part=percent_left(verdict.fraction_left))
        return self._t("facts.of_budget", left=lower(verdict.left or 0.0), budget=exact(verdict.budget))

    def largest(self, balance: BalanceFacts, name: str) -> float | None:
        """The largest of one figure over the accounts whose claim stands; None where one of them lacks it."""
        standing = [one for one in balance.accounts if not one.withdrawn] or list(balance.accounts)
        values = [getattr(one, name) for one in standing]
        return None if None in values else max(values, default=None)

    def incident_groups(self) -> list[tuple[tuple[str, str], list[Incident]]]:
        """Incidents by kind and reason."""
        groups: dict[tuple[str, str], list[Incident]] = {}
        for one in self._facts.incidents:
            groups.setdefault((one.kind, one.reason), []).append(one)
        return list(groups.items())

    def policies(self) -> list[str]:
        """Digests of the policies in force."""
        return list(dict.fromkeys(one.policy for one in self._facts.heads if one.policy))

    def epsilon(self, value: float | None, *, struck: bool) -> Markup:
        """An upper bound; struck out where its claim is withdrawn."""
        shown = Markup('<span class="number">{}</span>').format(upper(value))
        return Markup("<s>{}</s>").format(shown) if struck else shown

    def bound(self, shown: str, balance: BalanceFacts) -> Markup:
        """A figure that follows from a balance's epsilon, struck out with it."""
        return Markup("<s>{}</s>").format(shown) if balance.verdict.status == "withdrawn" else escape(shown)

    def _headline(self, verdict: Verdict) -> Markup:
        basis = verdict.basis
        assert basis is not None
        key = f"verdict.{verdict.status}"
        whom = self.trust(basis.trust, "from")
        epsilon = self._t("verdict.unpriced")
        if verdict.epsilon is not None:
            epsilon = Markup("<strong>{}</strong>").format(
                self.epsilon(verdict.epsilon, struck=verdict.status == "withdrawn")
            )
        if 0 < verdict.clients_withdrawn < verdict.clients and verdict.status == "stands":
            key = "verdict.stands_some"
        return self._t(
            key,
            n=verdict.clients - verdict.clients_withdrawn,
            clients=verdict.clients,
            unit=self.unit(basis.unit, "Unit" if key == "verdict.stands" else "unit"),
            whom=whom,
            epsilon=epsilon,
            delta=power(basis.delta),
            left=self.left(verdict),
            reasons=self._reasons(self._weightiest()),
        )

    def _weightiest(self) -> list[Condition]:
        """What fails, but for what makes a run a simulation where anything else does."""
        failing = self.failing()
        return [one for one in failing if one.code not in SIMULATION] or failing

    def _reasons(self, conditions: list[Condition]) -> Markup:
        # A reason that concerns everybody outweighs one that concerns a few.
        ordered = sorted(conditions, key=lambda one: bool(one.clients))
        return self._t("verdict.reason_join").join(self.condition(one, "fail") for one in ordered[:2])


def _figure(value: str) -> str:
    """A small number as a person writes it: 3.2e-4 is 3.2·10⁻⁴; any other text as it is."""
    return power(float(value)) if re.fullmatch(r"\d+(\.\d+)?e-\d+", value) else value


def basis_key(basis: Basis) -> tuple[str, str, str, float]:
    """What two epsilons must have in common to be compared."""
    return basis.unit, basis.trust, basis.relation, basis.delta
