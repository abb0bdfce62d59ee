"""One kind of epsilon of a run: accounts, paths, forecast, and what they mean."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from privacy.accountant import ACCOUNTANT, RDP_ACCOUNTANT, RELATION, Spent
from privacy.mechanisms import BandedFactorisation
from privacy.report import conditions as needs
from privacy.report import figures
from privacy.report.accounts import AccountFacts, BalanceFacts, Basis, Estimate, Path, Point
from privacy.report.coalitions import coalitions
from privacy.report.facts import Condition
from privacy.report.figures import Counts, UnknownReleaseError
from privacy.report.run_view import Key, Run
from privacy.report.verdicts import in_order, verdict
from privacy.report.views import ChargeView

History = tuple[tuple[int, Counts], ...]


def balance_of(run: Run, key: Key, known: Sequence[Condition]) -> tuple[BalanceFacts, list[Condition]]:
    """One kind of epsilon, and what its making found out beside."""
    histories, unpriced = _histories(run, key)
    summary_says = run.rows if key == run.main else {}
    clients = [*summary_says, *(client for client in (*histories, *unpriced) if client not in summary_says)]
    more: list[Condition] = []
    if unpriced and not any(one.code == "priced" and one.status == "not-met" for one in known):
        more.append(Condition(code="priced", status="not-met", clients=tuple(unpriced)))
    totals = {client: _total(history) for client, history in histories.items()}
    costs = {client: figures.cost(total, run.delta) for client, total in totals.items()}
    costs |= dict.fromkeys(unpriced, figures.unpriced(run.delta))
    behind = [
        client
        for client, row in summary_says.items()
        if client in totals and row["epsilon"] is not None and costs[client].epsilon > row["epsilon"] * (1 + 1e-6)
    ]
    if summary_says and histories:
        more.append(Condition(code="books-agree", status="not-met" if behind else "met", clients=tuple(behind)))
    lifetimes, everything = run.lifetimes(key), [*known, *more]
    open_rounds = _open_rounds(run, key)
    accounts = [
        replace(
            _account(client, summary_says.get(client), costs.get(client)),
            charged_rounds=max(
                int(summary_says.get(client, {}).get("charged_rounds", 0)), len(histories.get(client, ()))
            ),
            open_rounds=open_rounds.get(client, 0),
            withdrawn=needs.reasons_of(everything, client),
            lifetime=lifetimes.get(client),
        )
        for client in clients
    ]
    ordered = in_order(accounts)
    basis = _basis(run, key, costs)
    largest = _largest_counts(run, key, ordered, totals)
    verdict_ = verdict(ordered, basis, everything)
    paths = _paths(run, key, ordered, histories)
    return (
        BalanceFacts(
            verdict=verdict_,
            basis=basis,
            accounts=ordered,
            axis="round",
            measure="epsilon",
            paths=paths,
            budget_line=_limit_of(ordered, paths[0].client if paths else None),
            planned=run.planned,
            planned_epsilon=run.summary["privacy"].get("epsilon_planned") if key == run.main else None,
            curve=figures.curve(largest, run.delta) if largest else (),
            meaning=None
            if not verdict_.epsilon
            else figures.meaning(largest, failure=run.delta)
            if largest
            else figures.meaning_of_pair(verdict_.epsilon, run.delta),
            estimates=_estimates(ordered, basis),
            coalitions=coalitions(key[1], key[0], run.honest(totals.values())),
        ),
        more,
    )


def _histories(run: Run, key: Key) -> tuple[dict[str, History], list[str]]:
    """Each client's charges by round, and those clients whose charges can't be priced."""
    found: dict[str, History] = {}
    unpriced = []
    for client, charges in run.books.items():
        rounds: defaultdict[int, Counts] = defaultdict(Counter)
        try:
            for charge in charges:
                if charge.status != "refused" and (charge.unit, charge.trust) == key:
                    rounds[charge.round].update(_counts(charge))
        except UnknownReleaseError:
            unpriced.append(client)
            continue
        found[client] = tuple(sorted(rounds.items(), key=lambda item: item[0]))
    return found, unpriced


def _counts(charge: ChargeView) -> Counts:
    return figures.counts_of(charge.releases)


def _total(history: History) -> Counts:
    total: Counts = Counter()
    for _, counts in history:
        total.update(counts)
    return total


def _open_rounds(run: Run, key: Key) -> dict[str, int]:
    return {
        client: sum(1 for charge in charges if charge.status == "reserved" and (charge.unit, charge.trust) == key)
        for client, charges in run.books.items()
    }


def _account(client: str, row: Mapping[str, Any] | None, own: Spent | None) -> AccountFacts:
    """One client's account: of the server's figure and its own ledger's the larger (both books).

    `row` is None for whom only a ledger knows: then the run sets no budget. Without either, nothing is claimed.
    """
    if row is None:
        return AccountFacts(
            client=client,
            epsilon=figures.finite(own.epsilon) if own else None,
            rdp_epsilon=figures.finite(own.rdp_epsilon) if own else None,
        )
    epsilon = _larger(row["epsilon"], own.epsilon if own else 0.0)
    budget = row["budget"]
    known = budget is not None and epsilon is not None
    return AccountFacts(
        client=client,
        epsilon=epsilon,
        rdp_epsilon=_larger(row["rdp_epsilon"], own.rdp_epsilon if own else 0.0),
        record_epsilon=row["record_epsilon"],
        person_epsilon=row["person_epsilon"],
        budget=budget,
        left=max(0.0, budget - epsilon) if known else None,
        fraction=min(1.0, epsilon / budget) if known else None,
        rounds=None if row["rounds"] is None else int(row["rounds"]),
        refused=int(row["refused"]),
        withdrawn_rounds=tuple(row["withdrawn_rounds"]),
    )


def _larger(said: float | None, own: float) -> float | None:
    """None where either can't be computed."""
    return None if said is None else figures.finite(max(said, own))


