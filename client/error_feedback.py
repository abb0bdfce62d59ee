"""What compressed updates have left out so far: kept from round to round, and added to the next update.

Stich et al. 2018 (arXiv 1809.07599), Karimireddy et al. 2019 (arXiv 1901.09847). It is a function of updates, which
under privacy are noised and charged as a whole, whatever part of them is sent; so it costs nothing. It never leaves.

It lies in Flower's `Context.state`, which every grid carries and keeps with the reply, and it says whose remainder it
is. That of another plan is never added: a run's name is the server's to choose, and what a plan without privacy left
out would leave with a private update as if it were charged. A reply that left without its remainder (the process died
in between, and the ledger had the reply) has used up what was kept before: that is dropped, for adding it once more
would count it twice. Whatever is lost is logged.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.guard import Request
from shared_models.parameters import Layout, LayoutError, Parameters, read_array
from shared_models.protocol import ARRAYS
from shared_models.wire import decode_update, encode_update, leaves_out

_REST: Final = "veil-left-out"
_OF: Final = "veil-left-out-of"
_VALUES: Final = "values"

_log = logging.getLogger("veil.client")


class ErrorFeedback:
    """Encodes the update of one request, and keeps what that leaves out once the reply may leave.

    Args:
        state: the client's own, changed in place.
        layout: of the plan's model, with the form of updates.
        request: that is being answered.
        plan: digest of the plan that asks.
    """

    def __init__(self, state: RecordDict, layout: Layout, request: Request, *, plan: str) -> None:
        self._state = state
        self._layout = layout
        self._request = request
        self._plan = plan
        self._sent: ArrayRecord | None = None
        self._rest: Parameters = {}
        self._unusable = ""

    def encode(self, update: Parameters, *, seed: int) -> ArrayRecord:
        """The update as it travels, with what earlier ones left out. Keeps nothing yet: the reply may never leave.

        Args:
            update: change of the parameters, noised where the plan is private.
            seed: what is random in the encoding follows from it.
        """
        if not leaves_out(self._layout):
            return encode_update(update, self._layout, seed=seed)
        kept = self._kept()
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges is sent as it is, and not kept
            whole = {name: value if kept is None else value + kept[name] for name, value in update.items()}
            self._sent = encode_update(whole, self._layout, seed=seed)
            arrived = decode_update(self._sent, self._layout)
            self._rest = {name: whole[name] - arrived[name] for name, _ in self._layout.entries}
        return self._sent

    def answered(self, reply: RecordDict) -> None:
        """Keep what belongs to a reply that may leave now: to this update's, or to one that was stored before.

        A judgement's reply changes nothing.
        """
        if self._request.phase != "train" or not leaves_out(self._layout):
            return
        if self._sent is None or reply.get(ARRAYS) != self._sent:
            if not self._has_rest_of_request_or_later():
                self._lose("the reply was made before, and what it left out was not kept")
        elif not all(np.isfinite(value).all() for value in self._rest.values()):
            self._lose("the update is not finite")
        else:
            if self._unusable:
                self._lose(self._unusable)
            self._keep()

    def _kept(self) -> Parameters | None:
        """What earlier rounds of this plan's run left out; None if there is nothing, or nothing that can be used."""
        if _REST not in self._state and _OF not in self._state:
            return None
        plan, run, number, _ = self._owner()
        if (plan, run) != (self._plan, self._request.run) or number >= self._request.round:
            self._unusable = "it belongs to no earlier round of this plan's run"
            return None
        record, layout = self._state[_REST], self._layout
        try:
            if not isinstance(record, ArrayRecord) or list(record) != [_VALUES]:
                raise LayoutError("not what was kept")
            values = read_array(record[_VALUES], _VALUES, (layout.size,), "float32")
        except LayoutError:
            self._unusable = "it is damaged"
            return None
        sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape in layout.entries]
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(layout.entries, parts, strict=True)}

    def _owner(self) -> tuple[str, str, int, str]:
        """Plan, run, round and digest of the request whose remainder is kept; of none if that is unknown."""
        record = self._state.get(_OF)
        if not isinstance(record, ConfigRecord) or not isinstance(self._state.get(_REST), ArrayRecord):
            return "", "", 0, ""
        plan, run, number, digest = (record.get(name) for name in ("plan", "run", "round", "request"))
        if not (isinstance(plan, str) and isinstance(run, str) and isinstance(number, int) and isinstance(digest, str)):
            return "", "", 0, ""
        return plan, run, number, digest

    def _has_rest_of_request_or_later(self) -> bool:
        plan, run, number, digest = self._owner()
        own = self._request
        return (plan, run) == (self._plan, own.run) and (
            number > own.round or (number == own.round and digest == own.digest)
        )

    def _keep(self) -> None:
        values = np.concatenate([np.zeros(0, np.float32), *(value.ravel() for value in self._rest.values())])
        own = self._request
        self._state[_REST] = ArrayRecord({_VALUES: Array(values)})
        self._state[_OF] = ConfigRecord({"plan": self._plan, "run": own.run, "round": own.round, "request": own.digest})

    def _lose(self, why: str) -> None:
        for name in (_REST, _OF):
            if name in self._state:
                del self._state[name]
        _log.warning("what updates before round %d left out is dropped: %s", self._request.round, why)
