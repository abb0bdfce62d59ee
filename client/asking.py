"""What a server asks, held against the plan before anything is done about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flwr.app import ArrayRecord, Message, RecordDict

from client.guard import Request
from client.policy import RefusedError
from client.variate import Control
from client.workplace import Workplace
from privacy.ledger import Anchor
from shared_models.content_digest import content_parts, digest_of_parts
from shared_models.faults import Fault
from shared_models.last import Last
from shared_models.parameters import LayoutError, Parameters, all_finite, from_arrays
from shared_models.plan import Plan
from shared_models.plan_adaptive import is_adaptive, may_be_norm
from shared_models.plan_scaffold import is_scaffold
from shared_models.protocol import (
    ARRAYS,
    CLIPPING_NORM,
    CONFIG,
    CONTROL,
    COUNTED,
    HEAD_HASH,
    HEAD_POSITION,
    LAYOUT_DIGEST,
    PLAN_DIGEST,
    ROUND,
    RUN,
    Phase,
)

_LONGEST_RUN: Final = 64
_LARGE: Final = 1 << 24  # bytes

_models: Final[Last[Parameters]] = Last()
_digests: Final[Last[str]] = Last()


def check_plan(message: Message, plan: Plan) -> None:
    """Check that a message is about this plan.

    Raises:
        RefusedError: it isn't.
    """
    config = message.content.config_records.get(CONFIG)
    if config is None or config.get(PLAN_DIGEST) != plan.digest():
        raise RefusedError(Fault.PLAN_MISMATCH)


def run_and_round(message: Message, place: Workplace) -> tuple[str, int]:
    """Which run and round a message belongs to, once `check_plan` has passed it.

    Raises:
        RefusedError: the plan has no such round, a run isn't called so, or it is about another model.
    """
    config = message.content.config_records[CONFIG]
    number, run = config.get(ROUND), config.get(RUN)
    if type(number) is not int or not 1 <= number <= place.plan.federation.rounds:
        raise RefusedError(Fault.PLAN_MISMATCH)
    if not isinstance(run, str) or not 0 < len(run) <= _LONGEST_RUN:
        raise RefusedError(Fault.PLAN_MISMATCH)
    if config.get(LAYOUT_DIGEST) != place.layout.digest:
        raise RefusedError(Fault.MODEL_MISMATCH)
    return run, number


def request_and_model(message: Message, place: Workplace, phase: Phase) -> tuple[Request, Parameters]:
    """A request that touches data, and the shared model in it.

    Raises:
        RefusedError: as `run_and_round`, or the plan asks for no such thing, or the model is another one.
    """
    run, number = run_and_round(message, place)
    plan = place.plan
    if phase == "evaluate" and not (plan.evaluates_at_clients and plan.is_evaluated(number)):
        raise RefusedError(Fault.PLAN_MISMATCH)
    norm = norm_of(message, plan) if phase == "train" else None
    start = model_of(message, place)
    return Request(run=run, round=number, phase=phase, digest=digest_of(message.content), norm=norm), start


def norm_of(message: Message, plan: Plan) -> float | None:
    """The round's clipping norm, where it adapts: one that the plan allows, and in the first round the plan's own.

    The price hangs on no norm. But a server could spoil a model, or learn what a client would refuse to tell, by a norm
    that nobody agreed to.

    Raises:
        RefusedError: it is missing, or none.
    """
    if not is_adaptive(plan):
        return None
    config = message.content.config_records[CONFIG]
    norm, number = config.get(CLIPPING_NORM), config.get(ROUND)
    if type(number) is not int or not may_be_norm(plan, norm, round_number=number):
        raise RefusedError(Fault.PLAN_MISMATCH)
    assert isinstance(norm, float)
    return norm


def model_of(message: Message, place: Workplace) -> Parameters:
    """The shared model in a request.

    Raises:
        RefusedError: there is none, or another one than the plan's.
    """
    arrays = message.content.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord):
        raise RefusedError(Fault.MODEL_MISMATCH)
    try:
        return _decoded(arrays, place)
    except LayoutError:
        raise RefusedError(Fault.MODEL_MISMATCH) from None


def control_of(message: Message, place: Workplace) -> Control | None:
    """What SCAFFOLD's server says beside the model; None where the plan isn't of that kind.

    Raises:
        RefusedError: there is none, or none of the plan's model.
    """
    if not is_scaffold(place.plan):
        return None
    arrays, counted = message.content.get(CONTROL), message.content.config_records[CONFIG].get(COUNTED)
    if type(counted) is not int or not 0 <= counted <= place.plan.federation.rounds:
        raise RefusedError(Fault.PLAN_MISMATCH)
    if not isinstance(arrays, ArrayRecord):
        raise RefusedError(Fault.MODEL_MISMATCH)
    try:
        values = _decoded(arrays, place)
    except LayoutError:
        raise RefusedError(Fault.MODEL_MISMATCH) from None
    if not all_finite(values):
        raise RefusedError(Fault.MODEL_MISMATCH)
    return Control(values=values, counted=counted)


def _decoded(arrays: ArrayRecord, place: Workplace) -> Parameters:
    def decode() -> Parameters:
        found = from_arrays(arrays, place.layout)
        for value in found.values():
            value.flags.writeable = False  # other clients are given it too
        return found

    parts = tuple(part for name, array in arrays.items() for part in (name, array.data))
    return decode() if _is_large(parts) else dict(_models.of((place.layout, *parts), decode))


def digest_of(content: RecordDict) -> str:
    """SHA-256 of all that a request holds: names, numbers and arrays."""
    parts = tuple(content_parts(content))
    return digest_of_parts(parts) if _is_large(parts) else _digests.of(parts, lambda: digest_of_parts(parts))


def _is_large(parts: Iterable[str | bytes]) -> bool:
    """Whether a message is too large to be held for the next client's sake."""
    return sum(map(len, parts)) > _LARGE


def known_entry(message: Message, scope: str) -> Anchor | None:
    """The newest entry of this client's ledger that the server has seen, if it says so.

    Raises:
        RefusedError: it says something that is none.
    """
    config = message.content.config_records[CONFIG]
    position, digest = config.get(HEAD_POSITION), config.get(HEAD_HASH)
    if position is None and digest is None:
        return None
    try:
        return Anchor(scope=scope, position=position, hash=digest)  # type: ignore[arg-type]  # it checks
    except ValueError:
        raise RefusedError(Fault.LEDGER_CLOSED) from None
