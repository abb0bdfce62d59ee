"""An explanation as a page, a text of lines, or a picture, by the ending of the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from security.errors import UsageError
from server.explain.explain import CAVEAT, Explanation, Part
from server.explain.picture import draw, shown

ENDINGS: Final = (".html", ".png", ".svg")
_MOST_LINES: Final = 12

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2126; background: #fff; max-width: 56rem; margin: 2rem auto;
  padding: 0 1rem }
svg { max-width: 100%; height: auto }
td, th { padding: .1rem .8rem .1rem 0; text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
.caveat { border-left: .25rem solid #9a3412; padding-left: .8rem }
</style>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{{ picture }}
{% if parts %}<table><tr><th>part</th><th>value</th><th>log-odds</th></tr>
{% for part in parts %}<tr><td>{{ part.name }}</td><td>{{ part.value }}</td><td class="n">{{ part.score }}</td></tr>
{% endfor %}</table>{% endif %}
<p>{{ method }}</p>
<p class="caveat">{{ caveat }}</p>
</html>
"""


def check_ending(out: Path) -> None:
    """Whether a file's name says what is written.

    Raises:
        UsageError: it doesn't.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UsageError(f"--out {out}: the name should end in {', '.join(ENDINGS)}")


def render(explanation: Explanation, ending: str) -> bytes:
    """The file's content.

    Args:
        explanation: what it shows.
        ending: one of `ENDINGS`.
    """
    if ending == ".html":
        return _page(explanation).encode()
    return draw(explanation, "png" if ending == ".png" else "svg")


def lines(explanation: Explanation) -> list[str]:
    """For a terminal: what was answered, what most spoke for and against it, how it was computed, what it isn't."""
    found = [_summary(explanation)]
    if explanation.parts:
        ranked = sorted(explanation.parts, key=lambda part: -abs(part.score))
        width = max(len(_named(part)) for part in ranked[:_MOST_LINES])
        found += [f"  {_named(part):<{width}}  {part.score:+.3f}" for part in ranked[:_MOST_LINES]]
        if len(ranked) > _MOST_LINES:
            rest = sum(part.score for part in ranked[_MOST_LINES:])
            found.append(f"  {f'{len(ranked) - _MOST_LINES} others':<{width}}  {rest:+.3f}")
    else:
        values = explanation.attribution.values
        place = tuple(int(one) for one in (values.abs() == values.abs().max()).nonzero()[0])
        found.append(
            f"  for: {float(values.clamp(min=0).sum()):+.3f}, against: {float(values.clamp(max=0).sum()):+.3f}; the "
            f"largest, {float(values[place]):+.3f}, at {place}; a picture shows them all (--out FILE.png)"
        )
    return [*found, _method(explanation), CAVEAT]


def _named(part: Part) -> str:
    return shown(f"{part.name} = {part.value}" if part.value else part.name)[:60]


def _summary(explanation: Explanation) -> str:
    found = explanation.attribution
    guess = "" if explanation.guess == explanation.target else f" (the network answers {shown(explanation.guess)})"
    return (
        f"class {shown(explanation.target)}{guess}: probability {found.probability:.3g}, log-odds {found.score:+.3f}; "
        f"of the baseline {found.base_probability:.3g}, {found.base_score:+.3f}"
    )


def _method(explanation: Explanation) -> str:
    found = explanation.attribution
    how = (
        f"integrated gradients, {found.steps} steps; baseline: {explanation.baseline}. The attributions add up to "
        f"{float(found.values.double().sum()):+.3f} of {found.score - found.base_score:+.3f}"
    )
    if found.adds_up:
        return f"{how} (gap {found.gap:.2%} of their weight)"
    return f"{how}: the gap, {found.gap:.1%} of their weight, is too large to rely on them; give more --steps"


def _page(explanation: Explanation) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    picture = draw(explanation, "svg").decode()
    parts = [
        {"name": shown(part.name), "value": shown(part.value), "score": f"{part.score:+.4f}"}
        for part in explanation.parts
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        title=f"Why {shown(explanation.target)}?",
        summary=_summary(explanation),
        picture=Markup(picture[picture.index("<svg") :]),  # noqa: S704 - matplotlib's, which escapes texts
        parts=parts,
        method=_method(explanation),
        caveat=CAVEAT,
    )