def _basis(run: Run, key: Key, costs: Mapping[str, Spent]) -> Basis:
    privacy = run.summary["privacy"]
    methods = [one.accountant for one in costs.values() if one.epsilon] or [
        str(privacy.get("accountant", ACCOUNTANT)).partition(";")[0]
    ]
    unit, trust = key
    return Basis(
        unit=unit,
        trust=trust,
        relation=next((one.relation for one in costs.values() if one.epsilon), str(privacy.get("relation", RELATION))),
        delta=run.delta,
        accountant=", ".join(dict.fromkeys(methods)),
    )


def _largest_counts(
    run: Run, key: Key, accounts: Sequence[AccountFacts], totals: Mapping[str, Counts]
) -> Counts | None:
    """The releases behind the largest epsilon of those that stand, where they are known and give that epsilon."""
    standing = [one for one in accounts if not one.withdrawn] or list(accounts)
    if not standing or standing[0].epsilon is None:
        return None
    top = standing[0]
    by_summary = run.charged_to(top.client) if key == run.main and top.client in run.rows else None
    for counts in (totals.get(top.client), by_summary):
        if counts and figures.cost(counts, run.delta).epsilon >= (top.epsilon or 0.0) * (1 - 1e-6):
            return counts
    return None


def _limit_of(accounts: Sequence[AccountFacts], client: str | None) -> float | None:
    """A client's budget; of nobody in particular the smallest."""
    known = [one.budget for one in accounts if one.budget is not None and client in (None, one.client)]
    return min(known, default=None)


def _paths(run: Run, key: Key, accounts: Sequence[AccountFacts], histories: Mapping[str, History]) -> tuple[Path, ...]:
    """The largest, the median and the lowest account whose claim stands, each different history once."""
    known = [one for one in accounts if histories.get(one.client)]
    known = [one for one in known if not one.withdrawn] or known
    if not known:
        return _path_of_metrics(run, accounts) if key == run.main else ()
    picks: list[tuple[Literal["largest", "median", "lowest"], AccountFacts]] = [
        ("largest", known[0]),
        ("median", known[len(known) // 2]),
        ("lowest", known[-1]),
    ]
    paths, seen = [], set()
    for which, one in picks:
        history = histories[one.client]
        identity = tuple((place, frozenset(counts.items())) for place, counts in history)
        if identity in seen:
            continue
        seen.add(identity)
        points = figures.path_points(history, run.delta)
        ahead: tuple[Point, ...] = ()
        last_covered = None
        if which == "largest" and points:
            each = _each_round(history[-1][1])
            # A sampled cohort may have left this client out lately: what is to come starts now.
            last = Point(at=max(points[-1].at, int(run.summary["rounds"])), value=points[-1].value)
            ahead, last_covered = figures.forecast(
                _total(history), each, run.delta, last=last, planned=run.planned, limit=one.budget
            )
        paths.append(Path(which=which, client=one.client, points=points, forecast=ahead, last_covered=last_covered))
    return tuple(paths)


def _each_round(last: Counts) -> Counts:
    """What a round to come costs, if it costs what the last one did; nothing more of a run that is one release."""
    return Counter({release: times for release, times in last.items() if not isinstance(release, BandedFactorisation)})


def _path_of_metrics(run: Run, accounts: Sequence[AccountFacts]) -> tuple[Path, ...]:
    """Without ledgers: the largest epsilon of each round, as the server noted it."""
    points = tuple(
        Point(at=int(line["round"]), value=float(line["epsilon_max"]))
        for line in run.metrics
        if line.get("epsilon_max") is not None
    )
    release = run.round_release()
    if not points or release is None:
        return (Path(which="largest", client=None, points=points),) if points else ()
    most = max((one.charged_rounds for one in accounts), default=0)
    each = _each_round(Counter({release: 1}))
    charged = Counter({release: min(most, points[-1].at) if each else min(1, most)})
    if figures.cost(charged, run.delta).epsilon < points[-1].value * (1 - 1e-6):  # more is charged than this release
        return (Path(which="largest", client=None, points=points),)
    limit = _limit_of(accounts, None)
    ahead, last_covered = figures.forecast(charged, each, run.delta, last=points[-1], planned=run.planned, limit=limit)
    return (Path(which="largest", client=None, points=points, forecast=ahead, last_covered=last_covered),)


def _estimates(accounts: Sequence[AccountFacts], basis: Basis) -> tuple[Estimate, ...]:
    standing = [one for one in accounts if not one.withdrawn] or list(accounts)
    if not standing:
        return ()
    renyi = [one.rdp_epsilon for one in standing]
    known = [value for value in renyi if value is not None]
    claimed = Estimate(accountant=basis.accountant, epsilon=standing[0].epsilon, claimed=True)
    if basis.accountant == RDP_ACCOUNTANT:  # it is no check of itself
        return (claimed,)
    return (
        claimed,
        Estimate(accountant="RDP", epsilon=max(known) if len(known) == len(renyi) else None, claimed=False),
    )
