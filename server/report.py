"""The privacy-budget report of a run: made of the files in its folder, and written beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from privacy.report import Facts, facts_of_ledger, facts_of_run
from privacy.report.audited import audit_rows
from privacy.report.facts import AuditRow, Reconstruction
from privacy.report.pdf import pdf
from privacy.report.reading import ledger_views, statement_view
from privacy.report.reconstructed import reconstruction_of
from privacy.report.render import compare_html, html, json_text
from privacy.statement import verify_statement
from security.errors import UsageError
from server.run_folder import RunFolder, reason_of, write_atomically
from server.summary import versions


def facts_of_folder(folder: RunFolder, *, picture: bool = False) -> Facts:
    """The facts of a run that has ended.

    Args:
        folder: the run's.
        picture: whether to name the picture of training records that an attack on the run has left beside it.

    Raises:
        UsageError: the run is not finished, or its files can't be read; or there is no such picture.
        LedgerError: its ledger can't be read at all.
    """
    # Where a server adds the noise the population's books say what was spent; the clients' would tell who took part.
    books = folder.population if folder.population.is_file() else folder.ledger
    ledgers = ledger_views(books) if books.is_file() else ()
    texts, summary = folder.read_statements(), folder.read_summary()
    digest = str(summary.get("plan_digest"))
    reconstruction = _reconstruction(folder, digest, picture=picture)
    try:
        return facts_of_run(
            plan=tomllib.loads(folder.plan.read_text(encoding="utf-8")),
            summary=summary,
            metrics=folder.read_metrics(),
            ledgers=ledgers,
            statements=[statement_view(client, text) for client, text in texts.items()],
            audit=_audit(folder, digest),
            reconstruction=reconstruction,
            made=_now(),
        )
    except KeyError as error:
        raise UsageError(
            f"{folder.summary}: lacks {error}, which summaries of this version have; read it with the version that "
            "wrote it, or play the run again"
        ) from error


def _audit(folder: RunFolder, plan: str) -> tuple[AuditRow, ...]:
    if not folder.audit.is_file():
        return ()
    try:
        return audit_rows(folder.audit.read_text(encoding="utf-8"), plan)
    except UnicodeDecodeError:
        problem = "is damaged"
    except OSError as error:
        problem = f"can't be read ({reason_of(error)})"
    except ValueError as error:
        problem = str(error)
    raise UsageError(f"{folder.audit}: {problem}; audit the run again, or remove the file")


def _reconstruction(folder: RunFolder, plan: str, *, picture: bool) -> Reconstruction | None:
    drawn = folder.reconstruction_picture
    if picture and not (drawn.is_file() and folder.reconstruction.is_file()):
        raise UsageError(f"--picture: {drawn} isn't there; make it with veil attack {folder.path} --picture")
    if not folder.reconstruction.is_file():
        return None
    try:
        text = folder.reconstruction.read_text(encoding="utf-8")
        return reconstruction_of(text, plan, picture=drawn.name if picture else None)
    except UnicodeDecodeError:
        problem = "is damaged"
    except OSError as error:
        problem = f"can't be read ({reason_of(error)})"
    except ValueError as error:
        problem = str(error)
    raise UsageError(f"{folder.reconstruction}: {problem}; attack the run again with --force, or remove the file")


def write_report(folder: RunFolder, *, language: str = "en", as_pdf: bool = False, picture: bool = False) -> Path:
    """Write report.html and report.json (and report.pdf) into a run's folder.

    Args:
        folder: the run's.
        language: "en" or "zh".
        as_pdf: whether to write a PDF too.
        picture: as of `facts_of_folder`.

    Returns:
        The page.

    Raises:
        UsageError: as `facts_of_folder`; or the language is not known, or what a PDF needs is not installed.
        RunError: it can't be written.
    """
    evaluation = folder.evaluation.name if folder.evaluation.is_file() else None
    facts = facts_of_folder(folder, picture=picture)
    return _write(facts, folder.path, language=language, as_pdf=as_pdf, evaluation=evaluation)


def write_ledger_report(
    ledger: Path,
    out: Path,
    statements: Sequence[Path] = (),
    *,
    name: str | None = None,
    language: str = "en",
    as_pdf: bool = False,
) -> Path:
    """Write the report of a site's own ledger, over all its plans, into a folder.

    Args:
        ledger: its file.
        out: the folder.
        statements: signed ones, to be checked.
        name: whose it is; by default the file's name.
        language: "en" or "zh".
        as_pdf: whether to write a PDF too.

    Raises:
        UsageError: a statement can't be read; or as `write_report`.
        LedgerError: the ledger can't be read at all.
        RunError: it can't be written.
    """
    texts = [read_statement(path) for path in statements]
    facts = facts_of_ledger(
        name=ledger.stem if name is None else name,
        ledgers=ledger_views(ledger),
        statements=[statement_view(verify_statement(text).scope, text) for text in texts],
        versions=versions(),
        made=_now(),
    )
    return _write(facts, out, language=language, as_pdf=as_pdf)


def write_comparison(folders: Sequence[RunFolder], out: Path, *, language: str = "en") -> Path:
    """Write the privacy-utility frontier of several runs.

    Raises:
        UsageError, LedgerError, RunError: as `write_report`.
    """
    runs = [(str(folder.path), facts_of_folder(folder)) for folder in folders]
    write_atomically(out, compare_html(runs, language=language, made=_now()).encode())
    return out


def _write(facts: Facts, folder: Path, *, language: str, as_pdf: bool, evaluation: str | None = None) -> Path:
    page = html(facts, language=language, evaluation=evaluation)
    made = pdf(page) if as_pdf else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: can't be written ({error.strerror}); choose another --out") from error
    write_atomically(folder / "report.json", json_text(facts).encode())
    write_atomically(folder / "report.html", page.encode())
    if made is not None:
        write_atomically(folder / "report.pdf", made)
    return folder / "report.html"


def read_statement(path: Path) -> str:
    """A statement's text.

    Raises:
        UsageError: the file can't be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: can't be read as a statement") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
