"""The report as a page: one HTML file with all it needs, or its JSON.

The page loads nothing: its policy (CSP) allows its own style sheet and script by their hashes and nothing else. All
that comes from a run is escaped.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from privacy.report import catalogue as words
from privacy.report.accounts import BalanceFacts
from privacy.report.catalogue import Catalogue, catalogue
from privacy.report.charts.bars import budget_bar
from privacy.report.comparison import Comparison
from privacy.report.drawings import Drawings
from privacy.report.facts import Facts
from privacy.report.seen_words import SeenWords
from privacy.report.wording import Wording

MOST_PRINTED = 100
"""Clients that a printed table lists; the page and report.json hold all."""

MOST_LISTED = 500
"""Incidents that a page lists one by one; report.json holds all."""


def json_text(facts: Facts) -> str:
    """report.json."""
    return json.dumps(facts.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def html(facts: Facts, *, language: str = "en", evaluation: str | None = None) -> str:
    """report.html: one file, no network, no script needed to read it.

    Args:
        facts: of the report.
        language: "en" or "zh".
        evaluation: file name of the page beside it that judges the model in detail, if there is one.

    Raises:
        UsageError: the language is not known.
    """
    t = catalogue(language)
    return page(
        "report.html.j2",
        t,
        title=t("page.title", name=facts.name),
        facts=facts,
        words=Wording(facts, t),
        draw=Drawings(t),
        bar=_bar_of,
        has_lifetime=any(one.lifetime for balance in facts.balances for one in balance.accounts),
        most_printed=MOST_PRINTED,
        most_listed=MOST_LISTED,
        evaluation=evaluation,
        seen=None if facts.reconstruction is None else SeenWords(facts.reconstruction, t),
    )


def compare_html(runs: Sequence[tuple[str, Facts]], *, language: str = "en", made: str = "") -> str:
    """The privacy-utility frontier of several runs, by name.

    Raises:
        UsageError: the language is not known, or there are no runs.
    """
    t = catalogue(language)
    return page("compare.html.j2", t, title=t("page.compare_title"), page=Comparison(runs, t), made=made)


def page(template: str, t: Catalogue, *, package: str = "privacy.report", **values: Any) -> str:
    """A page in the report's look.

    Args:
        template: its file, in the folder `templates` of a package; it extends base.html.j2.
        t: the words.
        package: which one.
        values: what the template asks for, beside the helpers of every page.
    """
    style, script = _asset("style.css"), _asset("script.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment(package)
        .get_template(template)
        .render(
            t=t,
            policy=policy,
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            **_HELPERS,
            **values,
        )
    )


@cache
def _environment(package: str) -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in dict.fromkeys((package, "privacy.report"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    return resources.files("privacy.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{b64encode(sha256(content.encode()).digest()).decode()}"


def _bar_of(balance: BalanceFacts) -> Any:
    """Draws one account's bar, all on one scale."""
    fraction = balance.measure == "fraction"
    known = [value for one in balance.accounts for value in (one.epsilon, one.budget) if value is not None]
    most = 1.0 if fraction else max(known, default=1.0)

    def bar(account: Any) -> Markup:
        broken = bool(account.withdrawn) or balance.verdict.status == "withdrawn"
        if fraction:
            return budget_bar(account.fraction, 1.0, most, broken=broken)
        return budget_bar(account.epsilon, account.budget, most, broken=broken)

    return bar


_HELPERS: Mapping[str, Any] = {
    "upper": words.upper,
    "lower": words.lower,
    "exact": words.exact,
    "power": words.power,
    "pretty": words.pretty,
    "percent": words.percent,
    "sure": words.sure,
    "percent_left": words.percent_left,
    "of_100": words.of_100,
}
