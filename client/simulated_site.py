"""A virtual owner: its policy allows the plan, its records are a part of one pool, its ledger is the run's.

It has no process of its own, so what it remembers of a secure sum is in Flower's `Context.state`, secrets too, which
every grid carries from message to message. That is for simulations alone: a site's own is in `client.sum_attempts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

from flwr.app import ConfigRecord, Context, RecordDict

from client.books import Books, books
from client.datasets.records import Records
from client.planting import PLANTED, with_canaries
from client.policy import SitePolicy, simulated_policy
from client.sum_attempts import Attempts, Pending, Resume
from client.workplace import Workplace, client_id, scope_id
from shared_models.faults import Fault
from shared_models.parameters import Parameters
from shared_models.plan import Plan


class SimulatedSite:
    """A virtual client: allows its plan, within the budget that the plan gives it."""

    deployed = False

    def __init__(self, place: Workplace, context: Context) -> None:
        self._place = place
        self._context = context

    @cached_property
    def client(self) -> str:
        return client_id(self._place, self._context)

    @property
    def booked_as(self) -> str:
        return scope_id(self._place, self._context)

    def federation(self, plan: Plan) -> str:
        return plan.name

    def policy(self, plan: Plan) -> SitePolicy:
        return simulated_policy(plan, self.booked_as)

    def refusal(self, plan: Plan) -> Fault | None:
        return None

    def books(self) -> Books:
        return books(str(self._context.run_config.get("ledger", "")))

    def peers(self, place: Workplace) -> Mapping[str, str]:
        found = self.books()  # identities follow from the run's own secret, as those that sign statements do
        return {client: found.owner(client).public_hex for client in place.client_ids()}

    def attempts(self) -> Attempts:
        return StateAttempts(self._context.state)

    def training_records(self, place: Workplace) -> Records:
        records, planting = place.records(self.client), self._context.run_config.get(PLANTED)
        return records if planting is None else with_canaries(records, str(planting), self.client)

    def held_out(self, place: Workplace) -> Records:
        return place.held_out(self.client)

    def keep_personal(self, place: Workplace, run: str, model: Parameters, judged: Callable[[], float | None]) -> None:
        return None  # the state is all there is; the simulation judges it (`simulations.personal`)


_ATTEMPT: Final = "veil-secure-sum"


class StateAttempts:
    """The newest attempt of a virtual client, in a state that is changed in place. As `client.sum_attempts.Attempts`.

    Where a worker died, its clients go on from the state before: what happened since has left nobody.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def newest(self, run: str) -> int:
        kept = self._record()
        return int(kept["number"]) if kept is not None and kept.get("run") == run else 0  # type: ignore[arg-type]

    def find(self, run: str, attempt: bytes, resume: Resume) -> Pending | None:
        kept = self._record()
        if kept is None or kept.get("run") != run or kept.get("attempt") != attempt or not kept.get("client"):
            return None
        client = resume(str(kept["model"]), kept["client"])  # type: ignore[arg-type]
        return Pending(client=client, model=str(kept["model"]), answered=str(kept["answered"]))

    def keep(self, pending: Pending) -> None:
        self._put(pending, b"" if pending.is_over else pending.client.to_bytes())

    def drop(self, pending: Pending) -> None:
        self._put(pending, b"")

    def _record(self) -> ConfigRecord | None:
        kept = self._state.get(_ATTEMPT)
        return kept if isinstance(kept, ConfigRecord) else None

    def _put(self, pending: Pending, client: bytes) -> None:
        attempt = pending.client.attempt
        if not client:
            self._state.pop(_ATTEMPT, None)
            return
        self._state[_ATTEMPT] = ConfigRecord(
            {
                "run": attempt.run,
                "number": attempt.number,
                "attempt": attempt.digest,
                "model": pending.model,
                "answered": pending.answered,
                "client": client,
            }
        )
