"""An audit of a run's plan, as its report tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from privacy.report.facts import AuditRow, Condition
from privacy.report.plain import from_plain, parsed, to_plain

SCHEMA = "veil-audit-1"


def audit_rows(text: str, plan: str) -> tuple[AuditRow, ...]:
    """The rows of audit.json.

    Args:
        text: its content.
        plan: digest of the run's plan.

    Raises:
        ValueError: it is of another plan, or no audit; the message goes on from the file's name.
    """
    audit = parsed(text)
    if audit.get("schema") != SCHEMA:
        raise ValueError("is no audit that this version reads")
    if audit.get("plan_digest") != plan:
        raise ValueError("is of another plan")
    names = {field.name for field in fields(AuditRow)}
    rows = audit.get("findings")
    if not isinstance(rows, list):
        raise ValueError("has no findings")
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("is damaged")
    try:
        found = tuple(from_plain(AuditRow, {name: row[name] for name in row if name in names}) for row in rows)
        to_plain(found)  # refuses what is no finite number
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError("is damaged") from error
    return found


def of_audit(rows: Sequence[AuditRow]) -> Iterator[Condition]:
    """What an audit says of a claim: that more leaked withdraws it. That no more was found proves nothing."""
    if any(row.verdict == "broken" for row in rows):
        yield Condition(code="audited", status="not-met")
    elif any(row.verdict == "consistent" for row in rows):
        yield Condition(code="audited", status="met")
