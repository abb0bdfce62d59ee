"""The `veil` command: its groups, and what an error looks like to a person.

Exit codes: 0 done; 1 the run failed, or whoever read its output left; 2 wrong usage or plan; 3 stopped because a
privacy budget is exhausted; 130 interrupted. Of `veil audit` 1 is a broken claim alone, and 4 an audit that failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
import typer

from security.errors import RunError, UsageError, VeilError
from veil.commands import (
    attack,
    audit,
    budget,
    client,
    compare,
    cross_validate,
    data,
    doctor,
    evaluate,
    explain,
    export,
    features,
    ledger,
    plan,
    provision,
    report,
    scenarios,
    serve,
    server,
    simulate,
    site,
    sweep,
)

app = typer.Typer(
    name="veil",
    help="Privacy-preserving federated learning: simulate a federation, check a plan, see what privacy costs.",
    no_args_is_help=True,
    suggest_commands=False,  # click suggests already
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("simulate")(simulate.simulate)
app.command("sweep")(sweep.sweep)
app.command("audit")(audit.audit)
app.command("attack")(attack.attack)
app.command("scenarios")(scenarios.scenarios)
app.command("cross-validate")(cross_validate.cross_validate)
app.add_typer(plan.app, name="plan")
app.add_typer(features.app, name="features")
app.add_typer(data.app, name="data")
app.command("report")(report.report)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("explain")(explain.explain)
app.command("serve")(serve.serve)
app.add_typer(ledger.app, name="ledger")
app.add_typer(budget.app, name="budget")
app.add_typer(provision.app, name="provision")
app.add_typer(site.app, name="site")
app.add_typer(client.app, name="client")
app.add_typer(server.app, name="server")
app.command("doctor")(doctor.doctor)


_FAILED = {"audit": 4}
"""Exit codes of commands that failed, where 1 says something else."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    failed = _FAILED.get(given[0] if given else "", 1)
    try:
        code = app(args=given, standalone_mode=False, prog_name="veil")
        sys.stdout.flush()  # here, not at exit: a reader may have left
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except (UsageError, RunError, VeilError) as error:
        if debug:
            raise
        code = _fail(str(error), 2 if isinstance(error, UsageError) else failed)
    except ImportError as error:
        if debug:
            raise
        code = _fail(f"{error} (run 'veil doctor' to see what is missing)", failed)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read the output has left, as `head` does: nothing is to be said any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = failed
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        defect = "a defect of Veil's: run again with --debug, and report it"
        code = _fail(f"{type(error).__name__}: {text} ({defect})", failed)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
