"""The tables of attackers as drawings: a map of what holds, and how backdoors fare by the share of attackers."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from privacy.report.charts import svg
from privacy.report.charts.svg import Scale, document, element, file, polyline, text
from simulations.attacks.poisoning.attack import BACKDOORS, KINDS
from simulations.studies.poisoning_tables import SHARES, SUCCESS, Result, Scores, held, scores_of_results

_ROW, _COLUMN, _LEFT, _TOP = 26.0, 72.0, 148.0, 44.0


def drawings(results: Sequence[Result]) -> dict[str, str]:
    """SVG files, by what is put behind the study's name."""
    scores = scores_of_results(results)
    attacks = [kind for kind in KINDS if any(one.attack == kind and one.share for one in results)]
    defences = list(dict.fromkeys(one.defence for one in results))
    found = {"": str(file(_map(scores, attacks, defences)))}
    if any(attack in BACKDOORS for attack in attacks):
        shown = [attack for attack in attacks if attack in BACKDOORS]
        found["_backdoor"] = str(file(_lines(scores, shown, defences)))
    return found


def _map(scores: Scores, attacks: Sequence[str], defences: Sequence[str]) -> Markup:
    """A table whose cells are the darker the more attackers are borne."""
    width, height = _LEFT + _COLUMN * len(attacks) + 8, _TOP + _ROW * len(defences) + 8
    parts = [element("rect", x=0.0, y=0.0, width=width, height=height, fill="white")]
    parts.append(text("share of attackers held, in %", 4, 16, muted=True))
    for column, attack in enumerate(attacks):
        parts.append(text(attack, _LEFT + _COLUMN * (column + 0.5), 36, anchor="middle", size=11))
    for row, defence in enumerate(defences):
        y = _TOP + _ROW * row
        parts.append(text(defence, _LEFT - 8, y + 17, anchor="end", muted=False))
        for column, attack in enumerate(attacks):
            share = held(scores, attack, defence)
            most = max(SHARES)
            parts.append(
                element(
                    "rect",
                    x=_LEFT + _COLUMN * column + 1,
                    y=y + 1,
                    width=_COLUMN - 2,
                    height=_ROW - 2,
                    fill=svg.ACCENT if share else svg.TRACK,
                    fill_opacity=f"{0.25 + 0.75 * share / most:.2f}" if share else None,
                )
            )
            shown = "?" if share is None else f"{100 * share:.0f}" if share else "none"
            fill = "white" if share and share / most > 0.4 else svg.INK
            parts.append(
                element(
                    "text",
                    shown,
                    x=_LEFT + _COLUMN * (column + 0.5),
                    y=y + 17,
                    text_anchor="middle",
                    font_size=12.0,
                    fill=fill,
                )
            )
    label = "Largest share of attackers that each defence holds, by attack"
    return document(Markup("").join(parts), width, height, label=label, class_="chart")


def _lines(scores: Scores, attacks: Sequence[str], defences: Sequence[str]) -> Markup:
    """Backdoor success by the share of attackers: a small chart a defence, a line an attack."""
    columns, wide, high = 3, 216.0, 132.0
    rows = -(-len(defences) // columns)
    width, height = columns * wide + 8, rows * high + 34
    styles = dict(zip(attacks, ("run-0", "run-1"), strict=False))
    parts = [element("rect", x=0.0, y=0.0, width=width, height=height, fill="white")]
    parts.append(text("pictures with the trigger that are taken for the target, in %, by % of attackers", 8, 16))
    for number, defence in enumerate(defences):
        left, top = number % columns * wide, 24 + number // columns * high
        x = Scale(low=0, high=100 * max(SHARES), start=left + 34, end=left + wide - 14)
        y = Scale(low=0, high=100, start=top + high - 26, end=top + 26)
        parts.append(text(defence, left + 34, top + 16, muted=False))
        for tick in (0, 50, 100):
            parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), stroke=svg.RULE))
            parts.append(text(tick, x.start - 5, y(tick) + 4, anchor="end", size=10))
        parts.append(polyline([(x.start, y(100 * SUCCESS)), (x.end, y(100 * SUCCESS))], "chance"))
        for share in (0.0, *SHARES):
            parts.append(text(f"{100 * share:.0f}", x(100 * share), y.start + 14, anchor="middle", size=10))
        for attack in attacks:
            kept = [(share, scores.get((attack if share else KINDS[0], defence, share))) for share in (0.0, *SHARES)]
            points = [(x(100 * share), y(100 * one.backdoor)) for share, one in kept if one is not None]
            parts.append(polyline(points, styles[attack]))
    for number, attack in enumerate(attacks):
        place = width - 230 + 120 * number
        parts.append(polyline([(place, height - 8), (place + 24, height - 8)], styles[attack]))
        parts.append(text(attack, place + 30, height - 4, muted=False))
    label = "Backdoor success by the share of attackers, for each defence"
    return document(Markup("").join(parts), width, height, label=label, class_="chart")
