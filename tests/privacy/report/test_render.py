"""The page: whole in one file, safe to open, and never stronger than its facts."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from privacy.report import Facts, facts_of_ledger, facts_of_run
from privacy.report.render import MOST_PRINTED, html
from tests.privacy.report import examples
from tests.privacy.report.examples import SITES, ledger, metrics, plan, row, summary

ALL = ["simulated", "deployed", "remote", "troubled", "withdrawn", "plain", "lifetime", "attacked"]
LANGUAGES = ["en", "zh"]


def page(name: str, language: str = "en") -> str:
    example: Callable[[], dict[str, Any]] = getattr(examples, name)
    made = facts_of_ledger(**example()) if name == "lifetime" else facts_of_run(**example())
    return html(made, language=language)


def text_of(page: str) -> str:
    """What a reader sees, in one line."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.words: list[str] = []
            self.hidden = 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.hidden += tag in ("style", "script")

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= tag in ("style", "script")

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                self.words.append(data)

    reader = Reader()
    reader.feed(page)
    return " ".join(" ".join(reader.words).split())


def between(page: str, start: str, end: str) -> str:
    return page.split(start, 1)[1].split(end, 1)[0]


class TestSafety:
    @pytest.mark.parametrize("name", ALL)
    def test_nothing_is_loaded_from_anywhere(self, name: str) -> None:
        made = page(name)
        loads = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]+)""", made)
        assert all(one.startswith("#") or one == "data:," for one in loads)
        assert "url(" not in made
        assert "@import" not in made
        assert "http" not in text_of(made)

    @pytest.mark.parametrize("name", ALL)
    def test_the_policy_allows_its_own_style_and_script_and_nothing_else(self, name: str) -> None:
        made = page(name)
        policy = between(made, 'http-equiv="Content-Security-Policy" content="', '"').replace("&#39;", "'")
        assert policy.startswith("default-src 'none'; ")
        for tag in ("style", "script"):
            (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", made, re.DOTALL)
            digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "unsafe" not in policy

    @pytest.mark.parametrize("name", ALL)
    def test_no_style_and_no_script_stands_in_an_attribute(self, name: str) -> None:
        body = page(name).split("<body>", 1)[1].rsplit("<script>", 1)[0]
        assert not re.search(r"<[^>]*\s(style|on\w+)=", body)

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_whatever_a_run_is_called_stays_text(self, language: str) -> None:
        evil = """<img src=x onerror=alert(1)>"'{{ 7*7 }}{page}%s"""
        rows = [row(evil, 2), row("b", 3)]
        found = summary(
            rows,
            rounds=3,
            withdrawn=[examples.remark("moon", f"moon {evil}", evil), f"sun {evil}"],
            disclosed=[examples.remark(evil, evil), examples.remark("client-names", "x", column=evil)],
            faults=[{"round": 1, "client": evil, "reason": evil}],
        )
        found |= {"name": evil, "reason": evil, "stopped": "failed", "versions": {evil: evil}}
        views = [ledger(evil, 2, problems=(evil,), hash=evil, policy=evil), ledger("b", 3)]
        made = html(
            facts_of_run(
                plan=plan(model={"name": evil}),
                summary=found,
                metrics=metrics(3),
                ledgers=views,
                statements=[examples.statement(evil, problem=evil, verified=False)],
            ),
            language=language,
        )
        assert "<img" not in made
        assert "alert(1)" in text_of(made)
        assert "{{ 7*7 }}" in text_of(made)
        assert "</script>" not in between(made, "<script>", "\n</body>").removesuffix("</script>")

    @pytest.mark.parametrize("name", ALL)
    def test_charts_are_well_formed(self, name: str) -> None:
        drawings = re.findall(r"<svg.*?</svg>", page(name), re.DOTALL)
        assert drawings
        for drawing in drawings:
            root = ElementTree.fromstring(drawing)
            assert root.get("aria-hidden") == "true" or root.get("aria-label")

    @pytest.mark.parametrize("name", ALL)
    def test_every_id_is_there_once_and_every_link_leads_somewhere(self, name: str) -> None:
        made = page(name)
        ids = re.findall(r'\sid="([^"]+)"', made)
        assert len(ids) == len(set(ids))
        targets = re.findall(r'href="#([^"]+)"', made) + re.findall(r'aria-labelledby="([^"]+)"', made)
        assert set(targets) <= set(ids)


