"""What leaves a client, field by field (principle 1): charged, public, entrusted, unprotected, or refused.

A reply has the fields that are listed here, each with its class and the type of its value. One that is not listed
stops the reply, and so does one that is missing, for its absence could tell something too. The classes go into the
ledger with the commit, so that the owner can see afterwards what was let out.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.policy import SitePolicy
from shared_models.cards import card_for
from shared_models.parameters import Layout, LayoutError, read_array
from shared_models.plan import Plan
from shared_models.plan_central import gives_joint, is_central
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    CONFUSION,
    CORRECT,
    EPSILON,
    EXAMPLES,
    HEAD_HASH,
    HEAD_POSITION,
    JOINT,
    LEDGER,
    MASKED,
    METRICS,
    SECURE_MESSAGE,
    STATEMENT_TEXT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
    Phase,
)
from shared_models.wire import update_arrays


class Disclosure(StrEnum):
    """How a field may leave."""

    CHARGED = "charged"
    """A private release; the ledger has its price."""
    PUBLIC = "public"
    """Independent of the data."""
    ENTRUSTED = "entrusted"
    """Unprotected, to a server that the policy trusts; no epsilon is claimed against that server."""
    UNPROTECTED = "unprotected"
    """Let out by the policy beside a private release; withdraws its claim."""


class EgressError(ValueError):
    """A reply that must not leave. The text names record and field, never a value."""


Fields = dict[tuple[str, str], Disclosure]
Query = Literal["identify", "statement", "secure-sum", "enrol", "personalise"]

# Record and type of each field. A list is never one: it could hold more than the field's name says.
_TYPES: Final[dict[tuple[str, str], type]] = {
    (METRICS, WEIGHT): int,
    (METRICS, EPSILON): float,
    (METRICS, EXAMPLES): int,
    (METRICS, TRAIN_LOSS): float,
    (METRICS, CORRECT): int,
    (METRICS, TOTAL): int,
    (LEDGER, HEAD_POSITION): int,
    (LEDGER, HEAD_HASH): str,
    (CONFIG, CLIENT_ID): str,
    (CONFIG, STATEMENT_TEXT): str,
    (CONFIG, SECURE_MESSAGE): bytes,
}
_RECORDS: Final = {ARRAYS: ArrayRecord, METRICS: MetricRecord, LEDGER: ConfigRecord, CONFIG: ConfigRecord}
_HEAD: Final[Fields] = {(LEDGER, HEAD_POSITION): Disclosure.PUBLIC, (LEDGER, HEAD_HASH): Disclosure.PUBLIC}
_PRIVATE: Final[dict[Phase, Fields]] = {
    "train": {(METRICS, WEIGHT): Disclosure.PUBLIC, (METRICS, EPSILON): Disclosure.PUBLIC, **_HEAD},
    "evaluate": {
        (METRICS, CORRECT): Disclosure.CHARGED,
        (METRICS, TOTAL): Disclosure.CHARGED,
        (METRICS, EPSILON): Disclosure.PUBLIC,
        **_HEAD,
    },
}
_PLAIN: Final[dict[Phase, Fields]] = {
    "train": {(METRICS, WEIGHT): Disclosure.ENTRUSTED, (METRICS, TRAIN_LOSS): Disclosure.ENTRUSTED, **_HEAD},
    "evaluate": {(METRICS, CORRECT): Disclosure.ENTRUSTED, (METRICS, TOTAL): Disclosure.ENTRUSTED, **_HEAD},
}
_QUERIES: Final[dict[Query, Fields]] = {
    "identify": {(CONFIG, CLIENT_ID): Disclosure.PUBLIC},
    "statement": {(CONFIG, STATEMENT_TEXT): Disclosure.PUBLIC},
    # Keys, sealed shares, signatures and opened shares: random, whatever the data is.
    "secure-sum": {(CONFIG, SECURE_MESSAGE): Disclosure.PUBLIC},
    "personalise": {(CONFIG, CLIENT_ID): Disclosure.PUBLIC},  # that the model came, whatever came of it
    "enrol": {(METRICS, EPSILON): Disclosure.PUBLIC, **_HEAD},
}


def classify(
    reply: RecordDict, *, phase: Phase, plan: Plan, policy: SitePolicy, layout: Layout, federation: str | None = None
) -> dict[str, Disclosure]:
    """The class of every field of a reply that was made from data, by `record.field`.

    Args:
        reply: all of it.
        phase: that was asked for.
        plan: resolved.
        policy: of the site.
        layout: the arrays that a train reply holds.
        federation: whose server gets it; in a simulation the plan's name.

    Raises:
        EgressError: the policy lets nothing out, a field has no class, one that a reply must have is missing, or a
            value is not what its class says.
    """
    entrusted = not plan.is_private or is_central(plan)
    if entrusted and (plan.name if federation is None else federation) not in policy.release.entrust:
        raise EgressError("the policy entrusts this federation with nothing")
    if plan.is_private and phase == "evaluate" and not policy.release.counts:
        raise EgressError("the policy lets no counts out")
    if plan.statistics is not None and not policy.release.statistics:
        raise EgressError("the policy lets no statistics out")
    fields = _fields(plan, phase)
    more: Fields = {}
    if phase == "train":
        more = {(METRICS, field): Disclosure.UNPROTECTED for field in unprotected_fields(plan, policy)}
    arrays = _arrays(plan, layout) if phase == "train" else _tables(plan)
    found = _checked(reply, fields, more, arrays)
    if plan.privacy.trust == "distributed" and phase == "train":
        _check_masked(reply, plan)
    if gives_joint(plan) and phase == "train":
        _check_joint(reply, layout)
    if plan.statistics is not None and plan.privacy.trust == "local":
        _check_counts(reply, layout)
    if phase == "evaluate" and plan.evaluation.per_class:
        _check_table(reply, plan)
    if plan.is_private and phase == "train" and reply[METRICS][WEIGHT] != 1:
        # Public only while it is the public constant (rule 1).
        raise EgressError(f"{METRICS}.{WEIGHT}: under privacy the weight is 1 for everybody")
    return found | {f"{ARRAYS}.{name}": _of_arrays(plan) for name in arrays}


def planned_fields(plan: Plan, policy: SitePolicy) -> dict[str, Disclosure]:
    """What would leave a site that works on a plan, by `record.field`; all arrays of an update as one."""
    fields = dict(_fields(plan, "train"))
    fields |= {(METRICS, field): Disclosure.UNPROTECTED for field in unprotected_fields(plan, policy)}
    if plan.privacy.trust == "distributed":
        fields |= _QUERIES["secure-sum"]
    if plan.evaluates_at_clients:
        fields |= _fields(plan, "evaluate") | {(ARRAYS, name): _of_arrays(plan) for name in _tables(plan)}
    if plan.personal is not None:
        fields |= _QUERIES["personalise"]
    return {ARRAYS: _of_arrays(plan), **{".".join(place): disclosure for place, disclosure in fields.items()}}


def check_query(reply: RecordDict, query: Query) -> dict[str, Disclosure]:
    """The class of every field of a reply that no data goes into.

    Raises:
        EgressError: as `classify`.
    """
    return _checked(reply, _QUERIES[query], {}, ())


def unprotected_fields(plan: Plan, policy: SitePolicy) -> tuple[str, ...]:
    """Fields that plan asks for and policy lets out as they are, beside a private update; they end its claim."""
    if not plan.is_private:
        return ()
    return tuple(field for field in plan.privacy.unprotected if field in policy.release.unprotected)


def _fields(plan: Plan, phase: Phase) -> Fields:
    """The fields beside arrays that a reply must have, with their classes."""
    fields = (_PRIVATE if plan.is_private else _PLAIN)[phase]
    if phase == "train" or not plan.evaluation.per_class:
        return fields
    return {place: kind for place, kind in fields.items() if place not in ((METRICS, CORRECT), (METRICS, TOTAL))}


def _tables(plan: Plan) -> tuple[str, ...]:
    """Names of the arrays that an evaluation leaves as."""
    return (CONFUSION,) if plan.evaluation.per_class else ()


def _of_arrays(plan: Plan) -> Disclosure:
    """Class of an update: one below the noise that a server adds is entrusted to it, whatever its ledger charges."""
    return Disclosure.CHARGED if plan.is_private and not is_central(plan) else Disclosure.ENTRUSTED


def _arrays(plan: Plan, layout: Layout) -> tuple[str, ...]:
    """Names of the arrays that an update leaves as: under distributed trust one alone, which is masked; and one where
    it leaves with the bit of a clipping norm that adapts."""
    if plan.privacy.trust == "distributed":
        return (MASKED,)
    return (JOINT,) if gives_joint(plan) else update_arrays(layout)


def _check_masked(reply: RecordDict, plan: Plan) -> None:
    """Whole numbers of the ring's own width, as many as the plan says: an update as it was trained isn't like that."""
    shape = (plan.secure.dimension or 0,)
    try:
        read_array(reply.array_records[ARRAYS][MASKED], MASKED, shape, f"uint{plan.secure.bits}")
    except LayoutError:
        raise EgressError(f"{ARRAYS}.{MASKED}: no vector of a secure sum") from None


def _check_table(reply: RecordDict, plan: Plan) -> None:
    """A whole number for each class and guess."""
    classes = len(card_for(plan.data).classes)
    try:
        read_array(reply.array_records[ARRAYS][CONFUSION], CONFUSION, (classes, classes), "int64")
    except LayoutError:
        raise EgressError(f"{ARRAYS}.{CONFUSION}: no table of counts by class") from None


def _check_joint(reply: RecordDict, layout: Layout) -> None:
    """One number more than is trained."""
    try:
        read_array(reply.array_records[ARRAYS][JOINT], JOINT, (layout.size + 1,), "float32")
    except LayoutError:
        raise EgressError(f"{ARRAYS}.{JOINT}: no update with its bit") from None


def _check_counts(reply: RecordDict, layout: Layout) -> None:
    """Whole numbers, as many as the plan has bins: counts whose noise is on no grid are none that were priced."""
    (name, shape), *_ = layout.entries
    try:
        found = read_array(reply.array_records[ARRAYS][name], name, shape, "float32")
    except LayoutError:
        raise EgressError(f"{ARRAYS}.{name}: no counts") from None
    if not (np.isfinite(found).all() and (found == np.rint(found)).all()):
        raise EgressError(f"{ARRAYS}.{name}: no whole numbers")


def _checked(reply: RecordDict, fields: Fields, more: Fields, names: tuple[str, ...]) -> dict[str, Disclosure]:
    """The classes of the fields, once the reply holds them, some of the others, arrays of these names, and no more."""
    arrays = {(ARRAYS, name) for name in names}
    records = {record for record, _ in (*fields, *arrays)}
    if set(reply) != records:
        raise EgressError(f"{sorted(set(reply) ^ records)}: nothing says that these records are there, or aren't")
    for name, record in reply.items():
        if not isinstance(record, _RECORDS[name]):
            raise EgressError(f"{name}: this record is of another kind")
    present = {(name, field) for name, record in reply.items() for field in record}
    wrong = present ^ {*fields, *arrays, *(present & more.keys())}
    if wrong:
        raise EgressError(f"{sorted(map('.'.join, wrong))}: nothing says that these fields are there, or aren't")
    for name, field in present - arrays:
        if type(reply[name][field]) is not _TYPES[name, field]:
            raise EgressError(f"{name}.{field}: its value is of another type")
    return {".".join(place): disclosure for place, disclosure in {**fields, **more}.items() if place in present}
