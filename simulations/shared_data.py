"""A simulation's records on their way to the processes that its clients run in."""

from __future__ import annotations

from dataclasses import dataclass

from client.datasets.client_records import ClientRecords, SharedRecords
from client.datasets.features import seen_parts
from client.datasets.partition import client_records, forget_records
from client.workplace import Provided, provide_records, split_key
from shared_models.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a worker need not read itself.

    Attributes:
        plan_digest: of the plan whose clients' records these are.
        train: what each client trains on.
        held_out: what each keeps for evaluation; None where clients hold nothing out.
    """

    plan_digest: str
    train: SharedRecords
    held_out: SharedRecords | None = None


def shared_data(plan: Plan) -> Shared | None:
    """The records of a plan's clients, for other processes; what was read for it is let go of here.

    None where the plan has features: they lie in a file that every process maps into its memory.

    Raises:
        UsageError: as `client_records`.
    """
    if plan.features is not None:
        return None
    held_out = None
    if plan.holds_out:
        parts = seen_parts(plan, split_key=split_key(plan))
        train = ClientRecords.joined({client: own for client, (own, _) in parts.items()}).shared()
        held_out = ClientRecords.joined({client: kept for client, (_, kept) in parts.items()}).shared()
    else:
        train = client_records(plan.data, seed=plan.seed, split_key=split_key(plan)).shared()
    forget_records()
    return Shared(plan_digest=plan.digest(), train=train, held_out=held_out)


def use_shared(data: Shared) -> None:
    """Have this process' clients use them."""
    held_out = None if data.held_out is None else ClientRecords.from_shared(data.held_out)
    provide_records(data.plan_digest, Provided(train=ClientRecords.from_shared(data.train), held_out=held_out))
