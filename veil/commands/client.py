"""`veil client`: take part in federations with data of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.commands.report import Language

app = typer.Typer(
    help="Train with your data where it lies (for its owner).", no_args_is_help=True, suggest_commands=False
)

Home = Annotated[Path, typer.Argument(help="The site's home.", metavar="HOME")]

_SHORTEST = 8  # digits of a digest


@app.command("run")
def run(
    home: Home,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when the server has played all its plans.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more.")] = False,
) -> int:
    """Call the federation's server, stay connected, and work on the plans that you allow. Ctrl-C ends it."""
    from client.resources import limit_libraries

    limit_libraries()
    from client.resident import work_at
    from security.homes import SiteHome
    from veil.commands.asking import passphrase_for

    place = SiteHome(home)
    say = lambda line: print(line, flush=True)  # noqa: E731
    return work_at(place, passphrase_for(place.identity_key), until_done=until_done, verbose=verbose, say=say)


@app.command("approve")
def approve(
    home: Home,
    digest: Annotated[
        str | None, typer.Argument(help="Of the plan, or how it begins [default: list those that wait].")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
) -> None:
    """Say what a plan would do with your data and cost your budget, and let it run if you say yes."""
    from client.approvals import Approvals, PendingPlans
    from client.plan_facts import plan_facts
    from client.site_settings import read_settings
    from security.errors import RunError
    from security.homes import SiteHome
    from veil.commands.asking import agreed
    from veil.commands.client_view import plan_line, print_plan

    place = SiteHome(home)
    place.check_here()
    approvals, pending = Approvals(place.approvals), PendingPlans(place.pending)
    if digest is None:
        for found in pending.digests():
            print(f"waits     {plan_line(pending.read(found))}")
        for plan in approvals.plans().values():
            print(f"approved  {plan_line(plan)}")
        if not pending.digests():
            print("no plan waits")
        else:
            print(f"to read and approve one: veil client approve {home} DIGEST")
        return
    if withdraw:
        full = _whole(digest, tuple(approvals.all()), "is approved")
        approvals.remove(full)
        print(f"{full[:16]}: no longer approved; its next task is refused")
        return
    known = {**dict.fromkeys(pending.digests()), **approvals.plans()}
    full = _whole(digest, tuple(known), "waits or is approved")
    plan = known[full] or pending.read(full)
    from shared_models import own

    settings = read_settings(place.settings)
    own.bind(settings.models)
    print_plan(plan_facts(plan, settings, place, federation=place.peer().federation))
    if known[full] is not None:
        print(f"\napproved on {approvals.all()[full].when}; take it back with --withdraw")
        return
    print()
    if not yes and not agreed("Let this plan run?", instead="--yes"):
        raise RunError("the plan was not approved")
    approvals.add(plan, "yes" if yes else "asked")
    pending.remove(full)
    print(f"{full[:16]}: approved; a running client begins within seconds")


@app.command("status")
def status(home: Home, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what the client does, what was spent, and what needs you."""
    import json

    from security.homes import SiteHome
    from veil.commands.budget import print_budgets
    from veil.commands.client_view import print_status
    from veil.site_status import site_status

    found = site_status(SiteHome(home))
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
        return
    print_status(found.to_json())
    print_budgets(found.budgets)


@app.command("budget")
def budget(home: Home) -> None:
    """Say what is left of each budget, as `veil budget status` does."""
    from client.site_settings import read_settings
    from security.homes import SiteHome
    from veil.commands.budget import budgets, print_budgets

    place = SiteHome(home)
    ledger = place.ledger if place.ledger.exists() or place.ledger_note.exists() else None
    print_budgets(budgets(ledger, read_settings(place.settings).policy))


@app.command("report")
def report(
    home: Home,
    out: Annotated[Path | None, typer.Option(help="Folder to write to [default: HOME/report].")] = None,
    language: Annotated[Language, typer.Option("--lang", help="English or Chinese.")] = Language.en,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write report.pdf.")] = False,
) -> None:
    """Write the privacy-budget report of this site's ledger, with a statement that its owner signs."""
    from client.site_settings import read_settings
    from privacy.ledger import Ledger, default_anchors
    from privacy.statement import make_statement
    from security.homes import SiteHome
    from security.identity import Identity
    from security.private_files import make_folder, replace_file
    from server.report import write_ledger_report
    from veil.commands.asking import passphrase_for

    place = SiteHome(home)
    policy = read_settings(place.settings).policy
    identity = Identity.load(place.identity_key, passphrase_for(place.identity_key))
    folder = home / "report" if out is None else out
    make_folder(folder)
    statements = []
    with Ledger.open(place.ledger, read_only=True, anchors=default_anchors(place.ledger)) as ledger:
        for scope in ledger.scopes():
            limits = {own.balance: own.limit for own in policy.budget} if scope == policy.budget_scope else {}
            signed = make_statement(ledger, scope, identity, limits, detail=policy.release.statement)
            path = folder / f"statement-{scope}.json"
            replace_file(path, signed.text.encode())
            statements.append(path)
            print(f"statement: {path}")
    page = write_ledger_report(place.ledger, folder, statements, name=policy.site, language=language.value, as_pdf=pdf)
    print(f"report: {page}")


def _whole(digest: str, known: tuple[str, ...], what: str) -> str:
    """The one digest that begins so."""
    from security.errors import UsageError

    found = [one for one in known if one.startswith(digest.lower())]
    if len(found) != 1 or len(digest) < _SHORTEST:
        raise UsageError(
            f"{digest[:80]!r}: no plan with this digest {what}"
            if not found
            else f"{digest[:80]!r}: give at least {_SHORTEST} digits, as many as tell it from others"
        )
    return found[0]
