"""An answer taken apart: by columns, tokens, pixels and times, of all the zoo's networks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from security.errors import UsageError
from server.explain.explain import CAVEAT, explain
from server.explain.page import lines, render
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.registry import build_for
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from tests.shared_models.fetching import fetch_or_skip
from veil.main import app, main

pytest.importorskip("captum")

CARD = {
    "classes": ["<b>no</b>", "$yes$"],
    "target": "ill",
    "columns": {
        "age": {"kind": "numeric", "low": 0, "high": 100},
        "sex": {"kind": "categorical", "values": ["f", "m"]},
        "town": {"kind": "categorical", "values": ["a", "b", "c"]},
    },
}


def plan_of(data: dict[str, Any], model: str, options: dict[str, Any] | None = None, **more: Any) -> Plan:
    return Plan.model_validate(
        {
            "data": {"partition": {"kind": "iid", "clients": 2}, **data},
            "model": {"name": model, "options": options or {}},
            "privacy": {"trust": "none"},
            **more,
        }
    )


def learned(plan: Plan) -> nn.Module:
    """The plan's network with weights such as training leaves them: heads that begin at zero say nothing."""
    network = build_for(plan).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


TABLE = plan_of({"name": "csv", "path": "x.csv", "card": CARD}, "linear")
TEXTS = {"name": "sentiment", "text": {"vocabulary": 50, "places": 8}}
IMAGE, SIGNAL = np.random.default_rng(0).uniform(0, 16, (1, 8, 8)), np.random.default_rng(0).normal(size=(6, 128))


