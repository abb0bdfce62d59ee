"""SCAFFOLD's control variate of one client: kept from round to round, made of updates that left, and of nothing else.

What a variate gains by a round follows from the round's update, as it was released, and from what the server said
(`shared_models.plan_scaffold`). So the server knows it too, without having been told, and under privacy it is
post-processing. It never leaves, and it lies in Flower's `Context.state`, which every grid keeps with the reply.

An update may be lost on its way, come too late, or belong to a round that failed: then it is in nobody's mean, and a
variate that counted it would be wrong for ever. So both are kept, the variate before the last update and the one after
it, and the server says which of the client's updates was the last that it counted.

Of another plan or run nothing is used: the variate of a plan without privacy would bring into a private update what was
never charged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.guard import Request
from shared_models.parameters import Layout, LayoutError, Parameters, all_finite, in_order, read_array, unflat
from shared_models.plan import Plan
from shared_models.plan_scaffold import variate_gain
from shared_models.protocol import ARRAYS
from shared_models.schedule import learning_rate
from shared_models.wire import decode_update

_VARIATES: Final = "veil-variates"
_OF: Final = "veil-variates-of"
_BEFORE, _AFTER = "before", "after"

_log = logging.getLogger("veil.client")


@dataclass(frozen=True, kw_only=True)
class Control:
    """What the server says beside the model.

    Attributes:
        values: c, the mean of all clients' variates.
        counted: the last round of the run whose model this client's update is in; 0 for none.
    """

    values: Parameters
    counted: int


class Variate:
    """A client's variate in one request.

    Args:
        state: the client's own, changed in place.
        layout: of the plan's model.
        request: that is being answered.
        plan: resolved.
        control: what the server says; None in a plan without variates, of which nothing is kept.
    """

    def __init__(
        self, state: RecordDict, layout: Layout, request: Request, *, plan: Plan, control: Control | None
    ) -> None:
        self._state, self._layout, self._request, self._plan, self._control = state, layout, request, plan, control

    def correction(self) -> Parameters | None:
        """c - c_i, which is added to each step's gradient; None where there are no variates."""
        if self._control is None:
            return None
        own, control = self._own(), self._control.values
        return {name: control[name] - own[name] for name in control}

    def answered(self, reply: RecordDict) -> None:
        """Keep what belongs to a reply that may leave now: to this one, or to one that was stored before."""
        control, plan, number = self._control, self._plan, self._request.round
        if control is None:
            return
        own = self._own(warn=True)
        update = decode_update(reply.array_records[ARRAYS], self._layout)
        rate = learning_rate(plan, number)
        gain = variate_gain(control.values, update, steps=plan.training.local_steps, rate=rate)
        after = {name: own[name] + gain[name] for name in gain}
        values = {_BEFORE: own}
        if all_finite(after):  # the server has no use for it either
            values[_AFTER] = after
        self._state[_VARIATES] = ArrayRecord({name: Array(self._flat(value)) for name, value in values.items()})
        self._state[_OF] = ConfigRecord(
            {"plan": plan.digest(), "run": self._request.run, _BEFORE: control.counted, _AFTER: number}
        )

    def _own(self, *, warn: bool = False) -> Parameters:
        """c_i, of the updates that the server has counted; zeros before there were any."""
        assert self._control is not None
        counted, found = self._control.counted, self._kept()
        own = found.get(counted)
        if own is None and counted > 0 and found:
            nearest = min(found, key=lambda number: (abs(number - counted), number))
            own = found[nearest]
        if warn and counted > 0 and counted not in found:
            _log.warning("the variate after round %d isn't kept here: corrections are less good for it", counted)
        return unflat(np.zeros(self._layout.size, np.float32) if own is None else own, self._layout)

    def _kept(self) -> dict[int, npt.NDArray[np.float32]]:
        """Variates by the last round that they count, of this plan's run alone."""
        of, record = self._state.get(_OF), self._state.get(_VARIATES)
        if not isinstance(of, ConfigRecord) or not isinstance(record, ArrayRecord):
            return {}
        if (of.get("plan"), of.get("run")) != (self._plan.digest(), self._request.run):
            return {}
        found: dict[int, npt.NDArray[np.float32]] = {}
        for name in (_BEFORE, _AFTER):
            number = of.get(name)
            if name in record and type(number) is int:
                try:
                    found[number] = read_array(record[name], name, (self._layout.size,), "float32")
                except LayoutError:
                    _log.warning("a variate is damaged, and isn't used")
        return found

    def _flat(self, values: Parameters) -> npt.NDArray[np.float32]:
        rows = (value.ravel() for _, value in in_order(values, self._layout))
        return np.concatenate([np.zeros(0, np.float32), *rows])
