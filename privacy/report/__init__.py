"""The privacy-budget report: facts first (report.json), then a page that says them (report.html, PDF)."""

from privacy.report.facts import Facts
from privacy.report.of_ledger import facts_of_ledger
from privacy.report.of_run import facts_of_run
from privacy.report.views import BalanceView, ChargeView, FieldView, LedgerView, PlanView, StatementView

__all__ = [
    "BalanceView",
    "ChargeView",
    "Facts",
    "FieldView",
    "LedgerView",
    "PlanView",
    "StatementView",
    "facts_of_ledger",
    "facts_of_run",
]