def test_a_tables_columns_in_closed_form() -> None:
    """Number and flag, or all of a category's places, are one column's."""
    network = learned(TABLE)
    found = explain(TABLE, network, {"age": 75, "sex": "m", "town": None}, target="$yes$")
    (layer,) = [module for module in network.modules() if isinstance(module, nn.Linear)]
    weights = (layer.weight[1] - layer.weight[0]).detach()
    # age: value, missing; sex: f, m, other; town: a, b, c, other
    expected = {"age": 0.5 * weights[0], "sex": weights[3], "town": weights[8]}
    assert {part.name: part.score for part in found.parts} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    assert [part.value for part in found.parts] == ["75", "m", "missing"]
    against = explain(
        TABLE,
        network,
        {"age": 75, "sex": "m", "town": "a"},
        against={"age": 25, "sex": "m", "town": "b"},
        target="$yes$",
    )
    assert {part.name: part.score for part in against.parts} == pytest.approx(
        {"age": float(weights[0]), "sex": 0.0, "town": float(weights[5] - weights[6])}, rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize(
    ("data", "model", "options", "question", "form"),
    [
        ({"name": "digits"}, "cnn", {}, IMAGE, "image"),
        ({"name": "digits"}, "convnet", {}, IMAGE, "image"),
        ({"name": "digits"}, "resnet", {}, IMAGE, "image"),
        ({"name": "digits"}, "inception", {}, IMAGE, "image"),
        ({"name": "digits"}, "vit", {}, IMAGE, "image"),
        ({"name": "digits"}, "linear", {}, IMAGE, "image"),
        ({"name": "watch"}, "cnn1d", {}, SIGNAL, "signal"),
        ({"name": "watch"}, "recurrent", {"hidden": 6, "bidirectional": True}, SIGNAL, "signal"),
        ({"name": "watch"}, "transformer", {"dim": 8, "heads": 2}, SIGNAL, "signal"),
        (TEXTS, "transformer", {"dim": 8, "heads": 2}, "a good film, really", "text"),
        (TEXTS, "recurrent", {"cell": "gru", "hidden": 5}, "a good film, really", "text"),
        ({"name": "csv", "path": "x.csv", "card": CARD}, "mlp", {}, {"age": 3, "sex": "f", "town": "z"}, "table"),
    ],
)
def test_every_network_of_the_zoo_adds_up(
    data: dict[str, Any], model: str, options: dict[str, Any], question: Any, form: str
) -> None:
    """What goes in (pieces, columns, pixels) adds up to what comes out, and the network stays as it was."""
    plan = plan_of(data, model, options)
    network = learned(plan)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = explain(plan, network, question)
    assert found.form == form
    assert found.attribution.adds_up, found.attribution.gap
    assert found.guess == found.target
    difference = found.attribution.score - found.attribution.base_score
    assert abs(difference) > 1e-4  # or adding up would say nothing
    if found.parts:
        weight = sum(abs(part.score) for part in found.parts)
        assert abs(sum(part.score for part in found.parts) - difference) < 0.03 * max(weight, abs(difference))
    else:
        assert found.attribution.values.shape == np.shape(question)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_words_are_named_in_their_order_and_padding_is_no_part() -> None:
    plan = plan_of(TEXTS, "transformer", {"dim": 8, "heads": 2})
    found = explain(plan, learned(plan), "Good, GOOD film")
    assert [part.name for part in found.parts] == ["good", ",", "good", "film"]
    cut = explain(plan, learned(plan), "one two three four five six seven eight nine ten")
    assert [part.name for part in cut.parts] == ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def test_a_language_model_is_explained_at_the_next_character() -> None:
    plan = plan_of({"name": "shakespeare", "text": {"tokens": "characters", "places": 6}}, "recurrent", {"hidden": 5})
    network = learned(plan)
    found = explain(plan, network, "to be or not", target="e")
    assert "".join(part.name for part in found.parts) == "or not"
    assert found.attribution.adds_up
    short = explain(plan, network, "to", target="e")
    assert [part.name for part in short.parts] == ["t", "o"]


@pytest.mark.parametrize(("model", "features"), [("minilm", None), ("minilm", "minilm-4"), ("linear", "minilm")])
def test_pretrained_texts_are_explained_through_frozen_layers(model: str, features: str | None) -> None:
    fetch_or_skip("minilm")
    more = {} if features is None else {"features": {"name": features}}
    plan = plan_of({"name": "sentences", "text": {"tokens": "wordpiece", "places": 12}}, model, **more)
    found = explain(plan, learned(plan), "an unbelievably good film")
    assert [part.name for part in found.parts][:2] == ["[CLS]", "an"]
    assert found.parts[0].score == found.parts[-1].score == 0  # the marks of the ends are the baseline's too
    assert found.attribution.adds_up
    assert max(abs(part.score) for part in found.parts) > 1e-4


def test_pretrained_images_are_explained_down_to_their_pixels() -> None:
    fetch_or_skip("mobilenet-v2")
    card = {"classes": ["a", "b"], "input_shape": [3, 24, 24]}
    plan = plan_of({"name": "image-folder", "path": "x", "card": card}, "linear", features={"name": "mobilenet-v2"})
    found = explain(plan, learned(plan), np.random.default_rng(0).uniform(0.1, 0.9, (3, 24, 24)), steps=32)
    assert found.attribution.values.shape == (3, 24, 24)
    assert found.attribution.values.abs().max() > 0


@pytest.mark.parametrize(
    ("plan", "question", "options", "reason"),
    [
        (TABLE, {"age": 1, "sex": "m"}, {}, "me: lacks town"),
        (TABLE, {"age": "old", "sex": "m", "town": "a"}, {}, r"me\.age: should be a number"),
        (TABLE, {"age": 1, "sex": "m", "town": "a"}, {"target": "maybe"}, "--target maybe: no such class"),
        (TABLE, {"age": 1, "sex": "m", "town": "a"}, {"steps": 1}, "--steps 1: at least 2"),
        (TABLE, {"age": 1, "sex": "m", "town": "a"}, {"against": {"age": 1}}, "--against: lacks"),
        (plan_of({"name": "digits"}, "linear"), [[1.0]], {}, r"me: has shape \(1, 1\), should have \(1, 8, 8\)"),
        (plan_of({"name": "digits"}, "linear"), np.full((1, 8, 8), np.nan), {}, "me: holds a number that is not"),
        (plan_of(TEXTS, "transformer"), "", {}, "holds no token"),
        (plan_of(TEXTS, "transformer"), "a", {"against": "b"}, "--against: not for texts"),
    ],
)
def test_what_cannot_be_explained_is_one_line(plan: Plan, question: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        explain(plan, build_for(plan).eval(), question, where="me", **options)
    assert "\n" not in str(caught.value)


def test_features_that_are_no_network_are_named() -> None:
    plan = plan_of({"name": "fashion-mnist"}, "linear", features={"name": "scattering"})
    with pytest.raises(UsageError, match=r"'scattering': can't be explained: .* features that can: efficientnet-lite0"):
        explain(plan, nn.Identity(), np.zeros((1, 28, 28)))


# --- shown ----------------------------------------------------------------------------------------------------------


def svg_texts(page: bytes) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", page.decode()))


def test_pictures_show_every_column_and_the_caveat_and_take_no_name_for_markup() -> None:
    found = explain(TABLE, learned(TABLE), {"age": 75, "sex": "m", "town": "<script>$x^2$</script>"}, target="$yes$")
    svg, page, png = (render(found, ending) for ending in (".svg", ".html", ".png"))
    assert png.startswith(b"\x89PNG")
    texts = svg_texts(svg)
    for wanted in (
        "age = 75",
        "sex = m",
        "town = &lt;script&gt;",
        "$yes$: probability",
        CAVEAT.split(".", maxsplit=1)[0][:40],
    ):
        assert wanted in texts, wanted
    assert "<script>" not in page.decode()
    assert page.decode().count("$x^2$") == 2  # the bar and the table
    assert render(found, ".svg") == svg  # the same explanation is the same file


def test_a_gap_is_said_aloud_wherever_it_is_shown() -> None:
    right = explain(TABLE, learned(TABLE), {"age": 75, "sex": "m", "town": "a"})
    found = replace(right, attribution=replace(right.attribution, values=right.attribution.values + 0.1))
    assert "too large" not in "\n".join(lines(right))
    assert not found.attribution.adds_up
    assert "too large to rely on" in "\n".join(lines(found))
    assert "TOO LARGE" in svg_texts(render(found, ".svg"))
    assert found.as_json()["adds_up"] is False


def test_tokens_that_a_terminal_would_obey_are_dots() -> None:
    plan = plan_of({"name": "shakespeare", "text": {"tokens": "characters", "places": 6}}, "recurrent")
    found = explain(plan, learned(plan), "a\x1b[2J\n")
    assert "\x1b" not in "\n".join(lines(found))
    assert b"\x1b" not in render(found, ".html")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    overrides = ("model.name=cnn", "federation.rounds=1", "data.partition.clients=2", "training.steps=2")
    folder, _ = start_run(
        find_plan("digits", overrides), tmp_path_factory.mktemp("run") / "run", Settings(engine="inline")
    )
    return folder


def test_the_command_explains_draws_and_tells_programs(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "two.npy", np.stack([IMAGE, IMAGE / 2]))
    given = ["explain", str(run.path), "--input", str(tmp_path / "two.npy"), "--row", "1"]
    app(args=[*given, "--out", str(tmp_path / "a.png")], standalone_mode=False)
    out = capsys.readouterr().out
    assert "of the baseline" in out
    assert CAVEAT in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    app(args=[*given, "--target", "4", "--against", "2", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["class"] == "4"
    assert np.shape(found["attributions"]) == (1, 8, 8)
    total = np.sum(found["attributions"])
    assert total == pytest.approx(
        found["log_odds"] - found["baseline"]["log_odds"], abs=0.02 * np.abs(found["attributions"]).sum()
    )


def test_an_error_is_one_line_and_leaves_no_file(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "small.npy", np.zeros((1, 4, 4)))
    for name in ("a.pdf", "a.png"):
        with pytest.raises(SystemExit) as ended:
            main(["explain", str(run.path), "--input", str(tmp_path / "small.npy"), "--out", str(tmp_path / name)])
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.npy"]
