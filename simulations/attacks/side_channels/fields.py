"""Every field that left a client, with the class that its guard gives it; one without a class is a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flwr.app import ArrayRecord

from client.egress import Query, check_query, planned_fields
from client.policy import simulated_policy
from shared_models.plan import Plan
from shared_models.protocol import SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK
from simulations.attacks.side_channels.worlds import Sent

_QUERIES: Final[dict[str, Query]] = {
    "query.identify": "identify",
    "query.statement": "statement",
    "query.enrol": "enrol",
    "query.personalise": "personalise",
    **dict.fromkeys((SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK), "secure-sum"),
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field that left.

    Attributes:
        kind: what was asked.
        name: as `record.field`; of the arrays of an update the record alone.
        disclosure: how it may leave; None if nothing says that it may.
    """

    kind: str
    name: str
    disclosure: str | None


def fields(sent: Sequence[Sent], plan: Plan) -> list[Field]:
    """All fields of all replies, each once, by what was asked."""
    found = {(one.kind, name): disclosure for one in sent for name, disclosure in _of_reply(one, plan).items()}
    return [Field(kind=kind, name=name, disclosure=how) for (kind, name), how in sorted(found.items())]


def _of_reply(one: Sent, plan: Plan) -> dict[str, str | None]:
    reply = one.reply
    if reply.has_error():
        return {"error.reason": None} if reply.error.reason else {"error.code": "public"}
    names = {
        name if isinstance(record, ArrayRecord) and one.kind == "train" else f"{name}.{field}"
        for name, record in reply.content.items()
        for field in (record or ("",))
    }
    query = _QUERIES.get(one.kind)
    if query is not None:
        known = {name: kind.value for name, kind in check_query(reply.content, query).items()}
    else:
        known = {name: kind.value for name, kind in planned_fields(plan, simulated_policy(plan, one.client)).items()}
    return {name: known.get(name) for name in names}
