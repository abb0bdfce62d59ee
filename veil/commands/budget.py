"""`veil budget`: what a budget buys, and what is left of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from client.policy import SitePolicy
    from privacy.lifetime import Account, Balance, Limit
    from privacy.mechanisms import Release
    from privacy.planning import Offer
    from shared_models.plan import Plan

app = typer.Typer(help="What can I afford, and what is left?", no_args_is_help=True, suggest_commands=False)

_FACTORS = (0.5, 0.7, 1.4, 2.0, 3.0)
_ROUNDS = (0.25, 0.5, 1.0, 2.0, 4.0)


@app.command("plan")
def plan(
    name: Annotated[str, typer.Argument(help="Scenario name, or path of a TOML plan.", metavar="PLAN")] = "digits",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key.", metavar="KEY=VALUE")] = None,
    budget: Annotated[float | None, typer.Option(help="Epsilon to stay under [default: the plan's].")] = None,
    noise: Annotated[
        list[float] | None, typer.Option(help="Noise multipliers to try [default: around the plan's].")
    ] = None,
    rounds: Annotated[list[int] | None, typer.Option(help="Numbers of rounds [default: around the plan's].")] = None,
    ledger: Annotated[Path | None, typer.Option(help="A ledger: count what was spent before.")] = None,
    scope: Annotated[str | None, typer.Option(help="With --ledger: which scope.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it: an SVG file.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
) -> None:
    """Say what rounds and noise cost, and how many rounds a budget covers."""
    from privacy.mechanisms import BandedFactorisation
    from privacy.planning import offers
    from security.errors import UsageError
    from shared_models import own
    from shared_models.resolve import resolve
    from simulations.scenarios import find_plan

    own.bind(parse_models(models))
    found = resolve(find_plan(name, overrides or ()))
    training, counts = found.train_release(), found.evaluate_release()
    if training is None or found.privacy.epsilon is None:
        raise UsageError("privacy.trust = 'none': a plan without privacy has no budget; set privacy.trust and epsilon")
    before, spent = _spent_before(found, ledger, scope)
    limit = budget if budget is not None else found.privacy.epsilon
    if not limit > 0:
        raise UsageError(f"--budget {limit}: must be above 0")
    # The plan's own: that of a sum is over what its unit moves, and a person may move several clipping norms.
    own_noise = found.privacy.noise_multiplier if found.is_joint else training.noise_multiplier
    assert own_noise is not None  # or the plan were not resolved
    of_unit = training.noise_multiplier / own_noise
    tried = sorted(noise or {own_noise, *(max(0.01, round(own_noise * factor, 3)) for factor in _FACTORS)})
    unit = "run" if isinstance(training, BandedFactorisation) else "round"
    if unit == "run" and rounds:
        raise UsageError("--rounds: with privacy.correlated a run is one release; set federation.rounds instead")
    planned = {max(1, round(found.federation.rounds * factor)) for factor in _ROUNDS}
    asked = [1] if unit == "run" else sorted(rounds or planned)
    if min(tried) <= 0 or min(asked) < 1:
        raise UsageError("--noise must be above 0, --rounds at least 1")
    made = offers(
        training,
        noise_multipliers=[value * of_unit for value in tried],
        rounds=asked,
        budget=limit,
        delta=found.privacy.delta,
        also={} if counts is None else {counts: 1},
        spent=spent,
    )
    made = [replace(one, noise_multiplier=value) for one, value in zip(made, tried, strict=True)]
    _print(_head(found, training, unit, with_ledger=bool(spent)), limit, asked, made, unit=unit)
    if before is not None:
        print(_admitted(found, before, limit, unit))
    if plot is not None:
        from privacy.report.charts.plan import draw_offers
        from server.run_folder import write_atomically

        write_atomically(plot, draw_offers(made, asked, limit).encode())
        print(f"plot: {plot}")


def _spent_before(found: Plan, ledger: Path | None, scope: str | None) -> tuple[Account | None, dict[Release, int]]:
    """What a ledger's account holds, and how often each release was charged; nothing without a ledger.

    Raises:
        UsageError: the ledger has several scopes, and none is named.
    """
    from privacy.ledger import Ledger
    from security.errors import UsageError

    if ledger is None:
        return None, {}
    with Ledger.open(ledger, read_only=True) as books:
        scopes = books.scopes()
        if scope is None and len(scopes) != 1:
            raise UsageError(f"{ledger}: say which scope with --scope; there are: {', '.join(scopes) or 'none'}")
        before = books.account(scope or scopes[0], found.balance)
    spent: dict[Release, int] = {}
    for entry in before.plans:
        for release, times in entry.charged:
            spent[release] = spent.get(release, 0) + times
    return before, spent


def _head(found: Plan, training: Release, unit: str, *, with_ledger: bool) -> str:
    """What the table's figures are."""
    from server.claim import accountant_of, relation_of

    how = accountant_of(found).partition(",")[0]
    too = ", with what the ledger has spent" if with_ledger else ""
    return (
        f"{found.name}: {unit}s of {_round_of(training)}; epsilon at delta "
        f"{found.privacy.delta:g} ({relation_of(found).removesuffix(' unit')}, {how}){too}"
    )


