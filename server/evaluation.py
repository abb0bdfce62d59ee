"""Evaluation of the shared model on data the server itself holds.

Such data is unprotected and must be disjoint from training (rule 11). Metrics come from scikit-learn; for more than
two classes precision, recall, F1 and AUC are unweighted means over the classes (AUC one against the rest). A language
model's are the accuracy and mean cross-entropy of the next token, and its perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from privacy.dpsgd.example_loss import NO_LABEL
from shared_models.parameters import Parameters, set_parameters
from shared_models.plan import Plan

Metrics = dict[str, float]
Evaluate = Callable[[Parameters], Metrics]

# Whether a larger value of a metric is better.
LARGER_IS_BETTER = {
    "accuracy": True,
    "balanced_accuracy": True,
    "f1": True,
    "auc": True,
    "loss": False,
}

LARGEST_LOSS = 700.0  # whose exponential is a number
_NO_GUESS = -1  # no class has this number


@dataclass(frozen=True)
class TestData:
    """Examples the server evaluates on: `x` float32 (n, *input_shape), `y` int64 (n,) or (n, places)."""

    x: torch.Tensor
    y: torch.Tensor

    __test__ = False  # the name is not a test's


def evaluator(plan: Plan, model: torch.nn.Module, data: TestData) -> Evaluate:
    """A function from parameters to metrics; it uses `model` as its working copy."""

    def evaluate(parameters: Parameters) -> Metrics:
        set_parameters(model, parameters)
        if data.y.ndim > 1:
            return language_metrics(model, data, plan.evaluation.batch_size)
        return metrics_of(scores_of(model, data.x, plan.evaluation.batch_size), data.y)

    return evaluate


def scores_of(model: torch.nn.Module, x: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Logits (n, classes) of all examples, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        parts = [model(part.to(device)).cpu() for part in torch.split(x, batch_size)]
    return torch.cat(parts)


def language_metrics(model: torch.nn.Module, data: TestData, batch_size: int) -> Metrics:
    """Accuracy and mean cross-entropy over all places that have a label, and the perplexity, exp(cross-entropy)."""
    device = next(model.parameters()).device
    model.eval()
    right, total, places = 0, 0.0, 0
    with torch.inference_mode():
        for x, y in zip(torch.split(data.x, batch_size), torch.split(data.y, batch_size), strict=True):
            logits, there = model(x.to(device)).cpu(), y != NO_LABEL
            labels = y[there]
            logits = logits[there]
            right += int(((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum())
            total += float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
            places += len(labels)
    if places == 0:
        return {}
    loss = total / places
    found = {"accuracy": right / places, "loss": loss, "perplexity": math.exp(min(loss, LARGEST_LOSS))}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def guesses(logits: torch.Tensor) -> torch.Tensor:
    """Number of the class of the largest logit (n,); -1, which is no class, where one of them is NaN."""
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), _NO_GUESS)


def metrics_of(logits: torch.Tensor, y: torch.Tensor) -> Metrics:
    """Accuracy, balanced accuracy, precision, recall, F1, AUC and mean cross-entropy.

    A metric that is undefined on this data (AUC with one class only, or with logits that are not finite) is left
    out rather than invented. An example whose logits hold NaN has no guess, and so a wrong one.
    """
    from sklearn import metrics as sk

    truth = y.numpy()
    guess = guesses(logits).numpy()
    loss = float(torch.nn.functional.cross_entropy(logits.double(), y))
    labels = np.arange(logits.shape[1])
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        truth, guess, labels=labels, average="macro", zero_division=0
    )
    present = np.unique(truth)
    found = {
        "accuracy": float(sk.accuracy_score(truth, guess)),
        # Mean recall over the classes that occur: balanced_accuracy_score without its warning for guessed ones.
        "balanced_accuracy": float(sk.recall_score(truth, guess, labels=present, average="macro", zero_division=0)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": _auc(torch.softmax(logits.double(), dim=1).numpy(), truth, labels),
        "loss": loss,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _auc(probabilities: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> float:
    from sklearn import metrics as sk

    if not np.isfinite(probabilities).all() or len(np.unique(truth)) < 2:
        return math.nan
    if len(labels) == 2:
        return float(sk.roc_auc_score(truth, probabilities[:, 1]))
    if len(np.unique(truth)) < len(labels):
        return math.nan
    return float(sk.roc_auc_score(truth, probabilities, multi_class="ovr", labels=labels))
