"""The pretrained sentence encoder: the network that its makers published, trained privately at its top."""

from __future__ import annotations

import pytest
import torch

from security.errors import UsageError
from shared_models import registry
from shared_models.cards import card_for
from shared_models.downloads.fetch import fetched
from shared_models.example_form import ExampleForm
from shared_models.features.encoders import ENCODERS
from shared_models.minilm import VOCABULARY
from shared_models.plan import Plan
from shared_models.plan_data import DataPlan, TextPlan
from shared_models.private_trainable import check_private_trainable
from shared_models.resolve import resolve
from shared_models.tokens import tokens_of
from tests.shared_models.fetching import fetch_or_skip

pytest.importorskip("transformers")
TOKENS = ExampleForm((12,), 2, vocabulary=VOCABULARY)
STATES = ExampleForm((12, 384), 2)
TEXTS = ("A truly wonderful film!", "the worst film that I have ever seen, sadly, in a very long time indeed", "fine")


@pytest.fixture(scope="module", autouse=True)
def _there() -> None:
    fetch_or_skip("minilm")


def tokens(places: int = 12) -> torch.Tensor:
    return torch.from_numpy(tokens_of(TEXTS, TextPlan(tokens="wordpiece", places=places))).float()


def test_words_become_the_numbers_of_its_own_vocabulary() -> None:
    x = tokens().long()
    assert x[0, 0] == 101  # [CLS]
    assert x[2].tolist() == [101, 2986, 102] + [0] * 9
    assert x[1, -1] == 102  # cut, and closed with [SEP]


def test_it_computes_what_the_published_network_does() -> None:
    """`transformers`' own class, from the same files."""
    from transformers import BertModel

    theirs = BertModel.from_pretrained(fetched("minilm")["config.json"].parent, local_files_only=True).eval()
    ours = registry.build("minilm", {"train": "head"}, form=TOKENS, seed=1).eval()
    x = tokens()
    with torch.no_grad():
        expected = theirs(input_ids=x.long(), attention_mask=(x != 0).long()).last_hidden_state
        found, there = ours.encoder(x)
    torch.testing.assert_close(found[there], expected[x != 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", ["lora", "layers", "head"])
@pytest.mark.parametrize("form", [TOKENS, STATES])
def test_only_what_learns_is_trained_and_privately_trainable(train: str, form: ExampleForm) -> None:
    model = registry.build("minilm", {"train": train, "layers": 2, "rank": 4}, form=form, seed=1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = 384 * 2 + 2
    layer = 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384
    assert trained == head + {"head": 0, "lora": 2 * 2 * 4 * (384 + 384), "layers": 2 * layer}[train]
    if train != "layers":  # the bias of its keys cancels in the softmax: every gradient is rounding
        check_private_trainable(model, form)


def test_the_lower_layers_features_and_the_upper_layers_are_the_whole_network() -> None:
    data = DataPlan.model_validate(
        {"name": "sentiment", "text": {"tokens": "wordpiece", "places": 12}, "partition": {"kind": "iid", "clients": 2}}
    )
    card, x = card_for(data), tokens()
    whole = registry.build("minilm", {}, form=card.form, seed=1).eval()
    upper = registry.build("minilm", {}, form=STATES, seed=1).eval()
    torch.nn.init.normal_(whole.head.weight)
    upper.head.load_state_dict(whole.head.state_dict())
    lower = ENCODERS["minilm-4"].features(x, card)
    assert lower.shape == (3, 12, 384)
    assert not lower[2, 3:].any()
    with torch.no_grad():
        torch.testing.assert_close(upper(lower), whole(x), rtol=1e-4, atol=1e-4)
        pooled = ENCODERS["minilm"].features(x, card)
        torch.testing.assert_close(pooled @ whole.head.weight.T + whole.head.bias, whole(x), rtol=1e-4, atol=1e-4)


def test_a_text_of_nothing_is_finite() -> None:
    model = registry.build("minilm", {}, form=TOKENS, seed=1)
    assert model(torch.zeros(2, 12)).isfinite().all()


@pytest.mark.parametrize(
    ("form", "options", "reason"),
    [
        (ExampleForm((12,), 2, vocabulary=500), {}, "takes at most 512 tokens of its own vocabulary"),
        (ExampleForm((513,), 2, vocabulary=VOCABULARY), {}, "takes at most 512 tokens"),
        (ExampleForm((1, 8, 8), 2), {}, "takes at most 512 tokens"),
        (STATES, {"layers": 3}, "model.options.layers = 3: allowed: from 1 to 2 behind the features"),
        (TOKENS, {"layers": 7}, "model.options.layers = 7: allowed: from 1 to 6"),
        (TOKENS, {"rank": 0}, "model.options.rank = 0: allowed: from 1 to 384"),
        (TOKENS, {"alpha": 0.0}, "model.options.alpha = 0.0: allowed: above 0"),
    ],
)
def test_what_it_does_not_take_is_refused(form: ExampleForm, options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        registry.build("minilm", options, form=form, seed=1)


def test_a_plan_pins_the_weights_of_its_features() -> None:
    plan = Plan.model_validate(
        {
            "data": {
                "name": "sentiment",
                "text": {"tokens": "wordpiece", "places": 12},
                "partition": {"kind": "iid", "clients": 2},
            },
            "features": {"name": "minilm"},
            "model": {"name": "linear"},
        }
    )
    found = resolve(plan)
    assert found.features is not None
    assert found.features.source is not None
    assert registry.count_parameters(found) == 384 * 2 + 2
    other = found.model_copy(update={"features": found.features.model_copy(update={"source": "0" * 64})})
    with pytest.raises(UsageError, match="this installation derives"):
        resolve(other)


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        ({"name": "sentiment"}, "minilm", "set data.text.tokens = 'wordpiece'"),
        ({"name": "digits"}, "minilm", "set data.text.tokens = 'wordpiece'"),
        ({"name": "sentiment"}, "mobilenet-v2", "takes images, grey or in colour"),
        ({"name": "sentiment"}, "scattering", "takes images, no texts"),
        ({"name": "digits"}, "minilm-5", "unknown feature map; did you mean minilm-4"),
    ],
)
def test_features_that_do_not_fit_the_data_are_refused(data: dict[str, object], name: str, reason: str) -> None:
    document = {"data": {**data, "partition": {"kind": "iid"}}, "features": {"name": name}, "model": {"name": "linear"}}
    with pytest.raises(UsageError, match=reason):
        resolve(Plan.model_validate(document))