class TestVerdict:
    def test_who_from_whom_how_strongly_and_what_is_left(self) -> None:
        text = text_of(page("deployed"))
        assert (
            "Each record is protected from everyone, the server included: ε is at most 1.21 at δ = 10⁻⁵; "
            "of every budget at least 2.79 is left; no condition checked here withdraws the claim, which rests on the "
            "assumptions below." in text
        )

    def test_what_nobody_checked_stands_beside_the_verdict(self) -> None:
        made = html(facts_of_run(plan=plan(), summary=summary([row("a", 2)], rounds=2), metrics=metrics(2)))
        verdict = text_of(between(made, '<div class="verdict stands">', "</div>"))
        assert "Not checked: Every ledger's chain and charges were recomputed, and agree." in verdict

    def test_a_simulation_says_so_first(self) -> None:
        assert "Simulated, not a claim: in a deployment that meets every condition each record would be" in text_of(
            page("simulated")
        )
        assert "模拟运行，不构成声明：" in text_of(page("simulated", "zh"))

    def test_without_privacy_it_protects_nobody_in_red(self) -> None:
        made = page("plain")
        assert "This protects nobody" in between(made, '<div class="verdict none">', "</div>")
        assert "没有保护任何人" in page("plain", "zh")
        assert "ε ≤" not in text_of(made)

    def test_a_withdrawn_claim_is_struck_out_wherever_its_epsilon_stands(self) -> None:
        made = page("withdrawn")
        assert "The claim is withdrawn: " in made
        body = re.sub(r"<svg.*?</svg>", "", made, flags=re.DOTALL)
        number = re.compile(r'(<s>)?<span class="number">1\.21</span>(</s>)?')
        found = number.findall(body)
        assert len(found) > 8
        assert all(before and after for before, after in found)
        assert "the server brought the code that ran beside the data" in text_of(made)

    def test_a_claim_that_holds_for_some_says_for_how_many_and_why_not_for_the_others(self) -> None:
        text = text_of(page("troubled"))
        assert "For 3 of 5 clients each record is protected" in text
        assert "For 2 of 5 clients the claim is withdrawn: a client failed in a way that may tell something" in text
        assert "withdraws the claim" not in text

    @pytest.mark.parametrize("language", LANGUAGES)
    @pytest.mark.parametrize("name", ["simulated", "deployed", "remote", "troubled", "withdrawn", "lifetime"])
    def test_every_section_with_an_epsilon_says_what_it_is_about(self, name: str, language: str) -> None:
        made = page(name, language)
        sections = re.findall(r'<section id="([a-z]+)".*?</section>', made, re.DOTALL)
        bodies = re.findall(r"<section id=.*?</section>", made, re.DOTALL)
        assert len(sections) > 10
        for section, body in zip(sections, bodies, strict=True):
            if 'class="number"' in body or "ε ≤" in text_of(body):
                text = text_of(body)
                assert "δ = 10⁻⁵" in text, section
                assert "PLD" in text or "RDP" in text, section
                assert ("one added or removed" if language == "en" else "增加或删除一个") in text, section
                assert ("trusting" if language == "en" else "必须信任") in text, section

    def test_what_is_no_claim_says_so_beside_every_figure(self) -> None:
        for name, words in (("simulated", "Simulated, not a claim."), ("withdrawn", "Withdrawn: these figures are no")):
            terms = re.findall(r'<p class="terms">(.*?)</p>', page(name), re.DOTALL)
            assert len(terms) > 5
            assert all(words in text_of(one) for one in terms)


class TestContent:
    def test_it_reads_without_a_script(self) -> None:
        made = re.sub(r"<script>.*?</script>", "", page("big_small"), flags=re.DOTALL)
        assert text_of(made).count("client-00") > 60

    def test_every_condition_is_listed_the_failing_ones_first(self) -> None:
        made = between(page("troubled"), '<section id="assumptions"', "</table>")
        statuses = re.findall(r'<span class="status (not-met|unchecked|assumed|met|outside)"><span class="mark"', made)
        order = ["not-met", "unchecked", "assumed", "met", "outside"]
        assert statuses == sorted(statuses, key=order.index)
        assert statuses[0] == "not-met"

    def test_a_sentence_that_nobody_translated_is_shown_as_it_is(self) -> None:
        found = summary([row("a", 2)], rounds=2, withdrawn=[examples.remark("moon", "the moon was full")])
        made = html(facts_of_run(plan=plan(), summary=found, metrics=metrics(2)), language="zh")
        assert '<span lang="en">the moon was full</span>' in made

    def test_several_kinds_of_epsilon_are_never_added(self) -> None:
        text = text_of(page("lifetime"))
        assert "They are about unlike things and are never added." in text
        assert text.count("is protected from everyone, the server included") == 2

    def test_a_client_without_a_bound_has_a_dash_and_no_number(self) -> None:
        nothing = row("b", 1) | {"epsilon": None, "rdp_epsilon": None, "record_epsilon": None}
        made = html(facts_of_run(plan=plan(), summary=summary([nothing], rounds=1), metrics=[]))
        assert "ε is at most an unknown amount" in text_of(made)
        assert '<span class="number">–</span>' in made

    @pytest.mark.parametrize("language", LANGUAGES)
    @pytest.mark.parametrize("name", ALL)
    def test_no_placeholder_and_no_key_is_left_over(self, name: str, language: str) -> None:
        text = text_of(page(name, language))
        assert not re.search(r"\{\w*\}", text)
        assert "None" not in text
        assert "nan" not in text.split()


class TestSize:
    def test_a_thousand_clients_fit_in_two_megabytes(self) -> None:
        made = html(facts_of_run(**examples.big()))
        assert len(made.encode()) < 2_000_000
        assert made.count('<tr data-kinds="') == 1000

    def test_a_long_table_is_cut_on_paper_and_says_so(self) -> None:
        made = page("big_small")
        assert made.count(' class="beyond"') >= 120 - MOST_PRINTED
        assert f"The {MOST_PRINTED} clients that have spent most; all 120 are in" in text_of(made)


def test_facts_of_one_client_and_one_round_make_a_page() -> None:
    facts: Facts = facts_of_run(plan=plan(rounds=1), summary=summary([row("only", 1)], rounds=1), metrics=metrics(1))
    for language in LANGUAGES:
        assert "only" in html(facts, language=language)


def test_sites_are_named_in_the_order_of_what_they_spent() -> None:
    made = between(page("deployed"), '<section id="budgets"', "</section>")
    assert re.findall(r"<bdi>(\w+)</bdi>", made) == list(SITES)
