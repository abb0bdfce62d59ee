"""What a plan would cost before it runs: numbers that learn, bytes on the wire, memory, time and epsilon.

Sizes and arithmetic follow from the plan alone, by a network of shapes without numbers (torch's meta device): a network
that fits on no machine here is counted like any other. Time and memory in all are measured, by a few steps on random
examples in a process of its own. No data is looked at.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from security.errors import RunError
from shared_models.features.apply import model_form
from shared_models.parameters import Layout, size_of, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.plan_adaptive import is_adaptive
from shared_models.plan_augment import copies_of
from shared_models.plan_file import write_plan
from shared_models.plan_personal import shared_layout
from shared_models.plan_scaffold import is_scaffold
from shared_models.plan_secure_sum import cohort_size
from shared_models.registry import dry
from shared_models.resolve import resolve
from shared_models.wire import encode_update
from simulations.dry_run import DryStep, dry_step

_FLOAT: Final = 4  # bytes
_PATIENCE: Final = 600.0  # seconds, for the probe


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few steps on this machine took.

    Attributes:
        step_seconds: a step of a client.
        memory: most bytes that the process had.
    """

    step_seconds: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan would cost.

    Attributes:
        plan: resolved; where its network doesn't fit here, as it was given.
        trained, frozen: numbers of the network.
        down, up: bytes on the wire a client and round.
        clients: in a round; None where the plan doesn't say.
        least_memory: bytes that weights, gradients and the optimiser need at a client, activations not counted.
        batch: examples that a client holds in memory at once.
        step: arithmetic of such a batch, and what its forward pass keeps; None where the network can't be run dry.
        per_example: bytes of such a batch's gradients of single examples at most, where a private step makes them.
        probe: what was measured; None without.
    """

    plan: Plan
    trained: int
    frozen: int
    down: int
    up: int
    clients: int | None
    least_memory: int
    batch: int
    step: DryStep | None
    per_example: int
    probe: Probe | None

    @property
    def round_seconds(self) -> float | None:
        """A client's training in a round."""
        return None if self.probe is None else self.probe.step_seconds * steps_of(self.plan)

    def as_json(self) -> dict[str, Any]:
        """All figures, for programs."""
        return {
            "parameters": {"trained": self.trained, "frozen": self.frozen},
            "bytes": {"down": self.down, "up": self.up, "unit": "client and round"},
            "clients": self.clients,
            "rounds": self.plan.federation.rounds,
            "least_memory": self.least_memory,
            "frozen_memory": _FLOAT * self.frozen,
            "batch": self.batch,
            "activations": None if self.step is None else self.step.kept,
            "per_example_gradients": self.per_example,
            "operations": None
            if self.step is None
            else {"forward": self.step.forward, "backward": self.step.backward, "unit": "batch"},
            "measured": None
            if self.probe is None
            else {"step_seconds": self.probe.step_seconds, "memory": self.probe.memory},
            "epsilon": self.plan.privacy.epsilon if self.plan.is_private else None,
            "delta": self.plan.privacy.delta if self.plan.is_private else None,
        }


def estimate(plan: Plan, *, probe: bool = True) -> Estimate:
    """What a plan would cost.

    Args:
        plan: not resolved yet.
        probe: whether to make the network and measure it. Without, nothing is made, not even to test whether it trains
            privately, and epsilon is what the plan says.

    Raises:
        UsageError: the plan won't do.
        RunError: the probe failed.
    """
    found = resolve(plan) if probe else plan
    network = dry(found)
    size = size_of(network)
    layout = shared_layout(found, network)
    batch = found.training.max_physical_batch or found.training.expected_batch_size * copies_of(found)
    trains = found.statistics is None  # counting is no training
    private = trains and found.is_private and found.privacy.unit == "example"
    extra = 2 if found.training.optimizer in ("adam", "adamw") else 1 if found.training.momentum else 0
    return Estimate(
        plan=found,
        trained=size.trained,
        frozen=size.frozen,
        down=_down(layout) * (2 if is_scaffold(found) else 1),  # the mean of all variates goes with the model
        up=_up(found, layout),
        clients=_clients(found),
        least_memory=_FLOAT * (size.frozen + size.trained * (2 + extra)),
        batch=batch,
        step=_dry(network, found, batch) if trains else None,
        per_example=_FLOAT * size.trained * batch if private else 0,
        probe=_measured(found) if probe and trains else None,
    )


def _dry(network: nn.Module, plan: Plan, batch: int) -> DryStep | None:
    form = model_form(plan)
    whole = dry_step(network, form, batch)
    if whole is None or not plan.training.gradient_checkpointing:
        return whole
    from privacy.dpsgd.gradient_checkpointing import checkpoint_layers  # brings the engine, and with it Opacus

    layers = checkpoint_layers(network)
    again = dry_step(network, form, batch)
    # While a layer is run again, what it keeps is there too; they are alike.
    return again and DryStep(again.forward, again.backward, again.kept + whole.kept // layers)


BATCHES: Final = 10
"""Of a client's records, where a plan counts passes: how many records one has isn't known."""


def steps_of(plan: Plan) -> int:
    """Steps of a client in a round; where the plan counts passes, of a client with `BATCHES` batches."""
    passes = plan.training.epochs
    return plan.training.local_steps if passes is None else BATCHES * passes


def _down(layout: Layout) -> int:
    return wire_bytes(to_arrays(_zeros(layout), layout))


def _up(plan: Plan, layout: Layout) -> int:
    if plan.privacy.trust == "distributed":
        bits, dimension = plan.secure.bits or 64, plan.secure.dimension or layout.size
        return dimension * bits // 8
    if is_adaptive(plan) and plan.privacy.trust == "central":
        return _FLOAT * (layout.size + 1)
    return wire_bytes(encode_update(_zeros(layout), layout, seed=0))


def _zeros(layout: Layout) -> dict[str, Any]:
    import numpy as np

    return {name: np.zeros(shape, np.float32) for name, shape in layout.entries}


def _clients(plan: Plan) -> int | None:
    cohort = plan.federation.cohort
    if plan.privacy.trust == "distributed":
        return cohort_size(plan)
    if cohort.sampling == "fixed":
        return cohort.size
    there = plan.data.clients
    if there is None:
        return None
    return math.ceil(there * cohort.rate) if cohort.sampling == "poisson" else there


def _measured(plan: Plan) -> Probe:
    from shared_models import own

    given = json.dumps({"plan": write_plan(plan), "models": own.bound()})
    command = [sys.executable, "-m", "simulations.probe"]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_PATIENCE, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"a few steps took more than {_PATIENCE:.0f} seconds; --no-probe estimates sizes alone"
        ) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"a few steps on random examples failed: {reason}; --no-probe estimates sizes alone")
    return Probe(**json.loads(done.stdout.splitlines()[-1]))
