"""Flower's strategies: made from the plan, fed with checked updates, their state kept for checkpoints.

The loop over the hooks is `federation`; here is what differs from one strategy to the next.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Strategy

from security.errors import RunError, UsageError
from server.model_parts import cut_out, parts
from server.norm_bound import NormBound
from server.rounds.plain import Contribution
from server.scaffold import Scaffold
from shared_models.parameters import Parameters, all_finite
from shared_models.plan import Plan
from shared_models.plan_federation import MEAN_STRATEGIES, VARIATE_STRATEGIES
from shared_models.protocol import ARRAYS, CLIENTS, METRICS, WEIGHT
from shared_models.schedule import learning_rate

State = dict[str, npt.NDArray[Any]]

_CLASSES: Mapping[str, type[Strategy]] = {
    "fedavg": strategy.FedAvg,
    "fedavgm": strategy.FedAvgM,
    "fedadam": strategy.FedAdam,
    "fedyogi": strategy.FedYogi,
    "fedadagrad": strategy.FedAdagrad,
    "fedprox": strategy.FedProx,
    "scaffold": Scaffold,
    "krum": strategy.Krum,
    "multikrum": strategy.MultiKrum,
    "bulyan": strategy.Bulyan,
    "fedmedian": strategy.FedMedian,
    "fedtrimmedavg": strategy.FedTrimmedAvg,
    "normbound": NormBound,
}
_AVERAGES: Final = (strategy.FedAvg, strategy.FedProx)
"""Strategies whose step is the average itself. A class of a user's own may have more in mind."""
_COORDINATE_WISE: Final = (strategy.FedMedian, strategy.FedTrimmedAvg)
"""Strategies that make each value of the next model of the values in its own place alone."""

_AT_ONCE: Final = 2**22  # values of all updates; Flower's classes copy them five times
_FEWEST: Final = 2**10  # of each update: below it the messages would cost more than the values


class StrategyError(RunError):
    """A strategy that made no model, or one that can't be used, of a round's updates."""


class StateAdapter(Protocol):
    """Saves and restores what a strategy remembers from round to round."""

    def save(self, of: Any) -> State:
        """The strategy's memory as named arrays."""
        ...

    def load(self, to: Any, state: State) -> None:
        """Put the memory back."""
        ...


class _Stateless:
    """FedAvg, FedProx and the robust strategies remember nothing."""

    def save(self, of: Any) -> State:
        return {}

    def load(self, to: Any, state: State) -> None:
        return None


class _MomentumAdapter:
    """FedAvgM: a momentum vector, as a list in the order of the parameters, and the model it last produced.

    That model is not always the shared one: before its first step it is what went over the wire.
    """

    def save(self, of: Any) -> State:
        current = (of.current_arrays or {}).items()
        model = {f"model.{i:06d}.{name}": array.numpy() for i, (name, array) in enumerate(current)}
        momentum = enumerate(of.momentum_vector or ())
        return model | {f"momentum.{i:06d}": np.asarray(value) for i, value in momentum}

    def load(self, to: Any, state: State) -> None:
        model = [key for key in sorted(state) if key.startswith("model.")]
        arrays = {key.split(".", 2)[2]: Array(state[key]) for key in model}
        to.current_arrays = ArrayRecord(arrays) if arrays else None
        to.momentum_vector = [state[key] for key in sorted(state) if key.startswith("momentum.")] or None


class _MomentsAdapter:
    """FedAdam, FedYogi, FedAdagrad: first and second moment of each parameter."""

    def save(self, of: Any) -> State:
        first = {f"m.{name}": np.asarray(value) for name, value in (of.m_t or {}).items()}
        return first | {f"v.{name}": np.asarray(value) for name, value in (of.v_t or {}).items()}

    def load(self, to: Any, state: State) -> None:
        to.m_t = {key[2:]: value for key, value in state.items() if key.startswith("m.")} or None
        to.v_t = {key[2:]: value for key, value in state.items() if key.startswith("v.")} or None


class _VariateAdapter:
    """SCAFFOLD: the mean of all clients' variates, and how many clients that is over."""

    def save(self, of: Any) -> State:
        found: State = {f"c.{name}": value for name, value in of.control.items()}
        return found | {"population": np.asarray(of.population, np.int64)}

    def load(self, to: Any, state: State) -> None:
        to.control = {key[2:]: value for key, value in state.items() if key.startswith("c.")}
        to.population = int(state["population"])


