"""What a balance comes to: its verdict, and the order of its accounts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from privacy.report.accounts import AccountFacts, Basis, Status, Verdict
from privacy.report.conditions import SIMULATION, general
from privacy.report.facts import Condition

_WORST_FIRST: tuple[Status, ...] = ("none", "withdrawn", "simulated", "stands", "empty")


def verdict(accounts: Sequence[AccountFacts], basis: Basis, conditions: Sequence[Condition]) -> Verdict:
    """Who of these is protected, and how strongly: the weakest of those whose own claim stands."""
    standing = [one for one in accounts if not one.withdrawn] or list(accounts)
    lacking = general(conditions)
    epsilons = [one.epsilon for one in standing]
    known = [value for value in epsilons if value is not None]
    nearest = min((one for one in standing if one.left is not None), key=lambda one: one.left or 0.0, default=None)
    return Verdict(
        status=_status(accounts, lacking),
        basis=basis,
        epsilon=max(known, default=0.0) if len(known) == len(epsilons) else None,
        budget=nearest.budget if nearest else _least(one.budget for one in standing),
        left=nearest.left if nearest else None,
        fraction_left=_least(None if one.fraction is None else 1 - one.fraction for one in standing),
        clients=len(accounts),
        clients_withdrawn=sum(1 for one in accounts if one.withdrawn),
        reasons=tuple(dict.fromkeys(one.code for one in conditions if one.status == "not-met")),
    )


def _status(accounts: Sequence[AccountFacts], lacking: Sequence[str]) -> Status:
    simulated = "deployed" in lacking and not set(lacking) - SIMULATION
    if (lacking and not simulated) or (accounts and all(one.withdrawn for one in accounts)):
        return "withdrawn"
    if simulated:
        return "simulated"
    charged = any(one.charged_rounds or one.epsilon != 0 for one in accounts)
    return "stands" if charged else "empty"


def worst(statuses: Iterable[Status]) -> Status:
    """The status of the weakest claim; without any, nobody is protected."""
    return min(statuses, key=_WORST_FIRST.index, default="none")


def in_order(accounts: Iterable[AccountFacts]) -> tuple[AccountFacts, ...]:
    """The largest first; those without an epsilon before all others, for theirs has no bound."""

    def key(one: AccountFacts) -> tuple[float, float, object]:
        epsilon = float("inf") if one.epsilon is None else one.epsilon
        return -epsilon, -(one.fraction or 0.0), natural(one.client)

    return tuple(sorted(accounts, key=key))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts client 2 before client 10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts]


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
