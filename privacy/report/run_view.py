"""A run's plain data, asked the questions that its report has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from privacy.mechanisms import (
    BandedFactorisation,
    DpSgd,
    NoisyCounts,
    NoisyHistograms,
    NoisyTable,
    Release,
    RoundedGaussianSum,
    release_from_json,
)
from privacy.report import figures, inventory
from privacy.report.accounts import Lifetime
from privacy.report.figures import Counts
from privacy.report.of_ledger import lifetime_of
from privacy.report.views import ChargeView, LedgerView

Key = tuple[str, str]
"""Unit and trust: a kind of epsilon."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's report is made from."""

    plan: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    ledgers: Sequence[LedgerView]

    @property
    def planned(self) -> int:
        return int(self.plan.get("federation", {}).get("rounds", self.summary["rounds"]))

    @cached_property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        return {str(row["id"]): row for row in self.summary["privacy"]["clients"]}

    @cached_property
    def books(self) -> dict[str, tuple[ChargeView, ...]]:
        """This plan's part of each ledger."""
        digest = self.summary["plan_digest"]
        return {view.client: tuple(charge for charge in view.charges if charge.plan == digest) for view in self.ledgers}

    @property
    def main(self) -> Key:
        privacy = self.summary["privacy"]
        return inventory.unit_code(str(privacy["unit"])), str(privacy["trust"])

    @cached_property
    def balances(self) -> list[Key]:
        """The summary's kind of epsilon first, then those that only ledgers know."""
        others = {
            (charge.unit, charge.trust)
            for charges in self.books.values()
            for charge in charges
            if charge.unit is not None and charge.trust is not None
        }
        return [self.main, *sorted(others - {self.main})]

    @property
    def delta(self) -> float:
        return float(self.summary["privacy"]["delta"])

    def round_release(self) -> Release | None:
        """What one round releases by the summary: DP-SGD at each client, or a sum; or a whole run that is one."""
        privacy, (unit, trust) = self.summary["privacy"], self.main
        if trust == "distributed" and privacy.get("secure_sum"):
            return release_from_json(privacy["secure_sum"]["release"])
        if trust == "central" and privacy.get("central"):
            return release_from_json(privacy["central"]["release"])
        values = [privacy.get(name) for name in ("noise_multiplier", "sample_rate", "steps_a_round")]
        if trust != "local" or unit == "client" or None in values:
            return None
        noise, rate, steps = values
        records = int(unit.partition(":")[2] or 1)
        statistics = self.plan.get("statistics")
        if statistics is not None:
            return NoisyHistograms(noise_multiplier=noise, columns=len(statistics["columns"]), records_per_unit=records)
        return DpSgd(noise_multiplier=noise, sample_rate=rate, steps=steps, records_per_unit=records)

    def evaluation_release(self) -> Release | None:
        """What one evaluation at a client releases by the plan, beside the rounds of `round_release`."""
        evaluation, training = self.plan.get("evaluation", {}), self.round_release()
        if evaluation.get("where") != "clients" or "count_noise" not in evaluation:
            return None
        if not isinstance(training, DpSgd | RoundedGaussianSum):
            return None
        noise, records = float(evaluation["count_noise"]), training.records_per_unit
        if evaluation.get("per_class"):
            return NoisyTable(noise=noise, records_per_unit=records)
        return NoisyCounts(noise=noise, counts=2, records_per_unit=records)

    def charged_to(self, client: str) -> Counts:
        """What a client was charged by the summary, as far as its releases are known; training and evaluations."""
        row = self.rows[client]
        training, charged = self.round_release(), int(row["charged_rounds"])
        known = {
            training: min(1, charged) if isinstance(training, BandedFactorisation) else charged,
            self.evaluation_release(): int(row.get("charged_evaluations", 0)),
        }
        return Counter({release: times for release, times in known.items() if release is not None and times})

    def honest(self, totals: Iterable[Counts]) -> dict[str, int]:
        """How many clients of a secure sum must be honest, how many may collude, and how many there are."""
        known = self.summary["privacy"].get("secure_sum")
        if known:
            return {key: int(known[key]) for key in ("honest", "corrupt", "clients")}
        needed = figures.honest(release for total in totals for release in total)
        cohort = self.plan.get("federation", {}).get("cohort", {})
        return {"honest": needed, "clients": int(cohort.get("size", len(self.rows)))} if needed else {}

    def lifetimes(self, key: Key) -> dict[str, Lifetime]:
        return {
            view.client: lifetime_of(one, view)
            for view in self.ledgers
            for one in view.balances
            if (one.unit, one.trust) == key
        }
