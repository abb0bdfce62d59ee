"""Both languages say the same things, and numbers are never printed stronger than they were computed."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from privacy.lifetime import Proof
from privacy.report import catalogue as words
from privacy.report.catalogue import LANGUAGES, catalogue
from security.errors import UsageError
from shared_models.faults import Fault

ENGLISH = catalogue("en").texts
PACKAGE = Path(words.__file__).parent


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_same_keys_and_the_same_placeholders(language: str) -> None:
    texts = catalogue(language).texts
    assert texts.keys() == ENGLISH.keys()
    different = [key for key, text in texts.items() if placeholders(text) != placeholders(ENGLISH[key])]
    assert different == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_has_stray_spaces(language: str) -> None:
    texts = catalogue(language).texts
    joins = {"page.gap", "page.comma", "verdict.reason_join"}
    assert [key for key, text in texts.items() if key not in joins and text != (text.strip() or "-")] == []


def test_chinese_is_chinese() -> None:
    latin = [
        key
        for key, text in catalogue("zh").texts.items()
        if not re.search("[\u4e00-\u9fff]", text) and re.search("[a-z]{4}", re.sub(r"\{\w+\}", "", text))
    ]
    assert latin == []


def test_every_key_that_the_package_names_exists() -> None:
    sources = [*PACKAGE.glob("*.py"), *PACKAGE.glob("templates/*.j2")]
    named = {
        key
        for source in sources
        for key in re.findall(r"""\bt(?:\.plain)?\(\s*"([a-z_]+\.[a-z_.]+[a-z_])\"""", source.read_text("utf-8"))
    }
    assert len(named) > 100
    assert [key for key in sorted(named) if key not in ENGLISH and f"{key}.one" not in ENGLISH] == []


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_words(fault: Fault) -> None:
    assert f"reason.{fault.reason}" in ENGLISH


@pytest.mark.parametrize("proof", ["nothing-charged", "rdp-filter", "dedicated-plan", "sum-of-plans", "withdrawn"])
def test_every_proof_has_words(proof: str) -> None:
    assert f"proof.{proof}" in ENGLISH
    assert {f"proof.{name}" for name in Proof.__args__} <= ENGLISH.keys()


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match="language = 'fr' is not known; allowed: en, zh"):
        catalogue("fr")


def test_values_are_escaped_and_markup_is_kept() -> None:
    t = catalogue("en")
    assert t("page.title", name="<b>") == "&lt;b&gt;: privacy-budget report"
    assert t("page.title", name=Markup("<b>x</b>")) == "<b>x</b>: privacy-budget report"
    assert t.plain("page.title", name="<b>") == "<b>: privacy-budget report"
    assert t("facts.withdraws") == "What withdraws it"


def test_plurals_and_thousands() -> None:
    t = catalogue("en")
    assert [str(t("run.clients", n=n)) for n in (0, 1, 2, 1000)] == [
        "0 clients",
        "1 client",
        "2 clients",
        "1,000 clients",
    ]


def test_names_and_rounds_in_a_row() -> None:
    t = catalogue("en")
    assert t.rounds([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"
    assert t.list_of([str(n) for n in range(20)], 3) == "0, 1, 2 and 17 more"


@given(st.floats(1e-9, 1e6))
def test_a_bound_is_printed_no_smaller_than_it_is_and_what_is_left_no_larger(value: float) -> None:
    slack = 1e-8 * value
    shown = float(words.upper(value))
    assert value - slack <= shown <= value * 1.1 + 1e-6 + 0.01 * (value > 1)
    assert float(words.lower(value)) <= value + slack


@given(st.floats(0, 1))
def test_parts_are_rounded_to_the_safe_side(part: float) -> None:
    assert float(words.percent(part).rstrip("\u00a0%")) >= 100 * part - 1e-6
    assert float(words.percent_left(part).rstrip("\u00a0%")) <= 100 * part + 1e-6
    assert float(words.of_100(part)) >= 100 * part - 1e-4
    assert float(words.sure(part).rstrip("\u00a0%")) >= 100 * part - 1e-6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (7.99948, "8.00"),
        (8.0, "8.00"),
        (0.1 + 0.2, "0.30"),
        (123.4, "124"),
        (0.00051624, "0.00052"),
    ],
)
def test_how_a_bound_is_printed(value: float | None, text: str) -> None:
    assert words.upper(value) == text


@pytest.mark.parametrize(("value", "text"), [(1e-5, "10⁻⁵"), (2.5e-6, "2.5·10⁻⁶"), (0.001, "10⁻³"), (1e9, "10⁹")])
def test_how_a_delta_is_printed(value: float, text: str) -> None:
    assert words.power(value) == text


@pytest.mark.parametrize(
    ("text", "shown"), [("1e-05", "10⁻⁵"), ("1.2346", "1.2346"), ("uniform", "uniform"), ("nan", "nan")]
)
def test_how_a_parameter_is_printed(text: str, shown: str) -> None:
    assert words.pretty(text) == shown
