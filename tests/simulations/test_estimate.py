"""What a plan would cost: sizes that a real run bears out, and figures for networks that fit nowhere here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from security.errors import RunError, UsageError
from shared_models import own
from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from simulations.estimate import estimate
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan

SMALL = ("data.partition.clients=3", "federation.rounds=2", "training.steps=2")


@pytest.fixture(autouse=True)
def _unbound() -> Iterator[None]:
    yield
    own.bind({})


def plan(*overrides: str) -> Plan:
    return find_plan("digits", (*SMALL, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federation.wire=int8",),
        ("federation.wire=top-k", "federation.top_fraction=0.1"),
        ("federation.wire=float16", "privacy.trust=none"),
    ],
)
def test_bytes_are_those_of_a_run(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    found = estimate(plan(*overrides), probe=False)
    folder, _ = start_run(plan(*overrides), tmp_path / "run", Settings(engine="inline"))
    sent = folder.read_summary()["bytes"]
    assert (found.down * 3 * 2, found.up * 3 * 2) == (sent["down"], sent["up"])


def test_a_probe_measures_steps_and_memory_without_any_data(tmp_path: Path) -> None:
    card = {"classes": ["a", "b"], "input_shape": [12]}
    data = {"name": "npz", "path": str(tmp_path / "nowhere.npz"), "card": card, "partition": {"kind": "iid"}}
    model = {"name": "mlp", "options": {"hidden": [7]}}
    found = estimate(plan_from({"data": data, "model": model, "federation": {"rounds": 4}}, where="test"))
    assert (found.trained, found.frozen) == (13 * 7 + 8 * 2, 0)
    assert found.probe is not None
    assert 0 < found.probe.step_seconds < 60
    assert found.probe.memory > found.least_memory
    assert found.plan.privacy.noise_multiplier is not None  # resolved: the epsilon is what the run would claim
    assert found.as_json()["epsilon"] == 8.0


def test_a_secure_sum_sends_its_ring_and_counts_its_cohort() -> None:
    found = estimate(find_plan("digits-secure", ()), probe=True)
    secure = found.plan.secure
    assert secure.dimension is not None
    assert secure.bits is not None
    assert found.up == secure.dimension * secure.bits // 8
    assert found.clients == found.plan.data.clients


def test_seven_billion_parameters_with_adapters_are_counted_on_no_machine(tmp_path: Path) -> None:
    """The shape of Llama 2 7B (Touvron et al. 2023, arXiv 2307.09288): 6,738,415,616 numbers by its authors' count."""
    transformers = pytest.importorskip("transformers")
    transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=False,
    ).save_pretrained(tmp_path)
    own.bind({"llama": f"hugging-face:{tmp_path}"})
    options = {"train": "lora", "rank": 8, "targets": ["q_proj", "v_proj"]}
    document = {
        "data": {"name": "shakespeare", "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "llama", "options": options},
        "privacy": {"trust": "none"},
    }
    found = estimate(plan_from(document, where="test"), probe=False)
    assert found.frozen == 6_738_415_616
    assert found.trained == 32 * 2 * 8 * (4096 + 4096)
    assert 4 * found.trained <= found.down == found.up <= 4 * found.trained * 1.01
    assert found.least_memory > 4 * found.frozen
    # 80 places through all linear layers, and the products of all places with all, of 32 layers.
    inside = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 4 * 8 * 4096) + 32000 * 4096
    assert found.step is not None
    assert found.step.forward == 2 * 80 * found.batch * (inside + 32 * 2 * 80 * 4096)
    assert found.step.forward * 0.9 < found.step.backward < found.step.forward * 1.1  # frozen weights get no gradient
    assert found.probe is None


def test_what_will_not_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model"):
        estimate(plan("model.name=nothing"))
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from torch import nn\n"
        "class Late(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        raise SystemError('only here')\n"
        "def build(form):\n"
        "    return nn.Sequential(nn.Flatten(), Late(64, form.classes))\n"
    )
    own.bind({"mine": f"{broken}:build"})
    with pytest.raises(RunError, match=r"failed: .*only here; --no-probe estimates sizes alone"):
        estimate(plan("model.name=mine", "privacy.trust=none"))
