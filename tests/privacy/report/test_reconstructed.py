"""What a server could have seen, in a report: read with suspicion, told plainly, and no record goes with it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from privacy.report import Facts, facts_of_run
from privacy.report.catalogue import LANGUAGES, catalogue
from privacy.report.facts import Reconstruction, TokenScores
from privacy.report.plain import to_plain
from privacy.report.reconstructed import SCHEMA, reconstruction_of, scores
from privacy.report.render import html, json_text
from privacy.report.seen_words import SeenWords
from tests.privacy.report import examples
from tests.privacy.report.examples import DIGEST, seen
from tests.privacy.report.test_render import text_of

WORDS = {"images": (), "image_guess": None, "labels": None, "label_guess": None, "line_up": None, "labels_given": False}


def written(of: Reconstruction | None = None, **changes: Any) -> str:
    """reconstruction.json."""
    figures = to_plain(of or seen())
    del figures["picture"]
    return json.dumps({"schema": SCHEMA, "plan": DIGEST, "epsilon": 8.0, **figures, **changes})


def page(of: Reconstruction | None, language: str = "en") -> str:
    return html(facts_of_run(**examples.simulated(), reconstruction=of), language=language)


def test_what_was_written_is_read() -> None:
    assert reconstruction_of(written(), DIGEST) == seen()
    assert reconstruction_of(written(), DIGEST, picture="a.svg").picture == "a.svg"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        (written()[:100], "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "holds no figures that this version reads"),
        ("{}", "holds no figures that this version reads"),
        (written(schema="veil-reconstruction-2"), "holds no figures that this version reads"),
        (written(plan="5e" * 32), "is of another plan than this run's"),
        (written(labels="all"), "is damaged"),
        (written(labels=1.1), "is damaged"),
        (written(labels=float("nan")), "is damaged"),
        (written(line_up=float("inf")), "is damaged"),
        (written(movements=-1), "is damaged"),
        (written(movements=True), "is damaged"),
        (written(trust="nobody"), "is damaged"),
        (written(images=[{"way": "zhu"}]), "is damaged"),
        (written(tokens={"found": 1, "right": 2, "there": 3}), "is damaged"),
        (written(left_out=[[]]), "is damaged"),
        (written().replace("4.31", "1e300"), "is damaged"),
        (written().replace('"line_up"', '"lineup"'), "is damaged"),
    ],
    ids=lambda text: text[-40:] if len(text) > 40 else None,
)
def test_anything_else_is_refused_and_says_why(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        reconstruction_of(text, DIGEST)


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_an_attack_the_report_is_as_it_was(language: str) -> None:
    facts = facts_of_run(**examples.simulated())
    assert "reconstruction" not in json.loads(json_text(facts))
    assert Facts.from_json(json.loads(json_text(facts))) == facts
    bare = page(None, language)
    assert 'id="seen"' not in bare
    whole = page(seen(), language)
    # The section and its line among the contents are all that an attack adds.
    without = re.sub(r'<section id="seen".*?</section>\n\n?', "", whole, flags=re.DOTALL)
    without = re.sub(r'<li><a href="#seen">.*?</li>\n', "", without)
    assert "".join(without.split()) == "".join(bare.split())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("trust", ["none", "local", "distributed", "central"])
def test_each_trust_says_what_a_server_gets(trust: str, language: str) -> None:
    t = catalogue(language)
    told = text_of(page(seen(trust, clients=20), language))
    assert t.plain(f"seen.sees.{trust}", clients=20) in told
    others = {"none", "local", "distributed", "central"} - {trust}
    assert not any(t.plain(f"seen.sees.{other}", clients=20) in told for other in others)
    limits = t.plain("seen.limits_none" if trust == "none" else "seen.limits")
    assert limits in told


def test_no_promise_is_made_of_an_attack_that_failed() -> None:
    protected, bare = text_of(page(seen())), text_of(page(seen("none")))
    for told in (protected, bare):
        assert "An attack that failed is no proof of privacy" in told
    assert "What holds against every attack is the claimed ε" in protected
    assert "nothing is promised against any attack" in bare


def test_what_was_found_is_rounded_up_and_a_guess_down() -> None:
    words = SeenWords(seen(), catalogue("en"))
    told = {(one.way, one.measure): (words.figure(one), words.guess(one)) for one in words.rows()}
    assert told["zhu", "psnr"] == ("4.4", "12.9")
    assert told["zhu", "ssim"] == ("0.13", "0.75")
    assert told["geiping", "ssim"] == ("-0.01", "0.75")
    assert told["geiping", "recognised"] == ("25.1\u00a0%", "25\u00a0%")
    assert told["labels", "right"] == ("37.1\u00a0%", "32\u00a0%")
    assert told["line-up", "ahead"] == ("0.83", "0.50")


def test_words_are_told_in_place_of_images() -> None:
    tokens = {
        "tokens": TokenScores(found=10, right=5, there=20),
        "token_guess": TokenScores(found=0, right=0, there=20),
    }
    of = seen(**WORDS, **tokens)
    assert [(one.way, one.measure, one.found, one.guess) for one in scores(of)] == [
        ("words", "recall", 0.25, 0.0),
        ("words", "precision", 0.5, None),
    ]
    assert reconstruction_of(written(of), DIGEST) == of


def test_what_there_was_nobody_to_be_told_from_is_left_out() -> None:
    alone = dataclasses.replace(seen().images[0], recognised=None, by_chance=None)
    measures = {one.measure for one in scores(seen(images=(alone,), image_guess=None, line_up=None, others=0))}
    assert measures == {"psnr", "ssim", "right"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_was_not_tried_is_said_and_a_new_reason_stays_as_it_is(language: str) -> None:
    codes = ("images-many", "images-unasked", "labels-bias", "line-up-steps", "line-up-nobody", "guess-nothing")
    t = catalogue(language)
    told = text_of(page(seen(left_out=(*codes, "<b>moon</b>")), language))
    for code in codes:
        assert t.plain(f"seen_left_out.{code}") in told
    assert "<b>moon</b>" in told


def test_no_record_goes_into_a_report() -> None:
    """Whatever stands in the file beside the figures: the report takes the figures alone."""
    of = reconstruction_of(written(pixels="data:image/png;base64,QUJD", originals=[[1, 2, 3]]), DIGEST)
    facts = facts_of_run(**examples.simulated(), reconstruction=of)
    for made in (html(facts), json_text(facts)):
        assert "QUJD" not in made
        assert "originals" not in made
        assert "reconstruction.svg" not in made
        assert "data:image" not in made


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_picture_is_named_only_where_it_was_asked_for_and_never_shown(language: str) -> None:
    made = page(seen(picture="reconstruction.svg"), language)
    assert "reconstruction.svg" in text_of(made)
    assert "reconstruction.svg" not in page(seen(), language)
    assert "<image" not in made
    assert "<img" not in made
    assert 'href="reconstruction.svg' not in made


def test_a_hostile_file_stays_text() -> None:
    evil = "<script>alert(1)</script>"
    images = (dataclasses.replace(seen().images[0], way=evil),)
    made = page(seen(images=images, left_out=(evil,), picture=evil))
    assert evil not in made
    assert "alert(1)" in text_of(made)
