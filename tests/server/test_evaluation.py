"""Metrics of the shared model on the server's own data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from server.evaluation import LARGER_IS_BETTER, Metrics, TestData, evaluator, metrics_of, scores_of
from shared_models.example_form import ExampleForm
from shared_models.parameters import get_parameters
from shared_models.plan_federation import EvaluationPlan
from shared_models.registry import build
from tests.server.conftest import make_plan

NAMES = {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "auc", "loss"}


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def confident(*guesses: int, classes: int) -> torch.Tensor:
    """Logits that leave no doubt."""
    return torch.nn.functional.one_hot(labels(*guesses), classes).float() * 20


def approx(expected: Metrics) -> object:
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_two_classes_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])  # guesses 1 0 1 0
    found = metrics_of(logits, labels(1, 1, 0, 0))
    loss = -sum(
        math.log(p) for p in (1 / (1 + math.exp(-2)), 1 / (1 + math.e), 1 / (1 + math.e), 1 / (1 + math.exp(-3)))
    )
    # Margins 2, -1 | 1, -3: of the four pairs (one of each class) three are in the right order.
    expected = {"accuracy": 0.5, "balanced_accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "auc": 0.75}
    assert found == approx({**expected, "loss": loss / 4})


def test_three_classes_by_hand() -> None:
    found = metrics_of(confident(0, 0, 1, 2, 2, 1, classes=3), labels(0, 0, 0, 1, 2, 1))
    precisions, recalls = (1.0, 0.5, 0.5), (2 / 3, 0.5, 1.0)
    f1 = [2 * p * r / (p + r) for p, r in zip(precisions, recalls, strict=True)]
    assert found["accuracy"] == approx(4 / 6)  # type: ignore[arg-type]
    assert found["precision"] == approx(sum(precisions) / 3)  # type: ignore[arg-type]
    assert found["recall"] == approx(sum(recalls) / 3)  # type: ignore[arg-type]
    assert found["balanced_accuracy"] == approx(sum(recalls) / 3)  # type: ignore[arg-type]
    assert found["f1"] == approx(sum(f1) / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_any_scores_against_scikit_learn_itself(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(300, classes, generator=generator)
    y = torch.randint(classes, (300,), generator=generator)
    y[:100] = logits[:100].argmax(1)
    truth, guess, scores = y.numpy(), logits.argmax(1).numpy(), torch.softmax(logits.double(), 1).numpy()
    auc = sk.roc_auc_score(truth, scores[:, 1]) if classes == 2 else sk.roc_auc_score(truth, scores, multi_class="ovr")
    assert metrics_of(logits, y) == approx(
        {
            "accuracy": sk.accuracy_score(truth, guess),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
            "precision": sk.precision_score(truth, guess, average="macro"),
            "recall": sk.recall_score(truth, guess, average="macro"),
            "f1": sk.f1_score(truth, guess, average="macro"),
            "auc": auc,
            "loss": sk.log_loss(truth, scores),
        }
    )


@pytest.mark.filterwarnings("error")
def test_a_class_that_does_not_occur_leaves_the_auc_out_and_invents_nothing() -> None:
    found = metrics_of(confident(0, 0, 1, 2, classes=3), labels(0, 0, 1, 1))
    assert "auc" not in found
    assert found["balanced_accuracy"] == 0.75  # over the two classes there are
    assert found["recall"] == 0.5  # over all three: the missing one counts as 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [2, 3])
def test_one_class_alone_has_no_auc(classes: int) -> None:
    found = metrics_of(confident(0, 0, 1, classes=classes), labels(0, 0, 0))
    assert set(found) == NAMES - {"auc"}
    assert found["accuracy"] == found["balanced_accuracy"] == 2 / 3


@pytest.mark.filterwarnings("error")
def test_an_example_without_a_score_has_a_wrong_guess() -> None:
    """A model that went to NaN must not be credited with the examples of some class."""
    logits = confident(0, 0, 1, 1, classes=2)
    logits[0] = math.nan
    logits[2, 1] = math.nan
    found = metrics_of(logits, labels(0, 0, 1, 1))
    assert found["accuracy"] == found["balanced_accuracy"] == found["recall"] == 0.5
    assert found["precision"] == 1.0
    assert {"auc", "loss"}.isdisjoint(found)
    nothing = metrics_of(torch.full((4, 2), math.nan), labels(0, 0, 1, 1))
    assert set(nothing.values()) == {0.0}
    assert "auc" not in nothing


def test_infinite_logits_are_a_guess_but_have_no_auc() -> None:
    logits = torch.tensor([[math.inf, 0.0], [0.0, 1.0]])
    found = metrics_of(logits, labels(0, 1))
    assert found["accuracy"] == 1.0
    assert {"auc", "loss"}.isdisjoint(found)


def test_extreme_logits_have_a_finite_loss() -> None:
    found = metrics_of(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), labels(1, 1))
    assert found["loss"] == 5000.0


def test_whatever_is_measured_is_a_finite_number() -> None:
    generator = torch.Generator().manual_seed(0)
    for spoilt in (math.nan, math.inf, -math.inf, 3e38):
        logits = torch.randn(20, 4, generator=generator)
        logits[3, 1] = spoilt
        found = metrics_of(logits, torch.randint(4, (20,), generator=generator))
        assert set(found) <= NAMES
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_each_metric_a_plan_may_name_has_a_direction_and_is_measured() -> None:
    allowed = EvaluationPlan.model_fields["metric"].annotation.__args__  # type: ignore[union-attr]
    assert set(allowed) == set(LARGER_IS_BETTER)
    assert set(allowed) <= NAMES
    assert [name for name, larger in LARGER_IS_BETTER.items() if not larger] == ["loss"]


# --- the model at work --------------------------------------------------------------------------------------------


def network(seed: int = 1) -> torch.nn.Module:
    return build("cnn", {}, form=ExampleForm((1, 8, 8), 3), seed=seed)


DATA = TestData(
    x=torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)), y=torch.arange(50, dtype=torch.int64) % 3
)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_the_batch_size_changes_no_metric(batch_size: int) -> None:
    plan = make_plan({"evaluation": {"batch_size": batch_size}})
    found = evaluator(plan, network(), DATA)(get_parameters(network()))
    assert found == pytest.approx(metrics_of(scores_of(network(), DATA.x, 50), DATA.y), rel=1e-5)


def test_it_judges_the_parameters_it_is_given_not_those_of_its_model() -> None:
    evaluate = evaluator(make_plan(), network(seed=1), DATA)
    first, second = get_parameters(network(seed=2)), get_parameters(network(seed=3))
    a, b = evaluate(first), evaluate(second)
    assert a != b
    assert evaluate(first) == a
    assert a == evaluator(make_plan(), network(seed=2), DATA)(first)


def test_evaluation_leaves_everybodys_random_numbers_and_the_parameters_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    parameters = get_parameters(network())
    before = {name: value.copy() for name, value in parameters.items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr,index]
    evaluator(make_plan(), network(), DATA)(parameters)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert all(np.array_equal(parameters[name], value) for name, value in before.items())


def test_dropout_is_off_and_no_gradient_is_kept() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(64, 3))
    model.train()
    first = scores_of(model, DATA.x, 8)
    assert torch.equal(first, scores_of(model, DATA.x, 50).float()) or torch.allclose(
        first, scores_of(model, DATA.x, 50)
    )
    assert not first.requires_grad
    assert first.shape == (50, 3)