class _OwnAdapter:
    """A user's own strategy says what it remembers by `get_state() -> dict[str, ndarray]` and `set_state(dict)`."""

    def save(self, of: Any) -> State:
        state = of.get_state()
        if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise RunError(
                f"federation.strategy: get_state() of {type(of).__name__} must return NumPy arrays by name, as "
                "dict[str, ndarray]"
            )
        return {str(name): value.copy() for name, value in state.items()}  # it may go on to change them in place

    def load(self, to: Any, state: State) -> None:
        to.set_state({name: value.copy() for name, value in state.items()})


@dataclass(frozen=True)
class ServerStrategy:
    """A Flower strategy and how to drive it.

    Attributes:
        name: as in the plan.
        flower: the strategy itself.
        every_reply: whether it gets every single update rather than their mean.
        adapter: keeps its state for checkpoints; None if it can't be kept.
    """

    name: str
    flower: Strategy
    every_reply: bool
    adapter: StateAdapter | None

    def memory(self) -> State | None:
        """What the strategy remembers, for a checkpoint; None if it can't be kept."""
        return None if self.adapter is None else self.adapter.save(self.flower)

    def configure(self, round_number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """The cohort's train messages; `grid` lists the cohort alone.

        Raises:
            StrategyError: the strategy raised an error, or asks a node outside the cohort.
        """
        cohort = set(grid.get_node_ids())
        try:
            messages = list(self.flower.configure_train(round_number, arrays, config, grid))
        except Exception as error:  # a user's own class may raise anything
            raise self._failed(error) from error
        asked = [message.metadata.dst_node_id for message in messages]
        if len(set(asked)) < len(asked):
            raise StrategyError(f"federation.strategy = '{self.name}': asks a client twice in one round")
        if any(node not in cohort for node in asked):
            raise StrategyError(f"federation.strategy = '{self.name}': asks clients outside the round's cohort")
        return messages

    def aggregate(
        self, round_number: int, sent: Mapping[str, Message], contributions: Sequence[Contribution]
    ) -> Parameters:
        """The next model.

        Args:
            round_number: from 1.
            sent: the train message of each client.
            contributions: at least one; each replies to its client's message, a mean to the first of all.

        Raises:
            StrategyError: the strategy makes no model of these contributions (Bulyan with too few), raised an error,
                or made a model of other names or shapes or that is not finite.
        """
        if type(self.flower) in _AVERAGES and len(contributions) == 1:
            return self._checked(contributions[0].parameters)  # the average of one, bit for bit, without four copies
        if type(self.flower) in _COORDINATE_WISE:
            return self._checked(self._by_parts(round_number, sent, contributions))
        return self._checked(self._step(round_number, sent, contributions))

    def _by_parts(
        self, round_number: int, sent: Mapping[str, Message], contributions: Sequence[Contribution]
    ) -> Parameters:
        """The step of a strategy that looks at each coordinate by itself: of some coordinates at a time."""
        model = contributions[0].parameters
        found = {name: np.empty(value.shape, np.float32) for name, value in model.items()}
        for part in parts(model, max(_FEWEST, _AT_ONCE // len(contributions))):
            cut = [replace(one, parameters=cut_out(one.parameters, part)) for one in contributions]
            for name, made in self._step(round_number, sent, cut).items():
                cut_out(found, {name: part[name]})[name][...] = made
            for one in contributions:
                one.let_go()
        return found

    def _step(
        self, round_number: int, sent: Mapping[str, Message], contributions: Sequence[Contribution]
    ) -> Parameters:
        first = next(iter(sent.values()))
        replies = [
            Message(
                RecordDict(
                    {
                        ARRAYS: ArrayRecord({name: Array(value) for name, value in contribution.parameters.items()}),
                        METRICS: self._metrics(contribution),
                    }
                ),
                reply_to=first if contribution.client is None else sent[contribution.client],
            )
            for contribution in contributions
        ]
        try:
            with _quick_collections():
                arrays, _ = self.flower.aggregate_train(round_number, replies)
            with np.errstate(over="ignore"):  # found out below
                made = None if arrays is None else {name: _float32(array) for name, array in arrays.items()}
        except Exception as error:  # a user's own class may raise anything
            raise self._failed(error) from error
        if made is None:
            raise StrategyError(
                f"federation.strategy = '{self.name}': makes no model of {len(contributions)} updates; it needs more"
            )
        model = contributions[0].parameters
        if made.keys() != model.keys() or any(made[name].shape != value.shape for name, value in model.items()):
            raise StrategyError(f"federation.strategy = '{self.name}': its model has other names or shapes")
        return {name: made[name] for name in model}

    def _metrics(self, contribution: Contribution) -> MetricRecord:
        metrics = MetricRecord({WEIGHT: contribution.weight})
        if isinstance(self.flower, Scaffold):
            metrics[CLIENTS] = contribution.clients
        return metrics

    def _checked(self, model: Parameters) -> Parameters:
        if not all_finite(model):
            raise StrategyError(f"federation.strategy = '{self.name}': its model holds NaN or infinity")
        return model

    def _failed(self, error: Exception) -> StrategyError:
        text = (str(error).splitlines() or [""])[0]
        return StrategyError(f"federation.strategy = '{self.name}': {type(error).__name__}: {text}")


@contextmanager
def _quick_collections() -> Iterator[None]:
    """Flower's Bulyan collects garbage after each array of each reply, a tenth of a second each time where torch is
    loaded. Inside, what was there before is not looked through."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _float32(array: Array) -> npt.NDArray[np.float32]:
    return np.asarray(array.numpy(), dtype=np.float32)


def make_strategy(plan: Plan, *, clients: int = 1) -> ServerStrategy:
    """The strategy a plan names.

    Args:
        plan: resolved.
        clients: how many there are.

    Raises:
        UsageError: an option the strategy doesn't take, a value it refuses, or a class that can't be found.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)  # strategies tell each step; the observer tells it better
    name = plan.federation.strategy
    kind = _CLASSES.get(name) or _own_class(name)
    options: dict[str, Any] = dict(plan.federation.strategy_options)
    known = inspect.signature(kind.__init__).parameters
    if name in _CLASSES:
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
        for key, value in options.items():
            if key not in allowed:
                raise UsageError(
                    f"federation.strategy_options.{key}: {name} has no such option; "
                    f"allowed: {', '.join(allowed) or 'none'}"
                )
            _check_option(key, value, known[key].default)
        options |= reserved
        if name == "fedprox":
            options["proximal_mu"] = plan.training.proximal_mu
    try:
        flower = kind(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"federation.strategy_options: {name} refuses them: {error}") from error
    if isinstance(flower, strategy.FedAvg):
        # It would wait for clients to join, for ever; but the cohort is what the plan drew.
        flower.min_train_nodes = flower.min_available_nodes = 1
    if isinstance(flower, Scaffold):
        flower.population, flower.steps = clients, plan.training.local_steps
        flower.rate = partial(learning_rate, plan)
    every_reply = name not in (*MEAN_STRATEGIES, *VARIATE_STRATEGIES)
    return ServerStrategy(name=name, flower=flower, every_reply=every_reply, adapter=_adapter(name, flower))


def _check_option(key: str, value: object, default: object) -> None:
    """An option has its default's type; a whole number will do for a float, but true and false are no numbers."""
    kind = type(default)
    fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"federation.strategy_options.{key} = {value!r}: give a {kind.__name__}")


def _adapter(name: str, flower: Strategy) -> StateAdapter | None:
    if name == "fedavgm":
        return _MomentumAdapter()
    if name in ("fedadam", "fedyogi", "fedadagrad"):
        return _MomentsAdapter()
    if name in VARIATE_STRATEGIES:
        return _VariateAdapter()
    if name in _CLASSES:
        return _Stateless()
    return _OwnAdapter() if hasattr(flower, "get_state") and hasattr(flower, "set_state") else None


def _own_class(name: str) -> type[Strategy]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever the user's module does when it is imported
        text = (str(error).splitlines() or [""])[0]
        raise UsageError(f"federation.strategy = '{name}': can't import it: {type(error).__name__}: {text}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"federation.strategy = '{name}': is not a Flower Strategy class")
    return found
