"""Networks of Hugging Face `transformers` from a folder: tiny ones, made here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from security.errors import UsageError
from shared_models import own, registry
from shared_models.example_form import ExampleForm
from shared_models.private_trainable import check_private_trainable

pytest.importorskip("transformers")
FORM = ExampleForm((7,), 3, vocabulary=40)
LANGUAGE = ExampleForm((7,), 40, vocabulary=40, at_each_place=True)
SMALL = {"vocab_size": 40, "max_position_embeddings": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(1)
    made = {
        "bert": BertForSequenceClassification(
            BertConfig(**SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
        ),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                **SMALL,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                tie_word_embeddings=False,
            )
        ),
    }
    found = {}
    for name, model in made.items():
        found[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(found[name])
    return found


@pytest.fixture(autouse=True)
def _unbound() -> Iterator[None]:
    yield
    own.bind({})


def new(folders: dict[str, Path], name: str, form: ExampleForm, **options: object) -> torch.nn.Module:
    own.bind({"theirs": f"hugging-face:{folders[name]}"})
    return registry.build("theirs", options, form=form, seed=3)


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_classifier_keeps_its_weights_and_gets_a_head_of_the_datas_classes(folders: dict[str, Path]) -> None:
    from transformers import BertForSequenceClassification

    model = new(folders, "bert", FORM)
    assert model(torch.randint(1, 40, (4, 7)).float()).shape == (4, 3)
    saved = BertForSequenceClassification.from_pretrained(folders["bert"]).state_dict()
    kept = model.network.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in saved.items() if not key.startswith("classifier"))


def test_padding_at_the_end_changes_nothing(folders: dict[str, Path]) -> None:
    model = new(folders, "bert", FORM).eval()
    text = torch.randint(1, 40, (4, 5)).float()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.cat([text, torch.zeros(4, 2)], 1)), model(text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_language_model_sees_no_later_token(folders: dict[str, Path], name: str) -> None:
    model = new(folders, name, LANGUAGE).eval()
    text = torch.randint(1, 40, (3, 7)).float()
    other = text.clone()
    other[:, 4:] = (other[:, 4:] + 5) % 40
    with torch.no_grad():
        one, two = model(text), model(other)
    assert one.shape == (3, 7, 40)
    torch.testing.assert_close(one[:, :4], two[:, :4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one[:, 4:], two[:, 4:])


@pytest.mark.parametrize(
    ("name", "form", "targets"),
    [("bert", FORM, ["query", "value"]), ("llama", LANGUAGE, ["q_proj", "v_proj"])],
)
def test_adapters_train_privately(folders: dict[str, Path], name: str, form: ExampleForm, targets: list[str]) -> None:
    model = new(folders, name, form, train="lora", rank=2, targets=targets)
    adapters = {one for one in trained(model) if ".down." in one or ".up." in one}
    assert len(adapters) == 2 * 2 * 2
    assert trained(model) - adapters == (
        {"network.classifier.weight", "network.classifier.bias"} if name == "bert" else set()
    )
    check_private_trainable(model, form)


def test_the_head_alone_trains_privately(folders: dict[str, Path]) -> None:
    model = new(folders, "bert", FORM, train="head")
    assert trained(model) == {"network.classifier.weight", "network.classifier.bias"}
    check_private_trainable(model, FORM)


def test_all_of_gpt2_trains_privately(folders: dict[str, Path]) -> None:
    """Its layers are of a kind that only `transformers` has, and head and embedding are one."""
    model = new(folders, "gpt2", LANGUAGE)
    check_private_trainable(model, LANGUAGE)


@pytest.mark.parametrize(
    ("form", "options", "reason"),
    [
        (ExampleForm((1, 8, 8), 3), {}, r"takes texts \(places,\) of tokens"),
        (ExampleForm((7,), 3, vocabulary=41), {}, "knows 40 tokens, the data has 41"),
        (FORM, {"train": "lora", "targets": ["q"]}, "no linear layer is called q; there are: classifier, dense"),
        (FORM, {"widht": 3}, "unknown option of 'theirs'; allowed: train, rank, alpha, targets"),
    ],
)
def test_what_does_not_fit_is_one_line(
    folders: dict[str, Path], form: ExampleForm, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        new(folders, "bert", form, **options)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        new({"x": tmp_path / "nowhere"}, "x", FORM)
