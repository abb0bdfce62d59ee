"""How a server stands: its queue, its sites, the round it plays. Plain JSON values, from a running server or files.

What the files alone don't tell (who is connected) is None where the server is down.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from security.errors import UsageError
from security.homes import ServerHome
from server.progress import Now
from server.queue import Entry, Queue
from server.run_folder import RunFolder

Status = dict[str, Any]


def queue_status(queue: Queue, now: Now | None = None) -> list[Status]:
    """The plans of a queue, each with how far its run is."""
    return [
        _entry_status(queue, entry, now if now is not None and now.run == entry.run else None)
        for entry in queue.entries
    ]


def _entry_status(queue: Queue, entry: Entry, now: Now | None) -> Status:
    found: Status = {
        "run": entry.run,
        "name": entry.name,
        "digest": entry.digest,
        "state": entry.state,
        "reason": entry.reason,
        "added": entry.added,
        "folder": str(queue.folder(entry)),
        "members": list(entry.members),
        "round": 0,
        "rounds": None,
        "metric": None,
        "epsilon": None,
    }
    try:
        plan = queue.plan(entry)
    except UsageError:  # said when it is played
        return found
    found["rounds"] = plan.federation.rounds
    try:
        lines = RunFolder(queue.folder(entry)).read_metrics()
    except (UsageError, OSError):
        lines = []
    if lines:
        found |= {"round": lines[-1]["round"], "epsilon": lines[-1].get("epsilon_max")}
        judged = [line["evaluation"] for line in lines if line.get("evaluation")]
        value = judged[-1].get(plan.evaluation.metric) if judged else None
        found["metric"] = None if value is None else {"name": plan.evaluation.metric, "value": value}
    if now is not None:
        found |= {"waiting": now.waiting, "phase": _phase(now)}
    return found


def _phase(now: Now) -> Status | None:
    """What the sites were last asked for, and how many have answered."""
    if now.phase is None:
        return None
    seconds = round(time.monotonic() - now.asked_at, 1)
    number = min(now.round + (now.phase in ("train", "evaluate")), now.rounds)
    return {"kind": now.phase, "round": number, "asked": now.asked, "answered": now.answered, "seconds": seconds}


def down(home: ServerHome, sites: Sequence[str], revoked: Mapping[str, str]) -> Status:
    """What the files say of a server that doesn't run.

    Raises:
        UsageError: the queue can't be read.
    """
    queue = Queue.read(home.path, home.queue)
    return {
        "server": {"up": False, "federation": home.authority().federation, "certificate": certificate_status(home)},
        "queue": queue_status(queue),
        "sites": [site_status(site, revoked=site in revoked) for site in sorted(sites)],
    }


def site_status(site: str, *, revoked: bool, **known: Any) -> Status:
    """One site; what is not known is None."""
    unknown = dict.fromkeys(
        ("connected", "since", "heard", "plan", "tasks", "bytes_in", "bytes_out", "expires", "software")
    )
    return {"site": site, "revoked": revoked, **unknown, **known}


def certificate_status(home: ServerHome) -> Status | None:
    """Until when the server's certificate holds; None if it can't be read."""
    try:
        peer = home.peer()
    except UsageError:
        return None
    return {"expires": peer.not_after, "days": round((peer.not_after - time.time()) / 86400, 1)}
