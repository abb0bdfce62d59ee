"""What of a model is a client's own: kept from round to round, used for its training alone, and never in a reply.

It lies in Flower's `Context.state`, which stays at the client (at a deployed site: in its outbox, a file of mode 0600,
written in one transaction with the reply that goes with it). It is kept once the reply may leave and not before: what
was trained in vain, because a process died, is trained again under the same reservation, and must leave no trace.
It belongs to a plan's run: the head of a plan without privacy would bring into a private update what was never charged.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.datasets.records import Records
from client.guard import Request
from client.trainer import train_plain
from client.workplace import Workplace
from shared_models.parameters import LayoutError, Parameters, all_finite, read_array
from shared_models.plan import ConstantSchedule, Plan
from shared_models.plan_personal import DittoPersonal, FinetunePersonal, has_own_head

_OWN: Final = "veil-personal"
_OF: Final = "veil-personal-of"

_log = logging.getLogger("veil.client")


class Personal:
    """What is a client's own, in one request.

    Args:
        state: the client's, changed in place.
        place: the plan at work.
        request: that is being answered.
    """

    def __init__(self, state: RecordDict, place: Workplace, request: Request) -> None:
        self._state, self._place, self._request = state, place, request
        self._head: Parameters | None = None  # after this request's training

    def whole(self, shared: Parameters) -> Parameters:
        """The model to train and judge: the shared one, with the client's own head where it has one."""
        place = self._place
        if not has_own_head(place.plan):
            return shared
        kept = kept_of(self._state, place, self._request.run)
        return {**shared, **(place.own if kept is None else kept)}

    def shared(self, start: Parameters, change: Parameters) -> Parameters:
        """The part of a change that is shared; the rest is kept once the reply may leave.

        Args:
            start: the whole model that was trained from.
            change: of all of it.
        """
        own = self._place.own
        if not own:
            return change
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges isn't kept
            self._head = {name: np.asarray(start[name] + change[name], np.float32) for name in own}
        return {name: value for name, value in change.items() if name not in own}

    def answered(self) -> None:
        """Keep what belongs to a reply that may leave now; that of a stored one is kept already, or gone."""
        if self._head is None:
            return
        if all_finite(self._head):
            keep(self._state, self._place.plan, self._request, self._head)
        else:
            _log.warning("the client's own head is not finite; it stays as it was before round %d", self._request.round)

    def train_beside(self, shared: Parameters, records: Records, client: str) -> None:
        """Ditto's step (algorithm 1 of the paper): train the own model, pulled towards the shared one that was sent.

        Nothing that leaves follows from it, and it is trained after the reply was made.
        """
        place, request = self._place, self._request
        personal = place.plan.personal
        if not isinstance(personal, DittoPersonal) or len(records) == 0 or _is_of(self._state, self._request):
            return
        kept = kept_of(self._state, place, request.run)
        own = dict(shared) if kept is None else kept
        changes: dict[str, object] = {"proximal_mu": personal.pull}
        if personal.learning_rate is not None:
            changes |= {"learning_rate": personal.learning_rate, "schedule": ConstantSchedule()}
        plan = place.plan.model_copy(update={"training": place.plan.training.model_copy(update=changes)})
        found = _trained(place, own, records, plan, request, client, anchor=shared)
        if found is not None:
            keep(self._state, place.plan, request, found)


def _is_of(state: RecordDict, request: Request) -> bool:
    """Whether what is kept was made in answer to this very request."""
    of = state.get(_OF)
    return isinstance(of, ConfigRecord) and of.get("request") == request.digest


def personal_model(state: RecordDict, place: Workplace, run: str, shared: Parameters) -> Parameters:
    """A client's whole model: the shared one with its own head, or its own one; without any, the shared one.

    Args:
        state: the client's.
        place: the plan at work.
        run: the server's own id of the run.
        shared: what the last round made.
    """
    kept = kept_of(state, place, run)
    if has_own_head(place.plan):
        return {**shared, **(place.own if kept is None else kept)}
    return shared if kept is None else kept


def finetune(
    state: RecordDict, place: Workplace, request: Request, shared: Parameters, records: Records, client: str
) -> None:
    """Train the last shared model on, on a client's own records, and keep what becomes of it: without noise, for it
    stays. Of a plan of another kind, or without records, nothing is done."""
    personal = place.plan.personal
    if not isinstance(personal, FinetunePersonal) or len(records) == 0 or _is_of(state, request):
        return
    rate = personal.learning_rate or place.plan.training.learning_rate
    changes: dict[str, object] = {
        "epochs": personal.epochs,
        "steps": None,
        "learning_rate": rate,
        "schedule": ConstantSchedule(),
        "proximal_mu": 0.0,
    }
    plan = place.plan.model_copy(update={"training": place.plan.training.model_copy(update=changes)})
    found = _trained(place, shared, records, plan, request, client)
    if found is not None:
        keep(state, place.plan, request, found)


def _trained(
    place: Workplace,
    start: Parameters,
    records: Records,
    plan: Plan,
    request: Request,
    client: str,
    anchor: Parameters | None = None,
) -> Parameters | None:
    """What plain training makes of a model; None where it diverges."""
    change, _ = train_plain(
        place.model, start, records, plan, round_number=request.round, client=f"{client} for itself", anchor=anchor
    )
    with np.errstate(over="ignore", invalid="ignore"):
        found = {name: np.asarray(start[name] + value, np.float32) for name, value in change.items()}
    if all_finite(found):
        return found
    _log.warning("the client's own model is not finite; it stays as it was before round %d", request.round)
    return None


def kept_of(state: RecordDict, place: Workplace, run: str) -> Parameters | None:
    """What a client keeps of a plan's run; None if there is nothing, or nothing that can be used."""
    of, record = state.get(_OF), state.get(_OWN)
    if not isinstance(of, ConfigRecord) or not isinstance(record, ArrayRecord):
        return None
    if (of.get("plan"), of.get("run")) != (place.plan.digest(), run):
        return None
    shapes = {name: value.shape for name, value in place.own.items()} or dict(place.layout.entries)
    try:
        if record.keys() != shapes.keys():
            raise LayoutError("not what was kept")
        return {name: read_array(record[name], name, shape, "float32") for name, shape in shapes.items()}
    except LayoutError:
        _log.warning("what is the client's own is damaged, and isn't used")
        return None


def keep(state: RecordDict, plan: Plan, request: Request, values: Parameters) -> None:
    """Keep what a client's own training has made."""
    state[_OWN] = ArrayRecord({name: Array(value) for name, value in values.items()})
    state[_OF] = ConfigRecord({"plan": plan.digest(), "run": request.run, "request": request.digest})
