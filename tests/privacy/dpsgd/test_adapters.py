"""Transformers from Hugging Face, whole or with adapters of peft: each example's gradient is its own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from privacy.dpsgd.engine import private_hooks
from privacy.dpsgd.factors import Factors

N, PLACES, WORDS = 5, 12, 50

Loss = Callable[[nn.Module, slice], Tensor]


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, a mask of those that aren't padding, labels."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(N, PLACES, dtype=torch.long)
    mask[2, 7:] = mask[4, 3:] = 0
    ids = torch.randint(1, WORDS, (N, PLACES), generator=generator)
    return ids, mask, torch.randint(3, (N,), generator=generator)


def of_class(model: nn.Module, which: slice) -> Tensor:
    ids, mask, labels = tokens()
    logits = model(input_ids=ids[which], attention_mask=mask[which]).logits
    return cross_entropy(logits, labels[which], reduction="sum")


def of_next_token(model: nn.Module, which: slice) -> Tensor:
    ids, _, _ = tokens()
    logits = model(input_ids=ids[which]).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), ids[which][:, 1:].flatten(), reduction="sum")


def bert() -> nn.Module:
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=WORDS, max_position_embeddings=16, num_labels=3, **sizes)
    return BertForSequenceClassification(config)  # type: ignore[no-any-return]


def bert_with_adapters() -> nn.Module:
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    return get_peft_model(bert(), config)  # type: ignore[no-any-return, arg-type]


def gpt() -> nn.Module:
    """Its head is its embedding, and its linear layers are of a kind of their own."""
    torch.manual_seed(2)
    return GPT2LMHeadModel(  # type: ignore[no-any-return]
        GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0)
    )


@pytest.mark.parametrize(
    ("network", "loss", "least"),
    [(bert, of_class, 41), (bert_with_adapters, of_class, 10), (gpt, of_next_token, 28)],
    ids=["bert", "bert with adapters", "gpt with tied weights"],
)
def test_gradients_equal_those_of_each_example_alone(network: Callable[[], nn.Module], loss: Loss, least: int) -> None:
    model = network().double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) >= least
    with private_hooks(model):
        torch.autograd.backward(loss(model, slice(0, N)))
        found = [parameter.grad_sample for parameter in trained]  # type: ignore[attr-defined]
    rows = [part.rows() if isinstance(part, Factors) else part for part in found]
    for i in range(N):
        alone = torch.autograd.grad(loss(model, slice(i, i + 1)), trained)
        whole = torch.stack([part.norm() for part in alone]).norm()
        for part, expected in zip(rows, alone, strict=True):
            assert (part[i] - expected).norm() <= 1e-10 * whole
