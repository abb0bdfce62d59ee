"""`veil ledger`: look at a ledger, check it, copy it out, and bring back one that was lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from privacy.ledger import Anchor, Entry

app = typer.Typer(
    help="What data has spent: show, verify, export, recover.", no_args_is_help=True, suggest_commands=False
)

File = Annotated[Path, typer.Argument(help="The ledger's file.", metavar="LEDGER")]
Scope = Annotated[str | None, typer.Option(help="One scope of it [default: all].")]


@app.command("show")
def show(
    path: File,
    scope: Scope = None,
    as_json: Annotated[bool, typer.Option("--json", help="The entries, one JSON text a line.")] = False,
) -> None:
    """Say what each scope has spent; with --scope, list its entries."""
    from privacy.ledger import Ledger
    from privacy.ledger.exchange import export_lines
    from security.errors import UsageError

    with Ledger.open(path, read_only=True) as ledger:
        scopes = ledger.scopes() if scope is None else (scope,)
        if scope is not None and scope not in ledger.scopes():
            raise UsageError(f"{path}: no scope '{scope}'; there are: {', '.join(ledger.scopes()) or 'none'}")
        if as_json:
            for name in scopes:
                for line in export_lines(ledger, name):
                    print(line)
        elif scope is None:
            from privacy.report.reading import ledger_views

            _print_balances(ledger_views(path))
        else:
            for entry in ledger.entries(scope):
                print(f"{entry.position:>5}  {entry.time[:19]}  {entry.kind:<8} {_gist(entry)}")


@app.command("verify")
def verify(
    path: Annotated[Path | None, typer.Argument(help="The ledger's file.", metavar="[LEDGER]")] = None,
    anchors: Annotated[
        list[str] | None,
        typer.Option("--anchor", help="An entry that somebody has seen.", metavar="SCOPE:POSITION:HASH"),
    ] = None,
    statement: Annotated[Path | None, typer.Option(help="A signed statement, with or without its ledger.")] = None,
    owner: Annotated[str | None, typer.Option(help="Public key that must have signed the statement.")] = None,
) -> int:
    """Recompute every chain and every epsilon; check a statement's signature and that the ledger still holds it."""
    from privacy.ledger import Ledger
    from privacy.ledger.check import audit
    from privacy.statement import understated, verify_statement
    from security.errors import UsageError
    from server.report import read_statement

    if path is None and statement is None:
        raise UsageError("give a ledger's file, --statement FILE, or both")
    seen = [_anchor(text) for text in anchors or ()]
    problems: list[str] = []
    if statement is not None:
        said = verify_statement(read_statement(statement), owner=owner)
        seen.append(said.anchor)
        problems += [
            f"{statement}: states less for {b.unit} x {b.trust} than its charges cost" for b in understated(said)
        ]
        print(f"{statement}: signed by {said.owner[:16]}..., scope {said.scope}, entry {said.anchor.position}")
    if path is not None:
        found = audit(path)
        problems += [str(problem) for problem in found.problems]
        if not found.problems:
            with Ledger.open(path, read_only=True) as ledger:
                problems += [_lost(anchor) for anchor in seen if not ledger.holds(anchor)]
        for item in found.balances:
            spent = "no limit" if item.spent is None else f"epsilon {item.spent.epsilon:.6g} ({item.spent.proof})"
            print(f"{item.scope}  {item.balance.unit} x {item.balance.trust}  {spent}")
        for head in found.heads:
            print(f"{head.scope}  head {head.position}:{head.hash}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print("all is well" if not problems else f"{len(problems)} problems", file=sys.stderr if problems else sys.stdout)
    return 1 if problems else 0


@app.command("export")
def export(
    path: File, scope: Scope = None, out: Annotated[Path | None, typer.Option(help="File [default: here].")] = None
) -> None:
    """Write the entries as JSON lines, which `veil ledger import` reads."""
    from privacy.ledger import Ledger
    from privacy.ledger.exchange import export_lines
    from security.errors import UsageError

    with Ledger.open(path, read_only=True) as ledger:
        names = ledger.scopes() if scope is None else (scope,)
        lines = [line for name in names for line in export_lines(ledger, name)]
    if out is None:
        print("\n".join(lines))
        return
    if out.exists():
        raise UsageError(f"{out}: exists already; name another file")
    try:
        out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: can't be written ({error.strerror})") from error
    print(f"{out}: {len(lines)} lines")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="What `veil ledger export` wrote.", metavar="FILE")],
    path: Annotated[Path, typer.Argument(help="The new ledger's file.", metavar="LEDGER")],
) -> None:
    """Make a new ledger of exported lines; every chain is verified on the way."""
    from privacy.ledger.exchange import import_lines
    from security.errors import UsageError

    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: can't be read") from error
    for head in import_lines(path, lines):
        print(f"{head.scope}: {head.position + 1} entries")


