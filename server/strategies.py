"""Flower's strategies: made from the plan, fed with checked updates, their state kept for checkpoints.

The loop over the hooks is `federation`; here is what differs from one strategy to the next.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Strategy

from security.errors import UsageError
from server.rounds.plain import Contribution
from shared_models.parameters import Parameters
from shared_models.plan import MEAN_STRATEGIES, Plan
from shared_models.protocol import ARRAYS, METRICS, WEIGHT

State = dict[str, npt.NDArray[Any]]

_CLASSES: Mapping[str, type[Strategy]] = {
    "fedavg": strategy.FedAvg,
    "fedavgm": strategy.FedAvgM,
    "fedadam": strategy.FedAdam,
    "fedyogi": strategy.FedYogi,
    "fedadagrad": strategy.FedAdagrad,
    "fedprox": strategy.FedProx,
    "krum": strategy.Krum,
    "multikrum": strategy.MultiKrum,
    "bulyan": strategy.Bulyan,
    "fedmedian": strategy.FedMedian,
    "fedtrimmedavg": strategy.FedTrimmedAvg,
}


class StateAdapter(Protocol):
    """Saves and restores what a strategy remembers from round to round."""

    def save(self, of: Any) -> State:
        """The strategy's memory as named arrays."""
        ...

    def load(self, to: Any, state: State, model: ArrayRecord) -> None:
        """Put the memory back; `model` is the shared model the run goes on from."""
        ...


class _Stateless:
    """FedAvg, FedProx and the robust strategies remember nothing."""

    def save(self, of: Any) -> State:
        return {}

    def load(self, to: Any, state: State, model: ArrayRecord) -> None:
        return None


class _MomentumAdapter:
    """FedAvgM: a momentum vector, as a list in the order of the parameters, and the model it last produced."""

    def save(self, of: Any) -> State:
        return {f"momentum.{i:06d}": value for i, value in enumerate(of.momentum_vector or ())}

    def load(self, to: Any, state: State, model: ArrayRecord) -> None:
        to.current_arrays = model
        to.momentum_vector = [state[key] for key in sorted(state)] or None


class _MomentsAdapter:
    """FedAdam, FedYogi, FedAdagrad: first and second moment of each parameter."""

    def save(self, of: Any) -> State:
        first = {f"m.{name}": value for name, value in (of.m_t or {}).items()}
        return first | {f"v.{name}": value for name, value in (of.v_t or {}).items()}

    def load(self, to: Any, state: State, model: ArrayRecord) -> None:
        to.m_t = {key[2:]: value for key, value in state.items() if key.startswith("m.")} or None
        to.v_t = {key[2:]: value for key, value in state.items() if key.startswith("v.")} or None


class _OwnAdapter:
    """A user's own strategy says what it remembers by `get_state() -> dict[str, ndarray]` and `set_state(dict)`."""

    def save(self, of: Any) -> State:
        return dict(of.get_state())

    def load(self, to: Any, state: State, model: ArrayRecord) -> None:
        to.set_state(state)


@dataclass(frozen=True)
class ServerStrategy:
    """A Flower strategy and how to drive it.

    Attributes:
        flower: the strategy itself.
        every_reply: whether it gets every single update rather than their mean.
        adapter: keeps its state for checkpoints; None if it can't be kept.
    """

    flower: Strategy
    every_reply: bool
    adapter: StateAdapter | None

    def configure(self, round_number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """The cohort's train messages; `grid` lists the cohort alone."""
        return list(self.flower.configure_train(round_number, arrays, config, grid))

    def aggregate(
        self, round_number: int, sent: Sequence[Message], contributions: Sequence[Contribution]
    ) -> Parameters | None:
        """The next model, or None where the strategy makes none of these contributions (Bulyan with too few)."""
        replies = [
            Message(
                RecordDict(
                    {
                        ARRAYS: ArrayRecord({name: Array(value) for name, value in contribution.parameters.items()}),
                        METRICS: MetricRecord({WEIGHT: contribution.weight}),
                    }
                ),
                reply_to=message,
            )
            for message, contribution in zip(sent, contributions, strict=False)
        ]
        arrays, _ = self.flower.aggregate_train(round_number, replies)
        if arrays is None:
            return None
        return {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in arrays.items()}


def make_strategy(plan: Plan) -> ServerStrategy:
    """The strategy a plan names.

    Raises:
        UsageError: an option the strategy doesn't take, a value it refuses, or a class that can't be found.
    """
    name = plan.federation.strategy
    kind = _CLASSES.get(name) or _own_class(name)
    options: dict[str, Any] = dict(plan.federation.strategy_options)
    known = inspect.signature(kind.__init__).parameters
    if kind.__module__.startswith("flwr."):
        reserved = {
            "fraction_train": 1.0,
            "fraction_evaluate": 0.0,
            "min_train_nodes": 1,
            "min_evaluate_nodes": 0,
            "min_available_nodes": 1,
            "weighted_by_key": WEIGHT,
        }
        allowed = [
            key
            for key, parameter in known.items()
            if key not in {*reserved, "self", "proximal_mu"}
            and isinstance(parameter.default, (int, float, str, bool))
            and not key.endswith("record_key")
        ]
        for key in options:
            if key not in allowed:
                raise UsageError(
                    f"federation.strategy_options.{key}: {name} has no such option; "
                    f"allowed: {', '.join(allowed) or 'none'}"
                )
        options |= reserved
        if name == "fedprox":
            options["proximal_mu"] = plan.training.proximal_mu
    try:
        flower = kind(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"federation.strategy_options: {name} refuses them: {error}") from error
    return ServerStrategy(flower=flower, every_reply=name not in MEAN_STRATEGIES, adapter=_adapter(name, flower))


def _adapter(name: str, flower: Strategy) -> StateAdapter | None:
    if name == "fedavgm":
        return _MomentumAdapter()
    if name in ("fedadam", "fedyogi", "fedadagrad"):
        return _MomentsAdapter()
    if name in _CLASSES:
        return _Stateless()
    return _OwnAdapter() if hasattr(flower, "get_state") and hasattr(flower, "set_state") else None


def _own_class(name: str) -> type[Strategy]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"federation.strategy = '{name}': can't import it: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"federation.strategy = '{name}': is not a Flower Strategy class")
    return found
