"""Evaluation where the data is: counts that are right, and leave with whole noise of the client's own (rule 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor, nn

from client import app as app_module
from client.datasets.records import Records
from client.evaluator import count_correct, mean_loss, noisy_counts
from privacy.mechanisms import NoisyCounts
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from shared_models.example_form import ExampleForm
from shared_models.parameters import get_parameters
from shared_models.protocol import CORRECT, TOTAL
from shared_models.registry import build
from tests.client.conftest import AT_CLIENTS, Clients, metrics_of, plan_of, some_records

SHAPES: dict[str, tuple[int, ...]] = {
    "mlp": (4,),
    "cnn": (1, 8, 8),
    "convnet": (1, 8, 8),
    "resnet": (1, 8, 8),
    "vit": (1, 8, 8),
}


def network(name: str = "mlp", seed: int = 1) -> nn.Module:
    return build(name, {}, form=ExampleForm(SHAPES[name], 3), seed=seed)


def records(n: int, name: str = "mlp", seed: int = 0) -> Records:
    generator = np.random.default_rng(seed)
    return Records(
        x=torch.from_numpy(generator.uniform(-1, 1, (n, *SHAPES[name])).astype(np.float32)),
        y=torch.from_numpy(generator.integers(3, size=n)),
    )


# --- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 7, 50, 512])
def test_the_counts_are_those_of_looking_at_one_example_after_the_other(name: str, batch_size: int) -> None:
    model, own = network(name), records(50, name)
    model.eval()
    with torch.no_grad():
        expected = sum(int(model(own.x[i : i + 1]).argmax()) == int(own.y[i]) for i in range(50))
    assert count_correct(model, get_parameters(model), own, batch_size=batch_size) == (expected, 50)
    assert 0 < expected < 50  # else the test sees nothing


def test_the_shared_model_is_judged_and_not_what_the_network_held_before() -> None:
    start, other, own = network(seed=1), network(seed=2), records(200)
    expected = count_correct(start, get_parameters(start), own, batch_size=64)
    assert count_correct(other, get_parameters(other), own, batch_size=64) != expected
    assert count_correct(other, get_parameters(start), own, batch_size=64) == expected


def test_dropout_is_off() -> None:
    model = build("mlp", {"hidden": [32], "dropout": 0.9}, form=ExampleForm((4,), 3), seed=1)
    own = records(100)
    model.train()
    counts = {count_correct(model, get_parameters(model), own, batch_size=10) for _ in range(5)}
    assert len(counts) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_rule_5_a_client_that_holds_nothing_out_counts_nothing_and_does_not_fail(name: str) -> None:
    model = network(name)
    assert count_correct(model, get_parameters(model), records(0, name), batch_size=8) == (0, 0)
    assert mean_loss(model, get_parameters(model), records(0, name), batch_size=8) == 0.0


class NoEmptyBatch(nn.Module):
    """A network that can't take a batch of nothing, as a user's own may not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            raise ValueError("empty batch")
        logits: Tensor = self.linear(x)
        return logits


def test_rule_5_no_network_is_ever_asked_about_nothing() -> None:
    model = NoEmptyBatch()
    assert count_correct(model, get_parameters(model), records(0), batch_size=8) == (0, 0)
    assert count_correct(model, get_parameters(model), records(8), batch_size=8)[1] == 8