@app.command("recover")
def recover(
    path: File,
    scope: Annotated[str, typer.Argument(help="Which scope.", metavar="SCOPE")],
    statements: Annotated[
        list[Path] | None, typer.Option("--statement", help="Signed by the owner, detail full.")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="Newest entry that a server has seen.", metavar="POSITION:HASH")
    ] = None,
    write_off: Annotated[
        bool, typer.Option(help="Go on in spite of a gap: every claim on the scope is withdrawn.")
    ] = False,
) -> None:
    """After a backup was put back: charge again what is proven, and open the scope; or write the gap off."""
    from privacy.ledger.anchors import default_anchors
    from privacy.ledger.recovery import recover as recover_ledger
    from server.report import read_statement

    beside = default_anchors(path)
    done = recover_ledger(
        path,
        scope,
        statements=[read_statement(item) for item in statements or ()],
        anchor=None if anchor is None else _anchor(f"{scope}:{anchor}"),
        anchors=beside if beside.exists() else None,
        write_off=write_off,
    )
    print(f"{path}: {len(done.charges)} charges entered again; head {done.head.position}:{done.head.hash}")
    if done.withdrawn:
        print("a gap was written off: nothing is claimed for this scope any more")


def _anchor(text: str) -> Anchor:
    from privacy.ledger import Anchor
    from security.errors import UsageError

    scope, _, rest = text.partition(":")
    position, _, digest = rest.partition(":")
    try:
        return Anchor(scope=scope, position=int(position), hash=digest)
    except ValueError:
        raise UsageError(
            f"--anchor {text[:100]}: give SCOPE:POSITION:HASH, as a statement or a head prints it"
        ) from None


def _lost(anchor: Anchor) -> str:
    return (
        f"scope {anchor.scope}: entry {anchor.position} is not the one that was seen: the ledger was rolled back, or "
        "rewritten; put the newest copy back, or run `veil ledger recover`"
    )


def _gist(entry: Entry) -> str:
    """An entry in half a line."""
    body = entry.body
    if entry.kind in ("reserve", "refuse"):
        task = body["task"]
        what = f"{task['federation']} round {task['round']} {task['phase']}"
        if entry.kind == "refuse":
            return f"{what}: {body['reason']}"
        charge = body["charge"]
        return f"{what}: " + ("nothing charged" if charge is None else json.dumps(charge["releases"]))
    if entry.kind == "commit":
        return f"{body['length']} bytes, {', '.join(f'{name} {kind}' for name, kind in body['fields'].items())}"
    return {"open": "", "policy": str(body.get("digest", ""))[:16]}.get(entry.kind, "")


def _print_balances(views: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from privacy.report.views import LedgerView

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("scope", "unit", "trust", "epsilon", "budget", "delta", "used", "proof", "head"):
        table.add_column(title, justify="right" if title in ("epsilon", "budget", "delta", "used", "head") else "left")
    for view in views:  # type: ignore[attr-defined]
        assert isinstance(view, LedgerView)
        for item in view.balances:
            epsilon = "no claim" if item.spent_epsilon is None else f"{item.spent_epsilon:.4f}"
            budget = "-" if item.epsilon is None else f"{item.epsilon:g}"
            used = "-" if item.fraction is None else f"{item.fraction:.0%}"
            table.add_row(
                view.client,
                item.unit,
                item.trust,
                epsilon,
                budget,
                f"{item.spent_delta:g}",
                used,
                item.proof,
                str(view.position),
            )
        if not view.balances:
            state = "; ".join(view.problems) or "nothing charged"
            table.add_row(view.client, "-", "-", "-", "-", "-", "-", state, str(view.position))
    Console(highlight=False).print(table)
