"""The ledger: what a data owner has released, written down before any data is touched (docs/ledger.md)."""

from privacy.ledger.anchors import default_anchors
from privacy.ledger.answers import BudgetExhausted, ReplyGone, Reserved, Snapshot, Stored
from privacy.ledger.entries import Anchor, Entry, FieldClass, Reason, Task
from privacy.ledger.file import LedgerError
from privacy.ledger.ledger import Ledger

__all__ = [
    "Anchor",
    "BudgetExhausted",
    "Entry",
    "FieldClass",
    "Ledger",
    "LedgerError",
    "Reason",
    "ReplyGone",
    "Reserved",
    "Snapshot",
    "Stored",
    "Task",
    "default_anchors",
]
