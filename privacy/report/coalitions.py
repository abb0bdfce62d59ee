"""Who together could break a claim: rows of a small table, from the trust model alone (DESIGN, "two units")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from privacy.report.accounts import Coalition, Outcome

_OUTCOMES: dict[str, dict[str, Outcome]] = {
    # Every update is private by itself: whoever sees it, and whatever else they know, gains no more.
    "local": {"readers": "stands", "clients": "stands", "server": "stands", "server-and-clients": "stands"},
    # The server sees a sum; those who help it can subtract their own part and their own noise.
    "distributed": {"readers": "stands", "clients": "depends", "server": "stands", "server-and-clients": "depends"},
    # The noise is the server's: it sees what came before.
    "central": {"readers": "stands", "clients": "stands", "server": "breaks", "server-and-clients": "breaks"},
    "none": {"readers": "breaks", "clients": "breaks", "server": "breaks", "server-and-clients": "breaks"},
}


def coalitions(trust: str, unit: str, secure_sum: Mapping[str, Any] | None = None) -> tuple[Coalition, ...]:
    """What each coalition can do to a claim of this trust model.

    Args:
        trust: "local", "distributed", "central" or "none".
        unit: what is protected; under "client" the client itself isn't its own attacker.
        secure_sum: where it is known, how many clients of a sum must be `honest`, how many of a cohort of `clients`
            may be `corrupt`.
    """
    values = {key: str(value) for key, value in (secure_sum or {}).items()}
    known = _OUTCOMES.get(trust, _OUTCOMES["none"])
    rows = [
        Coalition(who=who, outcome=outcome, values=values if outcome == "depends" else {})
        for who, outcome in known.items()
    ]
    # The data lies there unprotected, and its own code draws the noise.
    return (*rows, Coalition(who="own-machine" if unit != "client" else "own-machine-client", outcome="breaks"))
