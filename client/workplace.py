"""What a client process keeps between messages: the plan, its network, its data.

Built once for each plan and process; a message then costs its training and little else. Data is read when records are
first asked for, which the app does after the guard has charged the round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from flwr.app import Context
from torch import nn

from client.datasets.features import seen_parts, seen_records
from client.datasets.partition import client_ids
from client.datasets.records import Records
from client.heap import keep_freed_memory
from client.trainer import choose_device
from shared_models import own
from shared_models.features.apply import check_source, model_form
from shared_models.frozen import check_frozen
from shared_models.parameters import Layout, Parameters, get_parameters
from shared_models.plan import Plan
from shared_models.plan_data import NaturalPartition
from shared_models.plan_file import parse_plan
from shared_models.plan_personal import own_parameters, shared_layout
from shared_models.registry import build_for
from shared_models.running_statistics import check_no_running_statistics
from shared_models.seeds import derive_key


@dataclass(frozen=True)
class Workplace:
    """A plan at work.

    Attributes:
        plan: the resolved plan.
        model: its network on its device; whoever trains overwrites the parameters first.
        layout: names and shapes of what is trained and shared.
        own: of what is trained and each client's own, the values that it begins with.
    """

    plan: Plan
    model: nn.Module
    layout: Layout
    own: Parameters = field(default_factory=dict)

    @cached_property
    def _clients(self) -> Mapping[str, Records]:
        given = _provided.get(self.plan.digest())
        return given.train if given is not None else seen_records(self.plan, split_key=split_key(self.plan))

    @cached_property
    def _parts(self) -> Mapping[str, tuple[Records, Records]]:
        return seen_parts(self.plan, split_key=split_key(self.plan))

    def records(self, client: str) -> Records:
        """What a client trains on; the first call reads the data.

        Raises:
            KeyError: no such client.
            UsageError: the data can't be loaded.
        """
        if self.plan.holds_out and self.plan.digest() not in _provided:
            return self._parts[client][0]
        return self._clients[client]

    def held_out(self, client: str) -> Records:
        """What a client keeps for evaluation, in a plan whose clients hold something out.

        Raises:
            KeyError: no such client.
            UsageError: the data can't be loaded.
        """
        given = _provided.get(self.plan.digest())
        return self._parts[client][1] if given is None or given.held_out is None else given.held_out[client]

    def client_ids(self) -> tuple[str, ...]:
        """The ids of the clients this process may stand for, in the order of partitions.

        Data is read only where the ids are in it (natural partitions).

        Raises:
            UsageError: the data can't be loaded.
        """
        given = _provided.get(self.plan.digest())
        if given is not None:
            return tuple(given.train)
        return client_ids(self.plan.data, seed=self.plan.seed, split_key=split_key(self.plan))


@dataclass(frozen=True, kw_only=True)
class Provided:
    """Records that another process of a simulation has read for this one.

    Attributes:
        train: what each client trains on.
        held_out: what each keeps for evaluation; None where the plan's clients hold nothing out.
    """

    train: Mapping[str, Records]
    held_out: Mapping[str, Records] | None


_provided: dict[str, Provided] = {}


def provide_records(plan_digest: str, given: Provided) -> None:
    """Have this process' clients of a plan use these records, instead of reading the data themselves."""
    _provided.clear()  # never two plans' in memory
    _provided[plan_digest] = given


def workplace(plan_text: str, device: str = "auto") -> Workplace:
    """The workplace of a resolved plan.

    Args:
        plan_text: the plan as TOML.
        device: where to compute if the plan leaves it open.

    Raises:
        UsageError: the plan isn't valid, this version can't give its privacy or derives other features, or its model
            mixes examples (rule 7).
    """
    return made_workplace(plan_text, device, tuple(sorted(own.bound().items())))


@lru_cache(maxsize=2)
def made_workplace(plan_text: str, device: str, _bound: tuple[tuple[str, str], ...]) -> Workplace:
    """As `workplace`, of networks of the owner's own as they are bound; kept for the last plans."""
    keep_freed_memory()
    plan = parse_plan(plan_text, where="plan")
    check_source(plan)
    model = build_for(plan)
    check_frozen(plan, model)
    if plan.training.gradient_checkpointing:
        from privacy.dpsgd.gradient_checkpointing import checkpoint_layers  # brings the engine, and with it Opacus

        checkpoint_layers(model)
    by_record = plan.privacy.unit == "example"  # a client's whole update may mix its records as it likes
    if plan.is_private and by_record and plan.statistics is None:
        from shared_models.private_trainable import check_private_trainable

        check_private_trainable(model, model_form(plan), plan.training.dp_engine)
    check_no_running_statistics(model)
    model.to(choose_device(wanted_device(plan, device), plan.training.precision))
    names = own_parameters(plan, model)
    own = {name: value for name, value in get_parameters(model).items() if name in names} if names else {}
    return Workplace(plan=plan, model=model, layout=shared_layout(plan, model), own=own)


def wanted_device(plan: Plan, device: str) -> str:
    """Where a plan is to be computed: where it says, or on `device` if it leaves that open."""
    return device if plan.training.device == "auto" else plan.training.device


def split_key(plan: Plan) -> bytes:
    """Key of the split into training and test records, in simulation; a deployed site has a secret of its own."""
    return derive_key(plan.seed, "split")


def client_id(place: Workplace, context: Context) -> str:
    """The stable id of the client behind a node: told by Veil's grids, or counted by Flower's partition number.

    Raises:
        ValueError: the node's configuration names neither, or a partition that isn't there.
    """
    told = context.node_config.get("client-id")
    if told is not None:
        return str(told)
    number = context.node_config.get("partition-id")
    if number is None:
        raise ValueError("the node's configuration has neither client-id nor partition-id")
    ids = place.client_ids()
    if not 0 <= int(number) < len(ids):  # -1 would be the last client's
        raise ValueError(f"partition-id = {int(number)}: there are {len(ids)} partitions, counted from 0")
    return ids[int(number)]


def scope_id(place: Workplace, context: Context) -> str:
    """Whose books are charged, known without a look at the data: the client's id where it is told or counted.

    Raises:
        ValueError: the node's configuration names nobody.
    """
    number = context.node_config.get("partition-id")
    if "client-id" not in context.node_config and isinstance(place.plan.data.partition, NaturalPartition):
        if number is None:
            raise ValueError("the node's configuration has neither client-id nor partition-id")
        if place.plan.privacy.client_budgets:
            raise ValueError("privacy.client_budgets names clients by ids that are in the data; give client-id")
        return f"partition-{int(number)}"
    return client_id(place, context)
