"""What came of attackers among clients, as tables: which defence holds up to which share of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from simulations.attacks.poisoning.attack import BACKDOORS, KINDS

SHARES: Final = (0.1, 0.2, 0.3, 0.4)
"""Of attackers, that are played."""

POINTS, SUCCESS = 0.05, 0.2
"""A defence holds where it loses no more accuracy, and the backdoor works on fewer pictures."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a cell.

    Attributes:
        attack, defence, share, seed: of the cell.
        digest: of its resolved plan.
        stopped: "failed" where the run could not go on.
        accuracy: of the last model.
        backdoor: share of triggered pictures taken for the target.
        dropped: replies that the server left out.
        seconds: wall time.
    """

    attack: str
    defence: str
    share: float
    seed: int
    digest: str
    stopped: str | None
    accuracy: float
    backdoor: float
    dropped: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """What came of an attack on a defence by a share of the clients: means over seeds.

    Attributes:
        accuracy, backdoor: of the last models.
        failed: whether a run could not go on.
        seeds: how many there were.
    """

    accuracy: float
    backdoor: float
    failed: bool
    seeds: int


Scores = dict[tuple[str, str, float], Score]
"""By attack, defence and share; without attackers every attack is the same one, named as the first."""


def scores_of_results(results: Sequence[Result]) -> Scores:
    """Means over seeds."""
    found: Scores = {}
    for key in dict.fromkeys((one.attack, one.defence, one.share) for one in results):
        rows = [one for one in results if (one.attack, one.defence, one.share) == key]
        found[key] = Score(
            accuracy=statistics.fmean(one.accuracy for one in rows),
            backdoor=statistics.fmean(one.backdoor for one in rows),
            failed=any(one.stopped == "failed" for one in rows),
            seeds=len(rows),
        )
    return found


def held(scores: Scores, attack: str, defence: str, shares: Sequence[float] = SHARES) -> float | None:
    """The largest share that a defence holds against an attack: 0 for none; None where that was not played."""
    unharmed, most = scores.get((KINDS[0], defence, 0.0)), 0.0
    if unharmed is None:
        return None
    for share in sorted(shares):
        found = scores.get((attack, defence, share))
        if found is None:
            return None
        worked = attack in BACKDOORS and found.backdoor >= SUCCESS
        if found.failed or worked or found.accuracy < unharmed.accuracy - POINTS:
            return most
        most = share
    return most


def report(results: Sequence[Result], shares: Sequence[float] = SHARES) -> str:
    """The study as text."""
    scores = scores_of_results(results)
    attacks = [kind for kind in KINDS if any(one.attack == kind and one.share for one in results)]
    defences = list(dict.fromkeys(one.defence for one in results))
    seeds = len({one.seed for one in results})
    lines = [
        f"20 clients, digits, 15 rounds; {len(results)} runs, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{sum(one.seconds for one in results) / 60:.0f} minutes of one processor",
        "",
        "Largest share of attackers that a defence holds, in %: accuracy within 5 points of its own without attackers,",
        "backdoor success below 20 %; - for none, ? for not played",
        "",
        f"{'':22s}{''.join(f'{attack:>12s}' for attack in attacks)}",
    ]
    for defence in defences:
        shown = "".join(f"{_percent(held(scores, attack, defence, shares)):>12s}" for attack in attacks)
        lines.append(f"{defence:22s}{shown}")
    for attack in attacks:
        is_backdoor = attack in BACKDOORS
        lines += ["", f"{attack}: test accuracy in %" + (" / backdoor success in %" if is_backdoor else "")]
        lines.append(f"{'attackers':22s}" + "".join(f"{f'{share:.0%}':>14s}" for share in (0.0, *shares)))
        for defence in defences:
            row = [
                _cell(scores.get((attack if share else KINDS[0], defence, share)), is_backdoor)
                for share in (0.0, *shares)
            ]
            lines.append(f"{defence:22s}" + "".join(f"{text:>14s}" for text in row))
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.0f}" if share else "-"


def _cell(score: Score | None, is_backdoor: bool) -> str:
    if score is None:
        return "?"
    text = f"{100 * score.accuracy:.1f}" + (f" / {100 * score.backdoor:.0f}" if is_backdoor else "")
    return f"{text}{'!' if score.failed else ''}"