def _admitted(found: Plan, before: Account, limit: float, unit: str) -> str:
    """What the ledger's filter would let through."""
    from privacy.lifetime import Limit
    from privacy.planning import rounds_admitted

    allowed = rounds_admitted(Limit(epsilon=limit, delta=found.privacy.delta), before, found.terms())
    return (
        f"the ledger's filter, which holds whatever plans come, would let {allowed} of this plan's "
        f"{len(found.terms().rounds)} {unit}s through under a budget of {limit:g}"
    )


def _round_of(training: Release) -> str:
    """What a round is made of."""
    from privacy.mechanisms import BandedFactorisation, ClientLevel, DpSgd, NoisySum

    if isinstance(training, DpSgd):
        return f"{training.steps} steps at sample rate {training.sample_rate:g}"
    if isinstance(training, NoisySum):
        batch = f" on Poisson batches of rate {training.sample_rate:g}" if training.sample_rate < 1 else ""
        return f"one secure sum{batch} with the noise of {training.honest} honest clients"
    if isinstance(training, ClientLevel):
        return training.describe().partition(" round on ")[2]
    if isinstance(training, BandedFactorisation):
        return (
            f"{training.rounds} rounds with noise of {training.band} bands, each client at most "
            f"{training.participations} times, {training.separation} rounds apart"
        )
    return training.describe()


@app.command("status")
def status(
    ledger: Annotated[Path, typer.Argument(help="The site's ledger.", metavar="LEDGER")],
    site: Annotated[Path | None, typer.Option(help="site.toml: its budgets, charged or not.")] = None,
) -> None:
    """Say what is left of each budget of a site."""
    from client.site_settings import read_settings

    print_budgets(budgets(ledger, None if site is None else read_settings(site).policy))


@dataclass(frozen=True, kw_only=True)
class Spent:
    """How one budget stands.

    Attributes:
        scope, unit, trust: which one.
        charged: epsilon that the charges cost at the limit's delta; None where a gap withdrew every claim.
        limit, delta: the budget.
        fraction: of it, that is used.
        plans: how many plans have charged it.
    """

    scope: str
    unit: str
    trust: str
    charged: float | None
    limit: float
    delta: float
    fraction: float
    plans: int


def budgets(ledger: Path | None, policy: SitePolicy | None) -> list[Spent]:
    """How each budget stands: those that were charged, and those of the policy.

    Args:
        ledger: of the site; None if it has not begun.
        policy: of the site; without one, what the ledger knows.

    Raises:
        LedgerError: the ledger can't be relied on.
    """
    from privacy.ledger import Ledger
    from privacy.lifetime import Account

    if ledger is None:
        assert policy is not None
        return [_spent(policy.budget_scope, own.balance, own.limit, Account()) for own in policy.budget]
    found = []
    with Ledger.open(ledger, read_only=True) as books:
        known = books.scopes()
        for scope in known if policy is None else (policy.budget_scope,):
            limits = dict(books.snapshot(scope).limits) if scope in known else {}
            if policy is not None:
                limits |= {budget.balance: budget.limit for budget in policy.budget}
            for balance, limit in limits.items():
                account = books.account(scope, balance) if scope in known else Account()
                found.append(_spent(scope, balance, limit, account))
    return found


def print_budgets(found: list[Spent]) -> None:
    """One line a budget."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("scope", "unit", "trust", "spent", "budget", "delta", "used", "plans"):
        table.add_column(title, justify="left" if title in ("scope", "unit", "trust") else "right")
    for own in found:
        charged = "no claim" if own.charged is None else f"{own.charged:.4f}"
        numbers = (f"{own.limit:g}", f"{own.delta:g}", f"{own.fraction:.0%}", str(own.plans))
        table.add_row(own.scope, own.unit, own.trust, charged, *numbers)
    Console(highlight=False).print(table)


def _spent(scope: str, balance: Balance, limit: Limit, account: Account) -> Spent:
    spent = limit.spent(account)
    return Spent(
        scope=scope,
        unit=balance.unit,
        trust=balance.trust,
        charged=None if account.withdrawn else spent.charged_epsilon,
        limit=limit.epsilon,
        delta=limit.delta,
        fraction=spent.fraction,
        plans=len(account.plans),
    )


def _print(head: str, limit: float, asked: list[int], made: list[Offer], *, unit: str = "round") -> None:
    from rich.console import Console
    from rich.table import Table

    from privacy.calibration import MOST_STEPS

    console = Console(highlight=False)
    console.print(head, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("noise", justify="right")
    for times in asked:
        table.add_column(f"{times} {unit}{'s' if unit == 'round' else ''}", justify="right")
    table.add_column(f"{unit}s within {limit:g}", justify="right")
    for offer in made:
        cells = [
            f"[bold]{value:.3f}[/]" if value <= limit else f"[dim]{value:.3f}[/]" if value < 1e3 else "[dim]-[/]"
            for value in offer.epsilons
        ]
        more = "over " if offer.affordable == MOST_STEPS else ""
        table.add_row(f"{offer.noise_multiplier:g}", *cells, f"{more}{offer.affordable}")
    console.print(table)
    console.print("bold: within the budget; every figure includes all planned releases")
