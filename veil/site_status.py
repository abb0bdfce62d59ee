"""How a site stands: its client, certificate, roster, approvals and budgets, as the files of its home say."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from client.approvals import Approvals, PendingPlans
from client.notes import read_status
from client.site_settings import SiteSettings, read_settings
from security.certificates import expires_in, expiry_warning
from security.enrolment import approved_roster
from security.errors import UsageError
from security.home_lock import holding
from security.homes import SiteHome
from veil.commands.budget import Spent, budgets
from veil.commands.client_view import plan_line


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """How a site stands.

    Attributes:
        facts: all but the budgets, as plain values.
        budgets: how each stands.
    """

    facts: dict[str, Any]
    budgets: list[Spent]

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**self.facts, "budgets": [asdict(own) for own in self.budgets]}


def site_status(home: SiteHome) -> SiteStatus:
    """Look at a site's home; nothing is changed, and a client may be running.

    Raises:
        UsageError: there is no such home, or its settings can't be read.
        LedgerError: the ledger can't be relied on.
    """
    settings, peer, now = read_settings(home.settings), home.peer(), time.time()
    pending = PendingPlans(home.pending)
    waiting = {digest: pending.read(digest) for digest in pending.digests()}
    ledger = home.ledger if home.ledger.exists() or home.ledger_note.exists() else None
    facts: dict[str, Any] = {
        "site": peer.name,
        "federation": peer.federation,
        "server": settings.server.address,
        "client": _client(home),
        "certificate": {
            "until": datetime.fromtimestamp(peer.not_after, UTC).isoformat(timespec="seconds"),
            "days": int(expires_in(peer, now) // 86400),
            "text": expiry_warning(peer, now)
            or f"valid until {datetime.fromtimestamp(peer.not_after, UTC).date().isoformat()}",
        },
        "roster": _roster(home),
        "approved": sorted(Approvals(home.approvals).all()),
        "pending": [{"digest": digest, "plan": plan.name, "text": plan_line(plan)} for digest, plan in waiting.items()],
        "schedule": _schedule(settings),
    }
    return SiteStatus(facts=facts, budgets=budgets(ledger, settings.policy))


def is_running(home: SiteHome) -> bool:
    """Whether a client works in this home: it holds the lock."""
    if not home.lock.exists():
        return False
    try:
        with holding(home.lock, "a running client"):
            return False
    except UsageError:
        return True


def _client(home: SiteHome) -> dict[str, Any]:
    last, running = read_status(home.status), is_running(home)
    if last is None:
        return {"running": running, "connected": False, "since": None}
    # One that was killed could not say so.
    return {**asdict(last), "running": running, "connected": last.connected and running}


def _roster(home: SiteHome) -> str:
    try:
        sites = approved_roster(home).sites
    except UsageError as error:
        return f"not approved: {error}"
    return f"approved, {len(sites)} sites"


def _schedule(settings: SiteSettings) -> str | None:
    """Why work may not begin now, without the owner's program, which is the client's to run."""
    from client.conditions import Conditions

    return Conditions(settings.schedule.model_copy(update={"hook": ""})).may_work()