class Fixed(nn.Module):
    """Says of each example what its features say."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("logits", "label", "right"),
    [
        ([1.0, 2.0, 3.0], 2, True),
        ([1.0, 2.0, 3.0], 0, False),
        ([nan, nan, nan], 0, False),
        ([nan, 0.0, 0.0], 0, False),  # argmax takes NaN for the largest
        ([0.0, 9.0, nan], 1, False),
        ([0.0, 9.0, nan], 2, False),
        ([inf, 0.0, -inf], 0, True),
        ([-inf, -inf, -inf], 0, True),
        ([3e38, -3e38, 0.0], 0, True),
    ],
)
def test_rule_5_logits_that_are_no_numbers_are_wrong_and_nothing_fails(
    logits: list[float], label: int, right: bool
) -> None:
    class Says(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(logits).repeat(len(x), 1)

    own = Records(x=torch.zeros(2, 3), y=torch.tensor([label, label]))
    assert count_correct(Says(), get_parameters(Says()), own, batch_size=8) == (2 * right, 2)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12), st.integers(1, 5), st.data())
def test_rule_10_one_record_more_changes_each_count_by_one_at_most(
    pairs: list[tuple[int, int]], batch_size: int, data: st.DataObject
) -> None:
    model = Fixed()

    def counts(of: list[tuple[int, int]]) -> tuple[int, int]:
        x = torch.nn.functional.one_hot(torch.tensor([said for said, _ in of], dtype=torch.int64), 3).float()
        own = Records(x=x.reshape(len(of), 3), y=torch.tensor([label for _, label in of], dtype=torch.int64))
        return count_correct(model, get_parameters(model), own, batch_size=batch_size)

    place = data.draw(st.integers(0, len(pairs)))
    one = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    before, after = counts(pairs), counts([*pairs[:place], one, *pairs[place:]])
    assert after[0] - before[0] == (one[0] == one[1])
    assert after[1] - before[1] == 1


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_the_mean_loss_is_torchs(batch_size: int) -> None:
    model, own = network(), records(40)
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(model(own.x), own.y))
    assert mean_loss(model, get_parameters(model), own, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


# --- noise ---------------------------------------------------------------------------------------------------------


class Scripted:
    """A source that gives what it is told and keeps what it was asked."""

    is_secret = False

    def __init__(self, *values: int) -> None:
        self.values = values
        self.asked: list[Any] = []

    def grid_normal(self, shape: Any, scale: float, *, device: Any = None) -> Tensor:
        self.asked.append((tuple(shape), scale))
        return torch.tensor(self.values)


def test_rule_10_each_count_has_noise_of_its_own_as_large_as_the_release_says() -> None:
    noise: Any = Scripted(3, -20)
    release = NoisyCounts(noise=12.5, counts=2)
    found = noisy_counts(7, 9, release, noise)
    assert found == (10, -11)  # may be negative: cutting it off at zero is the reader's to do
    assert [type(count) for count in found] == [int, int]
    assert noise.asked == [((2,), 12.5)]


def test_the_noise_has_the_variance_that_is_accounted_for() -> None:
    # False alarm: 1e-9 (two-sided chi-square test of 2 x 4000 draws; rounding adds 1/12 to the variance).
    release = NoisyCounts(noise=10.0, counts=2)
    source: NoiseSource = ReproducibleNoise(b"evaluator test")
    drawn = np.array([noisy_counts(0, 0, release, source) for _ in range(4000)], dtype=float)
    statistic = float((drawn**2).sum() / (10.0**2 + 1 / 12))
    low, high = chi2.ppf([0.5e-9, 1 - 0.5e-9], drawn.size)
    assert low < statistic < high
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.12  # 7.6 standard deviations of independent draws


def test_rule_6_a_person_with_several_records_is_covered_by_as_much_more_in_the_price(clients: Clients) -> None:
    # The noise is the plan's; what the client's ledger charges knows that a person moves each count by up to 3.
    people = plan_of(evaluation=AT_CLIENTS, data={"person_column": "who", "max_rows_per_person": 3})
    clients.evaluate(people)
    charged = clients.charged()
    assert charged == {NoisyCounts(noise=10.0, counts=2, records_per_unit=3): 1}
    (release,) = charged
    assert isinstance(release, NoisyCounts)
    assert release.sensitivity == pytest.approx(3 * 2**0.5)


@pytest.mark.parametrize(("noise", "kind"), [("secret", SecretNoise), ("reproducible", ReproducibleNoise)])
def test_the_noise_is_the_clients_own_and_fresh_for_each_judgement(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, noise: str, kind: type
) -> None:
    used: list[NoiseSource] = []

    def spy(correct: int, total: int, release: NoisyCounts, source: NoiseSource) -> tuple[int, int]:
        used.append(source)
        return noisy_counts(correct, total, release, source)

    monkeypatch.setattr(app_module, "noisy_counts", spy)
    plan = plan_of(evaluation=AT_CLIENTS, privacy={"noise": noise})
    for client, number in (("0", 1), ("0", 2), ("1", 1)):
        clients.evaluate(plan, number, client=client)
    assert [type(source) for source in used] == [kind] * 3
    assert len({id(source) for source in used}) == 3


def test_clients_with_the_same_data_send_unlike_counts(clients: Clients) -> None:
    plan = plan_of(evaluation={**AT_CLIENTS, "count_noise": 1e6})
    clients.held = dict.fromkeys(("0", "1", "2"), some_records(5))
    clients.data = dict.fromkeys(("0", "1", "2"), some_records(5))
    found = set()
    for client in ("0", "1", "2"):
        metrics = metrics_of(clients.evaluate(plan, client=client))
        found |= {metrics[CORRECT], metrics[TOTAL]}
    assert len(found) == 6
