"""The status of a server as a person sees it: two tables. Nothing heavy is imported: it is looked at often."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_DAY = 86400.0


def show_status(status: dict[str, Any], home: Path) -> RenderableType:
    """The status of a server, for a terminal or a file."""
    server = status["server"]
    parts: list[RenderableType] = [Text(_headline(server, home))]
    parts += [Text(f"warning: {warning}") for warning in server.get("warnings", ())]
    if status["queue"]:
        parts += [Text(""), _queue_table(status["queue"], up=server["up"]), *_now_lines(status["queue"])]
    else:
        parts += [Text(""), Text("no plans")]
    parts += [Text(""), _site_table(status["sites"], up=server["up"])]
    return Group(*parts)


def print_status(status: dict[str, Any], home: Path) -> None:
    """Print it once."""
    RichConsole(highlight=False, markup=False, soft_wrap=True).print(show_status(status, home))


def _headline(server: dict[str, Any], home: Path) -> str:
    if not server["up"]:
        text = f"no server runs in {home}; what its files say of {server['federation']}:"
    else:
        state = "stopping" if server["stopping"] else "serving" if server["healthy"] else "NOT HEALTHY,"
        text = f"{state} {server['federation']} at {server['address']}, since {_moment(server['since'])}"
    certificate = server["certificate"]
    return text if certificate is None else f"{text}; certificate: {_left(certificate['days'] * _DAY)}"


def _queue_table(queue: list[dict[str, Any]], *, up: bool) -> Table:
    table = _table("run", "plan", "state", "round", "metric", "epsilon so far", "sites")
    for entry in queue:
        metric, epsilon = entry["metric"], entry["epsilon"]
        table.add_row(
            entry["run"],
            entry["name"],
            "cut off" if entry["state"] == "running" and not up else entry["state"],
            f"{entry['round']}/{'?' if entry['rounds'] is None else entry['rounds']}",
            "-" if metric is None else f"{metric['name']} {metric['value']:.4f}",
            "-" if epsilon is None else f"{epsilon:.3f}",
            str(len(entry["members"])) if entry["members"] else "-",
        )
    return table


def _now_lines(queue: list[dict[str, Any]]) -> list[Text]:
    """What each run waits for or does, and why it ended."""
    lines = []
    for entry in queue:
        phase = entry.get("phase")
        if entry.get("waiting"):
            lines.append(f"{entry['name']}: {entry['waiting']}")
        if phase is not None:
            lines.append(
                f"{entry['name']}: round {phase['round']}, {phase['kind']}: {phase['answered']} of {phase['asked']} "
                f"sites have answered, asked {phase['seconds']:.0f} s ago"
            )
        if entry["reason"]:
            lines.append(f"{entry['name']}: {entry['reason']}")
    return [Text(line) for line in lines]


def _site_table(sites: list[dict[str, Any]], *, up: bool) -> Table:
    titles = ("site", "connected", "heard", "plan", "tasks", "in", "out", "certificate", "software")
    table = _table(*(titles if up else ("site", "")))
    for site in sites:
        revoked = "revoked" if site["revoked"] else ""
        if not up:
            table.add_row(site["site"], revoked)
            continue
        there, now = site["connected"], time.time()
        table.add_row(
            site["site"],
            f"for {_span(now - datetime.fromisoformat(site['since']).timestamp())}" if there else revoked or "no",
            f"{_span(site['heard'])} ago" if there else "-",
            site["plan"],
            str(site["tasks"]),
            _size(site["bytes_in"]) if there else "-",
            _size(site["bytes_out"]) if there else "-",
            _left(site["expires"] - now) if there else "-",
            site["software"] if there else "-",
        )
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, no_wrap=title not in ("site", "plan"), overflow="fold")
    return table


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def _left(seconds: float) -> str:
    return "expired" if seconds <= 0 else _span(seconds)


def _span(seconds: float) -> str:
    """A time in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
