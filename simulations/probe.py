"""A few steps of a plan's client on random examples, in this process: seconds a step, and its peak memory.

Started by `simulations.estimate`, which says on standard input what to play.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Final

import numpy as np
import torch

from client.datasets.records import Records
from client.trainer import torch_threads, train_plain
from client.workplace import Workplace, workplace
from privacy.noise import SecretNoise
from shared_models import own
from shared_models.example_form import ExampleForm
from shared_models.features.apply import model_form
from shared_models.parameters import get_parameters
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, write_plan

_WARM, _MEASURED = 1, 3  # steps
_MOST_RECORDS: Final = 4096


def main() -> None:
    """Play what standard input says, and print the figures as JSON."""
    given = json.loads(sys.stdin.read())
    own.bind(given["models"])
    plan = parse_plan(given["plan"], where="plan")
    place = workplace(write_plan(plan))
    with torch_threads(plan.training.threads):
        _play(place, plan, _WARM)
        begun = time.perf_counter()
        _play(place, plan, _MEASURED)
        seconds = (time.perf_counter() - begun) / _MEASURED
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"step_seconds": seconds, "memory": peak}))


def _play(place: Workplace, plan: Plan, steps: int) -> None:
    training, start = plan.training, get_parameters(place.model)
    per_batch = training.expected_batch_size
    if plan.is_private and plan.privacy.unit == "example":
        from client.private_trainer import gradient_sum, train_private

        # Batches are as large as the plan's, of however many records here.
        n = max(per_batch, min(_MOST_RECORDS, round(per_batch / training.sample_rate)))
        records, training = _random(model_form(plan), n), training.model_copy(update={"sample_rate": per_batch / n})
        plan = plan.model_copy(update={"training": training})
        if plan.is_joint:
            for _ in range(steps):
                gradient_sum(place.model, start, records, plan, noise=SecretNoise())
            return
        few = plan.model_copy(update={"training": training.model_copy(update={"steps": steps})})
        train_private(place.model, start, records, few, round_number=1, noise=SecretNoise())
        return
    few = plan.model_copy(update={"training": training.model_copy(update={"steps": steps, "epochs": None})})
    train_plain(place.model, start, _random(model_form(plan), per_batch), few, round_number=1, client="probe")


def _random(form: ExampleForm, n: int) -> Records:
    generator = np.random.default_rng(0)
    shape = (n, *form.shape)
    x = (
        generator.normal(size=shape)
        if form.vocabulary is None
        else generator.integers(1, form.vocabulary, shape).astype(np.float64)
    )
    y = generator.integers(1 if form.at_each_place else 0, form.classes, shape if form.at_each_place else n)
    return Records(x=torch.from_numpy(x.astype(np.float32)), y=torch.from_numpy(y.astype(np.int64)))


if __name__ == "__main__":
    main()
